"""Reads textual-inversion files: AUTOMATIC1111's, ComfyUI's and diffusers', and those bundled with a LoRA.

Forms: `emb_params` or `string_to_param` (AUTOMATIC1111), `clip_l` and `clip_g` (SDXL), tensors named by their tokens
(diffusers); in a LoRA file each behind `bundle_emb.NAME.`. Pickles are read as plain tensors only.

Files of diffusers and sdlora tell their tokens, too, by which a prompt may call them: `<ohwx>`. Where several are in
one file, that is the only way to tell them apart.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdlora.adapters.files.container import adapter_header, is_pickle, load_tensors
from sdlora.adapters.files.foreign import algorithm_named, whole_of
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
_LARGEST_PICKLE_BYTES = 4 * MIB
"""Far above what any word needs: larger files are not looked into for their token; pickles are read whole for it."""
_A1111 = "string_to_param"
_TOKEN = re.compile(r"<[^<>]+>")


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


def read_embedding(path: Path, word: str = "") -> Embedding:
    """A textual-inversion file's vectors; its name is the file's, in a file of several the token's.

    word: which of several, by its token in any letters.
    Raises AdapterError: not there, damaged, a pickle with more than tensors, no embedding or several others, vectors of
    no clear shape, values that aren't finite.
    """
    found = _read(path)
    if len(found) == 1:
        return found[0]
    wanted = [one for one in found if (one.token or "").casefold() == word.casefold()]
    if len(wanted) != 1:
        names = ", ".join(one.name for one in found)
        told = all(one.token for one in found)
        how = "a prompt uses each by its token" if told else "save each in a file of its own, whose name a prompt uses"
        raise AdapterError(f"{path.name} holds {len(found)} embeddings, {names}: {how}")
    return wanted[0]


def embeddings_in(source: Path | str) -> list[Embedding]:
    """The embeddings of a file of such; none of any other file, nor of one that can't be read.

    Raises AdapterError, as `read_embedding` does, for one whose vectors can't be used.
    """
    try:
        path = local_file(source)
        if path.suffix.lower() not in SUFFIXES or not _words(_named(path)):
            return []
    except AdapterError:
        return []
    return _read(path)


def _read(path: Path) -> list[Embedding]:
    """All embeddings of a file, one at least."""
    named = _named(path)
    words = _words(named)
    if not words:
        if by_layer(named).layers:
            raise AdapterError(f"{path.name} is an adapter, no embedding; what is bundled with it goes by its name")
        if whole := whole_of(named):
            raise AdapterError(f"{path.name} is no embedding but {whole}")
        first = ", ".join(list(named)[:3]) or "no tensors"
        raise AdapterError(f"{path.name} holds no textual-inversion embedding (it holds {first})")
    used = {key for slots in words.values() for key in slots.values()}
    stray = tuple(key for key in named if key not in used)
    if len(words) == 1:
        ((_, slots),) = words.items()
        return [Embedding(path.stem, _by_encoder(named, slots, path.name), stray, token_of(path))]
    return [
        Embedding(word, _by_encoder(named, slots, path.name), stray, word if _TOKEN.fullmatch(word) else None)
        for word, slots in words.items()
    ]


def token_of(path: Path) -> str | None:
    """The token that an embedding file tells, in its metadata or as diffusers does by its tensor; None for others."""
    tokens = tokens_in(path)
    return tokens[0] if len(tokens) == 1 else None


@while_unchanged(most=4096)
def tokens_in(path: Path) -> tuple[str, ...]:
    """The same of a file that may hold several."""
    most = _LARGEST_PICKLE_BYTES if is_pickle(path) else _LARGEST_BYTES
    try:
        if path.stat().st_size > most:
            return ()
        if is_pickle(path):
            return tuple(key for key in _named(path) if _TOKEN.fullmatch(key))
        header = adapter_header(path)
    except (AdapterError, OSError):
        return ()
    told = header.metadata.get(WORD_ENTRY)
    return (told,) if told else tuple(key for key in header.shapes if _TOKEN.fullmatch(key))


def embeddings_beside(adapter: Path) -> dict[str, Path]:
    """The files by token that a run wrote with an adapter: `NAME_emb.safetensors`, of several tokens `NAME_emb-...`."""
    pattern = f"{glob.escape(adapter.stem)}_emb*.safetensors"
    endings = (f"{adapter.stem}_emb.", f"{adapter.stem}_emb-")
    files = [path for path in sorted(adapter.parent.glob(pattern)) if path.name.startswith(endings)]
    return {token: path for path in files if (token := token_of(path)) is not None}


def is_bundled(key: str) -> bool:
    """Whether a tensor of an adapter file belongs to an embedding."""
    return key.startswith(BUNDLE_PREFIX)


def bundled(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Embedding], dict[str, str]]:
    """The embeddings in an adapter file, by name; and why its other tensors with such names are not used."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if is_bundled(key):
            name, _, rest = key.removeprefix(BUNDLE_PREFIX).partition(".")
            grouped.setdefault(name, {})[rest] = tensor
    found: dict[str, Embedding] = {}
    unused: dict[str, str] = {}
    for name, own in grouped.items():
        words = _words(own)
        try:
            if len(words) != 1:
                raise AdapterError(f"{len(words)} embeddings under one name" if words else "it holds no vectors")
            ((_, slots),) = words.items()
            found[name] = Embedding(name, _by_encoder(own, slots, name))
        except AdapterError as error:
            reason = f"a bundled embedding that can't be used, {error}"
            unused |= dict.fromkeys((f"{BUNDLE_PREFIX}{name}.{key}" for key in own), reason)
            continue
        stray = (f"{BUNDLE_PREFIX}{name}.{key}" for key in own if key not in slots.values())
        unused |= dict.fromkeys(stray, "no vectors of the embedding that it is bundled with")
    return found, unused


