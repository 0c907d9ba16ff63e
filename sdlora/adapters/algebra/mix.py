"""One adapter out of several: the exact weighted sum of their updates, or an approximation whose error is told.

Updates are summed, never factors: (A1 + A2)(B1 + B2) is not A1 B1 + A2 B2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdlora.adapters.algebra.low_rank import LowRank, decompose, from_matrix, total
from sdlora.adapters.algebra.operands import (
    BaseWeight,
    Operand,
    as_lora,
    layer_update,
    notes_of,
    shapes_of,
    summed_vectors,
    weight_shape,
)
from sdlora.adapters.files.weights import ModuleWeights, VectorUpdate
from sdlora.config.base_model import FamilyName
from sdlora.config.mix import MixConfig, MixMethod
from sdlora.errors import AdapterError

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class LayerReport:
    """One layer of a result: its rank, the Frobenius norm of the exact update and of what the result lacks of it."""

    name: str
    rank: int
    norm: float
    lost: float

    @property
    def relative_error(self) -> float:
        """The share of the exact update's norm that the result lacks; 0 for an update that is nothing."""
        return self.lost / self.norm if self.norm > 0 else 0.0


@dataclass(frozen=True)
class Mixed:
    """The layers of a new adapter, and how near they come to what was asked for."""

    family: FamilyName
    modules: dict[str, ModuleWeights]
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()
    vectors: dict[str, VectorUpdate] = field(default_factory=dict)
    """Updates of biases and norms."""

    @property
    def relative_error(self) -> float:
        """Of all layers together: sqrt(sum of squared losses / sum of squared norms)."""
        norm = sum(layer.norm**2 for layer in self.layers)
        return (sum(layer.lost**2 for layer in self.layers) / norm) ** 0.5 if norm > 0 else 0.0

    @property
    def worst(self) -> LayerReport:
        """The layer with the largest relative error."""
        return max(self.layers, key=lambda layer: layer.relative_error, default=LayerReport("none", 0, 0.0, 0.0))


@torch.no_grad()
def mix(
    operands: Sequence[Operand],
    config: MixConfig,
    base_weight: BaseWeight | None = None,
    on_progress: OnProgress | None = None,
) -> Mixed:
    """The weighted sum of all operands' updates as one LoRA adapter.

    concat: exact, ranks add up. linear: exact, for operands that share a factor in every layer. svd: best
    approximation. ties, dare, dare-ties: of the updates thinned out by that method, with its error against the thinned
    sum. LoHa, LoKr, DoRA and the like count as the updates they make; biases and norms are summed exactly.

    Raises AdapterError: DoRA or the like without a base, linear not possible, layers of different shapes, nothing left.
    """
    family = operands[0].file.family
    assert family is not None
    names = list(dict.fromkeys(name for operand in operands for name in operand.file.modules))
    modules: dict[str, ModuleWeights] = {}
    layers: list[LayerReport] = []
    for done, name in enumerate(names):
        present = [operand for operand in operands if name in operand.file.modules and operand.weight_of(name) != 0]
        if present:
            weights = [operand.file.modules[name] for operand in present]
            if config.method == "linear" and any(layer.needs_base for layer in weights):
                raise AdapterError(_needs_plain(name))
            # asks for the base, where one is needed, before the shape that only it may tell
            updates = [_weighted_update(name, operand, base_weight) for operand in present]
            shape = weight_shape(name, shapes_of(name, weights, base_weight), family)
            modules[name], report = _mixed_layer(name, present, updates, shape, config)
            layers.append(report)
        if on_progress is not None:
            on_progress(done + 1, len(names))
    vectors = summed_vectors(operands)
    if not modules and not vectors:
        raise AdapterError("every weight is 0: nothing is left to write")
    return Mixed(family, modules, tuple(layers), tuple(notes_of([operand.file for operand in operands])), vectors)


def _weighted_update(name: str, operand: Operand, base_weight: BaseWeight | None) -> LowRank:
    update = layer_update(name, operand.file.modules[name], base_weight, operand.file.path.name)
    return update.times(operand.weight_of(name))


