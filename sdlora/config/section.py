"""The base of every configuration section."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A group of settings: immutable, unknown keys refused, each field described by the text under it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false (also written yes, no, on, off) for a number, as which they would be 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if _is_truth(value) and _takes(annotation, int, float) and not _takes(annotation, bool):
            raise ValueError("must be a number, not true or false (yes, no, on and off are these, too)")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_broken_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse two things that look like paths and would silently be others.

        In YAML's double quotes a backslash begins an escape, so `"C:\\new"` holds a line break; and an empty path is
        the folder that the command happens to run in.
        """
        field = cls.model_fields[str(info.field_name)]
        if not isinstance(value, str) or not (holds_path(field.annotation) or info.field_name in _NAMES):
            return value
        if not value.strip() and holds_path(field.annotation):
            raise ValueError("is empty, which would be the current folder; give a path ('.' for that folder) or null")
        if any(ord(character) < 32 for character in value):
            shown = repr(value)[1:-1]
            raise ValueError(
                f"'{shown}' holds a control character: a backslash in YAML's double quotes begins one. "
                "Write the path with / or in 'single quotes'"
            )
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_broken_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what is no text: bytes of a command line that aren't UTF-8, which no tokenizer takes and no file.

        A path may hold them, as the name of a folder on Linux may: whoever opens it says what is wrong with it.
        """
        annotation = cls.model_fields[str(info.field_name)].annotation
        if info.field_name in _PLACES or holds_path(annotation) or not _takes(annotation, str):
            return value
        held = (*value, *value.values()) if isinstance(value, Mapping) else value
        texts = [each for each in (held if isinstance(held, list | tuple) else (held,)) if isinstance(each, str)]
        if not all(is_text(each) for each in texts):
            raise ValueError(NO_TEXT)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _from_home(cls, value: Any) -> Any:
        """Paths that begin at the user's home folder, as `~/loras`, which a shell leaves alone in `--set a=~/loras`."""
        if isinstance(value, tuple):
            return tuple(from_home(each) for each in value) if any(isinstance(each, Path) for each in value) else value
        return from_home(value)


NO_TEXT = "is no valid text: your terminal may not send UTF-8, or a file's name is in another encoding (rename it)"
"""What is said of text that `is_text` refuses."""


def is_text(text: str) -> bool:
    """Whether a text can be written down: no bytes in it that were no text in the terminal's encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def from_home(path: Any) -> Any:
    """A path with `~` at its beginning made into the home folder; anything else as it is. Raises ValueError for $HOME.

    A folder that is called so would be made where it is written to, and nobody looks for it there.
    """
    if not isinstance(path, Path) or not path.parts:
        return path
    if path.parts[0].startswith("$") and os.path.expandvars(path.parts[0]) != path.parts[0]:
        raise ValueError(f"{path}: variables are not filled in here; write the path itself")
    with suppress(RuntimeError):  # the home of somebody whom this machine doesn't know
        return path.expanduser()
    return path


_PLACES = ("model", "vae", "start_from", "file")
"""Settings that are text and may be the path of a file."""
_NAMES = (*_PLACES, "name")
"""Settings that are text and may name a file."""


def holds_path(annotation: Any) -> bool:
    """Whether a setting takes a path, alone or among other kinds."""
    return _takes(annotation, Path)


def _takes(annotation: Any, *kinds: type) -> bool:
    """Whether a setting takes one of these kinds, alone or among others, as such or in a list or mapping."""
    return annotation in kinds or any(_takes(part, *kinds) for part in get_args(annotation))


def _is_truth(value: Any) -> bool:
    """Whether a value, or one in its list or mapping, is true or false."""
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(each, bool) for each in held)
