"""Reads textual-inversion files: AUTOMATIC1111's, ComfyUI's and diffusers', and those bundled with a LoRA.

Forms: `emb_params` or `string_to_param` (AUTOMATIC1111), `clip_l` and `clip_g` (SDXL), one tensor named by its token
(diffusers); in a LoRA file each behind `bundle_emb.NAME.`. Pickles are read as plain tensors only.

Files that sdlora writes tell their token, too, by which a prompt may call them: `<ohwx>`.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.adapters.files.container import adapter_header, is_pickle, load_tensors
from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.key_names import by_layer
from sdlora.constants import MIB
from sdlora.errors import AdapterError
from sdlora.file_memory import while_unchanged
from sdlora.models.headers import looks_like, unpickle

SUFFIXES = (".safetensors", ".pt", ".bin")
FIRST, SECOND, ONLY = "clip_l", "clip_g", "emb_params"
"""Names of the vectors of SDXL's two text encoders, and of the only one."""
BUNDLE_PREFIX = "bundle_emb."
WORD_ENTRY = "sdlora.new_token"
"""Metadata entry of an embedding file: the token that its vectors were trained as."""
_LARGEST_BYTES = 64 * MIB
"""Far above what any word needs: larger files are not looked into for their token."""


@dataclass(frozen=True)
class Embedding:
    """A word's vectors [number, D] by text encoder: `clip_l` (or the only one), and SDXL's `clip_g`."""

    name: str
    vectors: Mapping[str, Tensor]
    left_out: tuple[str, ...] = field(default=())
    """Tensors that are no vectors of a word."""
    token: str | None = None
    """The token that its file tells, by which a prompt may call it, too."""

    def for_widths(self, widths: Sequence[int]) -> list[Tensor]:
        """The vectors for text encoders of these widths. Raises AdapterError when they don't fit."""
        own = [self.vectors.get(FIRST), self.vectors.get(SECOND)][: len(widths)]
        if len(widths) == 1 and own[0] is None:
            own = [self.vectors.get(SECOND)]
        fits = [vectors is not None and vectors.shape[1] == width for vectors, width in zip(own, widths, strict=True)]
        given = " and ".join(str(self.vectors[slot].shape[1]) for slot in (FIRST, SECOND) if slot in self.vectors)
        if not all(fits) or (len(self.vectors) > len(widths)):
            wanted = " and ".join(str(width) for width in widths)
            raise AdapterError(f"embedding {self.name} is of width {given}, the base model's text encoder of {wanted}")
        found = [vectors for vectors in own if vectors is not None]
        if len({len(vectors) for vectors in found}) > 1:
            raise AdapterError(f"embedding {self.name} has another number of vectors for each text encoder")
        return found


def read_embedding(path: Path) -> Embedding:
    """A textual-inversion file's vectors; its name is the file's.

    Raises AdapterError: not there, damaged, a pickle with more than tensors, no embedding, values that aren't finite.
    """
    tensors = _pickled(path) if is_pickle(path) else load_tensors(path)[0]
    return replace(_embedding(path.stem, tensors, path.name), token=token_of(path))


def embedding_in(source: Path | str) -> Embedding | None:
    """The embedding of a file that is one; None for any other file, and for one that can't be read."""
    try:
        path = local_file(source)
        return read_embedding(path) if path.suffix.lower() in SUFFIXES else None
    except AdapterError:
        return None


@while_unchanged(most=4096)
def token_of(path: Path) -> str | None:
    """The token that an embedding file tells, in its metadata or as diffusers does by its tensor; None for others."""
    try:
        if is_pickle(path) or path.stat().st_size > _LARGEST_BYTES:
            return None
        header = adapter_header(path)
    except (AdapterError, OSError):
        return None
    only = next(iter(header.shapes)) if len(header.shapes) == 1 else ""
    return header.metadata.get(WORD_ENTRY) or (only if only.startswith("<") and only.endswith(">") else None)


def embeddings_beside(adapter: Path) -> dict[str, Path]:
    """The files by token that a run wrote with an adapter: `NAME_emb.safetensors`, of several tokens `NAME_emb-...`."""
    pattern = f"{glob.escape(adapter.stem)}_emb*.safetensors"
    endings = (f"{adapter.stem}_emb.", f"{adapter.stem}_emb-")
    files = [path for path in sorted(adapter.parent.glob(pattern)) if path.name.startswith(endings)]
    return {token: path for path in files if (token := token_of(path)) is not None}


def is_bundled(key: str) -> bool:
    """Whether a tensor of an adapter file belongs to an embedding."""
    return key.startswith(BUNDLE_PREFIX)


def bundled(tensors: Mapping[str, Tensor], source: str) -> dict[str, Embedding]:
    """The embeddings in an adapter file, by name; without those that are none, or of values that aren't finite."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if is_bundled(key):
            name, _, rest = key.removeprefix(BUNDLE_PREFIX).partition(".")
            grouped.setdefault(name, {})[rest] = tensor
    found: dict[str, Embedding] = {}
    for name, own in grouped.items():
        try:
            found[name] = _embedding(name, own, source)
        except AdapterError:
            continue  # whoever reads the adapter says that its tensors aren't used
    return found


def _embedding(name: str, tensors: Mapping[str, Tensor], source: str) -> Embedding:
    named = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
    if by_layer(named).layers:
        raise AdapterError(f"{source} is an adapter, no embedding; what is bundled with it goes by its name")
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, tensor in named.items():
        slot = _slot(key, len(named))
        if slot is not None and slot not in found and tensor.ndim in (1, 2) and tensor.is_floating_point():
            found[slot] = tensor.reshape(-1, tensor.shape[-1]).float()
            used.add(key)
    if not found or any(not len(vectors) for vectors in found.values()):
        first = ", ".join(list(named)[:3]) or "nothing"
        raise AdapterError(f"{source} holds no textual-inversion embedding (it holds {first})")
    if not all(bool(torch.isfinite(vectors).all()) for vectors in found.values()):
        raise AdapterError(f"{source} has a value that is not finite")
    return Embedding(name, found, tuple(key for key in named if key not in used))


def _slot(key: str, number: int) -> str | None:
    """Which text encoder a tensor of this name is for."""
    if key in (FIRST, ONLY, "*") or key.startswith("string_to_param"):
        return FIRST
    if key == SECOND:
        return SECOND
    # diffusers names the only tensor by its token
    return FIRST if number == 1 and "." not in key else None


def _pickled(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise AdapterError(f"{path}: there is no such file")
    if what := looks_like(path):
        raise AdapterError(f"{path.name} is {what}")
    try:
        content: Any = unpickle(path)
    except Exception as error:  # in bytes that are no pickle, torch's reader stumbles wherever it happens to be
        raise AdapterError(
            f"{path.name} is a pickle that holds more than plain tensors, or damaged: it is not opened, as that could "
            "run code. Convert it to .safetensors with the tool that made it"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("string_to_param"), Mapping | torch.nn.ParameterDict):
        content = dict(content["string_to_param"].items())
    if not isinstance(content, Mapping):
        return {}
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in content.items()}