def _mixed_layer(
    name: str, present: Sequence[Operand], updates: Sequence[LowRank], shape: torch.Size, config: MixConfig
) -> tuple[ModuleWeights, LayerReport]:
    if config.method == "linear":
        return _linear(name, present, shape)
    if config.method == "concat":
        # Ranks add up, so that of many adapters may pass the layer's own: then the singular values give a smaller form.
        exact = total([_without_surplus(update) for update in updates])
        return as_lora(exact, shape), LayerReport(name, exact.rank, exact.norm(), 0.0)
    summed = total(updates) if config.method == "svd" else from_matrix(_thinned(name, updates, config))
    return truncated(name, summed, shape, rank=config.rank, energy=config.energy)


def truncated(
    name: str, update: LowRank, shape: torch.Size, *, rank: int | None, energy: float | None
) -> tuple[ModuleWeights, LayerReport]:
    """The best LoRA of a rank, or of the smallest rank that keeps this share of energy; and its error."""
    parts = decompose(update)
    if rank is None:
        assert energy is not None
        rank = parts.rank_for(energy)
    rank = min(rank, parts.true_rank)
    return as_lora(parts.truncated(rank), shape), LayerReport(name, rank, parts.norm, parts.lost(rank))


def _without_surplus(update: LowRank) -> LowRank:
    """A form of no more than full rank; LoRA's own factors, being smaller, are kept as they are."""
    if update.rank < min(update.size):
        return update
    parts = decompose(update)
    return parts.truncated(parts.true_rank)


def _linear(name: str, present: Sequence[Operand], shape: torch.Size) -> tuple[ModuleWeights, LayerReport]:
    """Factors added up, which is the sum of the updates only when all operands share the other factor."""
    layers = [operand.file.modules[name] for operand in present]
    if any(layer.algorithm != "lora" or layer.dora_scale is not None for layer in layers):
        raise AdapterError(_needs_plain(name))
    plain = [layer.without_tucker() for layer in layers]
    scales = [operand.weight_of(name) * layer.scale for operand, layer in zip(present, plain, strict=True)]
    for shared, summed in (("lora_down", "lora_up"), ("lora_up", "lora_down")):
        flat = [layer.factors[shared].double().flatten(1) for layer in plain]
        if all(tensor.shape == flat[0].shape and torch.equal(tensor, flat[0]) for tensor in flat):
            parts = [
                layer.factors[summed].double().flatten(1) * scale for layer, scale in zip(plain, scales, strict=True)
            ]
            whole = torch.stack(parts).sum(0)
            update = LowRank(whole, flat[0]) if shared == "lora_down" else LowRank(flat[0], whole)
            return as_lora(update, shape), LayerReport(name, update.rank, update.norm(), 0.0)
    raise AdapterError(
        f"linear adds factors, which gives the sum of the updates only when all adapters share one of them; in {name} "
        "they don't (adding both up would mix every A with every B). Use method concat (exact) or svd"
    )


def _needs_plain(name: str) -> str:
    return f"linear needs plain LoRA, which {name} is not in all adapters; use method concat or svd"


_THINNING: dict[MixMethod, str] = {"ties": "ties", "dare": "dare_linear", "dare-ties": "dare_ties"}
"""The functions of peft.utils.merge_utils."""


def _thinned(name: str, updates: Sequence[LowRank], config: MixConfig) -> Tensor:
    """The operands' values thinned out and joined by PEFT's functions; signs are elected among weighted values."""
    from peft.utils import merge_utils  # seconds to import, and only these methods need it

    join = getattr(merge_utils, _THINNING[config.method])
    matrices = [update.matrix() for update in updates]
    with torch.random.fork_rng(devices=[]):
        # a seed by layer: what a layer becomes doesn't depend on the layers before it
        # Not hash(), which Python salts anew in every process.
        torch.manual_seed(config.seed * 1_000_003 + sum(name.encode()))
        joined: Tensor = join(matrices, torch.ones(len(matrices), dtype=torch.float64), config.density)
    return joined


def summary(mixed: Mapping[str, ModuleWeights], vectors: Mapping[str, VectorUpdate] | None = None) -> str:
    """For the user: number of layers and their ranks, and how many biases and norms are beside them."""
    ranks = sorted({weights.rank for weights in mixed.values()}) or [0]
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    beside = f", biases and norms of {len(vectors)} layers" if vectors else ""
    return f"{len(mixed)} layers of rank {span}{beside}"
