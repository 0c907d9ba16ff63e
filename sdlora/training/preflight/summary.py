"""What a run will do, found out before any model is loaded: the summary that `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdlora import disk
from sdlora.config.calls import Summarise
from sdlora.config.files import validate
from sdlora.config.given import Values, train_config
from sdlora.config.images import ImageFolder
from sdlora.config.train import TrainConfig
from sdlora.constants import GIB, LATENT_FACTOR, MIB
from sdlora.data.cache import default_cache_folder
from sdlora.data.images import ImageRecord
from sdlora.errors import ConfigError, SdloraError
from sdlora.models.detection import Detection, detect
from sdlora.training.inputs.images import RunImages
from sdlora.training.inputs.preview_prompts import with_captions
from sdlora.training.preflight.checks import check
from sdlora.training.preflight.counting import Layouts, base_notes, start_notes, trained_values
from sdlora.training.preflight.dry_run import BucketSamples, DryRun, Figures, SummaryLine, problems_of
from sdlora.training.preflight.memory import DiskPlan, MemoryEstimate, MemoryPlan, estimate
from sdlora.training.preflight.new_tokens import vector_counts
from sdlora.training.preflight.remarks import cut_off, long_captions, remarks
from sdlora.training.preflight.speed import ChosenSpeed, choose_speed
from sdlora.training.shares import check_shares, images_a_pass, images_a_step, in_words
from sdlora.training.workers import check_cards
from sdlora.words import first_few

_NAMES_SHOWN = 5
_LATENT_BYTES_PER_PIXEL = 8 * 4 / LATENT_FACTOR**2  # mean and spread of four channels, fp32
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
    run_bytes: int
    """Size of the adapter file and of all checkpoints kept."""
    free_disk_gib: float
    trainable_parameters: int
    """Of the UNet's adapter."""
    memory: MemoryEstimate
    """Of each process."""
    speed: ChosenSpeed
    processes: int = 1
    """How many train together."""

    @property
    def epochs(self) -> float:
        """Passes over all images that the steps come to."""
        return self.total_steps * self.config.optimization.accumulation / self.images.plan.batches

    def as_text(self) -> str:
        """The summary, one line a fact."""
        return "\n".join(f"{label + ':':<16} {text}" for label, text in self.lines())

    def as_dry_run(self) -> DryRun:
        """Lines and figures as plain values, for the page and for `--json`."""
        plan = self.images.plan
        return DryRun(
            lines=[SummaryLine(label=label, text=text) for label, text in self.lines()],
            figures=Figures(
                total_steps=self.total_steps,
                processes=self.processes,
                images_a_step=images_a_step(self.config.optimization),
                images_a_pass=images_a_pass(self.config.optimization, self.processes),
                epochs=self.epochs,
                images=plan.images,
                held_out=len(self.images.held_out),
                files_seen=plan.files_seen,
                samples=plan.samples,
                batches=plan.batches,
                buckets=[
                    BucketSamples(
                        width_px=count.bucket.width_px, height_px=count.bucket.height_px, samples=count.samples
                    )
                    for count in plan.buckets
                ],
                upscaled=plan.upscaled,
                long_captions=self.long_captions,
                trainable_parameters=self.trainable_parameters,
                memory_gib=self.memory.total_gib,
                cache_bytes=self.cache_bytes,
                run_bytes=self.run_bytes,
                free_disk_gib=self.free_disk_gib,
            ),
        )

    def lines(self) -> Iterator[tuple[str, str]]:
        """The facts, each as a label and a text."""
        yield "base model", f"{self.config.base_model.model}: {'; '.join(self.model.notes)}"
        yield from self._image_lines()
        optimization, adapter = self.config.optimization, self.config.adapter
        steps = f"{self.total_steps} optimizer steps of {optimization.accumulation} batches"
        yield "steps", f"{steps}, {self.epochs:.1f} epochs"
        if self.processes > 1:
            yield "processes", in_words(optimization, self.processes)
        parts = ["the UNet"] if adapter.unet else []
        if adapter.text_encoder:
            encoders = "the text encoders" if self.model.family == "sdxl" else "the text encoder"
            is_cut = self.model.family == "sdxl" or self.config.base_model.clip_skip > 1
            parts.append(encoders + (" without the last layer, which the UNet's text does not come from" * is_cut))
        where = " and ".join(parts)
        if adapter.rank and adapter.start_from is not None:
            yield (
                "adapter",
                f"that of {adapter.start_from}, {self.trainable_parameters:,} trainable parameters in {where}",
            )
        elif adapter.rank:
            scale = adapter.scale(adapter.rank)
            quotient = "alpha/sqrt(rank)" if adapter.rslora else "alpha/rank"
            product = f"{optimization.learning_rate:g} x {quotient} {scale:g} = {optimization.learning_rate * scale:g}"
            yield "strength", f"learning rate {product}"
            count = f"{'at most ' if adapter.algorithm == 'lokr' else ''}{self.trainable_parameters:,}"
            yield "adapter", f"{adapter.algorithm}, rank {adapter.rank}, {count} trainable parameters in {where}"
        for token, number in vector_counts(self.config).items():
            alone = "" if adapter.rank else ", without an adapter"
            rate = optimization.learning_rates["new_tokens"]
            yield (
                "new token",
                f"{token}: {number} vectors from '{adapter.new_tokens[token].init}', rate {rate:g}{alone}",
            )
        if prompts := with_captions(self.config, self.images.trained).previews.prompts:
            others = [f"{Path(one.file).name} at {one.weight:g}" for one in self.config.previews.adapters]
            model = self.config.previews.base_model
            on = f"; on {model}, loaded each time beside the model that is trained" if model else ""
            yield "previews", "; ".join(prompts) + (f"; with {', '.join(others)}" if others else "") + on
        each = " in each process" if self.processes > 1 else ""
        yield "memory", f"about {self.memory.total_gib:.1f} GiB{each} for the training steps (an estimate)"
        yield "speed", self.speed.text
        limit = self.config.captions.max_tokens
        yield "text", f"{len(self.long_captions)} captions over {limit} tokens" + cut_off(self.long_captions)
        needed = f"{self.cache_bytes / MIB:.1f} MiB of cache and {self.run_bytes / MIB:.0f} MiB in the run's folder"
        yield "disk", f"at most {needed}; {self.free_disk_gib:.1f} GiB free"
        for note in (*base_notes(self.config), *start_notes(self.config)):
            yield "note", note
        yield from remarks(self.config, self.images)  # last, where they are read

    def _image_lines(self) -> Iterator[tuple[str, str]]:
        plan = self.images.plan
        yield "images", f"{plan.images} of {plan.files_seen} files, {len(self.images.held_out)} held out"
        if self.config.images.folders:
            for number, source in enumerate(self.config.images.sources):
                yield "folder", _folder_line(source, [each for each in self.images.trained if each.source == number])
        yield "samples", f"{plan.samples} an epoch (repeats and resolutions counted), {plan.upscaled} images enlarged"
        for count in plan.buckets:
            yield "bucket", f"{count.bucket.width_px}x{count.bucket.height_px}: {count.samples}"
        short = f", {plan.short_batches} of them short" if plan.short_batches else ""
        if self.config.objective.prior_preservation == "base_prediction":
            own = [record for record in self.images.trained if not record.is_class]
            priors = dict.fromkeys(self.config.objective.prior_prompt or record.prior_caption() for record in own)
            yield "prior captions", first_few([f"'{text}'" for text in priors], _NAMES_SHOWN)
        yield "batches", f"{plan.batches} an epoch of up to {self.config.optimization.batch_size} images{short}"
        yield "never trained", f"{len(plan.never_trained)} images"


