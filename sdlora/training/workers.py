"""The processes that train together, usually one, and the device of this one.

Where they meet, each says whether it can go on, so that an error in one of them ends all with one message. What is
exchanged in a step is one tensor: all gradients, the loss, and whether something went wrong.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from accelerate import PartialState
from torch import Tensor

from sdlora.errors import ConfigError, LostProcessError, OutOfMemoryError, SdloraError, TrainingError
from sdlora.processes import ProcessRecord, num_processes, start_mark

T = TypeVar("T")

# The others wait while the first one generates previews or proves the file, which may take long on a processor. Who is
# gone is noticed by the closed connection, not by this.
_PATIENCE = timedelta(hours=6)
_SECONDS_TO_FIND_WHO = 3.0


@dataclass(frozen=True)
class BadLoss:
    """A loss that is not finite, and where in the run it was."""

    position: int
    value: float
    names: tuple[str, ...]
    """The batch's images."""


@dataclass(frozen=True)
class _Failure:
    """An error of one process, as the others are told of it."""

    message: str
    is_memory: bool

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        told = str(error) if isinstance(error, SdloraError) else f"{type(error).__name__}: {error}"
        return cls(told, isinstance(error, OutOfMemoryError))


class Workers:
    """Device, rank and communication, as set up by accelerate.

    Several processes are started with `sdlora train --processes 2`, torchrun or accelerate launch. The adapter is the
    only thing trained and small, so its gradients are summed directly; the base model needs no wrapper.
    Raises ConfigError for a device that isn't there, or not for each process.
    """

    def __init__(self, device: str = "auto") -> None:
        wanted = num_processes()
        check_cards(device, num_processes("LOCAL_WORLD_SIZE"))
        try:
            self._state = PartialState(cpu=device == "cpu" or (wanted > 1 and not _has_cards()), timeout=_PATIENCE)
        except RuntimeError as error:
            if wanted == 1:
                raise
            reason = str(error).strip().splitlines()[0][:200]
            raise LostProcessError(f"the {wanted} processes can't reach each other: {reason}") from error
        if wanted != self.count:
            raise ConfigError(
                "optimization.device", [f"{wanted} processes can't train together on '{device}': use cpu or cuda"]
            )
        if device not in ("auto", "cpu"):
            self.device = _checked(device) if self.count == 1 else self._own_card(device)
        else:
            self.device = torch.device("cpu") if self._state.device.type == "cpu" else self._state.device
        self.bytes_exchanged = 0
        """What this process has handed to the others so far, in gradients and messages of a known size."""
        self._peers: list[ProcessRecord] = []
        if self.count > 1:
            self._peers = self._gather(ProcessRecord.of(os.getpid()))

    @property
    def count(self) -> int:
        """How many processes train together."""
        return int(self._state.num_processes)

    @property
    def index(self) -> int:
        """The number of this process, counted from 0."""
        return int(self._state.process_index)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and events."""
        return self.index == 0

    def meet(self, error: BaseException | None = None) -> None:
        """Wait until all processes have come to this point, or one of them with an error.

        Raises the error of another one; one's own is left to the caller to raise.
        """
        if self.count == 1:
            return
        failures: list[_Failure | None] = self._gather(None if error is None else _Failure.of(error))
        if error is None:
            self._raise_for(failures)
        elif isinstance(error, SdloraError):
            # The main process tells it, be it that one's own or another's.
            error.is_told = not self.is_main

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, an error in one process ends all of them, and the main one tells it. They meet where it ends."""
        try:
            yield
        except LostProcessError:
            raise
        except Exception as error:
            if not getattr(error, "is_told", False) and not getattr(error, "is_of_another", False):
                self.meet(error)
            raise
        self.meet()

    def share(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        with self._reaching():
            torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return cast(T, box[0])

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag whether it is set in any process."""
        if self.count == 1:
            return list(flags)
        return [value > 0 for value in self._sum(torch.tensor(flags, dtype=torch.int32)).tolist()]

    def gather_parts(self, values: Sequence[float]) -> list[float]:
        """Values of which each process knows every `count`-th, beginning with its index, and gives 0 for the others."""
        if self.count == 1:
            return list(values)
        # A sum with zeros is exact, so all have to the last bit what one process alone would have.
        numbers: list[float] = self._sum(torch.tensor(values, dtype=torch.float64)).tolist()
        return numbers

    def add_up(
        self, parameters: Sequence[Tensor], loss: float, bad: BadLoss | None, error: Exception | None
    ) -> tuple[float, BadLoss | None]:
        """Put the sum over the processes in place of each gradient; returns the summed loss, and the first bad one.

        error: what kept this process from its share; then the others raise it too. Everything goes in one exchange.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return loss, bad
        troubled = bad is not None or error is not None
        sizes = [parameter.numel() for parameter in parameters]
        flat = torch.zeros(sum(sizes) + len(sizes) + 2, dtype=torch.float32, device=self.device)
        ends = flat[sum(sizes) :]
        if not troubled:
            for part, parameter in zip(flat.split([*sizes, len(ends)]), parameters, strict=False):
                if parameter.grad is not None:
                    part.copy_(parameter.grad.detach().reshape(-1))
            # Whether there is a gradient at all: an optimizer leaves weights alone that have none.
            ends[: len(sizes)] = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        ends[-2], ends[-1] = (0.0 if troubled else loss), float(troubled)
        flat = self._sum(flat)
        *has_gradient, total, trouble = flat[sum(sizes) :].tolist()
        if trouble:
            return self._first_bad(bad, error)
        for part, parameter, has in zip(flat.split([*sizes, len(ends)]), parameters, has_gradient, strict=False):
            parameter.grad = part.view_as(parameter) if has else None
        return total, None

    def _first_bad(self, bad: BadLoss | None, error: Exception | None) -> tuple[float, BadLoss | None]:
        """In the rare step in which something is wrong somewhere, find out what: one more exchange."""
        told: list[tuple[BadLoss | None, _Failure | None]] = self._gather(
            (bad, None if error is None else _Failure.of(error))
        )
        if error is not None:
            if isinstance(error, SdloraError):
                error.is_told = not self.is_main
            raise error
        self._raise_for([failure for _, failure in told])
        first = min((one for one, _ in told if one is not None), key=lambda one: one.position)
        return math.nan, first

    def _raise_for(self, failures: Sequence[_Failure | None]) -> None:
        for index, failure in enumerate(failures):
            if failure is None:
                continue
            kind = OutOfMemoryError if failure.is_memory else TrainingError
            error = kind(f"process {index} of {self.count} (counted from 0): {failure.message}")
            error.is_told = not self.is_main
            error.is_of_another = True  # type: ignore[attr-defined]
            raise error

    def _gather(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with self._reaching():
            torch.distributed.all_gather_object(found, value)
        return found

    def _sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        with self._reaching():
            torch.distributed.all_reduce(values)
        self.bytes_exchanged += values.numel() * values.element_size()
        return values

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Around an exchange, the backend's own error becomes one that names the process that is gone."""
        try:
            yield
        except RuntimeError as error:
            raise LostProcessError(self._who_is_gone(str(error))) from error

    def _who_is_gone(self, told: str) -> str:
        if not self.is_main:
            # Only the main process tells it, and must not take those for the first who end because of the same.
            time.sleep(_SECONDS_TO_FIND_WHO)
        deadline = time.monotonic() + _SECONDS_TO_FIND_WHO
        while self.is_main and time.monotonic() < deadline:
            # The system closes a process's connections a moment before it is gone.
            gone = [
                f"process {index} of {self.count} (counted from 0; id {peer.process_id})"
                for index, peer in enumerate(self._peers)
                if peer.is_here() and start_mark(peer.process_id) != peer.started
            ]
            if gone:
                number = "is" if len(gone) == 1 else "are"
                return f"{', '.join(gone)} {number} gone: killed, out of memory, or ended by an error of its own"
            time.sleep(0.02)
        return f"the other processes can't be reached any more ({told.strip().splitlines()[0][:200]})"

    def _own_card(self, device: str) -> torch.device:
        if device != self._state.device.type:  # also cuda:1, which all would share
            raise ConfigError(
                "optimization.device",
                [f"'{device}' can't be used by {self.count} processes: use auto, which gives each a card of its own"],
            )
        return self._state.device


def check_cards(device: str, processes: int) -> None:
    """Raise ConfigError where processes of this machine would have to share a card."""
    cards = torch.cuda.device_count()
    if processes > 1 and device != "cpu" and 0 < cards < processes:
        number = "1 card" if cards == 1 else f"{cards} cards"
        raise ConfigError(
            "optimization.device",
            [f"{processes} processes need a card each and this machine has {number}: take {cards} or device=cpu"],
        )


def _has_cards() -> bool:
    """Whether there are devices that processes can exchange gradients between (Apple's are none)."""
    return torch.cuda.is_available() or torch.xpu.is_available()


def check_device(name: str) -> None:
    """Raise ConfigError for the name of no device, or of one that isn't there; nothing is put on it."""
    if name == "auto":
        return
    try:
        device = torch.device(name)
    except RuntimeError:
        problem = f"'{name}' is no device: use auto, cpu, cuda, cuda:1 or mps"
        raise ConfigError("optimization.device", [problem]) from None
    cards = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        there_is = f"only {cards} of them" if cards else "no card that torch can use (sdlora doctor says why)"
        raise ConfigError("optimization.device", [f"there is no '{name}' on this machine, which has {there_is}"])
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("optimization.device", [f"there is no '{name}' on this machine"])


def _checked(name: str) -> torch.device:
    check_device(name)
    try:
        device = torch.device(name)
        # A name that parses may still be a card that isn't there: only an allocation finds out.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError("optimization.device", [f"'{name}' can't be used: {reason}"]) from None
    return device
