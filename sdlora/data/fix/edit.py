"""Regular expressions over all captions of a dataset."""

from __future__ import annotations

import re
from pathlib import Path

from sdlora.config.section import NO_TEXT, is_text
from sdlora.data.caption_files import CaptionFolders
from sdlora.data.fix.changes import Change, with_text
from sdlora.data.folder_listing import list_folder
from sdlora.data.scan_problems import changeable
from sdlora.data.unread import unread_in
from sdlora.errors import ConfigError
from sdlora.text_files import read_text


def plan_edit(folder: Path, pattern: str, replacement: str, *, ignore_case: bool = False) -> list[Change]:
    r"""The changes that replace every match of `pattern` in the captions; nothing is touched.

    Python's syntax: `^` and `$` match at each line's ends, `\1` in the replacement is the first group. A caption from
    metadata.jsonl or a folder's name gets a .txt file of its own. Captions that can't be read are left alone.
    Raises ConfigError for a wrong pattern, DataError for a folder without images.
    """
    if not is_text(pattern + replacement):
        raise ConfigError("the edit", [f"pattern or replacement {NO_TEXT}"])
    try:
        search = re.compile(pattern, re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
        search.sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ConfigError("the edit", [f"not a regular expression with a fitting replacement: {error}"]) from None
    folder = changeable(folder)
    sources = CaptionFolders(folder)
    changes = []
    texts = {image.with_suffix(".txt"): _own_text(image, sources) for image in list_folder(folder).pictures}
    for path, text in texts.items():
        edited = search.sub(replacement, text)
        if edited != text:
            changes.append(with_text(("edit",), path, edited))
    return changes


def left_alone(folder: Path) -> list[str]:
    """The captions that an edit doesn't reach, as they can't be read or aren't: a sentence each, without full stop."""
    folder = folder.expanduser().resolve()
    listing, sources = list_folder(folder), CaptionFolders(folder)
    for picture in listing.pictures:
        sources.caption(picture)
    return [*unread_in(folder, listing), *sources.problems]


def _own_text(image: Path, sources: CaptionFolders) -> str:
    caption = sources.caption(image)
    beside = image.with_suffix(".txt")
    return read_text(beside) if caption and beside.is_file() else caption or ""
