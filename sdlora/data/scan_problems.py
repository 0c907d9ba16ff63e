"""The errors of an image scan: each lists every file concerned and what to do."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdlora.config.images import CaptionsConfig
from sdlora.config.shipped import BUILTIN_PREFIX, resolve_folder, sample_images_folder, shipped_sets
from sdlora.data.decoding import IMAGE_SUFFIXES
from sdlora.disk import why_not_writable
from sdlora.errors import DataError
from sdlora.words import count

_LISTED_AT_MOST = 100


class Gathered:
    """The DataErrors of several checks, so that all of them can be told at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def go_on(self) -> Iterator[None]:
        """Keep a DataError of what is done inside, and go on behind it."""
        try:
            yield
        except DataError as error:
            self.messages += [line for line in [str(error)] if line not in self.messages]

    def refuse(self) -> None:
        """Raise what has been kept as one DataError; nothing without any."""
        if self.messages:
            raise DataError("\n".join(self.messages))


def class_images_are_trained(folders: Sequence[Path]) -> str:
    """What is said of folders that are named for both."""
    return (
        f"{', '.join(map(str, folders))}: named twice, as training images and as class images (images.class_folder, or "
        "is_class in images.folders). Class images show the class without your subject, so they must lie in a folder "
        "of their own."
    )


def refuse_missing_folders(folders: Sequence[Path]) -> None:
    """Raise DataError unless there is at least one folder and all of them exist."""
    if not folders:
        raise DataError("images.folder is not set: give the folder with your training images.")
    problems = [problem for folder in folders if (problem := _folder_problem(folder))]
    if problems:
        raise DataError("\n".join(problems))


def changeable(folder: Path) -> Path:
    """The absolute folder of a dataset that is to be written into.

    Raises DataError for one that doesn't exist, and for a set that comes with sdlora, which other runs train on, too.
    """
    if str(folder).startswith(BUILTIN_PREFIX):
        refuse_missing_folders([shipped := resolve_folder(folder)])
        raise DataError(f"{folder} comes with sdlora and is not changed: copy {shipped}, and name the copy.")
    refuse_missing_folders([folder := folder.expanduser().resolve()])
    return folder


def refuse_unwritable(folder: Path) -> None:
    """Raise DataError for a folder that nothing can be written into: before a model is loaded to write there."""
    if problem := why_not_writable(folder):
        raise DataError(problem)


def refuse_empty_folder(folder: Path, files: Sequence[Path]) -> None:
    """Raise DataError for a folder without any image; `files` are the other files found in it."""
    known = ", ".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
    message = f"{folder} and its subfolders hold no images (looked for {known})"
    if files:
        kinds = Counter(path.suffix.lower() or "no ending" for path in files)
        message += f", only {', '.join(f'{count} {kind}' for kind, count in kinds.most_common(5))}"
    hidden = [path for path in folder.iterdir() if path.is_dir() and path.name.startswith(".") and _images_in(path)]
    hints = [f"The hidden folder {path.name} has {_images_in(path)}, but hidden ones are not read." for path in hidden]
    if not hints and _images_in(folder.parent):
        hints = [f"Its parent folder {folder.parent} has {_images_in(folder.parent)}: is that the one you meant?"]
    raise DataError(" ".join([f"{message}.", *hints]))


def refuse_unreadable(reasons: Mapping[str, str], files_seen: int, allowed: float) -> None:
    """Raise DataError when more than the share `allowed` of the files can't be used (name: reason), or all of them."""
    if not reasons or (len(reasons) / files_seen <= allowed and len(reasons) < files_seen):
        return
    lines = _shortened([f"{name}: {reason}" for name, reason in reasons.items()])
    listed = "".join(f"\n  {line}" for line in lines)
    if len(reasons) == files_seen:
        raise DataError(f"none of the {files_seen} image files can be used:{listed}\nRepair or replace them.")
    raise DataError(
        f"{len(reasons)} of {files_seen} image files can't be used, more than images.max_unreadable={allowed:g} "
        f"allows:{listed}\nRepair or remove them, or raise images.max_unreadable."
    )


