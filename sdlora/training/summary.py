"""What a run will do, found out before any model is loaded: the summary that `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdlora.config.train import TrainConfig
from sdlora.data.batches import sample_random
from sdlora.data.captions import render
from sdlora.models.detection import Detection, detect
from sdlora.models.prompts import count_tokens
from sdlora.models.tokenizer import light_tokenizer
from sdlora.training.checks import check
from sdlora.training.images import RunImages
from sdlora.training.memory import free_disk_gib

_NAMES_SHOWN = 5
_LATENT_BYTES_PER_PIXEL = 8 * 4 / 64
"""Mean and spread of 4 channels in fp32, one cell for 8x8 pixels."""


@dataclass(frozen=True)
class Summary:
    """The pre-run summary; `as_text` is what a person reads."""

    config: TrainConfig
    images: RunImages
    model: Detection
    total_steps: int
    long_captions: dict[str, int]
    """Images whose caption is over captions.max_tokens: file name and number of tokens."""
    cache_bytes: int
    """Size of the encoded images, at most."""
    free_disk_gib: float

    @property
    def epochs(self) -> float:
        """Passes over all images."""
        return self.total_steps * self.config.optimization.accumulation / self.images.plan.batches

    def as_text(self) -> str:
        """The summary, one line a fact."""
        return "\n".join(f"{label + ':':<16} {text}" for label, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        plan, optimization, adapter = self.images.plan, self.config.optimization, self.config.adapter
        yield "base model", f"{self.config.base_model.model}: {'; '.join(self.model.notes)}"
        yield "images", f"{plan.images} of {plan.files_seen} files, {len(self.images.held_out)} held out"
        for item in plan.skipped:
            yield "skipped", f"{item.path.name}: {item.reason}"
        yield "samples", f"{plan.samples} an epoch (repeats and resolutions counted), {plan.upscaled} images enlarged"
        for count in plan.buckets:
            yield "bucket", f"{count.bucket.width_px}x{count.bucket.height_px}: {count.samples}"
        short = f", {plan.short_batches} of them short" if plan.short_batches else ""
        yield "batches", f"{plan.batches} an epoch of up to {optimization.batch_size} images{short}"
        yield "never trained", f"{len(plan.never_trained)} images"
        yield (
            "steps",
            (f"{self.total_steps} optimizer steps of {optimization.accumulation} batches, {self.epochs:.1f} epochs"),
        )
        yield (
            "strength",
            (
                f"learning rate {optimization.learning_rate:g} x alpha/rank {adapter.resolved_alpha / adapter.rank:g} "
                f"= {optimization.learning_rate * adapter.resolved_alpha / adapter.rank:g}"
            ),
        )
        limit = self.config.captions.max_tokens
        yield "text", f"{len(self.long_captions)} captions over {limit} tokens" + _shown(self.long_captions)
        yield "disk", f"{self.cache_bytes / 2**20:.1f} MiB of cache at most; {self.free_disk_gib:.1f} GiB free"


def summarise(config: TrainConfig) -> Summary:
    """Check everything and count what the run would do. Raises the SdloraError of what is wrong."""
    images = check(config)
    flips = 2 if config.images.horizontal_flip else 1
    pixels = sum(item.placement.bucket.width_px * item.placement.bucket.height_px for item in images.placed)
    return Summary(
        config=config,
        images=images,
        model=detect(config.resolved_base_model),
        total_steps=images.total_steps(config),
        long_captions=_long_captions(config, images),
        cache_bytes=round(pixels * flips * _LATENT_BYTES_PER_PIXEL) if config.images.cache else 0,
        free_disk_gib=free_disk_gib(config.outputs.folder),
    )


def _long_captions(config: TrainConfig, images: RunImages) -> dict[str, int]:
    tokenizer = light_tokenizer(config.base_model)
    whole = config.captions.model_copy(update={"dropout": 0.0, "tag_dropout": 0.0})
    counts = {
        record.path.name: count_tokens(
            tokenizer, render(record.caption or "", whole, sample_random(config.seed)), weights=config.captions.weights
        )
        for record in images.trained
    }
    return {name: count for name, count in counts.items() if count > config.captions.max_tokens}


def _shown(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    names = [f"{name} ({count})" for name, count in list(counts.items())[:_NAMES_SHOWN]]
    return ", cut off: " + ", ".join(names) + (", ..." if len(counts) > _NAMES_SHOWN else "")
