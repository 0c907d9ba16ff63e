"""One edit to many captions: planned first, then made as one change that undo takes back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.data.captions import has_trigger, joint
from sdlora.data.fix.changes import Change, apply, with_text
from sdlora.data.lint.tags import rewrite_tags
from sdlora.data.sets.listing import CAPTIONS, Item, read
from sdlora.errors import ConfigError

OPERATIONS = {
    "front": "Put in front (trigger word)",
    "end": "Add at the end",
    "remove": "Remove tags",
    "replace": "Replace text",
    "dedupe": "Remove repeated tags",
}
Rewrite = Callable[[str], str]
_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True)
class Edit:
    """What is done to each caption: one of OPERATIONS with its text, and how that is compared."""

    operation: str
    text: str = ""
    replacement: str = ""
    is_regex: bool = False
    match_case: bool = False

    def rewrite(self) -> Rewrite:
        """The function from a caption to the edited one. Raises ConfigError with all that is wrong."""
        if self.operation not in OPERATIONS:
            raise ConfigError("the edit", [f"'{self.operation}' is none of {', '.join(OPERATIONS)}"])
        if self.operation == "dedupe":
            return lambda caption: rewrite_tags(caption, CAPTIONS, _once_each)
        if not self.text.strip() and not (self.operation == "replace" and self.text):
            raise ConfigError("the edit", ["say which text it is about"])
        return _REWRITES[self.operation](self)


@dataclass(frozen=True)
class Rewritten:
    """A caption before and after an edit."""

    path: Path
    name: str
    before: str
    after: str

    def pieces(self) -> list[tuple[str, str]]:
        """The caption in pieces, each `same`, `gone` or `come`."""
        old, new = _WORDS.findall(self.before), _WORDS.findall(self.after)
        parts: list[tuple[str, str]] = []
        # autojunk would take the blanks and commas of a long caption for noise.
        matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
        for kind, old_from, old_to, new_from, new_to in matcher.get_opcodes():
            gone, come = "".join(old[old_from:old_to]), "".join(new[new_from:new_to])
            parts += [("same", gone)] if kind == "equal" else [("gone", gone), ("come", come)]
        return [(kind, words) for kind, words in parts if words]


def plan_edit(items: Sequence[Item], edit: Edit) -> list[Rewritten]:
    """The captions that an edit changes; nothing is touched. Raises ConfigError for an edit that can't be made.

    Where a folder's name is trained, that is edited, and written as the image's own caption: a tag put in front of
    nothing would take its place.
    """
    rewrite = edit.rewrite()
    changed = (Rewritten(item.path, item.name, item.trained, rewrite(item.trained)) for item in items)
    return [each for each in changed if each.after != each.before]


def make_edit(folder: Path, rewritten: Sequence[Rewritten]) -> int:
    """Make a planned edit; returns the number of captions. Raises ConfigError when captions have changed since."""
    now = {item.name: item.trained for item in read(folder)}
    different = [each.name for each in rewritten if now.get(each.name) != each.before]
    if different:
        shown = ", ".join(different[:5]) + (" ..." if len(different) > 5 else "")
        raise ConfigError(
            "the edit", [f"{len(different)} captions have changed since the preview ({shown}): preview again"]
        )
    apply(folder, [_change(each) for each in rewritten])
    return len(rewritten)


def _change(each: Rewritten) -> Change:
    return with_text(("edit",), each.path.with_suffix(".txt"), each.after)


def _front(edit: Edit) -> Rewrite:
    text = edit.text.strip()
    return lambda caption: (
        caption if has_trigger(caption, text) else joint(CAPTIONS).join(filter(None, (text, caption)))
    )


def _end(edit: Edit) -> Rewrite:
    text = edit.text.strip()
    return lambda caption: (
        caption if has_trigger(caption, text) else joint(CAPTIONS).join(filter(None, (caption, text)))
    )


def _remove(edit: Edit) -> Rewrite:
    unwanted = {tag.strip().casefold() for tag in edit.text.split(",") if tag.strip()}

    def without(tags: list[str]) -> list[str]:
        return [tag for tag in tags if tag.casefold() not in unwanted]

    return lambda caption: rewrite_tags(caption, CAPTIONS, without)


def _replace(edit: Edit) -> Rewrite:
    flags = re.MULTILINE | (0 if edit.match_case else re.IGNORECASE)
    try:
        pattern = re.compile(edit.text if edit.is_regex else re.escape(edit.text), flags)
        # re.sub reads backslashes in a replacement; a person who asks for plain text means them as they stand.
        replacement = edit.replacement if edit.is_regex else edit.replacement.replace("\\", "\\\\")
        pattern.sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ConfigError("the edit", [f"not a regular expression with a fitting replacement: {error}"]) from None
    return lambda caption: pattern.sub(replacement, caption)


def _once_each(tags: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    return list(first.values())


_REWRITES: dict[str, Callable[[Edit], Rewrite]] = {
    "front": _front,
    "end": _end,
    "remove": _remove,
    "replace": _replace,
}
