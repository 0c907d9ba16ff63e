"""What an adapter file says about itself: kohya's ss_* keys, ModelSpec 1.0.1 and hashes, all as strings.

Other tools read these: A1111 and its forks (version filter, alias, tag list, hashes), sd-scripts' merge and resize,
model sites. The shapes of the JSON values are what A1111's metadata editor expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from sdlora.config.base_model import FamilyName, Prediction
from sdlora.models.families import FAMILIES


@dataclass(frozen=True)
class DatasetFolder:
    """One image folder as ss_dataset_dirs names it: never by its path."""

    name: str
    repeats: int
    num_images: int
    is_class: bool = False


@dataclass(frozen=True)
class BucketFacts:
    """How many images (repeats counted) are trained at one size, for ss_bucket_info."""

    width_px: int
    height_px: int
    num_images: int


@dataclass(frozen=True)
class TrainingFacts:
    """Everything about a run that its file tells. Only `name`, `family` and `prediction` are needed.

    None becomes "None", as kohya writes it. Times are seconds since the epoch. Never put a full path in here.
    """

    name: str
    family: FamilyName
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    trigger: str = ""
    author: str = ""
    description: str = ""
    license: str = ""
    comment: str | None = None
    session_id: int | None = None
    started: float | None = None
    finished: float | None = None
    base_model_name: str | None = None
    base_model_hash: str | None = None
    """sha256 of the base model's file, if it is one file."""
    vae_name: str | None = None
    base_adapters: tuple[tuple[str, float], ...] = ()
    """Names and weights of the adapters that were merged into the base model first."""
    lineage: tuple[Mapping[str, Any], ...] = ()
    """Changes of settings while it was trained, oldest first: step, and setting to [before, after]."""
    learning_rate: float | None = None
    unet_learning_rate: float | None = None
    text_encoder_learning_rate: float | None = None
    optimizer: str | None = None
    """Class and options, for example torch.optim.AdamW(weight_decay=0.01)."""
    schedule: str | None = None
    warmup_steps: int = 0
    steps: int = 0
    max_steps: int | None = None
    epoch: int = 0
    num_epochs: int = 0
    num_train_images: int = 0
    num_class_images: int = 0
    num_batches_per_epoch: int = 0
    batch_size: int = 1
    accumulation: int = 1
    gradient_checkpointing: bool = False
    max_gradient_norm: float | None = None
    max_weight_norm: float | None = None
    mixed_precision: str = "no"
    """no, bf16 or fp16."""
    dropout: float | None = None
    ema: float | None = None
    seed: int = 0
    clip_skip: int | None = None
    max_tokens: int = 75
    cache_latents: bool = True
    noise_offset: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float | None = None
    input_perturbation: float | None = None
    timestep_sampling: str | None = None
    """By sd-scripts' name, of a rectified flow."""
    timestep_shift: float | None = None
    min_snr_gamma: float | None = None
    debiased: bool = False
    loss: str = "l2"
    """l2, l1, huber: kohya's words."""
    huber_schedule: str | None = None
    huber_delta: float | None = None
    prior_weight: float | None = None
    min_timestep: int | None = None
    max_timestep: int | None = None
    resolution: tuple[int, int] = (512, 512)
    """Width and height in pixels."""
    buckets: bool = True
    bucket_min: int | None = None
    bucket_max: int | None = None
    bucket_counts: tuple[BucketFacts, ...] = ()
    mean_aspect_error: float = 0.0
    folders: tuple[DatasetFolder, ...] = ()
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Folder name to tag to count."""
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 0
    horizontal_flip: bool = False
    random_crop: bool = False
    colour_jitter: bool = False
    new_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens that were trained with it, and their number of vectors."""


@dataclass(frozen=True)
class NetworkFacts:
    """What the written weights are, told by the writer itself."""

    module: str
    """networks.lora, or lycoris.kohya for everything that kohya's own loader doesn't know."""
    rank: int
    alpha: float
    arguments: Mapping[str, str]


