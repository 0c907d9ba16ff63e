"""Settings that were written and that nothing reads beside the others: told, as silence would pass for a yes."""

from __future__ import annotations

from collections.abc import Iterator

from sdlora.config.adapter import TOLD_BY_FILE
from sdlora.config.captioning import CaptioningConfig
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import GenerateConfig
from sdlora.config.section import Section
from sdlora.config.train import TrainConfig

Rule = tuple[str, bool, str]
"""A setting, whether something reads it, and what it would go with."""


def in_training(config: TrainConfig) -> Iterator[str]:
    """A sentence for each such setting of a run. Those left at their defaults were hardly meant, and are passed over.

    Where a setting only makes sense together with another one, the configuration is refused instead.
    """
    adapter, captions, images, objective = config.adapter, config.captions, config.images, config.objective
    optimization, previews, validation = config.optimization, config.previews, config.validation
    has_mask = any(mask not in (None, "none") for mask in (images.mask, *(each.mask for each in images.folders)))
    folders = images.folders
    shuffles = captions.shuffle_tags or any(each.shuffle_tags for each in folders)
    drops = captions.tag_dropout > 0 or any(each.tag_dropout for each in folders)
    has_previews = bool(previews.prompts or previews.from_captions or previews.file)
    is_validated = validation.folder is not None or validation.fraction > 0
    schedule = optimization.schedule
    with_floor = ("linear", "polynomial", "rex", "wsd", "cosine", "cosine_with_restarts")
    rules: list[Rule] = [
        ("base_model.revision", not config.base_model.model.startswith("builtin:"), "a model of the hub"),
        ("base_model.variant", not config.base_model.model.startswith("builtin:"), "a model of the hub or a folder"),
        ("images.bucket_min", images.buckets, "images.buckets=true"),
        ("images.bucket_max", images.buckets, "images.buckets=true"),
        ("images.bucket_step", images.buckets or not images.upscale, "images.buckets=true"),
        ("images.unmasked_weight", has_mask, "images.mask"),
        ("images.cache_folder", images.cache, "images.cache=true"),
        ("captions.keep_tags", shuffles or drops, "captions.shuffle_tags or tag_dropout"),
        ("captions.keep_separator", shuffles or drops, "captions.shuffle_tags or tag_dropout (it is taken out)"),
        ("captions.protected_tags", drops, "captions.tag_dropout"),
        ("adapter.lokr_factor", adapter.algorithm == "lokr", "adapter.algorithm=lokr"),
        ("adapter.text_encoder_layers", adapter.text_encoder, "adapter.text_encoder=true"),
        ("optimization.text_encoder_2_learning_rate", adapter.text_encoder, "adapter.text_encoder=true"),
        ("optimization.schedule_cycles", schedule == "cosine_with_restarts", "schedule=cosine_with_restarts"),
        ("optimization.schedule_power", schedule == "polynomial", "schedule=polynomial"),
        ("optimization.schedule_floor", schedule in with_floor, f"a schedule that falls ({', '.join(with_floor)})"),
        ("optimization.schedule_decay", schedule == "wsd", "schedule=wsd"),
        ("optimization.schedule_timescale", schedule == "inverse_sqrt", "schedule=inverse_sqrt"),
        ("objective.huber_delta", objective.loss in ("huber", "smooth_l1"), "loss=huber or smooth_l1"),
        ("objective.huber_schedule", objective.loss in ("huber", "smooth_l1"), "loss=huber or smooth_l1"),
        ("objective.min_snr_gamma", "min_snr" in objective.weighting, "weighting=min_snr or soft_min_snr"),
        ("objective.multires_noise_discount", objective.multires_noise_iterations > 0, "multires_noise_iterations"),
        ("objective.prior_weight", objective.prior_preservation != "none", "prior_preservation"),
        ("objective.prior_prompt", objective.prior_preservation == "base_prediction", "base_prediction"),
        ("validation.every", is_validated, "validation.folder or fraction"),
        ("validation.timesteps", is_validated, "validation.folder or fraction"),
        *(
            (f"previews.{name}", has_previews, "previews.prompts or from_captions")
            for name in ("adapters", "base_model", "every", "negative", "steps", "sampler", "seed")
        ),
        ("outputs.wandb_project", config.outputs.wandb, "outputs.wandb=true"),
    ]
    yield from _unread(config, rules)
    if isinstance(images.folder, tuple) and len(set(images.folder)) < len(images.folder):
        yield "images.folder: a folder named twice is read once; images.folders with repeats lets its images count more"
    if captions.dropout == 1:
        yield "captions.dropout=1 trains every image with an empty caption: captions and trigger have no effect"
    for number, source in enumerate(folders):
        # Emptied ones say nothing that class images would not do anyway.
        if source.is_class and (told := [name for name in ("trigger", "prefix", "suffix") if getattr(source, name)]):
            yield f"images.folders.{number}.{', '.join(told)}: no effect beside is_class, whose images go without"
    if previews.prompts and previews.from_captions:
        yield "previews.from_captions has no effect beside previews.prompts"
    if validation.folder is not None and validation.fraction:
        yield "validation.fraction has no effect beside validation.folder"
    if not captions.separator and (shuffles or drops):
        yield "captions.shuffle_tags and tag_dropout have no effect with an empty captions.separator: it parts no tags"
    if adapter.start_from is not None and (told := [name for name in TOLD_BY_FILE if name in adapter.model_fields_set]):
        yield f"adapter.{', '.join(told)}: no effect beside adapter.start_from, whose file tells what the adapter is"


