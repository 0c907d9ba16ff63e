"""What a run leaves out of the files and settings that a person gave it: said by the dry run and as the run begins."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from sdlora.adapters.files.hub_files import local_file
from sdlora.adapters.files.metadata import MODELSPEC_PREDICTIONS
from sdlora.adapters.files.reading import read
from sdlora.config.interval import length
from sdlora.config.optimization import OWN_RATE, SCHEDULE_FREE
from sdlora.config.shipped import BUILTIN_PREFIX, sample_images_folder
from sdlora.config.train import TrainConfig
from sdlora.config.without_effect import in_training, is_written
from sdlora.data.captions import has_trigger
from sdlora.data.focus import focus_of
from sdlora.data.images import Skipped
from sdlora.generation.request.prompt_warnings import preview_warnings
from sdlora.models.detection import detect
from sdlora.models.prompts import count_numbers
from sdlora.training.inputs.images import RunImages
from sdlora.training.optimization.schedules import factor
from sdlora.training.preflight.image_remarks import idle_settings, spoilt_pictures
from sdlora.training.preflight.new_tokens import caption_numbers, token_notes
from sdlora.words import first_few

_NAMES_SHOWN = 5
_LEAST_SHARE, _LARGEST_SHARE = 0.6, 1.6
"""Of a base model's own resolution: beyond these a training resolution is more likely forgotten than meant."""
_MANY_EPOCHS = 250
_STEPS_TO_FIND_A_RATE = 100
_ADAM_LIKE = ("adamw", "adamw8bit", "paged_adamw8bit", "adopt", "stable_adamw", "schedule_free_adamw")
_STEPS_SAMPLED = 2000
_LEAST_MOVED = 0.005
"""Below this a run on builtin:emoji (attention, rank 16, rates of 1e-4 to 1e-3) had learned less than half of what it
could: held-out loss at 0.006 -15%, at 0.01 -19%, at most -30%."""


def remarks(config: TrainConfig, images: RunImages) -> Iterator[tuple[str, str]]:
    """Files that can't be read, files left out by rule, and what is to be said of files and settings.

    Each as a label and a text; those labelled `warning` most likely spoil the result.
    """
    for text in (*images.scan.warnings, *spoilt_pictures(images)):
        yield "warning", text
    for item in images.plan.skipped:
        yield "skipped", f"{item.path.name}: {item.reason}"
    for reason, names in _by_reason(images.scan.left_out).items():
        yield "left out", f"{first_few(names, _NAMES_SHOWN)}: {reason}"
    for note in (*images.scan.notes, *_without_effect(config, images)):
        yield "note", note
    for advice in _unlikely_to_please(config, images):
        yield "advice", advice


