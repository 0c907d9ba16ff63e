"""kohya_ss GUI settings, sd-scripts' dataset.toml, folders and metadata, in our terms.

Facts from the documentation of sd-scripts (train_network, dataset config) and from saved settings of kohya_ss.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.constants import LATENT_FACTOR
from sdlora.imports.translation import (
    OPTIMIZER,
    PRECISION,
    SCHEDULE,
    Convert,
    Translation,
    count,
    file_name,
    number,
    one_of,
    same,
    some,
    switch,
    text_file_ending,
)


def _resolution(value: Any) -> int | None:
    """An edge in pixels from 512, "512" or "512,768": of a rectangle, that of the square with its area."""
    if value in ("", None):
        return None
    edges = [int(edge) for edge in (value if isinstance(value, list) else str(value).split(","))]
    return round(math.sqrt(edges[0] * edges[-1]) / LATENT_FACTOR) * LATENT_FACTOR


def _not(value: Any) -> bool | None:
    return False if switch(value) else None


def _off(value: Any) -> bool | None:
    """False for a switch that is off; ours are on by default."""
    return None if switch(value) else False


def _percent(value: Any) -> float | None:
    share = some(value)
    return share / 100 if share else None


def _token_length(value: Any) -> int | None:
    length = count(value)
    if length not in (None, 75, 150, 225):
        raise ValueError("75, 150 or 225 is possible")
    return length


def _timestep(value: Any) -> int | None:
    step = number(value)
    return None if step is None else min(int(step), 999)


_SUBSET: dict[str, tuple[str, Convert]] = {
    "shuffle_caption": ("captions.shuffle_tags", switch),
    "keep_tokens": ("captions.keep_tags", count),
    "caption_dropout_rate": ("captions.dropout", some),
    "caption_tag_dropout_rate": ("captions.tag_dropout", some),
    "caption_prefix": ("captions.prefix", same),
    "caption_suffix": ("captions.suffix", same),
    "caption_separator": ("captions.separator", same),
    "enable_wildcard": ("captions.wildcards", switch),
    "caption_extension": ("", text_file_ending),
    "flip_aug": ("images.horizontal_flip", switch),
    "random_crop": ("images.random_crop", switch),
    "enable_bucket": ("images.buckets", _off),
    "min_bucket_reso": ("images.bucket_min", count),
    "max_bucket_reso": ("images.bucket_max", count),
    "bucket_reso_steps": ("images.bucket_step", count),
    "bucket_no_upscale": ("images.upscale", _not),
    "alpha_mask": ("images.mask", lambda value: "alpha" if switch(value) else None),
}

_GUI: dict[str, tuple[str, Convert]] = {
    **_SUBSET,
    "output_name": ("name", file_name),
    "seed": ("seed", count),
    "pretrained_model_name_or_path": ("base_model.model", same),
    "vae": ("base_model.vae", same),
    "clip_skip": ("base_model.clip_skip", count),
    "train_data_dir": ("images.folder", same),
    "reg_data_dir": ("images.class_folder", same),
    "max_resolution": ("images.resolution", _resolution),
    "max_token_length": ("captions.max_tokens", _token_length),
    "network_dim": ("adapter.rank", count),
    "network_alpha": ("adapter.alpha", some),
    "conv_dim": ("adapter.conv_rank", count),
    "conv_alpha": ("adapter.conv_alpha", some),
    "network_dropout": ("adapter.dropout", some),
    "dora_wd": ("adapter.dora", switch),
    "factor": ("adapter.lokr_factor", lambda value: int(value) if value not in ("", None) else None),
    "network_weights": ("adapter.start_from", same),
    "lora_network_weights": ("adapter.start_from", same),
    "max_train_steps": ("optimization.steps", count),
    "epoch": ("optimization.epochs", count),
    "max_train_epochs": ("optimization.epochs", count),
    "train_batch_size": ("optimization.batch_size", count),
    "gradient_accumulation_steps": ("optimization.accumulation", count),
    "gradient_checkpointing": ("optimization.gradient_checkpointing", switch),
    "mixed_precision": ("optimization.precision", PRECISION),
    "max_grad_norm": ("optimization.max_gradient_norm", number),
    "optimizer": ("optimization.optimizer", OPTIMIZER),
    "lr_scheduler": ("optimization.schedule", SCHEDULE),
    "lr_warmup": ("optimization.warmup", _percent),
    "lr_warmup_steps": ("optimization.warmup", some),
    "lr_scheduler_num_cycles": ("optimization.schedule_cycles", count),
    "lr_scheduler_power": ("optimization.schedule_power", some),
    "noise_offset": ("objective.noise_offset", some),
    "multires_noise_iterations": ("objective.multires_noise_iterations", count),
    "multires_noise_discount": ("objective.multires_noise_discount", some),
    "ip_noise_gamma": ("objective.input_perturbation", some),
    "loss_type": ("objective.loss", one_of(l2="mse", l1="l1", huber="huber")),
    "huber_c": ("objective.huber_delta", some),
    "huber_schedule": ("objective.huber_schedule", one_of(snr="snr", constant="constant", exponential="exponential")),
    "min_timestep": ("objective.min_timestep", _timestep),
    "max_timestep": ("objective.max_timestep", _timestep),
    "prior_loss_weight": ("objective.prior_weight", some),
    "sample_every_n_steps": ("previews.every", count),
    "output_dir": ("outputs.folder", same),
    "save_every_n_steps": ("outputs.checkpoint_every", count),
    "save_precision": ("outputs.precision", PRECISION),
    "training_comment": ("outputs.description", same),
}

_WITHOUT_EFFECT = {
    "cache_latents", "cache_latents_to_disk", "sdxl_cache_text_encoder_outputs", "xformers", "mem_eff_attn", "sdpa",
    "num_cpu_threads_per_process", "max_data_loader_n_workers", "persistent_data_loader_workers", "vae_batch_size",
    "save_model_as", "sdxl_no_half_vae", "no_half_vae", "use_wandb", "logging_dir", "num_machines", "num_processes",
    "model_list", "train_on_input", "unit", "noise_offset_type", "caption_dropout_every_n_epochs", "sample_sampler",
    "main_process_port", "dynamo_backend", "log_with", "extra_accelerate_launch_args",
}  # fmt: skip
"""Settings about speed, machine or window: the adapter is the same without them."""

_LORA_TYPES = {
    "standard": ("lora", "all"),
    "kohya locon": ("lora", "all+conv"),
    "lycoris/locon": ("lora", "all+conv"),
    "lycoris/loha": ("loha", "all+conv"),
    "lycoris/lokr": ("lokr", "all+conv"),
}


def from_gui(settings: Mapping[str, Any]) -> Translation:
    """The settings that kohya_ss saves as JSON."""
    result = Translation()
    known = result.take(settings, _GUI) | _WITHOUT_EFFECT
    known |= _families(settings, result) | _adapter_kind(settings, result) | _rates(settings, result)
    known |= _weighting(settings, result) | _optimizer_options(settings, result) | _prompts(settings, result)
    result.lose_rest(settings, known)
    return result


def _families(settings: Mapping[str, Any], result: Translation) -> set[str]:
    families = {"sdxl": "sdxl", "v2": "sd2"}
    result.put("base_model.family", next((ours for name, ours in families.items() if switch(settings.get(name))), None))
    if switch(settings.get("v_parameterization")):
        result.put("base_model.prediction", "v_prediction")
    return {*families, "v_parameterization"}


def _adapter_kind(settings: Mapping[str, Any], result: Translation) -> set[str]:
    kind = str(settings.get("LoRA_type", "Standard"))
    if kind.lower() not in _LORA_TYPES:
        result.lose("LoRA_type", kind, "no counterpart, taken as Standard")
    algorithm, layers = _LORA_TYPES.get(kind.lower(), _LORA_TYPES["standard"])
    if layers == "all+conv" and settings.get("conv_dim") in (0, "0"):
        layers = "all"
    result.put("adapter.algorithm", algorithm)
    result.put("adapter.layers", layers)
    return {"LoRA_type"}


def _rates(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """unet_lr and text_encoder_lr, which are learning_rate when empty; a text encoder at 0 isn't trained."""
    everywhere = some(settings.get("learning_rate"))
    unet = some(settings.get("unet_lr")) or everywhere
    text_encoder = number(settings.get("text_encoder_lr"))
    text_encoder = everywhere if text_encoder is None else text_encoder
    result.put("optimization.learning_rate", unet)
    if text_encoder and not switch(settings.get("network_train_unet_only")):
        result.put("adapter.text_encoder", True)
        result.put("optimization.text_encoder_learning_rate", text_encoder)
    return {"learning_rate", "unet_lr", "text_encoder_lr", "network_train_unet_only"}