def _words(named: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """Keys by word and text encoder; none of an adapter. Names that tools have for the vectors of one word go before
    those that are words."""
    if by_layer(named).layers or whole_of(named):
        return {}
    slots: dict[str, str] = {}
    for key in named:
        if key in (FIRST, ONLY, SECOND):
            slots.setdefault(SECOND if key == SECOND else FIRST, key)
    if slots:
        return {"": slots}
    listed = {key.removeprefix(f"{_A1111}."): key for key in named if key.startswith(_A1111)}
    # diffusers names each tensor by its token; a dot belongs to the name of a layer
    others = (key for key, one in named.items() if "." not in key and (_TOKEN.fullmatch(key) or _are_vectors(one)))
    if not listed:
        listed = {key: key for key in others if algorithm_named([key]) is None}
        if len({named[key].shape[-1:] for key in listed}) > 1 and not any(map(_TOKEN.fullmatch, listed)):
            return {}  # of several widths and under names of any kind: other things than words
    return {word: {FIRST: key} for word, key in listed.items()}


def _by_encoder(named: Mapping[str, Tensor], slots: Mapping[str, str], source: str) -> dict[str, Tensor]:
    return {slot: _vectors(named[key], key, source) for slot, key in slots.items()}


def _are_vectors(tensor: Tensor) -> bool:
    """Whether a tensor is a row of vectors, a single one, or either with axes of length 1 too many."""
    shape = tensor.shape
    return (
        len(shape) > 0
        and 0 not in shape
        and sum(length > 1 for length in shape[:-1]) <= 1
        and tensor.is_floating_point()
    )


def _vectors(tensor: Tensor, key: str, source: str) -> Tensor:
    """Vectors [number, D] in fp32."""
    if not _are_vectors(tensor):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise AdapterError(
            f"{source}: {key} {list(tensor.shape)} in {kind} is no row of an embedding's vectors [number, width]"
        )
    vectors = tensor.reshape(-1, tensor.shape[-1]).float()
    if not bool(torch.isfinite(vectors).all()):
        raise AdapterError(f"{source}: {key} has a value that is not finite")
    return vectors


def _named(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name, those of AUTOMATIC1111's pickles as in its .safetensors files."""
    return _pickled(path) if is_pickle(path) else load_tensors(path)[0]


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
    if isinstance(content, Mapping) and isinstance(content.get(_A1111), Mapping | torch.nn.ParameterDict):
        content = {f"{_A1111}.{name}": value for name, value in content[_A1111].items()}
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
