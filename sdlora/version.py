"""The version of sdlora; the package's metadata takes it from here."""

from __future__ import annotations

__version__ = "0.1.0"
