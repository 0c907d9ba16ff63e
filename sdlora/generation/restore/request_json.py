"""A generated image's whole request as JSON in its file, and back. Needs no torch.

Left out is the folder that the image went to; the user's home folder is written as ~, so that a shared picture does not
tell the user's name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdlora.generation.generated import GeneratedImage
from sdlora.generation.restore.infotext import Infotext
from sdlora.generation.restore.infotext_grammar import LONGEST_TEXT
from sdlora.text_files import parse_json
from sdlora.version import __version__

_PATHS = {"base_model": ("model", "vae"), "start": ("image", "mask")}


def request_of(image: GeneratedImage) -> dict[str, Any]:
    """What repeats this one image, with the hashes of the files it was generated with."""
    values = image.config.model_dump(mode="json", exclude={"files": {"folder"}})
    return {
        "sdlora": __version__,
        "request": _map_paths(values, _hide_home),
        "model": image.facts.model_name,
        "model_hash": image.facts.model_hash,
        "adapter_hashes": dict(image.facts.adapter_hashes),
    }


def read_request(text: str) -> Infotext:
    """The request in a file. Raises ValueError when there is none in it."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{len(text):,} characters")
    content = parse_json(text)
    values = content.get("request") if isinstance(content, dict) else None
    if not isinstance(values, dict):
        raise ValueError("no request in it")
    if isinstance(values.get("files"), dict):
        values["files"].pop("folder", None)  # where files go is the reader's choice, not the picture's
    hashes = content.get("adapter_hashes")
    name, short = content.get("model"), content.get("model_hash")
    return Infotext(
        values=_map_paths(values, _show_home),
        model_name=name if isinstance(name, str) else None,
        model_hash=short if isinstance(short, str) else None,
        adapter_hashes={str(key): str(value) for key, value in hashes.items()} if isinstance(hashes, dict) else {},
        by_sdlora=True,
    )


def _map_paths(values: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The request with `change` applied to its paths."""
    changed = dict(values)
    for section, names in _PATHS.items():
        if isinstance(changed.get(section), dict):
            changed[section] = {
                name: change(value) if name in names else value for name, value in changed[section].items()
            }
    for holder in (changed, changed.get("base_model")):
        if isinstance(holder, dict) and isinstance(holder.get("adapters"), list):
            holder["adapters"] = [
                {name: change(value) if name == "file" else value for name, value in adapter.items()}
                if isinstance(adapter, dict)
                else adapter
                for adapter in holder["adapters"]
            ]
    if isinstance(changed.get("adapter_folders"), list):
        changed["adapter_folders"] = [change(folder) for folder in changed["adapter_folders"]]
    return changed


def _hide_home(value: Any) -> Any:
    home = str(Path.home())
    if isinstance(value, str) and len(home) > 1 and value.startswith((home + os.sep, home + "/")):
        return "~" + value[len(home) :].replace(os.sep, "/")
    return value


def _show_home(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path.home() / value[2:])
    return value
