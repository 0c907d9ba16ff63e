"""Files of the recipe's work folder, written so that a killed run never leaves half of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_array(path: Path, array: np.ndarray) -> None:
    """Save an .npy file, all or nothing."""
    with _beside(path).open("wb") as file:
        np.save(file, array)
    _beside(path).replace(path)


def write_json(path: Path, value: Any) -> None:
    """Save a JSON file, all or nothing."""
    _beside(path).write_text(json.dumps(value, indent=1))
    _beside(path).replace(path)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save training state with torch, all or nothing."""
    import torch

    torch.save(state, _beside(path))
    _beside(path).replace(path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The training state saved last, or None before the first save."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".part")
