"""An adapter out of two models: the difference of a tuned model and its base as LoRA of a chosen rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from sdlora.adapters.algebra.base_weights import BaseWeights, TensorSlice
from sdlora.adapters.algebra.low_rank import from_matrix
from sdlora.adapters.algebra.mix import LayerReport, Mixed, OnProgress, truncated
from sdlora.adapters.algebra.operands import weight_shape
from sdlora.adapters.files.kohya import module_path
from sdlora.adapters.files.layer_sets import addressable
from sdlora.adapters.files.weights import ModuleWeights
from sdlora.errors import AdapterError
from sdlora.words import count, first_few

_Key = TypeVar("_Key")


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

    The models may lie in different layouts. What no adapter can hold is named in the notes when it differs, and so are
    layers that only one of them has. Raises AdapterError: families or shapes differ, values aren't finite, nothing
    differs.
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
        place = module_path(name, base.family)
        is_held = place is not None and addressable(*place)
        if tuned_weight.numel() != base_weight.numel() or tuned_weight.shape[0] != base_weight.shape[0]:
            if not is_held:  # an inpainting model's first layer
                outside.append(name)
                continue
            raise AdapterError(
                f"{name} is {list(tuned_weight.shape)} in one model, {list(base_weight.shape)} in the other"
            )
        # In float64: the difference of two half-precision weights is a few of their last bits.
        difference_oi = tuned_weight.double().flatten(1) - base_weight.double().flatten(1)
        if not bool(torch.isfinite(difference_oi).all()):
            broken = [
                model.path.name
                for model, weight in ((tuned, tuned_weight), (base, base_weight))
                if not bool(torch.isfinite(weight.float()).all())
            ]
            raise AdapterError(f"{name} has values that aren't finite in {' and '.join(broken)}: that model is damaged")
        if bool(difference_oi.any()):
            shape = weight_shape(name, [base_weight.shape], base.family)
            rank = ranks.of(shape)
            if not is_held or rank == 0:
                outside.append(name)
            else:
                energy = None if rank is not None else ranks.energy
                modules[name], report = truncated(name, from_matrix(difference_oi), shape, rank=rank, energy=energy)
                layers.append(report)
        if on_progress is not None:
            on_progress(done + 1, len(names))
    vectors = [
        place for place in tuned.vectors if place in base.vectors and _differs(tuned.vectors, base.vectors, place)
    ]
    outside += [f"{name} ({kind})" for name, kind in vectors]
    if not modules:
        raise AdapterError(f"{tuned.path.name} and {base.path.name} don't differ in any layer an adapter can hold")
    return Mixed(base.family, modules, tuple(layers), tuple(_notes(tuned, base, outside)))


def _notes(tuned: BaseWeights, base: BaseWeights, outside: Sequence[str]) -> Iterator[str]:
    """What the adapter lacks of the difference, and what else is to be known of it."""
    if outside:
        verb = "differs and is" if len(outside) == 1 else "differ and are"
        yield f"{count(len(outside), 'layer')} {verb} left out: {first_few(outside)}"
    for model, other in ((tuned, base), (base, tuned)):
        if only := [name for name in model.places if name not in other.places]:
            yield f"{count(len(only), 'layer')} only in {model.path.name}, left out: {first_few(only)}"
    others = [name for name in tuned.others if name in base.others and _differs(tuned.others, base.others, name)]
    if others:
        yield f"no adapter holds {count(len(others), 'tensor')} in which they differ, too: {first_few(others)}"
    if tuned.prediction != base.prediction and tuned.prediction and base.prediction:
        yield (
            f"{tuned.path.name} predicts {tuned.prediction}, {base.path.name} {base.prediction}: with the adapter the "
            f"base has to be used as one that predicts {tuned.prediction}"
        )


def _differs(tuned: Mapping[_Key, TensorSlice], base: Mapping[_Key, TensorSlice], key: _Key) -> bool:
    one, other = tuned[key].read(), base[key].read()
    return one.shape != other.shape or not torch.equal(one.double(), other.double())
