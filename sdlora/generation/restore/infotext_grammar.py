"""The text that AUTOMATIC1111's web UI and its relatives write into pictures: prompt, negative prompt, settings.

    a cat face <lora:ink:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, Lora hashes: "ink: 46e3576bb990", Version: x

The settings are the last line, if at least three are found in it. A value with a comma, colon or line break stands in
quotes, as JSON. Lines are read without the blanks around them. What the grammar has no way to say: a prompt with a line
that begins with `Negative prompt:`.

Texts in the wild are read as what they mean: settings that are wrapped onto several lines, or followed by lines of
extensions (`Template: ...`) or by the negative prompt; lists and objects of JSON without quotes; few settings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sdlora.constants import MIB
from sdlora.errors import DataError
from sdlora.text_files import parse_json

_DECODER = json.JSONDecoder()
LONGEST_TEXT = MIB
"""Characters; what is longer was not written by any tool that generates pictures."""
_NEGATIVE = "Negative prompt:"
_FEWEST_SETTINGS = 3
_MOST_JSON_VALUES = 20
# bounded repetitions: a hostile text must not cost quadratic time
_SETTING = re.compile(r'(\w[\w \-/]{1,80}):[ \t]{0,20}("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_JSON_VALUE = re.compile(r"(?:^|,)\s{0,20}(\w[\w \-/]{1,80}): ?(?=[\[{])")
_BEGINNING = re.compile(r"Steps: ?\d+,", re.IGNORECASE)
_NEGATIVE_LINE = re.compile(r"negative prompt:\s*", re.IGNORECASE)
_PROMPT_LINE = re.compile(r"(?:positive )?prompt:\s*", re.IGNORECASE)
_NAMED_LINE = re.compile(r"([A-Z][\w \-/]{1,60}): ?(.*)")
_NAMES = {
    "steps": "Steps", "sampler": "Sampler", "sampling method": "Sampler", "schedule type": "Schedule type",
    "scheduler": "Schedule type", "cfg scale": "CFG scale", "guidance scale": "CFG scale", "seed": "Seed",
    "size": "Size", "clip skip": "Clip skip", "model": "Model", "model hash": "Model hash", "rng": "RNG",
    "version": "Version", "denoising strength": "Denoising strength", "mask blur": "Mask blur", "vae": "VAE",
    "hires upscale": "Hires upscale", "hires steps": "Hires steps", "hires upscaler": "Hires upscaler",
    "hires resize": "Hires resize", "lora hashes": "Lora hashes", "hashes": "Hashes",
}  # fmt: skip
"""Settings that are known here, by their names in small letters."""


@dataclass(frozen=True)
class ParsedInfotext:
    """The three parts, settings by their names as written; known ones as A1111 writes them."""

    prompt: str
    negative: str
    settings: dict[str, str]
    warnings: tuple[str, ...] = ()


def parse_infotext(text: str) -> ParsedInfotext:
    """Prompt, negative prompt and settings; a text without settings is a prompt alone.

    Raises DataError when the text is too long to be one.
    """
    if len(text) > LONGEST_TEXT:
        raise DataError(f"its settings take {len(text):,} characters, more than {LONGEST_TEXT:,}; they are not read")
    lines = [line.strip() for line in text.strip().split("\n")] if text.strip() else []
    start = _start_of_settings(lines)
    block, behind = _block(lines[start:])
    texts: dict[bool, list[str]] = {False: [], True: []}
    is_negative = False
    for line in [*lines[:start], *behind.pop(_NEGATIVE, [])]:
        if match := _NEGATIVE_LINE.match(line):
            is_negative, line = True, line[match.end() :]
        elif is_negative and (match := _PROMPT_LINE.match(line)):
            is_negative, line = False, line[match.end() :]
        texts[is_negative].append(line)
    settings = {**_settings(block), **{name: "\n".join(found).strip() for name, found in behind.items()}}
    return ParsedInfotext("\n".join(texts[False]).strip(), "\n".join(texts[True]).strip(), settings)


def _start_of_settings(lines: list[str]) -> int:
    """The first line of the settings; the number of lines where there are none."""
    for number in range(len(lines) - 1, -1, -1):
        if _BEGINNING.match(lines[number]) and len(_settings(lines[number])) >= _FEWEST_SETTINGS:
            return _with_lines_before(lines, number)
    last = len(lines) - 1
    if lines and (len(_settings(lines[last])) >= _FEWEST_SETTINGS or _holds_nothing_else(lines[last])):
        return _with_lines_before(lines, last)
    return len(lines)


def _with_lines_before(lines: list[str], start: int) -> int:
    """A block of settings may begin lines earlier: those hold nothing but known settings, and none a second time."""
    told = set(_settings(lines[start]))
    while start > 0 and _is_wrapped(lines[start - 1]):
        own = set(_settings(lines[start - 1]))
        if own & told:  # a prompt that looks like settings
            break
        told |= own
        start -= 1
    return start


def _is_wrapped(line: str) -> bool:
    return (line.endswith(",") or bool(_BEGINNING.match(line))) and _holds_nothing_else(line.rstrip(", "))


def _holds_nothing_else(line: str) -> bool:
    parts = line.split(", ")
    return all(part.partition(":")[0].lower() in _NAMES and part.partition(":")[1] for part in parts)


def _block(lines: list[str]) -> tuple[str, dict[str, list[str]]]:
    """The settings as one text; and what stands behind them: the negative prompt, lines of extensions by name."""
    block = lines[:1]
    behind: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines[1:]:
        # A quoted value may hold line breaks, and lines that look like anything.
        inside_quotes = "\n".join(block).count('"') % 2 == 1
        named = _NAMED_LINE.fullmatch(line)
        if _NEGATIVE_LINE.match(line):
            current = behind.setdefault(_NEGATIVE, [])
            current.append(line)
        elif inside_quotes and current is None:
            block.append(line)
        elif named and named[1].lower() not in _NAMES and not block[-1].endswith(","):
            current = behind.setdefault(named[1], [])
            current.append(named[2])
        elif current is not None:
            current.append(line)
        else:
            block.append(line)
    return "\n".join(block), behind


def write_infotext(prompt: str, negative: str, settings: Mapping[str, object]) -> str:
    """The text; settings that are None are left out."""
    parts = [prompt]
    if negative.strip():
        parts.append(f"{_NEGATIVE} {negative}")
    parts.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None))
    return "\n".join(parts).strip()


def _settings(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for _ in range(_MOST_JSON_VALUES):  # values that are JSON without quotes around them
        match = _JSON_VALUE.search(text)
        if match is None:
            break
        try:
            _, end = _DECODER.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break
        found[match[1].strip()] = text[match.end() : end]
        text = text[: match.start()] + text[end:]
    for name, value in _SETTING.findall(text):
        found[_NAMES.get(name.lower(), name)] = _unquoted(value.strip())
    return found


def _quoted(value: str) -> str:
    needs_quotes = any(letter in value for letter in ",:\n\r") or value != value.strip() or value.startswith('"')
    return json.dumps(value, ensure_ascii=False) if needs_quotes else value


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return " ".join(value.split())
    try:
        # JSON allows no line break inside a text, but A1111 writes them as they are.
        return str(parse_json(value.replace("\n", "\\n")))
    except ValueError:
        return value
