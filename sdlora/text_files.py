"""Text files as people's editors leave them: UTF-8 or UTF-16, with or without a mark; anything else is named.

Also what such files hold as JSON, TOML or YAML, with ValueError for whatever can be wrong with it.
"""

from __future__ import annotations

import codecs
import errno
import json
import re
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from sdlora.constants import MIB

_MARKS = (
    # UTF-32's little-endian mark begins with UTF-16's: the longer ones come first.
    (codecs.BOM_UTF32_LE, "utf-32", "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32", "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16", "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16", "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8-sig", "utf-8"),
)
"""Marks, with the encoding of a file that has one and of what follows the mark."""
_PARSER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_DEEPEST_YAML = 100
_LARGEST_YAML = MIB
_ODD_NUMBER = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""What YAML 1.1 takes for a number that nobody meant: 010 is 8 to it (octal), and 1:30 is 90 (base 60)."""
_LONG_NUMBER = re.compile(r"[0-9a-fA-FxXoO_:]{800}")
_MOST_BITS = 3300
"""A thousand decimal digits."""
_KANA = re.compile(r"[\u3040-\u30ff]")


class UnreadableTextError(ValueError):
    """Bytes that are not text; the message says what they are and what to do, without the file's name."""


def decode_text(content: bytes) -> str:
    """The text of a file's bytes: UTF-8, UTF-16 (with or without mark) or UTF-32 with its mark, without the mark.

    Raises UnreadableTextError for other encodings and for NUL characters, which no caption or setting can hold.
    """
    encoding = next((name for mark, name, _ in _MARKS if content.startswith(mark)), None)
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


def encoded_like(text: str, content: bytes) -> bytes:
    """The text as bytes in the encoding of a file's former content, its mark kept; in UTF-8 where that was no text."""
    plain = _utf16_without_mark(content) or "utf-8"
    mark, encoding = next(((mark, name) for mark, _, name in _MARKS if content.startswith(mark)), (b"", plain))
    try:
        decode_text(content)
        encoded = mark + text.encode(encoding)
        if decode_text(encoded) == text:  # UTF-16 without a mark is told by its bytes, which other text may lack
            return encoded
    except ValueError:
        pass
    return text.encode("utf-8")


def parse_json(text: str) -> Any:
    """What a JSON text holds. Raises ValueError, also for one nested too deep or with halves of characters in it."""
    try:
        return _sound(json.loads(text), text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def repeated_key(text: str | bytes) -> str | None:
    """A key that one object of a JSON text has twice, of which the first value would be lost without a word."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(keys) != len(set(keys)):
            repeated.append(next(key for key in keys if keys.count(key) > 1))

    json.loads(text, object_pairs_hook=note)
    return repeated[0] if repeated else None


def parse_written_json(text: str) -> Any:
    """What a JSON text holds that people write. Raises ValueError as `parse_json`, and for a key that is set twice."""
    content = parse_json(text)
    if (key := repeated_key(text)) is not None:
        raise ValueError(f"sets '{key}' twice")
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text holds. Raises ValueError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return _sound(tomllib.loads(text), text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_yaml(text: str) -> Any:
    """What a YAML text holds. Raises ValueError for what is no YAML, a key set twice, too large or nested too deep."""
    if len(text) > _LARGEST_YAML:
        raise ValueError(f"{len(text):,} characters are no settings")
    try:
        depth = 0
        # One after the other: libyaml's own reader would go down with the process where they are nested very deep.
        for event in yaml.parse(text, Loader=_PARSER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_YAML:
                raise ValueError("nested too deep")
        return _sound(yaml.load(text, Loader=_CarefulLoader), text)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(re.sub(r' in "<[a-z ]+>",', " at", " ".join(str(error).split()))) from None


class _CarefulLoader(_PARSER):  # type: ignore[misc, valid-type]
    """SafeLoader without its surprises: dates stay the text they were written as, and what would be lost is refused.

    That is a key written twice, of which the first would be gone, and a number that is read as another one.
    """

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A whole number or one with a point."""
        text = self.construct_scalar(node)
        if _ODD_NUMBER.fullmatch(text):
            words = f"{text[:20]} is a number of base {'60' if ':' in text else '8'} in YAML"
            raise yaml.constructor.ConstructorError(
                None, None, f"{words}: write the one that is meant, or quotes around a text", node.start_mark
            )
        is_whole = node.tag == "tag:yaml.org,2002:int"
        number: int | float = self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        return number

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            # `<<: *other` takes another mapping's keys over: to write one of them again is what it is for.
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a list is no name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is set twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


_CarefulLoader.add_constructor("tag:yaml.org,2002:int", _CarefulLoader.construct_number)
_CarefulLoader.add_constructor("tag:yaml.org,2002:float", _CarefulLoader.construct_number)
_CarefulLoader.add_constructor("tag:yaml.org,2002:timestamp", _CarefulLoader.construct_scalar)


def parse_yaml_value(text: str) -> Any:
    """A value on a command line: YAML's spellings (1e-4, [a, b], true), and plain text where that says less.

    Comments, names for repeated parts and marks between documents belong into files: `p #2` is a text of four letters.
    """
    try:
        value = parse_yaml(text)
        ends = [token.end_mark.index for token in yaml.scan(text) if token.end_mark.index > token.start_mark.index]
    except (ValueError, yaml.YAMLError):
        return text
    is_more = bool(text[max(ends, default=0) :].strip()) or text.lstrip().startswith(("&", "---", "|", ">"))
    # As it stands where nothing but a blank at its end was lost: `prefix=masterpiece, ` ends in one.
    return text if is_more else text.lstrip() if value == text.strip() else value


def _sound(value: Any, text: str) -> Any:
    """The value, unless it holds what can't be written again or even shown.

    That is half of a character, by an escape such as \\ud800, and a number so long that Python refuses to print it.
    """
    if _LONG_NUMBER.search(text) and _holds_long_number(value):
        raise ValueError("holds a number of more than a thousand digits")
    if "\\u" in text and re.search(r"\\[uU](?:0000)?[dD][89a-fA-F]", text):
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds half of a character ({error.object[error.start]!r})") from None
    return value


def _holds_long_number(value: Any) -> bool:
    left, seen = [value], set()
    while left:
        one = left.pop()
        if isinstance(one, int) and one.bit_length() > _MOST_BITS:
            return True
        if isinstance(one, dict | list) and id(one) not in seen:  # YAML's aliases may hold one a million times
            seen.add(id(one))
            left += [*one, *one.values()] if isinstance(one, dict) else one
    return False


def read_file(path: Path) -> bytes:
    """The content of a file that somebody else put there. Raises OSError, also for what only has a file's name.

    Reading a pipe may wait for ever, and a device (a link to /dev/zero) has no end: memory would have.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The text of a file, see `read_file` and `decode_text`. Raises OSError and UnreadableTextError."""
    return decode_text(read_file(path))


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


def model_as_json(model: BaseModel, *, exclude: set[str] | None = None, indent: int | None = None) -> str:
    """A model's fields as JSON, in plain ASCII where one of them names a file whose name is no valid Unicode."""
    try:
        return model.model_dump_json(exclude=exclude, indent=indent)
    except PydanticSerializationError:
        return json.dumps(model.model_dump(mode="json", exclude=exclude), indent=indent)