def in_generating(config: GenerateConfig) -> Iterator[str]:
    """The same of a request for images."""
    start, second = config.start, config.second_pass
    rules: list[Rule] = [
        ("start.strength", start.image is not None, "start.image"),
        ("start.mask_blur_px", start.mask is not None, "start.mask"),
        *((f"second_pass.{name}", second.scale > 1, "second_pass.scale") for name in ("strength", "steps", "upscaler")),
        ("files.quality", config.files.format != "png", "files.format=jpeg or webp"),
    ]
    yield from _unread(config, rules)
    if config.negative and config.guidance <= 1:
        yield f"negative has no effect with guidance={config.guidance:g}, which leaves it out"


def in_evaluating(config: EvaluateConfig) -> Iterator[str]:
    """The same of an evaluation: settings of what is switched off."""
    switched = {
        "tied_words": config.tied_words.enabled,
        "characters": config.characters.enabled,
        "problem_images": config.problem_images.enabled,
    }
    for section, is_on in switched.items():
        names = [f"{section}.{name}" for name in type(getattr(config, section)).model_fields if name != "enabled"]
        yield from _unread(config, [(name, is_on, f"{section}.enabled=true") for name in names])


def in_captioning(config: CaptioningConfig) -> Iterator[str]:
    """The same of captions by a model, as far as it goes without knowing which kind the model is."""
    has_endpoint = config.endpoint is not None
    of_endpoint = ("prompt", "key_variable", "timeout_seconds")
    of_model = ("revision", "detail", "beams", "device", "escape_brackets")
    thresholds = ("threshold", "character_threshold", "rating_threshold")
    yield from _unread(config, [(name, has_endpoint, "endpoint") for name in of_endpoint])
    here = "a model here: the endpoint does it in its own way"
    yield from _unread(config, [(name, not has_endpoint, here) for name in (*of_model, *thresholds)])


def with_captioner(config: CaptioningConfig, kind: str | None) -> Iterator[str]:
    """The same once it is known what kind the model is: `tagger`, `florence2`, another one of sentences, or None."""
    if kind is None:  # a plug-in, which reads what it likes
        return
    of_taggers = ("threshold", "character_threshold", "rating_threshold", "escape_brackets")
    yield from _unread(config, [(name, kind == "tagger", "a tagger") for name in of_taggers])
    of_sentences = ("max_tokens", "beams")
    yield from _unread(config, [(name, kind != "tagger", "a model of sentences") for name in of_sentences])
    yield from _unread(config, [("detail", kind == "florence2", "Florence-2")])


def is_written(config: Section, name: str) -> bool:
    """Whether a setting, by its dotted name, was given and is not the default."""
    section, _, rest = name.partition(".")
    value = getattr(config, section)
    if rest:
        return is_written(value, rest)
    return section in config.model_fields_set and value != type(config).model_fields[section].get_default(
        call_default_factory=True
    )


def _unread(config: Section, rules: list[Rule]) -> Iterator[str]:
    for name, is_read, goes_with in rules:
        if not is_read and is_written(config, name):
            yield f"{name} has no effect without {goes_with}"
