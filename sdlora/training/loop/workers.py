"""The processes that train together, usually one, and the device of this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor

from sdlora.errors import ConfigError

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this process writes files and events, known before the processes have found each other."""
    return os.environ.get("RANK", "0") == "0"


class Workers:
    """Device, rank and communication, as set up by accelerate.

    Several processes are started with `torchrun --nproc-per-node 2 -m sdlora train ...`. The adapter is the only thing
    trained and small, so its gradients are averaged directly; the base model needs no wrapper.
    Raises ConfigError for a device that isn't there.
    """

    def __init__(self, device: str = "auto") -> None:
        self._state = PartialState(cpu=device == "cpu")
        self.device = self._state.device if device in ("auto", "cpu") else _checked(device)
        if device in ("auto", "cpu") and self.device.type == "cpu":
            self.device = torch.device("cpu")

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

    def wait(self) -> None:
        """Wait until all processes have come to this point."""
        self._state.wait_for_everyone()

    def share(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        return cast(T, broadcast_object_list([value])[0])

    def mean(self, value: float) -> float:
        """The mean of each process's value."""
        if self.count == 1:
            return value
        return float(reduce(torch.tensor(value, device=self.device), "mean"))

    def any(self, value: bool) -> bool:
        # accelerate reduces by sum or mean only; a mean above 0 is an "or".
        """Whether the value is true in any process."""
        return self.mean(float(value)) > 0

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "mean")


def _checked(name: str) -> torch.device:
    try:
        device = torch.device(name)
        # A name that parses may still be a card that isn't there: only an allocation finds out.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError("optimization.device", [f"'{name}' can't be used: {reason}"]) from None
    return device
