"""Previews of other trainers in our terms: their samplers, and prompts with options of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdlora.config.preview_prompts import LETTERS, parse_preview, prompts_in
from sdlora.imports.translation import Translation

_OPTION = re.compile(r"\s--(?=[A-Za-z])")


def sampler(value: Any) -> str | None:
    """Ours by the name of sd-scripts or diffusers. Raises ValueError for one that is not here."""
    if value in ("", None):
        return None
    return parse_preview(f"x --ss {value}").sampler


def prompt_line(result: Translation, name: str, given: object, renamed: Mapping[str, str] | None = None) -> str:
    """A prompt with the options that ours reads too; each other one, and one without a value, is noted.

    renamed: options that are called otherwise here.
    """
    line, *options = _OPTION.split(f" {' '.join(str(given).split())}")
    line = line.strip()
    where = f"{name}: {line[:40]}"
    for option in options:
        word, _, text = option.strip().partition(" ")
        ours = (renamed or {}).get(word, word)
        if not text.strip():
            result.lose(where, f"--{word}", "an option without a value")
            continue
        try:
            parse_preview(f"x --{ours} {text}")
        except ValueError as error:
            result.lose(where, f"--{word} {text}", str(error))
        else:
            line += f" --{ours} {text}"
    return line


def prompt_lines(result: Translation, name: str, text: str, suffix: str) -> list[str]:
    """The prompts of sd-scripts' .toml or .json file as lines; what they have no option for here is noted.

    Raises ValueError for a file of another form.
    """
    found = []
    for entry in prompts_in(text, suffix):
        if isinstance(entry, str):
            found.append(entry)
            continue
        if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str):
            raise ValueError("expected an object with 'prompt' for each preview")
        options = {letter: entry.get(theirs) for theirs, letter in LETTERS.items()}
        found.append(line := preview_line(result, name, entry["prompt"], options))
        for theirs in entry.keys() - {"prompt", "enum", *LETTERS}:
            result.lose(f"{name}: {line[:40]}", f"{theirs}={entry[theirs]}", "has no counterpart in a preview")
    return found


def plain_line(result: Translation, name: str, given: object) -> str:
    """A prompt of a trainer that reads no options in it: what would be one here is parted, and noted."""
    line = " ".join(str(given).split())
    parted = _OPTION.sub(" -- ", f" {line}").strip()
    if parted != line:
        result.change(f"{name}: {line[:40]}", "--", "text there and options here, so a blank follows the dashes")
    return parted


def preview_line(
    result: Translation, name: str, prompt: object, options: Mapping[str, Any], *, is_plain: bool = False
) -> str:
    """A prompt with its own options, by the letters of `config.preview_prompts`; those that ours refuses are noted.

    is_plain: the prompt itself holds none.
    """
    line = plain_line(result, name, prompt) if is_plain else prompt_line(result, name, prompt)
    for letter, value in options.items():
        if value in (None, ""):
            continue
        try:
            parse_preview(f"x --{letter} {value}")
        except ValueError as error:
            result.lose(f"{name}: {line[:40]}", value, str(error))
        else:
            line += f" --{letter} {value}"
    return line