def refuse_caption_problems(
    uncaptioned: Sequence[str],
    problems: Sequence[str],
    num_images: int,
    captions: CaptionsConfig,
    hints: Sequence[str],
) -> None:
    """Raise DataError for images without a caption (by name) and for caption files that can't be read.

    hints: sentences about what may be meant as the missing captions.
    """
    messages = list(problems)
    if uncaptioned:
        count = f"{len(uncaptioned)} of {num_images} images {'has' if len(uncaptioned) == 1 else 'have'} no caption"
        each = "it" if len(uncaptioned) == 1 else "each"
        where = f"{uncaptioned[0].rpartition('.')[0]}{captions.extension} beside {each}"
        remedy = f"Add {where}, or set captions.default"
        if captions.trigger:
            remedy += ' (captions.default="" takes the trigger alone)'
        messages.append(" ".join([f"{count}: {', '.join(_shortened(uncaptioned))}. {remedy}.", *hints]))
    if messages:
        raise DataError("\n".join(messages))


def almost_captions(uncaptioned: Iterable[Path], orphans: Mapping[Path, Path]) -> dict[Path, Path]:
    """Captions that differ from an uncaptioned image's name in case, spaces, - or _ only, or hold its ending, too.

    Each with its right path: a.png.txt should be a.txt. orphans: captions without an image, each with the path that its
    image would have, without an ending.
    """
    images = {(path.parent, _squeezed(name)): path for path in uncaptioned for name in (path.name, path.stem)}
    found = {}
    for path, stem in orphans.items():
        if image := images.get((path.parent, _squeezed(stem.name))):
            found[path] = path.with_name(image.stem + path.name.removeprefix(stem.name))
    return found


def _squeezed(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name)).casefold()


def refuse_zero_repeats(folder: Path) -> None:
    """Raise DataError for a folder called `0_name`, whose images would never be trained."""
    raise DataError(
        f"the name of {folder} asks for 0 repeats, so its images would never be trained. "
        "Rename it, or move it out of images.folder."
    )


def without_mask(num_images: int, source: str) -> str:
    """What is said of images without a mask beside others that have one."""
    missing = "a transparent part" if source == "alpha" else "a NAME-masklabel.png"
    return f"{count(num_images, 'image')} without {missing} (images.mask={source}), trained whole"


def refuse_absent_masks(num_images: int, source: str, hints: Sequence[str]) -> None:
    """Raise DataError when masks are asked for and no image has one. hints: what may be meant as masks."""
    missing = "a transparent part" if source == "alpha" else "a NAME-masklabel.png beside it"
    raise DataError(
        " ".join(
            [
                f"images.mask={source} is set, but none of the {num_images} images has {missing}. Add masks, or set "
                "images.mask=none.",
                *hints,
            ]
        )
    )


def _folder_problem(folder: Path) -> str | None:
    if folder.is_dir():
        return None
    if folder.is_file():
        return f"{folder} is a file: give the folder that holds the images."
    parent = folder.parent
    if parent == sample_images_folder():
        sets = ", ".join(f"{BUILTIN_PREFIX}{name}" for name in shipped_sets())
        return f"{BUILTIN_PREFIX}{folder.name} is no set that comes with sdlora: there is {sets}."
    message = f"the image folder {folder} doesn't exist"
    if not parent.is_dir():
        return f"{message} (nor does {parent})."
    return f"{message}{dataset_meant(folder) or '.'}"


def dataset_meant(folder: Path) -> str:
    """As `did_you_mean`; a set that comes with sdlora may be meant, too."""
    if folder.name in shipped_sets():
        return f"; did you mean {BUILTIN_PREFIX}{folder.name}, which comes with sdlora?"
    return did_you_mean(folder)


def did_you_mean(folder: Path) -> str:
    """The end of a sentence about a folder that isn't there: the one beside it with almost its name, or nothing."""
    siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    close = difflib.get_close_matches(folder.name, sorted(siblings), n=1)
    return f"; did you mean {folder.parent / close[0]}?" if close else ""


def _images_in(folder: Path) -> str:
    count = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
    return "" if not count else "1 image" if count == 1 else f"{count} images"


def _shortened(names: Sequence[str]) -> list[str]:
    left_out = len(names) - _LISTED_AT_MOST
    return [*names[:_LISTED_AT_MOST], f"and {left_out} more"] if left_out > 0 else list(names)
