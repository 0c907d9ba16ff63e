"""The text an image is trained with: its caption after trigger, wildcards, shuffle and dropout."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from sdlora.config.images import CaptionsConfig
from sdlora.data.choices import BRACES, Choice, parse_choice
from sdlora.text_files import read_text

_OPENING, _CLOSING = "([", ")]"
_DANGLING = re.compile(r"(?:^|\s+)(?:(?:of|by|with|from|in|on|as|and|the|an?|called|named)\s*)+$", re.IGNORECASE)
"""Words that lead to a trigger and mean nothing at the end of a tag."""


def render(caption: str, config: CaptionsConfig, generator: random.Random) -> str:
    """The caption as trained this time.

    In this order: caption dropout gives ""; one line is picked and each {red|green} settled, see `choices` (without
    `wildcards`, lines are joined by the separator and braces stay text); the trigger is put in front unless the caption
    has it as a whole word; tags are dropped and shuffled, except the first `keep_tags`, or, where the caption has a
    `keep_separator`, those before the first and behind the second one; group separators become separators; prefix and
    suffix go around, never dropped. A configured trigger is shuffled when no tag is kept, but never dropped.
    Draws from `generator` only for what is switched on: without any of it the result is fixed.
    """
    if config.dropout and generator.random() < config.dropout:
        return ""
    if config.wildcards:
        text = _pick_alternatives(generator.choice(_lines(caption) or [""]), generator)
    else:
        text = _one_line(caption, config)
    return _surround(_reorder(_with_trigger(text, config), config, generator), config)


def without_chance(config: CaptionsConfig) -> CaptionsConfig:
    """The same settings with nothing dropped or shuffled: what a caption is on the whole."""
    return config.model_copy(update={"shuffle_tags": False, "tag_dropout": 0.0, "dropout": 0.0})


def variants(caption: str, config: CaptionsConfig, limit: int = 64) -> list[str] | None:
    """Every text that `render` can give for a caption, without repetition, to encode them all beforehand.

    None when there may be more than `limit`, or when tags are shuffled or dropped.
    """
    if config.shuffle_tags or config.tag_dropout:
        return None
    texts = [_one_line(caption, config)]
    if config.wildcards:
        lines = _lines(caption) or [""]
        # Counted before they are made: a few braces with a few words each have millions of combinations.
        if sum(_count_alternatives(line) for line in lines) > limit:
            return None
        texts = [text for line in lines for text in _all_alternatives(line)]
    rendered = [_surround(_joined(_parts(_with_trigger(text, config), config), config), config) for text in texts]
    return list(dict.fromkeys([*rendered, ""] if config.dropout else rendered))


def split_tags(text: str, config: CaptionsConfig) -> list[str]:
    """The caption's tags, stripped, empty ones left out; keep and group separators part tags as well.

    With `config.weights`, separators inside (round) or [square] brackets don't split: "(red, blue:1.2)" is one tag.
    """
    for other in (config.keep_separator, config.group_separator):
        if other:
            text = text.replace(other, joint(config))
    return _split(text, config)


def _split(text: str, config: CaptionsConfig) -> list[str]:
    separator = config.separator.strip() or config.separator
    if not separator:
        parts = [text]
    elif config.weights and _is_balanced(text):
        parts = _split_outside_brackets(text, separator)
    else:
        parts = text.split(separator)
    return [tag for part in parts if (tag := part.strip())]


def has_trigger(text: str, trigger: str) -> bool:
    """Whether the text has the trigger as a whole word or tag; case doesn't matter, as CLIP ignores it."""
    # A hyphen belongs to the word: "ohwx-style" doesn't hold the trigger "ohwx".
    return re.search(rf"(?<![\w-]){re.escape(trigger.strip())}(?![\w-])", text, re.IGNORECASE) is not None


def without_trigger(text: str, config: CaptionsConfig) -> str:
    """The text with every trigger taken out, and what that leaves dangling: "a photo of ohwx" becomes "a photo"."""
    trigger = (config.trigger or "").strip()
    if not trigger or not has_trigger(text, trigger):
        return text
    cut = re.sub(rf"(?<![\w-]){re.escape(trigger)}(?![\w-])", " ", text, flags=re.IGNORECASE)
    separator = config.separator.strip()
    parts = cut.split(separator) if separator else [cut]
    tags = (_DANGLING.sub("", " ".join(part.split())) for part in parts)
    return joint(config).join(tag for tag in tags if tag)


def _lines(caption: str) -> list[str]:
    return [line.strip() for line in caption.splitlines() if line.strip()]


def _one_line(caption: str, config: CaptionsConfig) -> str:
    return joint(config).join(_lines(caption))


def joint(config: CaptionsConfig) -> str:
    """What stands between two tags: the separator and a space."""
    separator = config.separator
    return separator if not separator or separator[-1].isspace() else f"{separator} "


def _with_trigger(text: str, config: CaptionsConfig) -> str:
    trigger = (config.trigger or "").strip()
    # A trigger in prefix or suffix stands in every caption already.
    if not trigger or has_trigger(f"{config.prefix} {text} {config.suffix}", trigger):
        return text
    return (joint(config) or " ").join(part for part in (trigger, text) if part)


