"""Where a base model lies: shipped with sdlora, in a folder, in one file, or on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdlora.errors import ModelError
from sdlora.models.builtin import BUILTIN_MODELS

SourceKind = Literal["builtin", "folder", "file", "hub"]
FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt")

PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
"""Folders of a diffusers model that hold weights."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A base model's place. `path` is None on the hub, `name` is what the user wrote."""

    kind: SourceKind
    name: str
    path: Path | None = None

    @property
    def location(self) -> str:
        """What diffusers' from_pretrained takes: a folder or a hub name."""
        return self.name if self.path is None else str(self.path)


def locate(model: str) -> Source:
    """Tell what `model` names. Raises ModelError when nothing is there."""
    if model.startswith("builtin:"):
        if model not in BUILTIN_MODELS:
            raise ModelError(f"'{model}' is not a built-in model; there is: {', '.join(BUILTIN_MODELS)}")
        return Source("builtin", model, BUILTIN_MODELS[model])
    path = Path(model).expanduser()
    if path.is_dir():
        return Source("folder", model, path)
    if path.is_file():
        if path.suffix.lower() not in FILE_SUFFIXES:
            raise ModelError(f"{path}: a base model file ends in {' or '.join(FILE_SUFFIXES)}, not '{path.suffix}'")
        return Source("file", model, path)
    # Before the hub: models/sd15.safetensors has the form of a hub name, too.
    if path.suffix.lower() in FILE_SUFFIXES:
        raise ModelError(f"{path}: no such file")
    if is_hub_name(model):
        return Source("hub", model)
    raise ModelError(
        f"base model '{model}' was not found: it is no folder and no file here, and not a hub name (owner/name),"
        " such as stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def is_hub_name(text: str) -> bool:
    """Whether the text has the form of a hub name, owner/name."""
    return _HUB_NAME.fullmatch(text) is not None and not text.startswith(".")


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The .safetensors files in a part's folder that are read for a variant: `model.fp16.safetensors` for fp16."""
    ending = f".{variant}" if variant else ""
    names = {f"{start}{ending}" for start in ("model", "diffusion_pytorch_model")}
    return [path for path in sorted(folder.glob("*.safetensors")) if _SHARD.sub("", path.stem) in names]