def dry_run(config: TrainConfig, processes: int = 1) -> DryRun:
    """The summary as plain values, or all that keeps the run from beginning."""
    try:
        return summarise(config, processes).as_dry_run()
    except SdloraError as error:
        return DryRun(problems=problems_of(error))


def summarise(config: TrainConfig | Values | Path | str, processes: int = 1) -> Summary:
    """Check everything and count what the run would do. Raises the SdloraError of what is wrong.

    config: as for `train`, for example `summarise("demo.yaml")`. processes: how many are to train together.
    """
    processes = validate({"processes": processes}, "summarise", Summarise).processes
    config = train_config(config)
    check_shares(config.optimization, processes)
    check_cards(config.optimization.device, processes)
    images = check(config)
    model = detect(config.resolved_base_model)
    layouts = Layouts.of(config)
    unet, trainable = layouts.unet, trained_values(config, layouts)
    plan = replace(
        MemoryPlan.of(config, images, unet, trainable), batch_size=images_a_pass(config.optimization, processes)
    )
    speed = choose_speed(config.optimization, config.base_model, unet, plan)
    memory = estimate(speed.added_to(plan))
    room = DiskPlan.of(config, trainable, images.total_steps(config), images.steps_per_epoch(config))
    # With flips an image is cached twice, as a mirrored latent is not the latent of the mirrored image.
    flips = 2 if config.images.horizontal_flip else 1
    pixels = sum(item.placement.bucket.width_px * item.placement.bucket.height_px for item in images.placed)
    is_cached = config.images.cache and not config.images.is_live
    cache_bytes = round(pixels * flips * _LATENT_BYTES_PER_PIXEL) if is_cached else 0
    cache_folder = config.images.cache_folder or default_cache_folder()
    if problem := room.problem(config.outputs.folder, cache_bytes, cache_folder):
        raise ConfigError("this run", [problem])
    return Summary(
        config=config,
        images=images,
        model=model,
        total_steps=images.total_steps(config),
        long_captions=long_captions(config, images),
        cache_bytes=cache_bytes,
        run_bytes=room.total_bytes,
        free_disk_gib=disk.free_bytes(config.outputs.folder) / GIB,
        trainable_parameters=trainable,
        memory=memory,
        speed=speed,
        processes=processes,
    )


def _folder_line(source: ImageFolder, records: Sequence[ImageRecord]) -> str:
    """A folder of images.folders with all that holds in it differently, and how often its images (records) are seen."""
    set_here = source.model_dump(mode="json", exclude={"folder"}, exclude_defaults=True)
    words = ", ".join(f"{name}={value}" for name, value in set_here.items()) or "no settings of its own"
    samples = sum(record.repeats for record in records)
    example = f"; first caption: '{records[0].plain_caption()}'" if records else ""
    return f"{source.folder.absolute().name}: {len(records)} images, {samples} an epoch; {words}{example}"
