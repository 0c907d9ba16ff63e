"""The base models that ship with sdlora: small, real Stable Diffusion models that need no download."""

from pathlib import Path

BUILTIN_MODELS: dict[str, Path] = {"builtin:emoji": Path(__file__).parent / "emoji"}

__all__ = ["BUILTIN_MODELS"]
