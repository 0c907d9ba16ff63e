"""What a run's images and captions were when it began, so that it is said when they are others on going on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora import atomic
from sdlora.data.images import ImageRecord
from sdlora.words import count

Fingerprint = dict[str, list[str]]
"""Hashes of image, caption and mask by path."""

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """Files of one kind of change."""

    noun: str
    change: str
    """What stands behind `was` or `were`, such as `changed`; with `is` where it is so now, such as `new`."""
    names: tuple[str, ...]
    by_setting: bool = False
    """Whether a setting explains it: the files may be the same."""

    @property
    def sentence(self) -> str:
        """The change in words, with the first names."""
        shown = ", ".join(self.names[:_NAMES_SHOWN]) + (", ..." if len(self.names) > _NAMES_SHOWN else "")
        is_now = self.change in ("gone", "new")
        verb = ("is" if is_now else "was") if len(self.names) == 1 else ("are" if is_now else "were")
        return f"{count(len(self.names), self.noun)} {verb} {self.change}: {shown}"


def fingerprint(records: Sequence[ImageRecord]) -> Fingerprint:
    """Hashes of each record's image, of its caption with the alternatives, and of its mask, by the image's path."""
    return {
        str(record.path): [record.content_hash, _hash(record.caption, *record.alternatives), record.mask_hash]
        for record in records
    }


def write(path: Path, found: Fingerprint) -> None:
    """Keep a fingerprint beside a run."""
    atomic.write_json(path, found)


def read(path: Path) -> Fingerprint | None:
    """A kept fingerprint; None for runs of versions that kept none, and for a damaged file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not all(isinstance(one, list) and len(one) == 3 for one in content.values()):
        return None
    return content


def differences(before: Fingerprint, now: Fingerprint) -> list[Difference]:
    """What changed from one fingerprint to another: a Difference for each kind of change that there is."""

    def kinds() -> Iterator[Difference]:
        both = before.keys() & now.keys()
        # A moved image is compared with what it was: a caption changed on the way must not pass unseen.
        places = {hashes[0]: path for path, hashes in before.items() if path not in both}
        came_from = {path: places[now[path][0]] for path in now.keys() - both if now[path][0] in places}
        pairs = {path: path for path in both} | came_from
        # What is gone here and has the same bytes elsewhere was moved; told as gone and new it would sound like a loss.
        moved = {before[path][0] for path in before.keys() - both}
        elsewhere = {now[path][0] for path in now.keys() - both}
        # Masks count only while a setting asks for them: then all have none before, or all now.
        had, has = (any(hashes[2] for hashes in every.values()) for every in (before, now))
        masks_by_setting = not (had and has)
        what_of_masks = "changed" if had and has else "switched on" if has else "switched off"
        for noun, change, names in (
            ("image", "gone", {path for path in before.keys() - both if before[path][0] not in elsewhere}),
            ("image", "new", {path for path in now.keys() - both if now[path][0] not in moved}),
            ("image", "moved or renamed", {path for path in now.keys() - both if now[path][0] in moved}),
            ("image", "changed", {path for path in both if before[path][0] != now[path][0]}),
            ("caption", "changed", {path for path, old in pairs.items() if before[old][1] != now[path][1]}),
            ("mask", what_of_masks, {path for path, old in pairs.items() if before[old][2] != now[path][2]}),
        ):
            if names:
                shown = tuple(sorted(Path(name).name for name in names))
                yield Difference(noun, change, shown, by_setting=noun == "mask" and masks_by_setting)

    return list(kinds())


def _hash(*texts: object) -> str:
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=8).hexdigest()
