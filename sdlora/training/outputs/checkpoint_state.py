"""Checkpoints on the disk: everything a run needs to go on exactly, beside an adapter file for other tools."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from sdlora import atomic
from sdlora.constants import MIB
from sdlora.errors import TrainingError
from sdlora.models.headers import unpickle
from sdlora.runs import checkpoints
from sdlora.runs.checkpoints import STATE_FILE, Checkpoint
from sdlora.runs.folder import RunFolder

_CHECKSUMS = "checksums.json"
_PARTS = {"adapter", "optimizer", "precision", "progress"}


def save(folder: RunFolder, step: int, state: dict[str, Any], write_adapter: Callable[[Path], object]) -> Checkpoint:
    """Write a checkpoint so that it is either there whole or not at all; `write_adapter` gets the folder to fill."""
    path = folder.checkpoint(step)
    with atomic.making_folder(path) as unfinished:
        write_adapter(unfinished)
        with (unfinished / STATE_FILE).open("wb") as file:
            _write_state(state, file)
        sums = {file.name: _checksum(file) for file in sorted(unfinished.iterdir()) if file.is_file()}
        atomic.write_json(unfinished / _CHECKSUMS, sums)
    return Checkpoint(step, path)


def load(checkpoint: Checkpoint, *, with_checksums: bool = False) -> dict[str, Any]:
    """The trainer's state as it was saved, on the CPU. Raises TrainingError when it is damaged.

    with_checksums: one that has none is damaged too.
    """
    if damage := _damage(checkpoint, with_checksums):
        raise TrainingError(f"the checkpoint {checkpoint.path.name} is damaged: {damage}")
    try:
        # weights_only, as run folders are passed around and a full pickle can run code.
        state = unpickle(checkpoint.state)
    except Exception as error:  # whatever torch's reader stumbles over: there is nothing to list
        reason = " ".join(f"{error or type(error).__name__}".split())[:200]
        raise TrainingError(f"the checkpoint {checkpoint.path.name} is damaged: {STATE_FILE}: {reason}") from error
    if not isinstance(state, dict) or not state.keys() >= _PARTS:
        raise TrainingError(f"the checkpoint {checkpoint.path.name} is damaged: {STATE_FILE} holds something else")
    return state


def adapter_damage(file: Path) -> str:
    """What is wrong with a checkpoint's adapter file by its checksum; "" for a sound one, and where none was taken."""
    try:
        kept = json.loads((file.parent / _CHECKSUMS).read_text(encoding="utf-8")).get(file.name)
    except (OSError, ValueError, AttributeError):
        return ""  # what it says otherwise is still to be read
    return "" if kept in (None, _checksum(file)) else "it differs from what was written"


def newest_sound(folder: RunFolder, tell: Callable[[str], None]) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest checkpoint that can be read, with its state; each damaged one before it is told of.

    Raises TrainingError when there are checkpoints and all are damaged.
    """
    found = checkpoints.find(folder)
    # One alone without them has lost them; where all have none, a version wrote the run that knew none yet.
    with_checksums = any((checkpoint.path / _CHECKSUMS).is_file() for checkpoint in found)
    if found and not with_checksums:
        tell(f"{folder.path.name}: its checkpoints carry no checksums, so damage to them would not be noticed")
    for checkpoint in reversed(found):
        try:
            return checkpoint, load(checkpoint, with_checksums=with_checksums)
        except TrainingError as error:
            tell(f"{error}; going back to the one before")
    if found:
        raise TrainingError(
            f"all {len(found)} checkpoints of {folder.path} are damaged, so there is nothing to go on from. Begin a "
            f"new run; what can still be read of an adapter file can be its start: adapter.start_from={found[-1].path}"
        )
    return None


class _Remembering:
    """A file that keeps the disk's error, which torch's zip writer hides behind one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """As the file does it."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """As the file does it."""
        self.file.flush()


def _write_state(state: dict[str, Any], file: BinaryIO) -> None:
    remembering = _Remembering(file)
    try:
        torch.save(state, cast(IO[bytes], remembering))
    except RuntimeError:
        if remembering.error is not None:
            raise remembering.error from None
        raise


def _damage(checkpoint: Checkpoint, with_checksums: bool) -> str:
    """What differs from the checksums; "" for a sound checkpoint, and for one that has none and needs none."""
    try:
        sums = json.loads((checkpoint.path / _CHECKSUMS).read_text(encoding="utf-8"))
        if STATE_FILE not in sums:
            return f"{_CHECKSUMS} says nothing of {STATE_FILE}"
        names = [name for name, kept in sums.items() if _checksum(checkpoint.path / name) != kept]
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        return "" if missing == _CHECKSUMS and not with_checksums else f"{missing} is missing"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{_CHECKSUMS} can't be read ({error})"
    return f"{', '.join(names)} differ from what was written" if names else ""


def _checksum(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        while block := content.read(MIB):
            digest.update(block)
    return digest.hexdigest()
