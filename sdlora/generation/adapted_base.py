"""Adapters on a resident base model, whose own weights are never written to.

Live: forward hooks add each layer's update to its output; every image of a batch may have its own adapters and weights.
Merged: layers get new weights, and their own back later; faster, for one set of adapters that the whole batch shares.

Shapes: N rows of a UNet call (the batch's images, twice with guidance), R ranks of all adapters side by side, I inputs,
O outputs, k kernel edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdlora.adapters.kohya import PARTS, kohya_name
from sdlora.config.base_model import FamilyName
from sdlora.generation.pool import Update, WeightedAdapter
from sdlora.models.family import Bundle
from sdlora.models.host import forget_mapped
from sdlora.models.quantize import QuantizedLayer

AdapterSet = tuple[WeightedAdapter, ...]
"""All adapters of one image."""

_UNET = "lora_unet_"
_WIDEST = 256
"""Ranks side by side, above which each adapter of a mixed batch runs on its own rows."""


@dataclass(frozen=True)
class _Piece:
    """Part of what is added to a layer's output: up(down(x) * strength), for all rows or for some."""

    down: Tensor
    up: Tensor | None
    strength_NR: Tensor
    rows: Tensor | None = None


class AdaptedBase:
    """A loaded base model and the adapters that are on it at the moment."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        parts: list[nn.Module] = [bundle.unet, *bundle.text_encoders]
        self._layers = {
            kohya_name(part, path, bundle.family.name): layer
            for part, model in zip(PARTS, parts, strict=False)
            for path, layer in model.named_modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d))
        }
        self._originals: dict[str, Tensor] = {}
        self._merged: tuple[object, ...] = ()
        self._hooks: list[RemovableHandle] = []

    @property
    def family(self) -> FamilyName:
        """Of the base model."""
        return self._bundle.family.name

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the calculation."""
        return self._bundle.dtype

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self._bundle.device

    @property
    def can_merge(self) -> bool:
        """Whether the UNet's weights are plain numbers."""
        return self._bundle.config.quantization == "none"

    def shape(self, name: str) -> torch.Size | None:
        """Shape of a layer's weight by kohya name; None when there is no such layer."""
        layer = self._layers.get(name)
        if layer is None:
            return None
        return layer.weight_shape if isinstance(layer, QuantizedLayer) else layer.weight.shape

    def original_weight(self, name: str) -> Tensor:
        """A layer's own weight, without any adapter."""
        weight = self._originals.get(name)
        return self._layers[name].weight.detach() if weight is None else weight

    @torch.no_grad()
    def merge(self, adapters: AdapterSet) -> None:
        """Give the UNet's layers weights with these adapters in them, instead of any that were on it."""
        wanted = tuple(adapter.signature for adapter in adapters)
        self._remove_hooks()
        if wanted == self._merged:
            return
        self._restore()
        for name in _names(adapters, _UNET):
            layer = self._layers[name]
            weight = layer.weight.detach()
            merged = weight.float().flatten(1)
            merged = merged.clone() if merged.data_ptr() == weight.data_ptr() else merged
            for adapter in adapters:
                if strength := adapter.strength(name):
                    update = adapter.loaded.updates[name]
                    if update.up is None:
                        merged.add_(update.down.float().flatten(1), alpha=strength)
                    else:
                        merged.addmm_(update.up.float().flatten(1), update.down.float().flatten(1), alpha=strength)
            self._originals[name] = weight
            layer.weight.data = torch.empty_like(weight).copy_(merged.view(weight.shape))
        self._merged = wanted
        # the layers' own weights are not needed until the next change; from a mapped file they can be read again
        forget_mapped(self._originals.values())

    @torch.no_grad()
    def use(self, rows: Sequence[AdapterSet], copies: int) -> None:
        """Put adapters on the UNet live, instead of any that were on it; rows: those of each image of the batch.

        copies: how often a UNet call holds the batch, 2 with guidance.
        """
        self.clear()
        names = _names([adapter for row in rows for adapter in row], _UNET)
        self._hook(names, rows, copies)

    @torch.no_grad()
    def use_for_text(self, adapters: AdapterSet) -> None:
        """Put adapters on the text encoders live, instead of any that were on the model."""
        self._remove_hooks()
        self._hook(_names(adapters, "lora_te"), [adapters], 1)

    def clear(self) -> None:
        """The bare base model."""
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
        if len({tuple(adapter.signature for adapter in row) for row in rows}) == 1:
            rows = rows[:1]
        for name in names:
            pieces = [_moved(piece, self.device, self.dtype) for piece in _pieces(name, rows, copies)]
            self._hooks.append(self._layers[name].register_forward_hook(_Adding(pieces)))


