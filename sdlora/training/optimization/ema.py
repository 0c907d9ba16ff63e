"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sdlora.errors import TrainingError


class MovingAverage:
    """Average of trained weights, kept beside them in fp32 (Polyak and Juditsky 1992).

    Early on the decay is only (1 + n) / (10 + n) after n updates, so that the average soon forgets the start.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after an optimizer step."""
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            # In fp32: with a decay of 0.999 each update is a thousandth, which half precision would round away.
            average.lerp_(parameter.detach().float(), weight)
        self.updates += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model's weights are the average; after, what they were, to the last bit."""
        # Copies and not a subtraction of the difference, which would leave rounding behind after every preview.
        originals = [parameter.detach().clone() for parameter in self.parameters]
        _copy(self.averages, self.parameters)
        try:
            yield
        finally:
            _copy(originals, self.parameters)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights as they are."""
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs; the tensors are the live ones, not copies."""
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average. Raises TrainingError when it belongs to other weights."""
        shapes = [tuple(average.shape) for average in state["averages"]]
        expected = [tuple(average.shape) for average in self.averages]
        if shapes != expected:
            raise TrainingError(
                f"The saved average has {len(shapes)} tensors that don't match the adapter's {len(expected)}. "
                "Resume with the adapter settings of the run that was saved, or start a new run."
            )
        _copy(state["averages"], self.averages)
        self.updates = state["updates"]


@torch.no_grad()
def _copy(sources: Sequence[Tensor], destinations: Sequence[Tensor]) -> None:
    for source, destination in zip(sources, destinations, strict=True):
        destination.copy_(source)
