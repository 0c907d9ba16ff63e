"""How two adapters agree, block by block: same direction, independent, or against each other."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sdlora.adapters.algebra.blocks import block_label, in_order
from sdlora.adapters.algebra.mix import OnProgress
from sdlora.adapters.algebra.operands import BaseWeight, common_family, layer_update, with_family
from sdlora.adapters.files.weights import AdapterFile
from sdlora.errors import AdapterError


@dataclass(frozen=True)
class BlockComparison:
    """The layers of a block that both adapters have."""

    block: str
    num_layers: int
    cosine: float
    """Cosine of the angle between both updates: 1 same direction, 0 independent, -1 opposite."""
    conflict: float
    """Share of both updates' summed magnitudes that cancels out when they are added: 0 nothing, 1 everything.

    Unrelated updates of equal size have 0.29 (1 - sqrt(1/2), for normally distributed values).
    """


@dataclass(frozen=True)
class Comparison:
    """Two adapters by block, and all together."""

    blocks: tuple[BlockComparison, ...]
    total: BlockComparison
    only_first: int
    """Layers that only the first adapter has."""
    only_second: int

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def as_text(self) -> str:
        """A table by block, with what unrelated adapters would have for comparison."""
        lines = [f"{'block':<6} {'layers':>6} {'cosine':>8} {'conflict':>9}"]
        lines += [
            f"{one.block:<6} {one.num_layers:>6} {one.cosine:8.3f} {one.conflict:9.1%}"
            for one in (*self.blocks, self.total)
        ]
        lines.append("unrelated adapters of equal size have cosine 0 and conflict 29%")
        return "\n".join([*lines, f"layers in only one of both: {self.only_first} and {self.only_second}"])


@dataclass
class _Sums:
    layers: int = 0
    product: float = 0.0
    first: float = 0.0
    second: float = 0.0
    magnitude: float = 0.0
    remaining: float = 0.0

    def add(self, one: torch.Tensor, two: torch.Tensor) -> None:
        self.layers += 1
        self.product += float((one * two).sum())
        self.first += float(one.square().sum())
        self.second += float(two.square().sum())
        self.magnitude += float(one.abs().sum() + two.abs().sum())
        self.remaining += float((one + two).abs().sum())

    def result(self, block: str) -> BlockComparison:
        size = (self.first * self.second) ** 0.5
        cosine = self.product / size if size else 0.0
        return BlockComparison(
            block, self.layers, cosine, 1 - self.remaining / self.magnitude if self.magnitude else 0.0
        )


@torch.no_grad()
def compare(
    first: AdapterFile,
    second: AdapterFile,
    base_weight: BaseWeight | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Cosine similarity and conflict by block, over the layers that both adapters have.

    Raises AdapterError: different families, different shapes, nothing in common, DoRA without a base.
    """
    family = common_family([first, second])
    first, second = with_family(first, family), with_family(second, family)
    shared = [name for name in first.modules if name in second.modules]
    if not shared:
        raise AdapterError(f"{first.path.name} and {second.path.name} have no layer in common")
    sums: dict[str, _Sums] = defaultdict(_Sums)
    for done, name in enumerate(shared):
        matrices = [
            layer_update(name, file.modules[name], base_weight, file.path.name).matrix() for file in (first, second)
        ]
        if matrices[0].shape != matrices[1].shape:
            raise AdapterError(f"{name}: the adapters are for layers of different shapes")
        for block in (block_label(name), "all"):
            sums[block].add(*matrices)
        if on_progress is not None:
            on_progress(done + 1, len(shared))
    order = in_order([block for block in sums if block != "all"], family)
    return Comparison(
        tuple(sums[block].result(block) for block in order),
        sums["all"].result("all"),
        len(first.modules) - len(shared),
        len(second.modules) - len(shared),
    )
