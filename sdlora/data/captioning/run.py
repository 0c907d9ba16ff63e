"""A whole dataset captioned by a model: resumable, undone in one go."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from sdlora.config.captioning import CaptioningConfig
from sdlora.config.without_effect import in_captioning, with_captioner
from sdlora.data.caption_files import CaptionFolders
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.captioning.journal import Journal, Written
from sdlora.data.captioning.model import Captioner
from sdlora.data.captioning.wording import combine
from sdlora.data.decoding import UNREAD_SUFFIXES, UnreadableImageError, load_rgb
from sdlora.data.folder_listing import Listing, list_folder
from sdlora.data.images import THREADS
from sdlora.data.scan_problems import changeable, refuse_unwritable
from sdlora.data.unread import unread_in
from sdlora.disk import explain
from sdlora.errors import DataError, ModelError
from sdlora.events import EventStream
from sdlora.processes import Heartbeat

STAGE = "captioning"
_BACKGROUND = "#ffffff"


@dataclass
class Captioned:
    """How many images a captioning wrote captions for, left alone, and could not read."""

    written: int = 0
    """Captions made by this call."""
    before: int = 0
    """Captions that an interrupted call before this one had made."""
    skipped: int = 0
    """Images left alone because they have a caption, or share its file with another image."""
    silent: list[Path] = field(default_factory=list)
    """Images of which the model said nothing."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """Images that can't be read, or whose caption can't be, with the reason."""
    originals: Path | None = None
    """Folder with the captions as they were; None when nothing was changed."""


def caption_folder(
    folder: Path,
    config: CaptioningConfig,
    *,
    captioner: Captioner | None = None,
    events: EventStream | None = None,
) -> Captioned:
    """Caption the images of a folder and its subfolders in .txt files beside them.

    captioner: by default the one that `config.model` names. Killed at any moment, the next call with the same settings
    goes on where this one was; `fix.changes.undo` takes all of it back. Events: progress, and a warning for each
    image that can't be read. Raises DataError for a folder without images, one that can't be written or is being
    captioned already; ModelError and MissingPackageError as `load_captioner` does.
    """
    folder, events = changeable(folder), events or EventStream([])
    for sentence in in_captioning(config):
        events.warn(sentence)
    listing = list_folder(folder)
    for sentence in unread_in(folder, listing):
        events.warn(f"{sentence}; their images count as without caption")
    # Before the model is loaded, which may be a download of gigabytes, for nothing to do.
    if not _wanted(folder, listing, config, set())[0]:
        return Captioned(skipped=len(listing.pictures))
    refuse_unwritable(folder)
    captioner = captioner or load_captioner(config)
    for sentence in with_captioner(config, getattr(captioner, "kind", None)):
        events.warn(sentence)
    try:
        return _caption(folder, listing, config, captioner, events)
    except OSError as error:
        raise DataError(f"captioning stopped: {explain(error, folder)}. Started again it goes on from here") from error


def _caption(
    folder: Path, listing: Listing, config: CaptioningConfig, captioner: Captioner, events: EventStream
) -> Captioned:
    journal, sources = Journal.open(folder, config), CaptionFolders(folder)
    with Heartbeat(journal.process_file), ThreadPoolExecutor(THREADS) as threads:
        journal.repeat_last()
        result = Captioned(before=len(journal.done))
        wanted, result.skipped = _wanted(folder, listing, config, journal.done)

        def load(image: Path) -> Image.Image | str:
            return _load(image, sources, config)

        total = result.before + len(wanted)
        for start in range(0, len(wanted), config.batch_size):
            group = wanted[start : start + config.batch_size]
            pictures: dict[Path, Image.Image] = {}
            for image, picture in zip(group, threads.map(load, group), strict=True):
                if isinstance(picture, str):
                    result.unreadable[image] = picture
                    events.warn(f"{image.relative_to(folder).as_posix()} is left out: {picture}")
                else:
                    pictures[image] = picture
            captions = {
                image: combine(sources.own_caption(image), words, config)
                for image, words in _captioned(pictures, captioner).items()
            }
            journal.add([Written.plan(folder, image, text) for image, text in captions.items()])
            result.written += sum(bool(text) for text in captions.values())
            result.silent += [image for image, text in captions.items() if not text]
            events.progress(STAGE, result.before + start + len(group), total)
    result.originals = journal.finish()
    return result


def _captioned(pictures: Mapping[Path, Image.Image], captioner: Captioner) -> dict[Path, str]:
    if not pictures:
        return {}
    words = captioner(list(pictures.values()))
    if len(words) != len(pictures):
        raise ModelError(f"the captioner gave {len(words)} captions for {len(pictures)} images.")
    return dict(zip(pictures, words, strict=True))


def _wanted(folder: Path, listing: Listing, config: CaptioningConfig, done: set[str]) -> tuple[list[Path], int]:
    """The images to caption, one for each caption file, and how many are left alone because of what is there."""
    sources = CaptionFolders(folder)
    wanted: dict[Path, Path] = {}
    pictures = [path for path in listing.pictures if path.relative_to(folder).as_posix() not in done]
    for picture in pictures:
        beside = picture.with_suffix(".txt")
        if config.existing != "skip" or sources.own_caption(picture) is None:
            wanted.setdefault(beside, picture)
    shared = {(folder / name).with_suffix(".txt") for name in done}
    images = [picture for beside, picture in wanted.items() if beside not in shared]
    return images, len(pictures) - len(images)


def _load(image: Path, sources: CaptionFolders, config: CaptioningConfig) -> Image.Image | str:
    """The picture, or why it isn't captioned."""
    if image.suffix.lower() in UNREAD_SUFFIXES:
        return f"{image.suffix} files are not read"
    if config.existing in ("append", "prepend") and sources.own_caption(image) == "":
        return "its caption is not UTF-8 text: `sdlora dataset fix --rules caption-encoding` fixes it"
    try:
        return load_rgb(image, _BACKGROUND)
    except UnreadableImageError as error:
        return str(error)
