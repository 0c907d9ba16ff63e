"""An adapter of another rank: the best approximation of every layer."""

from __future__ import annotations

from dataclasses import replace

import torch

from sdlora.adapters.algebra.low_rank import from_weights
from sdlora.adapters.algebra.mix import LayerReport, Mixed, OnProgress, truncated, unused_note
from sdlora.adapters.algebra.operands import weight_shape
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights
from sdlora.errors import AdapterError


@torch.no_grad()
def resize(
    file: AdapterFile, *, rank: int | None = None, energy: float | None = None, on_progress: OnProgress | None = None
) -> Mixed:
    """Every layer cut to a rank, or to the smallest rank that keeps a share of its energy; smaller ones stay untouched.

    LoHa and LoKr become LoRA. Raises AdapterError for DoRA, whose update is no low-rank matrix, and for a file that
    doesn't tell its family.
    """
    if file.family is None:
        raise AdapterError(f"{file.path.name} doesn't tell its Stable Diffusion family; give it: --family sd1")
    if any(weights.dora_scale is not None for weights in file.modules.values()):
        raise AdapterError(
            f"{file.path.name} is DoRA, which can't be resized as it is; make it LoRA of any rank with "
            f"sdlora mix {file.path.name} --method svd --rank N --base MODEL"
        )
    modules: dict[str, ModuleWeights] = {}
    layers: list[LayerReport] = []
    for done, (name, weights) in enumerate(file.modules.items()):
        update = from_weights(weights)
        if rank is not None and weights.algorithm == "lora" and weights.rank <= rank:
            # an explicit alpha, so that writing can't take a missing one for another scale
            modules[name] = replace(weights, alpha=weights.scale * weights.rank)
            layers.append(LayerReport(name, weights.rank, update.norm(), 0.0))
        else:
            shape = weight_shape(name, [weights.delta_shape], file.family)
            modules[name], report = truncated(name, update, shape, rank=rank, energy=energy)
            layers.append(report)
        if on_progress is not None:
            on_progress(done + 1, len(file.modules))
    notes = [*file.notes, *([unused_note(file.unused)] if file.unused else [])]
    return Mixed(file.family, modules, tuple(layers), tuple(notes))
