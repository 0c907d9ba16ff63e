"""Base models at hand: the built-in one, and what lies in a folder of models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sdlora.config.base_model import BaseModelConfig, FamilyName
from sdlora.constants import MIB
from sdlora.errors import SdloraError
from sdlora.models.builtin import BUILTIN_MODELS
from sdlora.models.detection import detect

_FILE_SUFFIXES = (".safetensors", ".ckpt")
_INDEX = "model_index.json"
_SMALLEST_MODEL_BYTES = MIB


def list_models(folder: Path) -> list[tuple[str, str]]:
    """Label and path of every base model in a folder and below, the built-in ones first.

    Files are taken by their suffix and size; what they are is found out when one is used.
    """
    found = [(name, name) for name in BUILTIN_MODELS]
    for place, inner, names in os.walk(folder):
        if _INDEX in names:
            found.append((Path(place).relative_to(folder).as_posix(), place))
            inner.clear()
            continue
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            with suppress(OSError):  # a link to a disk that isn't there
                if path.suffix.lower() in _FILE_SUFFIXES and path.stat().st_size >= _SMALLEST_MODEL_BYTES:
                    found.append((path.relative_to(folder).as_posix(), str(path)))
    return found


def model_named(name: str, models: Sequence[tuple[str, str]]) -> str | None:
    """The model that a picture calls by its file's name; None if there is none."""
    wanted = name.casefold()
    return next((value for _, value in models if wanted in (value.casefold(), Path(value).stem.casefold())), None)


def family_of(model: BaseModelConfig | str) -> FamilyName | None:
    """The family of a base model that lies on this machine; None where only loading it would tell."""
    config = BaseModelConfig(model=model) if isinstance(model, str) else model
    is_here = config.model in BUILTIN_MODELS or Path(config.model).expanduser().exists()
    if not is_here or config.model.endswith(".ckpt"):
        return None
    try:
        return detect(config).family
    except SdloraError:
        return None
