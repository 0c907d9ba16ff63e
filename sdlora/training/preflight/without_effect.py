"""Settings that a person wrote and that this run, with its length and its images, can't follow as written."""

from __future__ import annotations

from collections.abc import Iterator

from sdlora.config.interval import length
from sdlora.config.train import TrainConfig
from sdlora.training.inputs.images import RunImages


def without_effect(config: TrainConfig, images: RunImages) -> Iterator[str]:
    """A sentence for each, naming the setting and what happens instead. Defaults that nobody wrote are passed over."""
    total = images.total_steps(config)
    optimization = config.optimization
    if optimization.warmup >= 1 and total <= optimization.warmup:
        yield (
            f"optimization.warmup={optimization.warmup:g}: the run has {total} steps, so the learning rate rises to "
            "its end; a value below 1 is a share of the run"
        )
    for name in ("text_encoder_until", "text_encoder_2_until"):
        until = getattr(optimization, name)
        if until is not None and until >= total:
            yield f"optimization.{name}={until:g}: the run ends before, after {total} steps"
    late = [f"{start:g}" for start, _ in optimization.schedule_points if start >= total]
    if late:
        yield f"optimization.schedule_points: {', '.join(late)} is beyond the run's {total} steps"
    for name, section, instead in (
        ("previews.every", config.previews, "images are generated before and after training only"),
        ("validation.every", config.validation, "validation comes before and after training only"),
        ("outputs.checkpoint_every", config.outputs, "there is a checkpoint at the end only"),
    ):
        setting = name.rpartition(".")[2]
        interval = getattr(section, setting)
        if setting not in section.model_fields_set or interval == "auto":
            continue
        if length(interval, images.steps_per_epoch(config)) > total:
            yield f"{name}={interval}: the run has {total} steps, so {instead}"
    most = max(count.samples for count in images.plan.buckets)
    if optimization.batch_size > most:
        yield (
            f"optimization.batch_size={optimization.batch_size}: no bucket holds more than {most} samples, so no batch "
            "is that large; more repeats or fewer buckets (images.bucket_step) fill them"
        )
    if optimization.epochs and optimization.steps is None and optimization.accumulation > 1:
        batches = images.plan.batches * optimization.epochs
        if batches % optimization.accumulation:
            yield (
                f"optimization.epochs={optimization.epochs}: {batches} batches don't divide by "
                f"optimization.accumulation={optimization.accumulation}; the last of {total} steps begins another epoch"
            )
