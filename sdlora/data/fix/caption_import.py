"""Captions of a metadata file as .txt files beside their images."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

from sdlora.data.caption_files import CaptionFolders
from sdlora.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from sdlora.data.fix.changes import Change, with_text
from sdlora.data.folder_listing import list_folder
from sdlora.words import first_few

_Fit = tuple[bool, int, bool, int]
"""How well a name fits a picture: its whole path, the parts at the end that are the same, no folder that contradicts,
and how much of the file's own name is the same."""


@dataclass
class PlannedCaptions:
    """What taking captions over comes to."""

    changes: list[Change] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Names for which there is no image."""
    unclear: dict[str, str] = field(default_factory=dict)
    """Names that may mean several images, or one image with others, each with what it may be."""
    kept: list[Path] = field(default_factory=list)
    """Images with a .txt file of another text already."""


def plan_captions(folder: Path, captions: Mapping[str, str]) -> PlannedCaptions:
    """The .txt files that give images their captions; nothing is touched.

    captions: by image, as a path with or without ending, below the folder or from where the images lay before: the
    image whose path ends like it longest is meant. What fits several images alike is told of, never guessed. A caption
    that is there already is left alone. Raises DataError for a folder without images.
    """
    folder = folder.expanduser().resolve()
    wanted = {name: text for name, text in captions.items() if text}
    pictures = _Pictures(folder, wanted)
    planned, sources = PlannedCaptions(), CaptionFolders(folder)
    claims: dict[Path, list[tuple[_Fit, str]]] = defaultdict(list)
    for name in wanted:
        fit, images = pictures.best(name)
        if fit is None:
            planned.unknown.append(name)
        elif len({image.with_suffix("") for image in images}) > 1:  # of one name they have one .txt file, too
            planned.unclear[name] = f"fits {_listed(images, folder)} alike"
        else:
            claims[images[0]].append((fit, name))
    for image, rows in _by_caption_file(claims):
        best = max(fit for fit, _ in rows)
        names = [name for fit, name in rows if fit == best]
        planned.unknown += [name for fit, name in rows if fit < best]
        if len({wanted[name] for name in names}) > 1:
            others = f"{len(names)} rows with different captions mean {image.relative_to(folder).as_posix()}"
            planned.unclear |= dict.fromkeys(names, others)
            continue
        target, caption = image.with_suffix(".txt"), wanted[names[0]]
        if not target.exists():
            planned.changes.append(with_text(("import",), target, caption))
        elif sources.own_caption(image) != caption.strip():
            planned.kept.append(image)
    return planned


class _Pictures:
    """The pictures of a folder by the ends of their paths."""

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self._folder = folder
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in list_folder(folder).pictures:
            self._by_stem[path.stem].append(path)
        self._rows = Counter(_stem(_plain(name)) for name in names)

    def best(self, name: str) -> tuple[_Fit | None, Sequence[Path]]:
        """How well the best picture fits, and all that fit as well; None for no picture."""
        plain = _plain(name)
        alike = [*self._by_stem.get(_stem(plain), []), *self._by_stem.get(posixpath.basename(plain), [])]
        fits = {path: self._fit(plain, path) for path in alike}
        found = max(fits.values(), default=None)
        if found is None:
            return None, []
        same_path, parts, agrees, _ = found
        # Of cats/7 and dogs/7, the latter's picture is not the former's for want of a better one.
        alone = self._rows[_stem(plain)] == 1 and len({path.with_suffix("") for path in alike}) == 1
        if not (same_path or agrees or parts > 1 or alone):
            return None, []
        return found, [path for path, fit in fits.items() if fit == found]

    def _fit(self, name: str, path: Path) -> _Fit:
        below = path.relative_to(self._folder)
        file_name = posixpath.basename(name)
        own = 2 if file_name == path.name else 1 if file_name == path.stem else 0
        wanted, there = name.split("/")[-2::-1], below.parts[-2::-1]
        shared = min(len(wanted), len(there))
        common = next((at for at in range(shared) if wanted[at] != there[at]), shared)
        agrees = common == shared
        same_path = (agrees and len(wanted) == len(there)) or posixpath.dirname(name) == path.parent.as_posix()
        return same_path, 1 + common, agrees, own


def _by_caption_file(
    claims: Mapping[Path, list[tuple[_Fit, str]]],
) -> Iterator[tuple[Path, list[tuple[_Fit, str]]]]:
    """The rows of each .txt file, which a.png and a.jpg have together, with one of its images."""
    together: dict[Path, tuple[Path, list[tuple[_Fit, str]]]] = {}
    for image, rows in claims.items():
        together.setdefault(image.with_suffix(""), (image, []))[1].extend(rows)
    yield from together.values()


def _plain(name: str) -> str:
    return posixpath.normpath(PureWindowsPath(name).as_posix())


def _stem(plain: str) -> str:
    stem, ending = posixpath.splitext(posixpath.basename(plain))
    return stem if ending.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES) else f"{stem}{ending}"


def _listed(images: Sequence[Path], folder: Path) -> str:
    return first_few([image.relative_to(folder).as_posix() for image in images])
