"""Text files as people's editors leave them: UTF-8 or UTF-16, with or without a mark; anything else is named."""

from __future__ import annotations

import codecs
import re
import sys
from pathlib import Path
from typing import Any

_MARKS = (
    # UTF-32's little-endian mark begins with UTF-16's: the longer ones come first.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_KANA = re.compile(r"[\u3040-\u30ff]")


class UnreadableTextError(ValueError):
    """Bytes that are not text; the message says what they are and what to do, without the file's name."""


def decode_text(content: bytes) -> str:
    """The text of a file's bytes: UTF-8, UTF-16 (with or without mark) or UTF-32 with its mark, without the mark.

    Raises UnreadableTextError for other encodings and for NUL characters, which no caption or setting can hold.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    encoding = encoding or _utf16_without_mark(content) or "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise UnreadableTextError(
            f"is not {encoding.removesuffix('-sig').upper()} text ({found}; it may be {_likely_encoding(content)}): "
            "save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UnreadableTextError(
            f"holds a NUL character (position {text.index(chr(0))}), so it is damaged or no text: write it anew"
        )
    return text


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text holds. Raises ValueError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def read_text(path: Path) -> str:
    """The text of a file, see `decode_text`. Raises OSError and UnreadableTextError."""
    return decode_text(path.read_bytes())


def _utf16_without_mark(content: bytes) -> str | None:
    """UTF-16's name where every other byte is mostly NUL, as in Latin text that PowerShell or Notepad wrote."""
    if len(content) < 2 or len(content) % 2:
        return None
    pairs = len(content) // 2
    low, high = content[0::2].count(0), content[1::2].count(0)
    if high >= 0.4 * pairs and low == 0:
        return "utf-16-le"
    if low >= 0.4 * pairs and high == 0:
        return "utf-16-be"
    return None


def _likely_encoding(content: bytes) -> str:
    try:
        if _KANA.search(content.decode("shift_jis")):
            return "Shift-JIS"
    except UnicodeDecodeError:
        pass
    return "Windows-1252"
