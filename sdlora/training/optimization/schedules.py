"""The learning rate's course, as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from sdlora.config.optimization import OptimizationConfig

_TIMESCALE = 10_000
"""Of inverse_sqrt without warm-up, as in transformers."""


def factor(step: int, total_steps: int, config: OptimizationConfig) -> float:
    """What to multiply every base learning rate by, from 0 to 1, for the optimizer update after `step` others.

    step: updates done before, 0 for the first. Warm-up rises evenly and never is 0, since a first step of 0 would
    be wasted; beyond total_steps the factor stays at its end.
    """
    warmup = warmup_steps(total_steps, config)
    if step < warmup:
        # Over warmup + 1, so that the first step after the warm-up is the first at the full rate.
        return (step + 1) / (warmup + 1)
    if config.schedule == "inverse_sqrt":
        timescale = config.schedule_timescale or warmup or _TIMESCALE
        return math.sqrt(timescale / (timescale + step - warmup))
    if config.schedule == "piecewise":
        # The last point that is passed counts; a start below 1 is a share of all steps.
        passed = [
            factor for start, factor in config.schedule_points if step >= (start * total_steps if start < 1 else start)
        ]
        return passed[-1] if passed else 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return config.schedule_floor + (1.0 - config.schedule_floor) * _decay(progress, config)


def part_factor(part: str, step: int, total_steps: int, config: OptimizationConfig) -> float:
    """1 while a part (unet, text_encoder, text_encoder_2, new_tokens) is trained, 0 from its `..._until` on."""
    second = config.text_encoder_until if config.text_encoder_2_until is None else config.text_encoder_2_until
    limits = {
        "text_encoder": config.text_encoder_until,
        "text_encoder_2": second,
        "new_tokens": config.new_tokens_until,
    }
    until = limits.get(part)
    if until is None:
        return 1.0
    return 1.0 if step < (until * total_steps if until < 1 else until) else 0.0


def warmup_steps(total_steps: int, config: OptimizationConfig) -> int:
    """Number of warm-up steps: a share of all when config.warmup is below 1, that many otherwise, never above all."""
    steps = round(config.warmup * total_steps) if config.warmup < 1 else round(config.warmup)
    return min(steps, total_steps)


def _decay(progress: float, config: OptimizationConfig) -> float:
    """From 1 at progress 0 to 0 at progress 1, except for constant."""
    if config.schedule == "linear":
        return 1.0 - progress
    if config.schedule == "polynomial":
        return (1.0 - progress) ** config.schedule_power
    if config.schedule == "rex":
        # Chen et al. 2021, "REX: Revisiting Budgeted Training with an Improved Schedule", section 4.
        return (1.0 - progress) / (1.0 - progress / 2)
    if config.schedule == "wsd":
        # Hagele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations": 1 - sqrt.
        into_decay = (progress - (1.0 - config.schedule_decay)) / config.schedule_decay
        return 1.0 - math.sqrt(max(0.0, into_decay))
    if config.schedule == "cosine":
        return _half_cosine(progress)
    if config.schedule == "cosine_with_restarts":
        # At the very end the remainder would be 0, which is a restart at the full rate.
        return _half_cosine(progress * config.schedule_cycles % 1.0) if progress < 1.0 else 0.0
    return 1.0


def _half_cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))
