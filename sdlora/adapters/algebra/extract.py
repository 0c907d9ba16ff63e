"""An adapter out of two models: the difference of a tuned model and its base as LoRA of a chosen rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdlora.adapters.algebra.base_weights import BaseWeights, VectorPlace
from sdlora.adapters.algebra.low_rank import from_matrix
from sdlora.adapters.algebra.mix import LayerReport, Mixed, OnProgress, truncated
from sdlora.adapters.algebra.operands import weight_shape
from sdlora.adapters.files.kohya import module_path
from sdlora.adapters.files.layer_sets import addressable
from sdlora.adapters.files.weights import ModuleWeights
from sdlora.errors import AdapterError


@dataclass(frozen=True)
class Ranks:
    """How large an extracted adapter may be: ranks, or the share of each layer's sum of squares to keep."""

    rank: int | None = 32
    conv_rank: int | None = None
    """For convolutions; by default the same. 0 leaves them out."""
    energy: float | None = None

    def of(self, shape: torch.Size) -> int | None:
        """Rank for a layer of this shape; None lets the energy decide."""
        if self.conv_rank is not None and len(shape) == 4 and shape[2:] != (1, 1):
            return self.conv_rank
        return None if self.energy is not None else self.rank


@torch.no_grad()
def extract(tuned: BaseWeights, base: BaseWeights, ranks: Ranks, *, on_progress: OnProgress | None = None) -> Mixed:
    """The best LoRA of the given ranks for every layer that differs, with each layer's error.

    The models may lie in different layouts. Layers that no adapter can hold are named in the notes when they differ.
    Raises AdapterError: families or shapes differ, nothing differs.
    """
    if tuned.family != base.family:
        raise AdapterError(
            f"{tuned.path.name} is {tuned.family}, {base.path.name} is {base.family}: there is no difference to take"
        )
    modules: dict[str, ModuleWeights] = {}
    layers: list[LayerReport] = []
    outside: list[str] = []
    names = [name for name in tuned.places if name in base.places]
    for done, name in enumerate(names):
        tuned_weight, base_weight = tuned.weight(name), base.weight(name)
        if tuned_weight.numel() != base_weight.numel() or tuned_weight.shape[0] != base_weight.shape[0]:
            raise AdapterError(
                f"{name} is {list(tuned_weight.shape)} in one model, {list(base_weight.shape)} in the other"
            )
        # In float64: the difference of two half-precision weights is a few of their last bits.
        difference_oi = tuned_weight.double().flatten(1) - base_weight.double().flatten(1)
        if bool(difference_oi.any()):
            place = module_path(name, base.family)
            shape = weight_shape(name, [base_weight.shape], base.family)
            rank = ranks.of(shape)
            if place is None or not addressable(*place) or rank == 0:
                outside.append(name)
            else:
                energy = None if rank is not None else ranks.energy
                modules[name], report = truncated(name, from_matrix(difference_oi), shape, rank=rank, energy=energy)
                layers.append(report)
        if on_progress is not None:
            on_progress(done + 1, len(names))
    vectors = [place for place in tuned.vectors if place in base.vectors and _differs(tuned, base, place)]
    outside += [f"{name} ({kind})" for name, kind in vectors]
    if not modules:
        raise AdapterError(f"{tuned.path.name} and {base.path.name} don't differ in any layer an adapter can hold")
    notes: tuple[str, ...] = ()
    if outside:
        listed = ", ".join(outside[:3]) + (", ..." if len(outside) > 3 else "")
        notes = (f"{len(outside)} layers differ and are left out: {listed}",)
    return Mixed(base.family, modules, tuple(layers), notes)


def _differs(tuned: BaseWeights, base: BaseWeights, place: VectorPlace) -> bool:
    one, other = tuned.vectors[place].read(), base.vectors[place].read()
    return one.shape != other.shape or not torch.equal(one.double(), other.double())
