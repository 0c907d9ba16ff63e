"""Adapters read once and kept ready, apart from any base model's weights; those used longest ago go first.

Shapes: O outputs, I inputs, R rank, k kernel edge. A layer's weight is [O,I], or [O,I,k,k] of a convolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sdlora.adapters.algebra.operands import Operand, common_family, layer_update, notes_of, told, weighted, with_family
from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.metadata import prediction_note
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights, VectorUpdate
from sdlora.config.base_model import FamilyName, Prediction
from sdlora.config.generate import UsedAdapter
from sdlora.constants import GIB
from sdlora.errors import AdapterError
from sdlora.file_memory import stamp

DEFAULT_POOL_BYTES = GIB


class Layers(Protocol):
    """What the pool asks of the base model that its adapters are for."""

    @property
    def family(self) -> FamilyName:
        """The base model's family."""

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the calculation."""

    @property
    def device(self) -> torch.device:
        """Where the base model is."""

    def shape(self, name: str) -> torch.Size | None:
        """Shape of a layer's weight by kohya name; None when there is no such layer."""

    def original_weight(self, name: str) -> Tensor:
        """A layer's own weight, without any adapter."""

    def vector_sizes(self, name: str) -> tuple[int | None, int] | None:
        """Lengths of a layer's norm weight (None: it is no norm) and bias; None when there is no such layer."""


