"""What the adapter file tells about its run, gathered from settings and data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora.adapters.files.metadata import BucketFacts, DatasetFolder, TrainingFacts
from sdlora.config.train import TrainConfig
from sdlora.data.cache import default_cache_folder
from sdlora.data.images import ImageRecord
from sdlora.data.planning import DataPlan, tag_counts, triggers
from sdlora.models.bundle import Bundle
from sdlora.models.identity import file_hash
from sdlora.models.source import locate
from sdlora.runs.changes import Version
from sdlora.training.optimization.schedules import warmup_steps

_KOHYA_LOSS = {"mse": "l2", "l1": "l1", "huber": "huber", "smooth_l1": "smooth_l1"}
_KOHYA_SAMPLING = {"uniform": "uniform", "logit_normal": "sigmoid", "cubic": "cubic"}
_NOT_TOLD = ("images.folder", "images.class_folder", "images.cache", "validation.folder", "captions.", "previews.",
             "outputs.", "base_model.")  # fmt: skip
"""Settings whose values are paths, or words that a private file keeps to itself."""
_KOHYA_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def training_facts(
    config: TrainConfig,
    bundle: Bundle,
    records: Sequence[ImageRecord],
    plan: DataPlan,
    *,
    total_steps: int,
    step: int,
    epoch: int,
    started: float,
    versions: Sequence[Version] = (),
    new_tokens: Mapping[str, int] | None = None,
) -> TrainingFacts:
    """Everything the metadata can say after `step` steps.

    started: seconds since the epoch. versions: the changes of the run's settings so far. new_tokens: those trained,
    with their numbers of vectors.
    """
    optimization, objective, images, captions = (
        config.optimization,
        config.objective,
        config.images,
        config.captions,
    )
    is_flow = bundle.schedule.prediction == "flow"
    trains_text = config.adapter.text_encoder
    edge = images.resolutions[0]
    options = {"weight_decay": optimization.weight_decay, **optimization.optimizer_options}
    epochs = -(-total_steps * optimization.accumulation // max(plan.batches, 1))
    counted = Counter((record.path.parent.name, record.repeats, record.is_class) for record in records)
    return TrainingFacts(
        name=config.name,
        family=bundle.family.name,
        prediction=bundle.schedule.prediction,
        zero_terminal_snr=bundle.schedule.zero_terminal_snr,
        trigger=", ".join(triggers(records)),
        author=config.outputs.author,
        description=config.outputs.description,
        session_id=int(started),
        started=started,
        finished=time.time(),
        # Names only: a path would tell the user's folders to everyone who gets the file.
        base_model_name=Path(config.base_model.model).name,
        base_model_hash=_file_hash(config.base_model.model),
        vae_name=Path(config.base_model.vae).name if config.base_model.vae else None,
        lineage=tuple(_told(version) for version in versions),
        base_adapters=tuple((Path(one.file).name, one.weight) for one in config.base_model.adapters),
        learning_rate=optimization.learning_rate,
        unet_learning_rate=optimization.learning_rate if config.adapter.unet else None,
        text_encoder_learning_rate=optimization.learning_rates["text_encoder"] if trains_text else None,
        optimizer=f"{optimization.optimizer}({', '.join(f'{name}={value}' for name, value in options.items())})",
        schedule=optimization.schedule,
        warmup_steps=warmup_steps(total_steps, optimization),
        steps=step,
        max_steps=total_steps,
        epoch=epoch,
        num_epochs=epochs,
        num_train_images=sum(record.repeats for record in records if not record.is_class),
        num_class_images=sum(record.repeats for record in records if record.is_class),
        num_batches_per_epoch=plan.batches,
        batch_size=optimization.batch_size,
        accumulation=optimization.accumulation,
        gradient_checkpointing=optimization.gradient_checkpointing,
        max_gradient_norm=optimization.max_gradient_norm,
        max_weight_norm=optimization.max_weight_norm or None,
        mixed_precision=_KOHYA_PRECISION[optimization.precision],
        dropout=config.adapter.dropout or None,
        ema=optimization.ema or None,
        seed=config.seed,
        clip_skip=config.base_model.clip_skip,
        max_tokens=captions.max_tokens,
        cache_latents=not images.is_live,
        noise_offset=objective.noise_offset or None,
        multires_noise_iterations=objective.multires_noise_iterations or None,
        multires_noise_discount=objective.multires_noise_discount if objective.multires_noise_iterations else None,
        input_perturbation=objective.input_perturbation or None,
        timestep_sampling=_KOHYA_SAMPLING[objective.timestep_distribution] if is_flow else None,
        timestep_shift=objective.timestep_shift if is_flow else None,
        min_snr_gamma=objective.min_snr_gamma if objective.weighting == "min_snr" else None,
        debiased=objective.weighting == "debiased",
        loss=_KOHYA_LOSS[objective.loss],
        huber_schedule=objective.huber_schedule if objective.loss in ("huber", "smooth_l1") else None,
        huber_delta=objective.huber_delta if objective.loss in ("huber", "smooth_l1") else None,
        prior_weight=objective.prior_weight if objective.prior_preservation != "none" else None,
        min_timestep=objective.min_timestep,
        max_timestep=objective.max_timestep,
        resolution=(edge, edge),
        buckets=images.buckets,
        # As `data.buckets` settles them where they are left open.
        bucket_min=images.bucket_min or edge // 2 if images.buckets else None,
        bucket_max=images.bucket_max or edge * 2 if images.buckets else None,
        bucket_counts=tuple(
            BucketFacts(item.bucket.width_px, item.bucket.height_px, item.samples) for item in plan.buckets
        ),
        mean_aspect_error=plan.mean_aspect_error,
        folders=tuple(
            DatasetFolder(name, repeats, count, is_class) for (name, repeats, is_class), count in counted.items()
        ),
        tag_frequency=tag_counts(records),
        caption_dropout=captions.dropout,
        tag_dropout=captions.tag_dropout,
        shuffle_tags=captions.shuffle_tags,
        keep_tags=captions.keep_tags,
        horizontal_flip=images.horizontal_flip,
        random_crop=images.random_crop,
        colour_jitter=bool(images.colour_jitter or images.hue_jitter),
        new_tokens=new_tokens or {},
    )


def _told(version: Version) -> dict[str, Any]:
    """One change of a run's settings as the file tells it; of paths and texts only that they changed."""
    changes = {
        one.name: "changed" if one.name.startswith(_NOT_TOLD) else [one.before, one.after] for one in version.changes
    }
    if version.images:
        changes["images"] = "changed"
    return {"step": version.step, "changes": changes}


def _file_hash(model: str) -> str | None:
    """sha256 of a base model that is one file, None for folders and hub names."""
    source = locate(model)
    if source.kind != "file" or source.path is None:
        return None
    return file_hash(source.path, default_cache_folder())
