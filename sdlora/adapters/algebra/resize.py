"""An adapter of another rank: the best approximation of every layer."""

from __future__ import annotations

from dataclasses import replace

import torch

from sdlora.adapters.algebra.low_rank import from_weights
from sdlora.adapters.algebra.mix import LayerReport, Mixed, OnProgress, truncated
from sdlora.adapters.algebra.operands import notes_of, shapes_of, weight_shape
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights
from sdlora.errors import AdapterError
from sdlora.words import as_typed


@torch.no_grad()
def resize(
    file: AdapterFile, *, rank: int | None = None, energy: float | None = None, on_progress: OnProgress | None = None
) -> Mixed:
    """Every layer cut to a rank, or to the smallest rank that keeps a share of its energy; smaller ones stay untouched.

    LoHa, LoKr and full weights become LoRA. Raises AdapterError for DoRA and others whose update depends on the base,
    and for a file that doesn't tell its family.
    """
    if file.family is None:
        raise AdapterError(f"{file.path.name} doesn't tell its Stable Diffusion family; give it: --family sd1")
    needing = next((weights.needs_base for weights in file.modules.values() if weights.needs_base), None)
    if needing is not None:
        raise AdapterError(
            f"{file.path.name} is {needing}, which can't be resized as it is; make it LoRA of any rank with "
            f"{as_typed('sdlora', 'mix', file.path)} --method svd --rank N --base MODEL"
        )
    modules: dict[str, ModuleWeights] = {}
    layers: list[LayerReport] = []
    for done, (name, weights) in enumerate(file.modules.items()):
        update = from_weights(weights)
        # Cutting would only rewrite the same update in other factors, and round it.
        if rank is not None and weights.algorithm == "lora" and weights.rank <= rank:
            # an explicit alpha, so that writing can't take a missing one for another scale
            modules[name] = replace(weights, alpha=weights.scale * weights.rank)
            layers.append(LayerReport(name, weights.rank, update.norm(), 0.0))
        else:
            shape = weight_shape(name, shapes_of(name, [weights], None), file.family)
            modules[name], report = truncated(name, update, shape, rank=rank, energy=energy)
            layers.append(report)
        if on_progress is not None:
            on_progress(done + 1, len(file.modules))
    return Mixed(file.family, modules, tuple(layers), tuple(notes_of([file])), dict(file.vectors))