def _by_reason(left_out: Sequence[Skipped]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in left_out:
        reasons[item.reason].append(item.path.name)
    return reasons


def _without_effect(config: TrainConfig, images: RunImages) -> Iterator[str]:
    """Settings that this run, with its length and its images, can't follow as written, and what happens instead.

    Defaults that nobody wrote are passed over.
    """
    yield from in_training(config)
    model = detect(config.resolved_base_model)
    if model.family != "sdxl":
        for name in ("text_encoder_2_learning_rate", "text_encoder_2_until"):
            if config.adapter.text_encoder and is_written(config.optimization, name):
                yield f"optimization.{name} has no effect: a base of {model.family} has one text encoder"
    if config.objective.v_loss_like_epsilon and model.prediction == "epsilon":
        yield "objective.v_loss_like_epsilon has no effect: the base predicts epsilon"
    for number, one in enumerate(config.previews.parsed):
        for sentence in [*preview_warnings(one.prompt), *preview_warnings(one.negative or "")]:
            yield f"previews.prompts.{number}: {sentence}"
    for edge in config.images.resolutions if config.images.buckets else ():
        if edge % config.images.bucket_step:
            square = edge // config.images.bucket_step * config.images.bucket_step
            yield (
                f"images.resolution={edge} is no multiple of images.bucket_step={config.images.bucket_step}: square "
                f"images are trained at {square} px, others at no larger area"
            )
    for ending in config.captions.alternatives:
        if not any(one.path.with_suffix(ending).is_file() for one in images.trained):
            yield f"captions.alternatives: no image has a caption file that ends in {ending}"
    if config.images.is_live and config.images.cache:
        yield (
            "images.random_crop, crop_jitter, rotation, colour_jitter or hue_jitter make an image differ each time, so "
            "images are encoded at every step: images.cache keeps captions only, and the VAE stays in memory"
        )
    if model.is_inpainting:
        drawn = config.images.inpaint_mask == "strokes"
        what = "random masks are drawn and what they leave is encoded at every step, so the VAE stays in memory"
        yield f"the base is an inpainting model: {what if drawn else 'it paints what images.mask covers'}"
    if config.images.crop_focus == "face":
        without = [one.path.name for one in images.trained if focus_of(one) is None and not one.is_class]
        if without:
            named = first_few(without, _NAMES_SHOWN)
            yield f"images.crop_focus=face: cut at the centre, as their names tell no face: {named}"
    total = images.total_steps(config)
    optimization = config.optimization
    if optimization.warmup >= 1 and total <= optimization.warmup:
        yield (
            f"optimization.warmup={optimization.warmup:g}: the run has {total} steps, so the learning rate rises to "
            "its end; a value below 1 is a share of the run"
        )
    yield from token_notes(config)
    yield from idle_settings(config, images)
    for name in ("text_encoder_until", "text_encoder_2_until", "new_tokens_until"):
        until = getattr(optimization, name)
        if until is not None and until >= total:
            yield f"optimization.{name}={until:g}: the run ends before, after {total} steps"
    late = [f"{start:g}" for start, _ in optimization.schedule_points if start >= total]
    if late:
        yield f"optimization.schedule_points: {', '.join(late)} is beyond the run's {total} steps"
    previews = config.previews
    for name, section, happens, instead in (
        (
            "previews.every",
            previews,
            previews.prompts or previews.from_captions,
            "images are generated before and after training only",
        ),
        ("validation.every", config.validation, images.held_out, "validation comes before and after training only"),
        ("outputs.checkpoint_every", config.outputs, True, "there is a checkpoint at the end only"),
        ("outputs.keep_every", config.outputs, True, "no checkpoint is kept for good"),
    ):
        setting = name.rpartition(".")[2]
        interval = getattr(section, setting)
        if not happens or setting not in section.model_fields_set or interval == "auto":
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


def _unlikely_to_please(config: TrainConfig, images: RunImages) -> Iterator[str]:
    """What can be trained as written, but is more likely forgotten than meant."""
    base = config.base_model.model
    is_own = any(not folder.is_relative_to(sample_images_folder()) for folder in config.images.all_folders)
    if base.startswith(BUILTIN_PREFIX) and is_own:
        yield (
            f"base_model.model={base} is a tiny model of icons, to try sdlora out: for your own pictures set it to a "
            "Stable Diffusion model (a hub name, a folder or a .safetensors file) or choose a preset that does"
        )
    base_model = detect(config.resolved_base_model)
    if config.adapter.start_from is not None and base_model.prediction_told:
        said = read(local_file(config.adapter.start_from)).metadata.get("modelspec.prediction_type", "")
        if said and said != MODELSPEC_PREDICTIONS[base_model.prediction]:
            yield (
                f"adapter.start_from={config.adapter.start_from} was trained on a base model that predicts {said}, and "
                f"this one predicts {base_model.prediction}: what it learned may fit badly"
            )
    native_px = base_model.native_resolution
    far = [edge for edge in config.images.resolutions if not _LEAST_SHARE <= edge / native_px <= _LARGEST_SHARE]
    if far:
        yield (
            f"images.resolution={', '.join(map(str, far))}: this base model was trained at {native_px} px; what is "
            "learned at sizes so different shows little at its own"
        )
    trigger = config.captions.trigger
    prompts = config.previews.prompts
    if trigger and prompts and not any(has_trigger(prompt, trigger) for prompt in prompts):
        yield (
            f"previews.prompts: none of them holds the trigger '{trigger}', so the previews will not show what is "
            "learned; previews.from_captions=2 without prompts takes them from the captions"
        )
    total, optimizer = images.total_steps(config), config.optimization.optimizer
    if optimizer in OWN_RATE and total < _STEPS_TO_FIND_A_RATE:
        yield (
            f"optimization.optimizer={optimizer} learns next to nothing in its first 50 steps or so, in which it finds "
            f"its rate: a run of {total} steps ends too early, {2 * _STEPS_TO_FIND_A_RATE} and more suit it"
        )
    elif optimizer in SCHEDULE_FREE and total < _STEPS_TO_FIND_A_RATE:
        yield (
            f"optimization.optimizer={optimizer} gives the average of all its steps, which lags behind in a run of "
            f"{total} steps; {2 * _STEPS_TO_FIND_A_RATE} and more suit it"
        )
    elif (moved := _moved(config, total)) is not None and moved < _LEAST_MOVED:
        enough = math.ceil(2 * _LEAST_MOVED / moved * total / 10) * 10
        yield (
            f"optimization.steps={total}: at a learning rate of {config.optimization.learning_rate:g} so few steps "
            f"change little; some {enough} and more, or a higher rate, are needed to see anything"
        )
    epochs = total * config.optimization.accumulation / max(images.plan.batches, 1)
    if epochs > _MANY_EPOCHS:
        yield (
            f"{epochs:.0f} epochs: each image is seen that often, which mostly teaches the images themselves. Fewer "
            "optimization.steps or more images generalise better; validation.fraction=0.1 shows when it is enough"
        )


def _moved(config: TrainConfig, total: int) -> float | None:
    """How far the UNet's update can have come by the end, None where that doesn't follow from the rates.

    Adam moves each value by about the learning rate a step, and the second factor of a LoRA begins at 0: after all
    steps its values are about the sum of the rates, times the scale of the adapter.
    """
    adapter, optimization = config.adapter, config.optimization
    if optimization.optimizer not in _ADAM_LIKE or adapter.algorithm != "lora" or not adapter.rank:
        return None
    steps = range(0, total, -(-total // _STEPS_SAMPLED))  # of a run of a million steps not each need be looked at
    mean_factor = sum(factor(step, total, optimization) for step in steps) / len(steps)
    rates = total * mean_factor * optimization.learning_rate
    return rates * adapter.scale(adapter.rank)


def long_captions(config: TrainConfig, images: RunImages) -> dict[str, int]:
    """Images whose caption is over captions.max_tokens: file name and number of tokens."""
    tokenize = caption_numbers(config)
    counts = {
        record.path.name: max(
            count_numbers(tokenize, text, weights=record.captions.weights)
            for text in record.trained_captions() or [record.plain_caption()]
        )
        for record in images.trained
    }
    return {name: count for name, count in counts.items() if count > config.captions.max_tokens}


def cut_off(counts: dict[str, int]) -> str:
    """The first few of too long captions, as the end of a sentence; nothing for none."""
    if not counts:
        return ""
    names = [f"{name} ({count})" for name, count in list(counts.items())[:_NAMES_SHOWN]]
    return ", cut off: " + ", ".join(names) + (", ..." if len(counts) > _NAMES_SHOWN else "")
