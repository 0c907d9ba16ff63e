"""How strong an adapter is, where, and how much of its rank it uses; and how two adapters agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sdlora.adapters.algebra.blocks import block_label, in_order
from sdlora.adapters.algebra.low_rank import decompose, from_weights
from sdlora.adapters.algebra.mix import OnProgress
from sdlora.adapters.algebra.operands import BaseWeight, layer_update
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights

_DORA_NOTE = "DoRA's magnitude is left out, as its effect depends on the base weights; give the model: --base MODEL"
_NAMED_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class LayerAnalysis:
    """One layer's update dW: Frobenius norm, singular values, and what lower ranks would keep of it."""

    name: str
    block: str
    rank: int
    norm: float
    relative_norm: float | None
    """||dW|| / ||W||, when a base model is given."""
    singular_values: list[float]
    effective_rank: float
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007)."""
    energy_at_rank: dict[int, float]
    """Share of the sum of squares that the best approximation of a rank keeps."""


@dataclass(frozen=True)
class BlockAnalysis:
    """The layers of a block together. Energies are shares of the block's sum of squares."""

    block: str
    num_layers: int
    norm: float
    relative_norm: float | None
    effective_rank: float
    """Mean over its layers."""
    energy_at_rank: dict[int, float]


@dataclass(frozen=True)
class Analysis:
    """An adapter's strength by layer and by block, its total norm, and what could not be counted."""

    layers: tuple[LayerAnalysis, ...]
    blocks: tuple[BlockAnalysis, ...]
    norm: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """A table by block, and the notes."""
        if not self.blocks:
            return "\n".join(f"note: {note}" for note in self.notes)
        ranks = list(self.blocks[0].energy_at_rank)
        relative = any(block.relative_norm is not None for block in self.blocks)
        head = ["block", "layers", "||dW||", *(["||dW||/||W||"] if relative else []), "eff. rank"]
        rows = [[*head, *(f"energy@{rank}" for rank in ranks)]]
        for block in self.blocks:
            row = [block.block, str(block.num_layers), f"{block.norm:.4g}"]
            if relative:
                row.append("-" if block.relative_norm is None else f"{block.relative_norm:.2e}")
            rows.append([*row, f"{block.effective_rank:.1f}", *(f"{block.energy_at_rank[rank]:.1%}" for rank in ranks)])
        rows.append(["all", str(len(self.layers)), f"{self.norm:.4g}", *[""] * (len(rows[0]) - 3)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*table, *(f"note: {note}" for note in self.notes)])


@torch.no_grad()
def analyse(
    file: AdapterFile, base_weight: BaseWeight | None = None, on_progress: OnProgress | None = None
) -> Analysis:
    """Norms, spectrum, effective rank and energies of every layer and block.

    base_weight: gives relative norms, and the whole effect of DoRA; without it, DoRA's magnitude is left out and a note
    says so. Raises ModelError when the base lacks a layer.
    """
    layers: list[LayerAnalysis] = []
    base_norms: dict[str, float] = {}
    # A plain LoRA keeps everything at its own rank; updates that can have any rank are shown up to the last named one.
    largest = max(
        (
            weights.rank if weights.algorithm == "lora" and weights.dora_scale is None else _NAMED_RANKS[-1]
            for weights in file.modules.values()
        ),
        default=1,
    )
    ranks = [rank for rank in _NAMED_RANKS if rank < largest] + [largest]
    alone = {name: weights for name, weights in file.modules.items() if base_weight or not _is_relative(weights)}
    for done, (name, weights) in enumerate(alone.items()):
        if base_weight is None:
            parts = decompose(from_weights(weights))
        else:
            parts = decompose(layer_update(name, weights, base_weight, file.path.name))
            base_norms[name] = float(base_weight(name).double().norm())
        layers.append(
            LayerAnalysis(
                name,
                block_label(name),
                weights.rank,
                parts.norm,
                parts.norm / base_norms[name] if base_norms.get(name) else None,
                parts.values_n[: parts.true_rank].tolist(),
                parts.effective_rank,
                {rank: parts.energy(rank) for rank in ranks},
            )
        )
        if on_progress is not None:
            on_progress(done + 1, len(alone))
    is_dora = any(weights.dora_scale is not None for weights in file.modules.values())
    notes = [_DORA_NOTE] if is_dora and base_weight is None else []
    if left_out := len(file.modules) - len(alone):
        kinds = " and ".join(sorted({w.needs_base or "" for n, w in file.modules.items() if n not in alone}))
        notes.append(f"{left_out} layers are {kinds}, whose effect depends on the base weights; give the model: --base")
    if file.vectors:
        notes.append(f"the biases and norms of {len(file.vectors)} layers are not counted")
    norm = sum(layer.norm**2 for layer in layers) ** 0.5
    return Analysis(tuple(layers), _blocks(layers, base_norms, file), norm, tuple(notes))


def _is_relative(weights: ModuleWeights) -> bool:
    """Whether nothing can be said without the base's weight; of DoRA, the update before its magnitude can."""
    return weights.needs_base not in (None, "DoRA")


def _blocks(
    layers: Sequence[LayerAnalysis], base_norms: dict[str, float], file: AdapterFile
) -> tuple[BlockAnalysis, ...]:
    grouped: dict[str, list[LayerAnalysis]] = defaultdict(list)
    for layer in layers:
        grouped[layer.block].append(layer)
    blocks = []
    for block in in_order(grouped, file.family):
        own = grouped[block]
        squares = sum(layer.norm**2 for layer in own)
        base = sum(base_norms.get(layer.name, 0.0) ** 2 for layer in own)
        energies = {
            rank: sum(layer.norm**2 * layer.energy_at_rank[rank] for layer in own) / squares if squares else 1.0
            for rank in own[0].energy_at_rank
        }
        mean_rank = sum(layer.effective_rank for layer in own) / len(own)
        relative = (squares / base) ** 0.5 if base else None
        blocks.append(BlockAnalysis(block, len(own), squares**0.5, relative, mean_rank, energies))
    return tuple(blocks)
