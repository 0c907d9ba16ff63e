"""The text that AUTOMATIC1111's web UI writes into pictures: prompt, negative prompt and a line of settings.

    a cat face <lora:ink:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, Lora hashes: "ink: 46e3576bb990", Version: x

The settings are the last line, if at least three are found in it. A value with a comma, colon or line break stands in
quotes, as JSON. Lines are read without the blanks around them. What the grammar has no way to say: a prompt with a line
that begins with `Negative prompt:`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sdlora.constants import MIB
from sdlora.errors import DataError
from sdlora.text_files import parse_json

LONGEST_TEXT = MIB
"""Characters; what is longer was not written by any tool that generates pictures."""
_NEGATIVE = "Negative prompt:"
_FEWEST_SETTINGS = 3
# bounded repetitions: a hostile text must not cost quadratic time
_SETTING = re.compile(r'(\w[\w \-/]{1,80}):[ \t]{0,20}("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_CIVITAI_HASHES = re.compile(r"(?:, )?Hashes: (\{[^{}]*\})")


@dataclass(frozen=True)
class ParsedInfotext:
    """The three parts, settings by their names as written."""

    prompt: str
    negative: str
    settings: dict[str, str]


def parse_infotext(text: str) -> ParsedInfotext:
    """Prompt, negative prompt and settings; a text without settings is a prompt alone.

    Raises DataError when the text is too long to be one.
    """
    if len(text) > LONGEST_TEXT:
        raise DataError(f"its settings take {len(text):,} characters, more than {LONGEST_TEXT:,}; they are not read")
    *lines, last = text.strip().split("\n")
    settings = _settings(last)
    if len(settings) < _FEWEST_SETTINGS:
        lines, settings = [*lines, last], {}
    positive: list[str] = []
    negative: list[str] = []
    current = positive
    for line in (line.strip() for line in lines):
        if line.startswith(_NEGATIVE):
            current = negative
            line = line.removeprefix(_NEGATIVE).strip()
        current.append(line)
    return ParsedInfotext("\n".join(positive).strip(), "\n".join(negative).strip(), settings)


def write_infotext(prompt: str, negative: str, settings: Mapping[str, object]) -> str:
    """The text; settings that are None are left out."""
    parts = [prompt]
    if negative.strip():
        parts.append(f"{_NEGATIVE} {negative}")
    parts.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None))
    return "\n".join(parts).strip()


def _settings(line: str) -> dict[str, str]:
    found: dict[str, str] = {}
    if hashes := _CIVITAI_HASHES.search(line):  # the one value that is JSON without quotes around it
        found["Hashes"] = hashes[1]
        line = line[: hashes.start()] + line[hashes.end() :]
    for name, value in _SETTING.findall(line):
        found[name] = _unquoted(value.strip())
    return found


def _quoted(value: str) -> str:
    needs_quotes = any(letter in value for letter in ",:\n\r") or value != value.strip() or value.startswith('"')
    return json.dumps(value, ensure_ascii=False) if needs_quotes else value


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(parse_json(value))
    except ValueError:
        return value
