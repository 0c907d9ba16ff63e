"""Number types of the forward and backward pass, with loss scaling where the type needs it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdlora.config.base_model import Precision
from sdlora.models.dtypes import DTYPES


class PrecisionContext:
    """Runs a training step in fp32, bf16 or fp16; trained weights and their gradients stay fp32.

    For each batch: `with autocast():` forward, `backward(loss)`; after the last batch of a step
    `unscale_and_clip(optimizer, max_norm)`, then `step(optimizer)`, then optimizer.zero_grad().

    fp16's smallest number is 6e-8, so its gradients are kept above that by a scaled loss (Micikevicius et al. 2018).
    This uses torch.amp directly on every device: accelerate neither scales nor casts for fp16 on a CPU.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.precision = precision
        self.device = device
        self._scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        self._norm = math.nan

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the forward and backward pass."""
        return DTYPES[self.precision]

    @property
    def scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless fp16."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for the forward pass: bf16 or fp16 where that is safe, nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the weights'."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def unscale_and_clip(self, optimizer: Optimizer, max_norm: float) -> float:
        """Bring gradients to their true size and clip their joint norm; returns the norm before clipping.

        The norm is over all weights of the optimizer. max_norm 0 does not clip. Call it exactly once before `step`;
        a norm that is not finite means that the gradients can't be used.
        """
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        limit = max_norm if max_norm > 0 else math.inf
        # The norm is not finite when any gradient isn't, so no further pass over them is needed to find out.
        self._norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        return self._norm

    def step(self, optimizer: Optimizer) -> bool:
        """Update the weights; returns False, leaving them as they are, when a gradient is not finite.

        With fp16 that is no alarm as long as `scale` is above 1: the scale was too high, is halved here, and the next
        batch goes on with it. It doubles again after 2,000 good steps.
        """
        is_finite = math.isfinite(self._norm)
        if self._scaler is None:
            if is_finite:
                optimizer.step()
        else:
            if is_finite:
                self._scaler.step(optimizer)
            # Also after a skipped step: that is when the scale has to come down.
            self._scaler.update()
        # Spent: a second step without unscale_and_clip of its own would find it not finite and change nothing.
        self._norm = math.nan
        return is_finite

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on exactly; empty unless fp16."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved scale. A state saved in another precision is ignored."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)