class _Adding:
    """A forward hook that adds pieces to a layer's output."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for piece in self._pieces:
            given = inputs[0] if piece.rows is None else inputs[0][piece.rows]
            added = _apply(layer, given, piece.down)
            num_rows, rank = piece.strength_NR.shape
            ones = [1] * (added.ndim - 2)
            axes = [rank, *ones] if piece.down.ndim == 4 else [*ones, rank]
            added = added * piece.strength_NR.view(num_rows, *axes)
            if piece.up is not None:
                added = (functional.conv2d if piece.up.ndim == 4 else functional.linear)(added, piece.up)
            output = output + added if piece.rows is None else output.index_add(0, piece.rows, added)
        return output


def _apply(layer: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """The layer's operation with another weight and no bias."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(inputs, weight, None, layer.stride, layer.padding, layer.dilation)  # type: ignore[arg-type]
    return functional.linear(inputs, weight)


def _names(adapters: Sequence[WeightedAdapter], prefix: str) -> list[str]:
    """The layers that the adapters change."""
    names = dict.fromkeys(name for adapter in adapters for name in adapter.loaded.updates if name.startswith(prefix))
    return [name for name in names if any(adapter.strength(name) for adapter in adapters)]


def _pieces(name: str, rows: Sequence[AdapterSet], copies: int) -> list[_Piece]:
    """What is added to a layer's output. rows: the adapters of each image, or only one set that all of them share.

    Factors of all adapters stand side by side, and each row switches on those it has: one multiplication by many narrow
    factors costs less than many by one each. In a mixed batch wide factors, and updates that have none, run on their
    own rows.
    """
    strengths: dict[object, list[float]] = {}
    updates: dict[object, Update] = {}
    for index, row in enumerate(rows):
        for adapter in row:
            if strength := adapter.strength(name):
                updates[adapter.loaded.key] = adapter.loaded.updates[name]
                strengths.setdefault(adapter.loaded.key, [0.0] * len(rows))[index] += strength
    low = [(update, strengths[key]) for key, update in updates.items() if update.up is not None]
    alone = [(update, strengths[key]) for key, update in updates.items() if update.up is None]
    if len(rows) > 1 and sum(len(update.down) for update, _ in low) > _WIDEST:
        alone, low = low + alone, []
    pieces = [_alone(update, strength, copies) for update, strength in alone]
    if low:
        strength_NR = torch.cat([_by_rank(update, strength, copies) for update, strength in low], dim=1)
        ups = [update.up for update, _ in low if update.up is not None]
        pieces.append(_Piece(torch.cat([update.down for update, _ in low]), torch.cat(ups, dim=1), strength_NR))
    return pieces


def _alone(update: Update, strength: list[float], copies: int) -> _Piece:
    strength_NR = _by_rank(update, strength, copies)
    if len(strength) == 1:
        return _Piece(update.down, update.up, strength_NR)
    rows = strength_NR[:, 0].nonzero().flatten()
    return _Piece(update.down, update.up, strength_NR[rows], rows)


def _by_rank(update: Update, strength: list[float], copies: int) -> Tensor:
    """One strength for all ranks of an update, by row; a single one is for every row."""
    strength_N = torch.tensor(strength * copies if len(strength) > 1 else strength)
    return strength_N[:, None].expand(-1, len(update.down))


def _moved(piece: _Piece, device: torch.device, dtype: torch.dtype) -> _Piece:
    return _Piece(
        piece.down.to(device, dtype),
        None if piece.up is None else piece.up.to(device, dtype),
        piece.strength_NR.to(device, dtype).contiguous(),
        None if piece.rows is None else piece.rows.to(device),
    )
