"""The changes of a dataset that can be taken back: what the newest one was, and taking it back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sdlora.config.images import CaptionsConfig
from sdlora.data.companions import companions
from sdlora.data.fix.changes import LOG, Change, apply, batch_folders, logged, undo
from sdlora.data.sets.listing import Item
from sdlora.data.unread import CAPTION_SUFFIXES
from sdlora.errors import DataError

_WORDS = {"edit": "edit", "upload": "upload of captions", "delete": "deletion", "caption": "captioning", "mask": "mask"}


@dataclass(frozen=True)
class LastChange:
    """The newest change that is kept for undo."""

    what: str
    files: int
    batch: str
    """Name of the folder that keeps what was before: no other change has the same."""

    @property
    def words(self) -> str:
        """`Undo the edit of 12 files`."""
        return f"Undo the {self.what} of {self.files} file{'' if self.files == 1 else 's'}"


def last_change(folder: Path) -> LastChange | None:
    """The newest change of a dataset, None when there is nothing to undo."""
    for batch in reversed(batch_folders(folder.resolve())):
        with suppress(OSError):
            entries = list(logged(batch / LOG))
            rules = {rule for entry in entries for rule in entry.rules}
            what = _WORDS.get(next(iter(rules)), "fix") if len(rules) == 1 else "fix"
            return LastChange(what, len({entry.path for entry in entries}), batch.name)
    return None


def undo_last(folder: Path) -> int:
    """Take the newest change back; returns the number of files. Raises DataError as `sdlora dataset undo` does."""
    return len(undo(folder).files)


def delete_image(folder: Path, item: Item) -> None:
    """Take an image out with its captions and mask, if no other image has its name, kept for Undo.

    Captions by any ending go: which of them a run reads is said in its settings alone. Raises DataError when the image
    is gone.
    """
    if not item.path.is_file():
        raise DataError(f"{item.name} is not in the dataset any more.")
    files: dict[Path, None] = {item.path: None}
    for ending in CAPTION_SUFFIXES:
        files |= dict.fromkeys(companions(item.path, [item.path], CaptionsConfig(extension=ending)))
    apply(folder, [Change(("delete",), path, None, "deleted") for path in files])