def _surround(text: str, config: CaptionsConfig) -> str:
    return " ".join(part for part in (config.prefix.strip(), text, config.suffix.strip()) if part)


def _reorder(text: str, config: CaptionsConfig, generator: random.Random) -> str:
    if not (config.shuffle_tags or config.tag_dropout):
        return _joined(_parts(text, config), config)
    kept, loose, last = _divided(text, config)
    if config.tag_dropout:
        stays = _never_dropped(config)
        loose = [tag for tag in loose if generator.random() >= config.tag_dropout or stays(tag)]
    if config.shuffle_tags:
        generator.shuffle(loose)
    return _joined([*kept, *loose, *last], config)


def loose_tags(caption: str, config: CaptionsConfig) -> list[str]:
    """The tags of a caption that shuffling moves and dropout may take, with the trigger; wildcards stay as text."""
    return _divided(_with_trigger(_one_line(caption, config), config), config)[1]


def all_tags(caption: str, config: CaptionsConfig) -> list[str]:
    """All tags of a caption as it is trained, with the trigger; wildcards stay as text."""
    kept, loose, last = _divided(_with_trigger(_one_line(caption, config), config), config)
    return [tag for part in (*kept, *loose, *last) for tag in _split(part, config)]


def _divided(text: str, config: CaptionsConfig) -> tuple[list[str], list[str], list[str]]:
    """What stays in front, the loose tags, and what stays at the end."""
    first, *others = _parts(text, config)
    if others:
        return [first], _split(others[0], config), others[1:]
    tags = _split(first, config)
    return tags[: config.keep_tags], tags[config.keep_tags :], []


def _parts(text: str, config: CaptionsConfig) -> list[str]:
    """The fixed beginning, the loose middle and the fixed end of a caption with keep separators; else the caption."""
    if not config.keep_separator or config.keep_separator not in text:
        return [text]
    separator = config.separator.strip() or config.separator
    parts = text.split(config.keep_separator, 2)
    # A writer's separator beside the keep separator ("a, ||| b") would stand twice once that is gone.
    return [part.strip().removeprefix(separator).removesuffix(separator).strip() for part in parts]


def _joined(parts: Sequence[str], config: CaptionsConfig) -> str:
    text = joint(config).join(part for part in parts if part)
    if config.group_separator:
        pieces = [piece.strip() for piece in text.split(config.group_separator)]
        text = joint(config).join(piece for piece in pieces if piece)
    return text


def _never_dropped(config: CaptionsConfig) -> Callable[[str], bool]:
    trigger = (config.trigger or "").strip()
    protected = protected_tags(config)
    return lambda tag: bool(trigger and has_trigger(tag, trigger)) or tag.casefold() in protected


def protected_tags(config: CaptionsConfig) -> frozenset[str]:
    """The tags that dropout leaves alone, case folded. Raises OSError and UnreadableTextError for a list in a file."""
    if isinstance(config.protected_tags, Path):
        return _tags_in_file(config.protected_tags)
    return frozenset(tag.strip().casefold() for tag in config.protected_tags)


@lru_cache(maxsize=8)
def _tags_in_file(path: Path) -> frozenset[str]:
    lines = read_text(path.expanduser()).splitlines()
    return frozenset(line.strip().casefold() for line in lines if line.strip())


def _pick_alternatives(text: str, generator: random.Random) -> str:
    while found := _first_choice(text):
        before, choice, after = found
        # A plain choice takes one number of the generator, as ever: a run that goes on repeats its captions.
        picked = generator.choice(choice.options) if choice.is_plain else choice.draw(generator)
        text = before + picked + after
    return " ".join(text.split())


def _count_alternatives(text: str) -> int:
    """An upper bound: nested alternatives count as if all were side by side."""
    count = 1
    while found := _first_choice(text):
        before, choice, after = found
        count *= choice.num_texts
        text = before + after
    return count


def _all_alternatives(text: str) -> list[str]:
    found = _first_choice(text)
    if not found:
        return [" ".join(text.split())]
    before, choice, after = found
    return [full for picked in choice.texts() for full in _all_alternatives(before + picked + after)]


def _first_choice(text: str) -> tuple[str, Choice, str] | None:
    """The first choice without another one inside, with the text before and behind it."""
    for match in BRACES.finditer(text):
        if choice := parse_choice(match[1]):
            return text[: match.start()], choice, text[match.end() :]
    return None


def _is_balanced(text: str) -> bool:
    depths = _depths(text)
    return min(depths, default=0) >= 0 and (not depths or depths[-1] == 0)


def _depths(text: str) -> list[int]:
    """Bracket depth after each character; a bracket behind a backslash is text."""
    depths: list[int] = []
    depth, escaped = 0, False
    for character in text:
        if not escaped:
            depth += (character in _OPENING) - (character in _CLOSING)
        escaped = character == "\\" and not escaped
        depths.append(depth)
    return depths


def _split_outside_brackets(text: str, separator: str) -> list[str]:
    depths = _depths(text)
    parts, start, position = [], 0, 0
    while (position := text.find(separator, position)) >= 0:
        if depths[position] == 0:
            parts.append(text[start:position])
            start = position + len(separator)
        position += len(separator)
    return [*parts, text[start:]]