@dataclass(frozen=True)
class Update:
    """A layer's update scale * up @ down: down [R,I(,k,k)], up [O,R(,1,1)]; without `up`, `down` is all of it."""

    down: Tensor
    up: Tensor | None
    scale: float

    @property
    def num_bytes(self) -> int:
        """Memory in bytes that its factors take."""
        tensors = (self.down,) if self.up is None else (self.down, self.up)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter ready for use: its updates by layer; `file` holds what is known of it, but no weights."""

    file: AdapterFile
    key: tuple[str, int, int, int]
    updates: Mapping[str, Update]
    warnings: tuple[str, ...]
    vectors: Mapping[str, VectorUpdate] = field(default_factory=dict)
    """Updates of biases and norms by layer."""

    @property
    def layer_names(self) -> set[str]:
        """The layers that it changes."""
        return {*self.updates, *self.vectors}

    @property
    def num_bytes(self) -> int:
        """Memory in bytes that its updates take, those of biases and norms, which are small, left out."""
        return sum(update.num_bytes for update in self.updates.values())


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter as one image uses it: weights by part and block, and the share of the steps it is in."""

    loaded: LoadedAdapter
    operand: Operand
    start: float = 0.0
    end: float = 1.0

    def strength(self, name: str) -> float:
        """What the layer's update, without its scale, is multiplied by; 0 for layers it has not."""
        update = self.loaded.updates.get(name)
        return 0.0 if update is None else self.operand.weight_of(name) * update.scale

    def vector_strength(self, name: str) -> float:
        """What the layer's bias and norm updates are multiplied by; 0 for layers it has none for."""
        return self.operand.weight_of(name) if name in self.loaded.vectors else 0.0

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for adapters that do the same."""
        weights = self.operand
        blocks = tuple(sorted((weights.blocks or {}).items()))
        parts = (weights.unet, weights.text_encoder, weights.text_encoder_2)
        return (self.loaded.key, *parts, blocks, self.start, self.end)


class AdapterPool:
    """Adapters by file, in at most `max_bytes` of memory beside those of the batch that is generated."""

    def __init__(
        self, layers: Layers, max_bytes: int = DEFAULT_POOL_BYTES, prediction: Prediction | None = None
    ) -> None:
        self._layers = layers
        self._prediction = prediction
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, int, int, int], LoadedAdapter] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Memory that all kept adapters take."""
        return sum(adapter.num_bytes for adapter in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, used: UsedAdapter) -> WeightedAdapter:
        """The adapter, read if it isn't kept or its file has changed.

        Raises AdapterError (unreadable, another family, other layer sizes) and ConfigError (unknown block weights).
        """
        path = local_file(used.file)
        if not path.is_file():
            raise AdapterError(f"{path}: there is no such file")
        # With its stamp: a file that is written anew under its name is another adapter.
        key = (str(path.resolve()), *stamp(path.stat()))
        if key not in self._kept:
            self._kept[key] = self._load(path, key)
        self._kept.move_to_end(key)
        loaded = self._kept[key]
        # The one that was just asked for stays, however large it is.
        while len(self._kept) > 1 and self.num_bytes > self._max_bytes:
            self._kept.popitem(last=False)
        return WeightedAdapter(loaded, weighted(loaded.file, used, self._layers.family), used.start, used.end)

    @torch.no_grad()
    def _load(self, path: Path, key: tuple[str, int, int, int]) -> LoadedAdapter:
        file = read(path)
        family = common_family([file], self._layers.family, "the base model")
        file = with_family(file, family)
        updates: dict[str, Update] = {}
        problems: list[str] = []
        for name, weights in file.modules.items():
            shape = self._layers.shape(name)
            if shape is None:
                continue
            if not weights.fits(shape):
                problems.append(f"{name} is {told(weights)}, the model has {list(shape)}")
            else:
                updates[name] = self._update(name, weights, shape, path.name)
        vectors: dict[str, VectorUpdate] = {}
        for name, vector in file.vectors.items():
            sizes = self._layers.vector_sizes(name)
            if sizes is None:
                continue
            if misfit := _misfit(vector.weight, sizes[0]) or _misfit(vector.bias, sizes[1]):
                problems.append(f"{name} has {misfit}, which the model's layer can't take")
            else:
                own = (None if one is None else self._held(one) for one in (vector.weight, vector.bias))
                vectors[name] = VectorUpdate(*own)
        if problems or not (updates or vectors):
            said = "; ".join(problems[:3]) or f"the model has none of its layers, such as {file.layer_names[0]}"
            raise AdapterError(f"{path.name} doesn't fit the base model: {said}")
        warnings = notes_of([file], takes_bundles=True)
        if note := prediction_note(path.name, file.metadata, "the base model", self._prediction):
            warnings.append(note)
        if unplaced := len(set(file.layer_names) - updates.keys() - vectors.keys()):
            warnings.append(f"{path.name}: {unplaced} of {len(file.layer_names)} layers have no place in this model")
        # Without the file's tensors, which would be held a second time.
        return LoadedAdapter(replace(file, modules={}, vectors={}), key, updates, tuple(warnings), vectors)

    def _update(self, name: str, weights: ModuleWeights, shape: torch.Size, source: str) -> Update:
        """LoRA keeps its own factors; all else becomes factors where those are smaller than the whole."""
        if weights.algorithm == "lora" and weights.dora_scale is None:
            plain = weights.without_tucker().factors
            return self._placed(plain["lora_down"], plain["lora_up"], shape, weights.scale)
        update = layer_update(name, weights, self._layers.original_weight, source)
        if update.rank * sum(update.size) < shape.numel():
            return self._placed(update.down_Ri, update.up_oR, shape, 1.0)
        return Update(self._held(update.matrix().reshape(shape)), None, 1.0)

    def _placed(self, down: Tensor, up: Tensor, shape: torch.Size, scale: float) -> Update:
        rank = len(down)
        ones = [1] * (len(shape) - 2)
        return Update(self._held(down.reshape(rank, *shape[1:])), self._held(up.reshape(shape[0], rank, *ones)), scale)

    def _held(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._layers.device, self._layers.dtype, copy=True).contiguous()


def _misfit(vector: Tensor | None, size: int | None) -> str | None:
    """What is wrong with a vector for a layer that takes `size` numbers."""
    return None if vector is None or len(vector) == size else f"a vector of {len(vector)} numbers"