def _weighting(settings: Mapping[str, Any], result: Translation) -> set[str]:
    gamma = some(settings.get("min_snr_gamma"))
    if switch(settings.get("debiased_estimation_loss")):
        result.put("objective.weighting", "debiased")
    elif gamma:
        result.put("objective.weighting", "min_snr")
        result.put("objective.min_snr_gamma", gamma)
    return {"min_snr_gamma", "debiased_estimation_loss"}


def _optimizer_options(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """`weight_decay=0.1 betas=0.9,0.99` and the like."""
    options: dict[str, Any] = {}
    for part in re.findall(r"(\w+)=(\S+)", str(settings.get("optimizer_args") or "")):
        try:
            value = ast.literal_eval(part[1].strip("\"'"))
        except (ValueError, SyntaxError):
            result.lose("optimizer_args", "=".join(part), "not understood")
            continue
        options[part[0]] = list(value) if isinstance(value, tuple) else value
    result.put("optimization.weight_decay", options.pop("weight_decay", None))
    result.put("optimization.optimizer_options", options or None)
    return {"optimizer_args"}


def _prompts(settings: Mapping[str, Any], result: Translation) -> set[str]:
    lines = [line.strip() for line in str(settings.get("sample_prompts") or "").splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    for line in prompts:
        if " --" in line:
            result.lose("sample_prompts", line[line.index(" --") + 1 :], "set it in the section previews")
    result.put("previews.prompts", [line.split(" --")[0].strip() for line in prompts] or None)
    return {"sample_prompts"}


def from_dataset_config(settings: Mapping[str, Any]) -> Translation:
    """sd-scripts' dataset.toml: [general], [[datasets]] and their [[datasets.subsets]], the nearest one winning."""
    result = Translation()
    general = dict(settings.get("general", {}))
    subsets = [
        {**general, **{name: value for name, value in dataset.items() if name != "subsets"}, **subset}
        for dataset in settings.get("datasets", [])
        for subset in dataset.get("subsets", [])
    ]
    if not subsets:
        raise ValueError("it has no [[datasets.subsets]]")
    trained = [subset for subset in subsets if not switch(subset.get("is_reg"))] or subsets
    first = trained[0]
    known = result.take(first, _SUBSET)
    known |= result.take(
        first,
        {
            "resolution": ("images.resolution", _resolution),
            "batch_size": ("optimization.batch_size", count),
            "num_repeats": ("images.repeats", count),
            "class_tokens": ("captions.default", same),
        },
    )
    folders = [str(subset["image_dir"]) for subset in trained if subset.get("image_dir")]
    result.put("images.folder", folders[0] if len(folders) == 1 else folders or None)
    _class_folder(subsets, result)
    known |= {"image_dir", "is_reg"}
    result.lose_rest(first, known)
    for subset in trained[1:]:
        for name in subset.keys() - {"image_dir"}:
            if subset[name] != first.get(name):
                result.lose(f"{subset.get('image_dir')}: {name}", subset[name], _difference(name, subset))
    return result


def _difference(name: str, subset: Mapping[str, Any]) -> str:
    if name == "num_repeats":
        folder = Path(str(subset.get("image_dir", ""))).name
        return f"folders share the settings of the first; rename this one to {subset[name]}_{folder}"
    return "folders share the settings of the first"


def _class_folder(subsets: list[dict[str, Any]], result: Translation) -> None:
    folders = [str(subset["image_dir"]) for subset in subsets if switch(subset.get("is_reg")) and "image_dir" in subset]
    result.put("images.class_folder", folders[0] if folders else None)
    for folder in folders[1:]:
        result.lose("image_dir", folder, "there is one folder of class images")


def from_metadata(entries: Mapping[str, Any]) -> Translation:
    """sd-scripts' metadata JSON: image to {caption, tags}; both are joined, as in training there."""
    result = Translation()
    for image, entry in entries.items():
        parts = [str(entry[key]).strip() for key in ("caption", "tags") if entry.get(key)]
        result.captions[image] = ", ".join(part for part in parts if part)
        result.lose_rest(entry, {"caption", "tags", "train_resolution"}, f"{image}: ")
    return result
