"""Named datasets: one folder each below the workspace's datasets folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from sdlora import atomic
from sdlora.config.shipped import BUILTIN_PREFIX, sample_images_folder
from sdlora.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from sdlora.data.folder_listing import MASK_ENDING, list_folder, settled_stamp
from sdlora.errors import ConfigError, DataError

MAX_NAME = 80
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def names(datasets: Path) -> list[str]:
    """All datasets by name, in the order of people, not of machines."""
    if not datasets.is_dir():
        return []
    found = [path.name for path in datasets.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda name: (name.casefold(), name))


def list_sources(datasets: Path) -> list[tuple[str, str]]:
    """What a run can train on, name and path: each dataset, then the sample sets that come with sdlora."""
    folders = (path for path in sample_images_folder().iterdir() if path.is_dir())
    shipped = sorted(f"{BUILTIN_PREFIX}{path.name}" for path in folders if count_images(path))
    return [(name, str(datasets / name)) for name in names(datasets)] + [(name, name) for name in shipped]


def gone(name: str) -> str:
    """What is said where a dataset is asked for that was deleted or renamed."""
    return f"There is no dataset called '{name}' any more"


def folder_of(datasets: Path, name: str | None) -> Path:
    """The folder of a dataset. Raises DataError when there is none of that name."""
    if not name or name not in names(datasets):
        raise DataError(f"{gone(name)}: choose another." if name else "No dataset is chosen: make one first.")
    return datasets / name


def create(datasets: Path, name: str) -> Path:
    """A new, empty dataset. Raises ConfigError for a name that is taken or can't be a folder's."""
    folder = datasets / _checked(datasets, name)
    folder.mkdir(parents=True)
    return folder


def rename(datasets: Path, old: str, new: str) -> Path:
    """Give a dataset another name; masks and undo history move with it. Raises ConfigError, DataError."""
    folder = folder_of(datasets, old)
    if new.strip() == old:
        return folder
    target = datasets / _checked(datasets, new)
    atomic.move(folder, target)
    return target


def add_sample(datasets: Path, sample: str = "mascot") -> Path:
    """A copy of a shipped sample set to play with; a name that is taken gets a number."""
    name = next(name for name in atomic.numbered(f"sample-{sample}") if not (datasets / name).exists())
    shutil.copytree(sample_images_folder() / sample, datasets / name)
    return datasets / name


def stamps(datasets: Path) -> tuple[tuple[str, int], ...]:
    """Name and time of change of each dataset's folder: other ones once a file was added, removed or replaced there."""
    found = []
    with suppress(OSError), os.scandir(datasets) as entries:
        for entry in entries:
            with suppress(OSError):
                found.append((entry.name, entry.stat().st_mtime_ns))
    return tuple(sorted(found))


def pictures(folder: Path) -> Sequence[Path]:
    """The images of a dataset by name, unopened; none of an empty one."""
    return _pictures(folder, settled_stamp(folder))


@lru_cache(maxsize=16)
def _pictures(folder: Path, _stamp: int) -> Sequence[Path]:
    try:
        return list_folder(folder).pictures
    except DataError:
        return ()


def count_images(folder: Path) -> int:
    """How many images there are, unopened; 0 for an empty dataset."""
    return len(pictures(folder))


def is_image_name(name: str) -> bool:
    """Whether a file of this name is listed as an image (or as one that can't be read)."""
    return Path(name).suffix.lower() in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)


def plain_stem(name: str) -> str:
    """The image's stem that a file belongs to: `a` for a.png, a.txt and a-masklabel.png."""
    return Path(name).stem.removesuffix(MASK_ENDING)


def clean_part(part: str) -> str:
    """One part of a path made safe for any system; empty when nothing is left."""
    plain = _FORBIDDEN.sub("_", part).strip(" ")
    stem, dot, ending = plain.rpartition(".")
    if dot and len(plain) > MAX_NAME:
        plain = f"{stem[: MAX_NAME - len(ending) - 1].rstrip()}.{ending}"
    plain = plain[:MAX_NAME].rstrip(". ")
    return f"_{plain}" if _RESERVED.fullmatch(plain) else plain


def _checked(datasets: Path, name: str) -> str:
    plain = name.strip()
    problems = []
    if not plain:
        problems.append("give it a name")
    elif plain != clean_part(plain) or plain.startswith("."):
        problems.append(
            f"'{name}' can't be a folder's name: no < > : \" / \\ | ? * in it, no dot at either end, "
            f"at most {MAX_NAME} characters"
        )
    # To the disks of macOS and Windows names that differ in case only are one.
    elif plain.casefold() in {other.casefold() for other in names(datasets)}:
        problems.append(f"'{plain}' is there already: choose another name")
    if problems:
        raise ConfigError("the dataset's name", problems)
    return plain
