"""A model's words and the caption that is there already, made into one caption."""

from __future__ import annotations

from collections.abc import Iterable

from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captions import has_trigger


def combine(existing: str | None, words: str, config: CaptioningConfig) -> str:
    """The caption to write, "" when the model said nothing and nothing is there.

    What is excluded is left out, prefix and suffix go around; then, by `config.existing`, the words replace the
    caption, or go before or behind it without what it has already; the trigger comes first if it is lacking.
    """
    parts = _without(_parts(words), config.exclude)
    if existing and config.existing != "overwrite":
        parts = _without(parts, _parts(existing))
    new = " ".join(part for part in (config.prefix.strip(), ", ".join(parts), config.suffix.strip()) if part)
    if not parts:
        new = ""
    if existing and config.existing != "overwrite":
        both = (existing, new) if config.existing == "append" else (new, existing)
        new = ", ".join(part for part in both if part)
    trigger = (config.trigger or "").strip()
    if new and trigger and not has_trigger(new, trigger):
        return f"{trigger}, {new}"
    return new


def _parts(text: str) -> list[str]:
    return [part for piece in text.split(",") if (part := " ".join(piece.split()))]


def _without(parts: Iterable[str], excluded: Iterable[str]) -> list[str]:
    left_out = {_plain(part) for part in excluded}
    return [part for part in parts if _plain(part) not in left_out]


def _plain(part: str) -> str:
    """As compared: case, underscores and escaped brackets make no difference."""
    return " ".join(part.lower().replace("_", " ").replace("\\", "").split())
