"""Adapters on a resident base model, whose own weights are never written to.

Live: forward hooks add each layer's update to its output; every image of a batch may have its own adapters and weights.
Merged: layers get new weights, and their own back later; faster, for one set of adapters that the whole batch shares.

A UNet call has one row for each image, with guidance two that follow each other. In a mixed batch a row gets the same
arithmetic as alone.

Shapes: S images, I inputs, O outputs, R the largest rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdlora.adapters.files.kohya import PARTS, kohya_name
from sdlora.adapters.files.weights import VectorUpdate
from sdlora.config.base_model import FamilyName
from sdlora.generation.sampling.pool import WeightedAdapter
from sdlora.models.bundle import Bundle
from sdlora.models.host import forget_mapped
from sdlora.models.quantize import QuantizedLayer

AdapterSet = tuple[WeightedAdapter, ...]
"""All adapters of one image."""

_UNET = "lora_unet_"
_NORMS = (nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class _Piece:
    """What is added to consecutive rows of a layer's output: up(down(x)), or down(x) alone."""

    rows: slice
    down: Tensor
    up: Tensor | None

    def add_to(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        """Add the update to these outputs, in place."""
        given, target = inputs[self.rows], output[self.rows]
        if isinstance(layer, nn.Conv2d):
            geometry = (layer.stride, layer.padding, layer.dilation)
            inner = functional.conv2d(given, self.down, None, *geometry)  # type: ignore[arg-type]
            # A 1x1 convolution behind the strided one: only the first sees neighbours, so only it has the layer's
            # geometry.
            target.add_(inner if self.up is None else functional.conv2d(inner, self.up))
        else:
            target.add_(functional.linear(given, self.down))

    def to(self, device: torch.device, dtype: torch.dtype) -> _Piece:
        """The same update on another device or in another number type."""
        return _Piece(self.rows, self.down.to(device, dtype), None if self.up is None else self.up.to(device, dtype))


@dataclass(frozen=True)
class _Stack:
    """What is added to a linear layer's output, image by image in one batched multiplication; one entry is for all.

    Batched also for a single image: only so has it the same bits as among others.
    """

    down_SIR: Tensor
    up_SRO: Tensor
    copies: int

    def add_to(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        """Add the update to these outputs, in place."""
        images = len(inputs) // self.copies
        given, target = (tensor.view(images, -1, tensor.shape[-1]) for tensor in (inputs.contiguous(), output))
        inner = torch.bmm(given, self.down_SIR.expand(images, -1, -1))
        target.baddbmm_(inner, self.up_SRO.expand(images, -1, -1))

    def to(self, device: torch.device, dtype: torch.dtype) -> _Stack:
        """The same update on another device or in another number type."""
        return _Stack(self.down_SIR.to(device, dtype), self.up_SRO.to(device, dtype), self.copies)


@dataclass(frozen=True)
class _Vectors:
    """What is added to a layer's bias and, of a norm, to its weight, for consecutive rows of its output."""

    rows: slice
    vector: VectorUpdate

    def add_to(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> None:
        """Add the update to these outputs, in place."""
        target, weight, bias = output[self.rows], self.vector.weight, self.vector.bias
        if isinstance(layer, nn.GroupNorm) and weight is not None:
            target.add_(functional.group_norm(inputs[self.rows], layer.num_groups, weight, None, layer.eps))
        elif isinstance(layer, nn.LayerNorm) and weight is not None:
            target.add_(functional.layer_norm(inputs[self.rows], layer.normalized_shape, weight, None, layer.eps))
        if bias is not None:
            is_spatial = isinstance(layer, (nn.Conv2d, nn.GroupNorm))
            target.add_(bias.reshape(-1, *[1] * (target.ndim - 2)) if is_spatial else bias)


class AdaptedBase:
    """A loaded base model and the adapters that are on it at the moment."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        parts: list[nn.Module] = [bundle.unet, *bundle.text_encoders]
        self._layers: dict[str, Any] = {}  # an nn.Linear, nn.Conv2d or one of _NORMS each
        self._outermost: dict[str, nn.Module] = {}
        for part, model in zip(PARTS, parts, strict=False):
            for path, layer in model.named_modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d, *_NORMS)):
                    # An adapter that is being trained has PEFT's layer around the base's: the others' updates come on
                    # top of its own, as DoRA's magnitude would rescale them.
                    own = path.removesuffix(".base_layer")
                    name = kohya_name(part, own, bundle.family.name)
                    self._layers[name], self._outermost[name] = layer, model.get_submodule(own)
        self._originals: dict[str, Tensor] = {}
        self._merged: tuple[object, ...] = ()
        self._hooks: list[RemovableHandle] = []

    @property
    def family(self) -> FamilyName:
        """The family of the base model, which adapters must be for."""
        return self._bundle.family.name

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the calculation."""
        return self._bundle.dtype

    @property
    def device(self) -> torch.device:
        """Where the UNet is, and with it the adapters in use."""
        return self._bundle.device

    @property
    def can_merge(self) -> bool:
        """Whether the UNet's weights are plain numbers."""
        return self._bundle.config.quantization == "none"

    def shape(self, name: str) -> torch.Size | None:
        """Shape of a layer's weight by kohya name; None when there is no such layer."""
        layer = self._layers.get(name)
        if layer is None or isinstance(layer, _NORMS):
            return None
        return layer.weight_shape if isinstance(layer, QuantizedLayer) else layer.weight.shape

    def vector_sizes(self, name: str) -> tuple[int | None, int] | None:
        """Lengths of a layer's norm weight (None: it is no norm) and bias; None when there is no such layer."""
        layer = self._layers.get(name)
        if layer is None:
            return None
        if isinstance(layer, _NORMS):
            return (None, 0) if layer.weight is None else (layer.weight.numel(), layer.weight.numel())
        shape = self.shape(name)
        return None, 0 if shape is None else shape[0]

    def original_weight(self, name: str) -> Tensor:
        """A layer's own weight, without any adapter."""
        weight = self._originals.get(name)
        return self._layers[name].weight.detach() if weight is None else weight

    @torch.no_grad()
    def merge(self, adapters: AdapterSet) -> None:
        """Give the UNet's layers weights with these adapters in them, instead of any that were on it."""
        conditional = tuple(adapter.signature for adapter in adapters)
        self._remove_hooks()
        # Hooks are gone by now in any case, so these come anew even where the merged weights can stay.
        self._hook_vectors(_vector_names(adapters, _UNET), [adapters], 1)
        if conditional == self._merged:
            return
        self._restore()
        for name in _names(adapters, _UNET):
            layer = self._layers[name]
            weight = layer.weight.detach()
            merged = weight.float().flatten(1)
            # float() gives an fp32 weight itself, and the layer's own must stay as it is.
            merged = merged.clone() if merged.data_ptr() == weight.data_ptr() else merged
            for adapter in adapters:
                if strength := adapter.strength(name):
                    update = adapter.loaded.updates[name]
                    if update.up is None:
                        merged.add_(update.down.float().flatten(1), alpha=strength)
                    else:
                        merged.addmm_(update.up.float().flatten(1), update.down.float().flatten(1), alpha=strength)
            self._originals[name] = weight
            # Copied into empty_like, which keeps channels innermost; a cast of the sum would lose that.
            layer.weight.data = torch.empty_like(weight).copy_(merged.view(weight.shape))
        self._merged = conditional
        # the layers' own weights are not needed until the next change; from a mapped file they can be read again
        forget_mapped(self._originals.values())

    @torch.no_grad()
    def use(self, rows: Sequence[AdapterSet], copies: int) -> None:
        """Put adapters on the UNet live, instead of any that were on it; rows: those of each image of the batch.

        copies: rows of a UNet call for each image, 2 with guidance.
        """
        self.clear()
        adapters = [adapter for row in rows for adapter in row]
        self._hook(_names(adapters, _UNET), rows, copies)
        self._hook_vectors(_vector_names(adapters, _UNET), rows, copies)

    @torch.no_grad()
    def use_for_text(self, adapters: AdapterSet) -> None:
        """Put adapters on the text encoders live, instead of any that were on the model."""
        self._remove_hooks()
        self._hook(_names(adapters, "lora_te"), [adapters], 1)
        self._hook_vectors(_vector_names(adapters, "lora_te"), [adapters], 1)

    @torch.no_grad()
    def use_for_all(self, adapters: AdapterSet) -> None:
        """Put adapters live on UNet and text encoders, the same for every image, instead of any that were on it."""
        self.clear()
        self._hook(_names(adapters, ""), [adapters], 1)
        self._hook_vectors(_vector_names(adapters, ""), [adapters], 1)

    def clear(self) -> None:
        """Take all adapters off, so that the bare base model is left."""
        self._remove_hooks()
        self._restore()

    def _restore(self) -> None:
        for name, weight in self._originals.items():
            self._layers[name].weight.data = weight
        self._originals, self._merged = {}, ()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _hook(self, names: Sequence[str], rows: Sequence[AdapterSet], copies: int) -> None:
        runs = _runs(rows, copies)
        for name in names:
            layer = self._layers[name]
            pieces: list[_Piece | _Stack] = [
                _Piece(slots, whole, None) for own, slots in runs for whole in _whole(name, own)
            ]
            if isinstance(layer, nn.Conv2d):
                factors = [(slots, _factors(name, own)) for own, slots in runs]
                pieces += [_Piece(slots, *pair) for slots, pair in factors if pair is not None]
            else:
                pairs = [_factors(name, own) for own in (rows if len(runs) > 1 else rows[:1])]
                pieces += [_stacked(pairs, copies)] if any(pair is not None for pair in pairs) else []
            # Weighted and put together in float32, and rounded to the calculation's type only here.
            placed = [piece.to(self.device, self.dtype) for piece in pieces]
            self._add(name, placed)

    def _hook_vectors(self, names: Sequence[str], rows: Sequence[AdapterSet], copies: int) -> None:
        """Add updates of biases and norms to the outputs: live where weights are merged, too, as they are small."""
        for name in names:
            pieces = [
                _Vectors(slots, vector.to(self.device, self.dtype))
                for own, slots in _runs(rows, copies)
                if (vector := _vector(name, own)) is not None
            ]
            self._add(name, pieces)

    def _add(self, name: str, pieces: Sequence[_Piece | _Stack | _Vectors]) -> None:
        adding = _Adding(self._layers[name], pieces)
        self._hooks.append(self._outermost[name].register_forward_hook(adding))


class _Adding:
    """A forward hook that adds pieces to a layer's output, in place."""

    def __init__(self, layer: nn.Module, pieces: Sequence[_Piece | _Stack | _Vectors]) -> None:
        self._layer = layer
        self._pieces = pieces

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for piece in self._pieces:
            piece.add_to(self._layer, inputs[0], output)


def _names(adapters: Sequence[WeightedAdapter], prefix: str) -> list[str]:
    """The layers that the adapters change."""
    names = dict.fromkeys(name for adapter in adapters for name in adapter.loaded.updates if name.startswith(prefix))
    return [name for name in names if any(adapter.strength(name) for adapter in adapters)]


def _vector_names(adapters: Sequence[WeightedAdapter], prefix: str) -> list[str]:
    """The layers whose biases or norms the adapters change."""
    names = dict.fromkeys(name for adapter in adapters for name in adapter.loaded.vectors if name.startswith(prefix))
    return [name for name in names if any(adapter.vector_strength(name) for adapter in adapters)]


def _vector(name: str, adapters: AdapterSet) -> VectorUpdate | None:
    """All updates of a layer's bias and norm together; None without any."""
    found = None
    for adapter in adapters:
        if strength := adapter.vector_strength(name):
            own = adapter.loaded.vectors[name].times(strength)
            found = own if found is None else found.plus(own)
    return found


def _whole(name: str, adapters: AdapterSet) -> list[Tensor]:
    """A layer's updates that have no factors, weights multiplied in."""
    updates = [(adapter.loaded.updates[name], adapter.strength(name)) for adapter in adapters if adapter.strength(name)]
    return [update.down.float() * strength for update, strength in updates if update.up is None]


def _factors(name: str, adapters: AdapterSet) -> tuple[Tensor, Tensor] | None:
    """All other updates of a layer as one pair of factors side by side, weights multiplied in; None without any."""
    updates = [(adapter.loaded.updates[name], adapter.strength(name)) for adapter in adapters if adapter.strength(name)]
    pairs = [(update.down, update.up.float() * strength) for update, strength in updates if update.up is not None]
    if not pairs:
        return None
    return torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1)


def _stacked(pairs: Sequence[tuple[Tensor, Tensor] | None], copies: int) -> _Stack:
    """Linear layers' factors, one entry for each image, filled up to the largest rank with zeros."""
    given = [pair for pair in pairs if pair is not None]
    rank = max(len(down) for down, _ in given)
    down_SIR = torch.zeros(len(pairs), given[0][0].shape[1], rank)
    up_SRO = torch.zeros(len(pairs), rank, len(given[0][1]))
    for index, pair in enumerate(pairs):
        if pair is not None:
            down_SIR[index, :, : len(pair[0])] = pair[0].T
            up_SRO[index, : len(pair[0])] = pair[1].T
    return _Stack(down_SIR, up_SRO, copies)


def _runs(rows: Sequence[AdapterSet], copies: int) -> list[tuple[AdapterSet, slice]]:
    """Every set with the rows of a UNet call that have it, neighbours together; one slice when all rows share it."""
    runs: list[tuple[AdapterSet, slice]] = []
    signatures = [tuple(adapter.signature for adapter in own) for own in rows]
    if len(set(signatures)) == 1:
        return [(rows[0], slice(None))]
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or signatures[end] != signatures[start]:
            runs.append((rows[start], slice(start * copies, end * copies)))
            start = end
    return runs
