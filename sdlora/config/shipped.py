"""Presets and sample images that come with the package, from a checkout or an installed wheel."""

from __future__ import annotations

from pathlib import Path

BUILTIN_PREFIX = "builtin:"

_PACKAGE = Path(__file__).resolve().parents[1]


def _shipped(name: str) -> Path:
    in_checkout = _PACKAGE.parent / name
    in_wheel = _PACKAGE / "_shipped" / name
    return in_wheel if in_wheel.is_dir() else in_checkout


def presets_folder() -> Path:
    """The folder of shipped presets."""
    return _shipped("presets")


def sample_images_folder() -> Path:
    """The folder of shipped sample image sets."""
    return _shipped("sample_images")


def shipped_sets() -> list[str]:
    """The names of the sample image sets, without the prefix."""
    return sorted(path.name for path in sample_images_folder().iterdir() if path.is_dir())


def resolve_folder(folder: Path) -> Path:
    """The real folder behind a setting: `builtin:blueprint` is a shipped sample set, anything else itself."""
    text = str(folder)
    if text.startswith(BUILTIN_PREFIX):
        return sample_images_folder() / text.removeprefix(BUILTIN_PREFIX)
    return folder