BASE_ADAPTERS = "sdlora.base_adapters"
"""Metadata entry (JSON) that names the adapters that an adapter was trained on top of."""
LINEAGE = "sdlora.lineage"
"""Metadata entry (JSON) that tells how settings changed while an adapter was trained."""
NEW_TOKENS = "sdlora.new_tokens"
"""Metadata entry (JSON) that names the tokens that were trained with an adapter and mean nothing without it."""
MODELSPEC_PREDICTIONS: dict[Prediction, str] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "flow": "flow",
    "edm_v": "edm_v",
}
"""ModelSpec knows the first two; the others are by the names that base models give themselves."""
_BY_MODELSPEC = {said: prediction for prediction, said in MODELSPEC_PREDICTIONS.items()}
# The words of A1111's own list of versions.
_SIDE_CAR_VERSIONS: dict[FamilyName, str] = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
# Sites tell versions apart, not families: of each that for which nearly all adapters are made.
_SITES_FAMILIES: dict[FamilyName, str] = {"sd1": "SD 1.5", "sd2": "SD 2.1", "sdxl": "SDXL 1.0"}
_PREFERRED_WEIGHT = 1.0
_LEFT_OUT_IF_UNKNOWN = {
    "ss_training_started_at", "ss_training_finished_at", "ss_network_args", "ss_bucket_info", "ss_timestep_sampling",
    "ss_discrete_flow_shift",
}  # fmt: skip
"""A1111 parses these: "None" would break its metadata dialog."""


def kohya_metadata(facts: TrainingFacts, network: NetworkFacts, *, private: bool) -> dict[str, str]:
    """The ss_* entries. private leaves out folder names, captions and tags."""
    values = {**_about_run(facts), **_about_network(facts, network), **_about_optimization(facts)}
    values |= _about_objective(facts) | _about_images(facts)
    if not private:
        values |= _about_folders(facts)
    return {key: str(value) for key, value in values.items() if value is not None or key not in _LEFT_OUT_IF_UNKNOWN}


def derived_metadata(facts: TrainingFacts, network: NetworkFacts) -> dict[str, str]:
    """The ss_* entries of an adapter that was not trained but made of others: only what is true of it."""
    values = {"ss_output_name": facts.name, **_about_network(facts, network)}
    return {key: str(value) for key, value in values.items() if value is not None}


def model_spec(
    facts: TrainingFacts, tensor_hash: str, kind: Literal["lora", "textual-inversion"] = "lora"
) -> dict[str, str]:
    """The modelspec.* entries (Stability AI's ModelSpec 1.0.1). tensor_hash: sha256 of the tensors' bytes."""
    family = FAMILIES[facts.family]
    date = None
    if facts.finished is not None:  # in UTC without zone and microseconds, the form that kohya writes
        finished = datetime.fromtimestamp(int(facts.finished), tz=timezone.utc)
        date = finished.replace(tzinfo=None).isoformat()
    spec: dict[str, object] = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{family.modelspec_architecture(facts.prediction)}/{kind}",
        "implementation": family.modelspec_implementation,
        "title": facts.name,
        "resolution": "{}x{}".format(*facts.resolution),
        "prediction_type": MODELSPEC_PREDICTIONS[facts.prediction],
        # ModelSpec wants hexadecimal numbers with 0x in front.
        "hash_sha256": f"0x{tensor_hash}",
        "date": date,
        "author": facts.author,
        "description": facts.description,
        "license": facts.license,
        "trigger_phrase": facts.trigger,
        "usage_hint": f"Put '{facts.trigger}' into the prompt." if facts.trigger else None,
        "encoder_layer": facts.clip_skip if facts.clip_skip and facts.clip_skip > 1 else None,
        "timestep_range": _timestep_range(facts),
    }
    return {f"modelspec.{key}": str(value) for key, value in spec.items() if value not in (None, "")}


def own_metadata(facts: TrainingFacts) -> dict[str, str]:
    """The sdlora.* entries: what no other tool has a name for."""
    entries = {}
    if facts.base_adapters:
        listed = [{"file": name, "weight": weight} for name, weight in facts.base_adapters]
        entries[BASE_ADAPTERS] = json.dumps(listed, ensure_ascii=False)
    if facts.lineage:
        entries[LINEAGE] = json.dumps([dict(version) for version in facts.lineage], ensure_ascii=False)
    if facts.new_tokens:
        entries[NEW_TOKENS] = json.dumps(dict(facts.new_tokens), ensure_ascii=False)
    return entries


