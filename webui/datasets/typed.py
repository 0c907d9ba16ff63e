"""What one page has typed into a caption's box, and for which image of which dataset.

All of it lies in the page and reaches a handler as one, so that a text is never written to the image, or the dataset,
that came after it: several datasets have images of the same names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

Own = dict[str, "Written"]
"""By image, what one page wrote last."""
NUMBERED = """(loaded, caption, own, number, ...rest) =>
  [loaded, caption, own, String(++window.sdlora.number), ...rest]"""
"""For an event whose first inputs are the editor's `written`: says which of two texts is the later one, as requests may
overtake each other on their way."""


@dataclass(frozen=True)
class Written:
    """The last text of a page's that was written, or refused since somebody else had changed the caption."""

    reading: int
    """Which time the caption was read before that: a text of before it was read anew counts no more."""
    caption: str
    number: int = 0
    is_refused: bool = False
    """Whether a later text was not written, and nobody has said yet whose it is to be."""


@dataclass(frozen=True)
class Typed:
    """What the box held when an event was sent."""

    place: str
    """`dataset/image`, as `place_of` writes it; empty for an empty editor."""
    caption: str
    own: Own
    read: Written
    """The caption as it was read."""
    number: int = 0
    """Grows with each event; 0 where nothing is written for it."""

    @classmethod
    def of(cls, loaded: str, caption: str, own: Own, number: str = "", *_: object) -> Typed:
        """From the values of the editor's `written`."""
        place, read, reading = json.loads(loaded) if loaded else ("", "", 0)
        return cls(place, caption, own, Written(reading, read), int(number or 0))

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        return self.place.partition("/")[0]

    @property
    def image(self) -> str:
        """The image's name in it."""
        return self.place.partition("/")[2]

    @property
    def last(self) -> Written:
        """What this page knows to be on the disk: its last text, or what it read since."""
        written = self.own.get(self.place)
        return self.read if written is None or written.reading != self.read.reading else written

    @property
    def is_unsaved(self) -> bool:
        """Whether the box holds something that was neither read nor written yet."""
        return bool(self.place) and (self.last.is_refused or self.caption != self.last.caption)

    @property
    def is_overtaken(self) -> bool:
        """Whether what was typed later has come before."""
        written = self.own.get(self.place)
        is_read_since = written is not None and written.reading > self.read.reading
        return is_read_since or 0 < self.number < self.last.number

    def wrote(self, caption: str, *, is_refused: bool = False) -> None:
        """Note what is on the disk by this page's doing."""
        number = max(self.number, self.last.number)
        self.own[self.place] = Written(self.read.reading, caption, number, is_refused)

    def image_in(self, folder: Path) -> str:
        """The image's name if it is one of this dataset's, else nothing."""
        return self.image if self.dataset == folder.name else ""


def place_of(folder: Path, image: str) -> str:
    """An image of a dataset in one text; no folder's name has a slash."""
    return f"{folder.name}/{image}"
