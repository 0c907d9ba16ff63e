"""Adapter files, in and out: the door to `reading` and `writing`."""

from sdlora.adapters.key_names import Format
from sdlora.adapters.reading import read
from sdlora.adapters.weights import AdapterFile, ModuleWeights
from sdlora.adapters.writing import Export, export, write_side_car

__all__ = ["AdapterFile", "Export", "Format", "ModuleWeights", "export", "read", "write_side_car"]