def new_tokens_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The tokens that were trained with an adapter, as its metadata tells."""
    try:
        told = json.loads(metadata.get(NEW_TOKENS, "{}"))
    except ValueError:
        return ()
    return tuple(map(str, told)) if isinstance(told, dict) else ()


def side_car(facts: TrainingFacts) -> dict[str, object]:
    """The `<name>.json` that A1111, Forge and InvokeAI read beside the file, trigger words above all."""
    return {
        "description": facts.description,
        "sd version": _SIDE_CAR_VERSIONS[facts.family],
        "activation text": facts.trigger,
        "preferred weight": _PREFERRED_WEIGHT,
        "negative text": "",
        "notes": facts.comment or "",
    }


def site_side_car(
    facts: TrainingFacts,
    file_name: str,
    size_bytes: int,
    file_hash: str,
    model_hash: str,
    kind: Literal["LORA", "TextualInversion"] = "LORA",
) -> dict[str, object]:
    """The `<name>.civitai.info` that tools for model sites read and write: trigger words, base, hashes of the file.

    file_hash: sha256 of the file, AutoV2 in short. model_hash: sha256 of its tensors, AutoV3 in short.
    """
    hashes = {"SHA256": file_hash, "AutoV2": file_hash[:10], "AutoV3": model_hash[:12]}
    listed = {name: value.upper() for name, value in hashes.items() if value}
    return {
        "name": facts.name,
        "description": facts.description,
        "baseModel": _SITES_FAMILIES[facts.family],
        "trainedWords": [facts.trigger] if facts.trigger else [],
        "model": {"name": facts.name, "type": kind},
        "files": [{"name": file_name, "sizeKB": size_bytes / 1024, "type": "Model", "primary": True, "hashes": listed}],
        "images": [],
    }


def _about_run(facts: TrainingFacts) -> dict[str, Any]:
    return {
        "ss_session_id": facts.session_id,
        "ss_training_started_at": facts.started,
        "ss_training_finished_at": facts.finished,
        "ss_output_name": facts.name,
        "ss_training_comment": facts.comment,
        "ss_sd_model_name": facts.base_model_name,
        "ss_new_sd_model_hash": facts.base_model_hash,
        "ss_vae_name": facts.vae_name,
        "ss_seed": facts.seed,
        "ss_lowram": False,
    }


def _about_network(facts: TrainingFacts, network: NetworkFacts) -> dict[str, Any]:
    return {
        "ss_v2": facts.family == "sd2",
        "ss_base_model_version": FAMILIES[facts.family].base_model_version(facts.prediction),
        "ss_network_module": network.module,
        "ss_network_dim": network.rank,
        "ss_network_alpha": network.alpha,
        "ss_network_args": json.dumps(dict(network.arguments)) if network.arguments else None,
        "ss_network_dropout": facts.dropout or None,
    }


def _about_optimization(facts: TrainingFacts) -> dict[str, Any]:
    return {
        "ss_learning_rate": facts.learning_rate,
        "ss_unet_lr": facts.unet_learning_rate,
        "ss_text_encoder_lr": facts.text_encoder_learning_rate,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.schedule,
        "ss_lr_warmup_steps": facts.warmup_steps,
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.steps if facts.max_steps is None else facts.max_steps,
        "ss_epoch": facts.epoch,
        "ss_num_epochs": facts.num_epochs,
        "ss_gradient_accumulation_steps": facts.accumulation,
        "ss_gradient_checkpointing": facts.gradient_checkpointing,
        "ss_max_grad_norm": facts.max_gradient_norm,
        "ss_mixed_precision": facts.mixed_precision,
        "ss_full_fp16": False,
        "ss_full_bf16": False,
        "ss_ema_decay": facts.ema,
    }


def _about_objective(facts: TrainingFacts) -> dict[str, Any]:
    return {
        "ss_clip_skip": facts.clip_skip,
        "ss_max_token_length": facts.max_tokens,
        "ss_noise_offset": facts.noise_offset,
        "ss_multires_noise_iterations": facts.multires_noise_iterations,
        "ss_multires_noise_discount": facts.multires_noise_discount,
        "ss_ip_noise_gamma": facts.input_perturbation,
        "ss_adaptive_noise_scale": None,
        "ss_zero_terminal_snr": facts.zero_terminal_snr,
        "ss_timestep_sampling": facts.timestep_sampling,
        "ss_discrete_flow_shift": facts.timestep_shift,
        "ss_min_snr_gamma": facts.min_snr_gamma,
        "ss_debiased_estimation": facts.debiased,
        "ss_loss_type": facts.loss,
        "ss_huber_schedule": facts.huber_schedule,
        "ss_huber_c": facts.huber_delta,
        "ss_prior_loss_weight": facts.prior_weight,
        "ss_scale_weight_norms": facts.max_weight_norm,
    }


def _about_images(facts: TrainingFacts) -> dict[str, Any]:
    buckets = {
        str(index): {"resolution": [count.width_px, count.height_px], "count": count.num_images}
        for index, count in enumerate(facts.bucket_counts)
    }
    return {
        "ss_num_train_images": facts.num_train_images,
        "ss_num_reg_images": facts.num_class_images,
        "ss_num_batches_per_epoch": facts.num_batches_per_epoch,
        "ss_batch_size_per_device": facts.batch_size,
        "ss_total_batch_size": facts.batch_size * facts.accumulation,
        "ss_cache_latents": facts.cache_latents,
        # Becomes "(512, 512)", the text of a tuple, as kohya writes it.
        "ss_resolution": facts.resolution,
        "ss_enable_bucket": facts.buckets,
        "ss_min_bucket_reso": facts.bucket_min,
        "ss_max_bucket_reso": facts.bucket_max,
        "ss_bucket_info": json.dumps({"buckets": buckets, "mean_img_ar_error": facts.mean_aspect_error})
        if buckets
        else None,
        "ss_caption_dropout_rate": facts.caption_dropout,
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": facts.tag_dropout,
        "ss_shuffle_caption": facts.shuffle_tags,
        "ss_keep_tokens": facts.keep_tags,
        "ss_flip_aug": facts.horizontal_flip,
        "ss_color_aug": facts.colour_jitter,
        "ss_face_crop_aug_range": None,
        "ss_random_crop": facts.random_crop,
    }


def _about_folders(facts: TrainingFacts) -> dict[str, Any]:
    def listed(is_class: bool) -> str:
        chosen = [folder for folder in facts.folders if folder.is_class == is_class]
        return json.dumps(
            {folder.name: {"n_repeats": folder.repeats, "img_count": folder.num_images} for folder in chosen}
        )

    return {
        "ss_dataset_dirs": listed(False),
        "ss_reg_dataset_dirs": listed(True),
        "ss_tag_frequency": json.dumps(
            {name: dict(tags) for name, tags in facts.tag_frequency.items()}, ensure_ascii=False
        ),
    }


def _timestep_range(facts: TrainingFacts) -> str | None:
    if facts.min_timestep is None or facts.max_timestep is None or (facts.min_timestep, facts.max_timestep) == (0, 999):
        return None
    return f"{facts.min_timestep},{facts.max_timestep}"


def told_prediction(metadata: Mapping[str, str]) -> Prediction | None:
    """What the base predicts that a file was trained on, if it says so."""
    return _BY_MODELSPEC.get(metadata.get("modelspec.prediction_type", ""))


def prediction_note(name: str, metadata: Mapping[str, str], base: str, predicts: Prediction | None) -> str | None:
    """A sentence for an adapter file that is used with a base of another prediction than its own; None without need."""
    trained_on = told_prediction(metadata)
    if trained_on is None or predicts in (None, trained_on):
        return None
    return (
        f"{name} was trained on a model that predicts {trained_on}, {base} predicts {predicts}: its effect is another"
        " one there"
    )
