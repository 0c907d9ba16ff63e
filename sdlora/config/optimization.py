"""How the adapter's weights are updated."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, model_validator

from sdlora.config.base_model import Precision
from sdlora.config.section import Section

Schedule = Literal[
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "rex",
    "wsd",
    "inverse_sqrt",
    "piecewise",
]
Speed = Literal["plain", "fast", "lean"]
OPTIMIZERS = (
    "adamw",
    "adamw8bit",
    "paged_adamw8bit",
    "lion",
    "adafactor",
    "prodigy",
    "schedule_free_adamw",
    "prodigy_schedule_free",
    "adan",
    "ademamix",
    "adopt",
    "came",
    "dadapt_adam",
    "muon",
    "soap",
    "stable_adamw",
)
OWN_RATE = ("prodigy", "prodigy_schedule_free", "dadapt_adam")
"""Optimizers that estimate their learning rate; theirs is a factor, usually 1."""
SCHEDULE_FREE = ("schedule_free_adamw", "prodigy_schedule_free")
"""Optimizers that average instead of lowering their rate."""
_NEW_TOKENS_RATIO = 5
"""A few vectors, each of them in every caption, bear more than the layers that all images share: 5e-4 beside 1e-4 is
what textual inversion is published with."""


class OptimizationConfig(Section):
    steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Optimizer updates; give this or epochs."""

    epochs: int | None = Field(default=None, ge=1, le=1_000_000)
    """Passes over all images; give this or steps. Without either: 10 epochs."""

    batch_size: int = Field(default=1, ge=1, le=4096)
    """Images in a forward pass."""

    accumulation: int = Field(default=1, ge=1, le=65_536)
    """Batches whose gradients are averaged for one step."""

    optimizer: str = "adamw"
    """adamw, adamw8bit, paged_adamw8bit, lion, adafactor, prodigy, schedule_free_adamw, prodigy_schedule_free, adan,
    ademamix, adopt, came, dadapt_adam, muon, soap, stable_adamw, or a dotted path to a class."""

    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    """More keyword arguments for the optimizer, for example {betas: [0.9, 0.99], d_coef: 2}."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of the UNet's adapter (1.0 for those that find their own: prodigy, dadapt_adam)."""

    text_encoder_learning_rate: float | None = Field(default=None, ge=0)
    """Learning rate of the (first) text encoder's adapter; by default half the UNet's (prodigy: the same)."""

    text_encoder_2_learning_rate: float | None = Field(default=None, ge=0)
    """Learning rate of SDXL's second text encoder; by default that of the first."""

    new_token_learning_rate: float | None = Field(default=None, ge=0)
    """Learning rate of adapter.new_tokens; by default five times the UNet's (prodigy: the same). They get no decay."""

    text_encoder_until: float | None = Field(default=None, gt=0)
    """Train the text encoders only so far: a share of all steps when below 1, a number of steps otherwise."""

    text_encoder_2_until: float | None = Field(default=None, gt=0)
    """The same for SDXL's second text encoder; by default that of the first."""

    new_tokens_until: float | None = Field(default=None, gt=0)
    """Train adapter.new_tokens only so far: a share of all steps when below 1, a number of steps otherwise."""

    block_learning_rates: dict[str, float] = Field(default_factory=dict)
    """Factor on the learning rate by block pattern, for example {down_blocks.0: 0.5}. Of several that match a
    layer the last one counts."""

    lora_plus_ratio: float = Field(default=1.0, ge=1.0)
    """Learning rate of B over that of A (LoRA+, Hayou et al. 2024 suggests 16); 1 is plain LoRA."""

    precondition: bool = False
    """LoRA: measure the gradients of A and B by the update that they make together (Riemannian preconditioned LoRA,
    Zhang and Pilanci 2024)."""

    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of the optimizer."""

    schedule: Schedule = "constant"
    """Course of the learning rate after warm-up."""

    warmup: float = Field(default=0.0, ge=0)
    """Warm-up: a share of all steps when below 1, a number of steps otherwise."""

    schedule_cycles: int = Field(default=1, ge=1)
    """Cycles of cosine_with_restarts."""

    schedule_power: float = Field(default=1.0, gt=0)
    """Exponent of the polynomial schedule."""

    schedule_floor: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate at which linear, polynomial, rex, wsd and (each cycle of) cosine end."""

    schedule_decay: float = Field(default=0.2, gt=0, le=1)
    """wsd (warm-up, stable, decay): share of the steps behind the warm-up, the last, in which the rate falls (Hagele et
    al. 2024)."""

    schedule_timescale: float | None = Field(default=None, gt=0)
    """inverse_sqrt: steps after which the rate is down to 0.7; by default the warm-up's, or 10,000 without one."""

    schedule_points: tuple[tuple[float, float], ...] = ()
    """piecewise: from which step or share of all steps (below 1) on the rate is multiplied by what, such as
    [[0.5, 0.3], [0.8, 0.1]]."""

    max_gradient_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient of all trained weights to this norm; 0 is off."""

    max_weight_norm: float = Field(default=0.0, ge=0)
    """After each step scale every layer's update down to this norm, against overfitting (sd-scripts'
    scale_weight_norms); 1 is usual, 0 is off."""

    precision: Precision = "bf16"
    """Number type of the forward and backward pass; fp16 uses a gradient scaler. Trained weights are fp32 always."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter slower."""

    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the adapter, for example 0.99; 0 is off."""

    max_nonfinite: int = Field(default=10, ge=0)
    """Batches in a row with a non-finite loss or gradient before the run gives up."""

    on_out_of_memory: Literal["smaller_batch", "stop"] = "smaller_batch"
    """What happens when a step needs more memory than there is: smaller_batch sends the batch through the model in two,
    four, ... parts from then on, which gives the same gradients; stop saves and ends the run."""

    speed: Literal["auto"] | Speed = "auto"
    """How the frozen weights of the UNet are held on a processor (CPU). plain: as torch does; fast: reordered once for
    both directions instead of at every step, at up to twice their bytes; lean: what is faster without a second copy.
    auto takes fast where it pays (bf16, a UNet of full width), lean where memory is short for that, plain elsewhere,
    and says why."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    threads: int | None = Field(default=None, ge=1, le=4096)
    """CPU threads for torch; by default torch's own choice."""

    @property
    def learning_rates(self) -> dict[str, float]:
        """Base learning rate of each part: unet, text_encoder, text_encoder_2, new_tokens."""
        new_tokens, first = self.new_token_learning_rate, self.text_encoder_learning_rate
        if new_tokens is None:
            new_tokens = self.learning_rate * (1 if self.optimizer in OWN_RATE else _NEW_TOKENS_RATIO)
        if first is None:
            first = self.learning_rate if self.optimizer in OWN_RATE else self.learning_rate / 2
        second = self.text_encoder_2_learning_rate
        return {
            "unet": self.learning_rate,
            "text_encoder": first,
            "text_encoder_2": first if second is None else second,
            "new_tokens": new_tokens,
        }

    @model_validator(mode="after")
    def _check(self) -> OptimizationConfig:
        problems: list[str] = []
        if self.steps is not None and self.epochs is not None:
            problems.append(f"give steps ({self.steps}) or epochs ({self.epochs}), not both")
        if self.optimizer not in OPTIMIZERS and "." not in self.optimizer:
            near = difflib.get_close_matches(self.optimizer.lower().replace("-", "_"), OPTIMIZERS, n=1, cutoff=0.8)
            meant = f"; did you mean '{near[0]}'? Or" if near else ":"
            known = ", ".join(OPTIMIZERS)
            problems.append(
                f"optimizer: unknown '{self.optimizer}'{meant} use one of {known}, or a dotted path such as "
                "torch.optim.SGD"
            )
        problems += self._prodigy_problems() if self.optimizer in OWN_RATE else []
        if self.optimizer in SCHEDULE_FREE and self.schedule != "constant":
            problems.append(f"schedule={self.schedule} has no place with {self.optimizer}: use constant")
        if self.optimizer in SCHEDULE_FREE and self.ema > 0:
            problems.append(f"ema={self.ema} averages twice with {self.optimizer}, itself an average: use 0")
        problems += self._schedule_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _schedule_problems(self) -> list[str]:
        """Settings of one schedule beside another, and points that don't rise."""
        if self.schedule == "piecewise" and not self.schedule_points:
            return ["schedule=piecewise needs schedule_points, such as [[0.5, 0.3], [0.8, 0.1]]"]
        if self.schedule != "piecewise" and self.schedule_points:
            return [f"schedule_points have no effect with schedule={self.schedule}; use piecewise"]
        starts = [start for start, _ in self.schedule_points]
        if any(factor < 0 for _, factor in self.schedule_points) or any(start < 0 for start in starts):
            return ["schedule_points: a step and a factor can't be below 0"]
        if starts != sorted(set(starts)):
            return [f"schedule_points: steps must rise; got {', '.join(f'{start:g}' for start in starts)}"]
        return []

    def _prodigy_problems(self) -> list[str]:
        """Prodigy estimates one step size for all weights and accepts a single learning rate (or 0) only."""
        given = {
            "text_encoder_learning_rate": self.text_encoder_learning_rate,
            "text_encoder_2_learning_rate": self.text_encoder_2_learning_rate,
            "new_token_learning_rate": self.new_token_learning_rate,
        }
        problems = [
            f"{name}={rate}: {self.optimizer} takes one learning rate for all parts, {self.learning_rate} here "
            "(leave this one out, or set it to 0 to leave that part as it is)"
            for name, rate in given.items()
            if rate not in (None, 0.0, self.learning_rate)
        ]
        if any(factor not in (1.0, 0.0) for factor in self.block_learning_rates.values()):
            problems.append(f"block_learning_rates: with {self.optimizer} a factor can be 0 or 1 only")
        if self.lora_plus_ratio != 1.0:
            problems.append(f"lora_plus_ratio={self.lora_plus_ratio} can't be used with {self.optimizer}: use 1")
        return problems
