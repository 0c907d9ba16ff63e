"""kohya_ss GUI settings in our terms.

Facts from the documentation of sd-scripts (train_network, dataset config) and from saved settings of kohya_ss.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from sdlora.imports.block_weights import block_weights
from sdlora.imports.kohya_adapter import adapter_kind, ranks
from sdlora.imports.kohya_schedule import optimizer_options, rates, scheduler, steps
from sdlora.imports.optimizers import optimizer
from sdlora.imports.previews import prompt_line, sampler
from sdlora.imports.sd_scripts_data import SUBSET, augmentation, sizes
from sdlora.imports.translation import (
    OTHER_MODELS,
    PRECISION,
    SCHEDULE,
    Convert,
    Translation,
    count,
    epochs,
    legible,
    number,
    one_of,
    same,
    some,
    switch,
)


def _token_length(value: Any) -> int | None:
    length = count(value)
    if length not in (None, 75, 150, 225):
        raise ValueError("75, 150 or 225 is possible")
    return length


def _last_timestep(value: Any) -> int | None:
    """The last one trained; there it is the first that is not."""
    end = count(value)
    return None if end is None else min(end, 1000) - 1


def _seed(value: Any) -> int | None:
    seed = count(value)
    if seed is not None and not 0 < seed < 2**31:
        raise ValueError("seeds go from 0 to 2147483647")
    return seed


def _decay(value: Any) -> float | None:
    share = some(value)
    if share and share >= 1:
        raise ValueError("a share of all steps is possible: set optimization.schedule_decay")
    return share


SETTINGS: dict[str, tuple[str, Convert]] = {
    **SUBSET,
    "output_name": ("name", same),
    "seed": ("seed", _seed),
    "pretrained_model_name_or_path": ("base_model.model", same),
    "vae": ("base_model.vae", same),
    "clip_skip": ("base_model.clip_skip", count),
    "zero_terminal_snr": ("base_model.zero_terminal_snr", switch),
    "train_data_dir": ("images.folder", same),
    "reg_data_dir": ("images.class_folder", same),
    "max_token_length": ("captions.max_tokens", _token_length),
    "weighted_captions": ("captions.weights", switch),
    "network_dropout": ("adapter.dropout", some),
    "dora_wd": ("adapter.dora", switch),
    "factor": ("adapter.lokr_factor", count),
    "decompose_both": ("adapter.lokr_decompose_both", switch),
    "use_tucker": ("adapter.tucker", switch),
    "use_cp": ("adapter.tucker", switch),
    "network_weights": ("adapter.start_from", same),
    "lora_network_weights": ("adapter.start_from", same),
    "train_batch_size": ("optimization.batch_size", count),
    "gradient_accumulation_steps": ("optimization.accumulation", count),
    "gradient_checkpointing": ("optimization.gradient_checkpointing", switch),
    "mixed_precision": ("optimization.precision", PRECISION),
    "max_grad_norm": ("optimization.max_gradient_norm", number),
    "scale_weight_norms": ("optimization.max_weight_norm", some),
    "optimizer": ("optimization.optimizer", optimizer),
    "lr_scheduler": ("optimization.schedule", SCHEDULE),
    "lr_scheduler_num_cycles": ("optimization.schedule_cycles", count),
    "lr_scheduler_power": ("optimization.schedule_power", some),
    "lr_scheduler_min_lr_ratio": ("optimization.schedule_floor", some),
    "lr_scheduler_timescale": ("optimization.schedule_timescale", some),
    "lr_decay_steps": ("optimization.schedule_decay", _decay),
    "ip_noise_gamma": ("objective.input_perturbation", some),
    "loss_type": ("objective.loss", one_of(l2="mse", l1="l1", huber="huber", smooth_l1="smooth_l1")),
    "huber_c": ("objective.huber_delta", some),
    "huber_schedule": ("objective.huber_schedule", one_of(snr="snr", constant="constant", exponential="exponential")),
    "scale_v_pred_loss_like_noise_pred": ("objective.v_loss_like_epsilon", switch),
    "min_timestep": ("objective.min_timestep", count),
    "max_timestep": ("objective.max_timestep", _last_timestep),
    "prior_loss_weight": ("objective.prior_weight", some),
    "sample_sampler": ("previews.sampler", sampler),
    "sample_every_n_steps": ("previews.every", count),
    "sample_every_n_epochs": ("previews.every", epochs),
    "output_dir": ("outputs.folder", same),
    "save_every_n_steps": ("outputs.checkpoint_every", count),
    "save_every_n_epochs": ("outputs.checkpoint_every", epochs),
    "save_last_n_epochs": ("outputs.keep_checkpoints", count),
    "save_precision": ("outputs.precision", PRECISION),
    "metadata_author": ("outputs.author", same),
    "training_comment": ("outputs.description", same),
    "metadata_description": ("outputs.description", same),
}

WITHOUT_EFFECT = {
    "cache_latents", "cache_latents_to_disk", "sdxl_cache_text_encoder_outputs", "cache_text_encoder_outputs",
    "cache_text_encoder_outputs_to_disk", "xformers", "mem_eff_attn", "sdpa", "num_cpu_threads_per_process",
    "max_data_loader_n_workers", "persistent_data_loader_workers", "vae_batch_size", "save_model_as",
    "sdxl_no_half_vae", "no_half_vae", "wandb_api_key", "wandb_run_name", "logging_dir", "log_config",
    "log_prefix", "log_tracker_config", "num_machines", "num_processes", "gpu_ids",
    "multi_gpu", "model_list", "train_on_input", "unit", "main_process_port", "dynamo_backend", "dynamo_mode",
    "dynamo_use_dynamic", "dynamo_use_fullgraph", "extra_accelerate_launch_args", "highvram", "lowvram", "lowram",
    "no_metadata", "save_as_bool", "save_state", "save_state_on_train_end", "save_state_to_huggingface",
    "save_last_n_steps_state", "save_last_n_epochs_state", "async_upload", "huggingface_path_in_repo",
    "huggingface_repo_id", "huggingface_repo_type", "huggingface_repo_visibility", "huggingface_token",
    "metadata_title", "metadata_tags", "metadata_license", "bypass_mode",
    "guidance_scale", "sd3_checkbox", "flux1_checkbox",
    "split_mode", "tokenizer_cache_dir", "max_train_steps_or_epochs", "conditioning_data_dir",
    "skip_cache_check", "config_file", "output_config", "torch_compile", "ddp_timeout",
    "ddp_gradient_as_bucket_view", "ddp_static_graph", "console_log_level", "console_log_file",
    "console_log_simple", "disable_mmap_load_safetensors", "debug_dataset", "deepspeed",
    "cpu_offload_checkpointing", "blocks_to_swap", "fused_backward_pass", "offload_optimizer_device",
    "training_preset", "fused_optimizer_groups", "blockwise_fused_optimizers", "flux_fused_backward_pass",
    "mem_eff_save", "ae", "clip_l", "clip_g", "t5xxl", "discrete_flow_shift", "model_prediction_type",
    "timestep_sampling", "split_qkv", "train_t5xxl", "t5xxl_lr", "t5xxl_max_token_length", "t5xxl_device",
    "t5xxl_dtype", "enable_all_linear", "apply_t5_attn_mask", "single_blocks_to_swap", "double_blocks_to_swap",
    "img_attn_dim", "img_mlp_dim", "img_mod_dim", "txt_attn_dim", "txt_mlp_dim", "txt_mod_dim", "single_dim",
    "single_mod_dim", "in_dims", "train_blocks", "train_double_block_indices", "train_single_block_indices",
    "train_lora_ggpo", "ggpo_sigma", "ggpo_beta", "clip_g_dropout_rate", "logit_mean", "logit_std", "mode_scale",
    "pos_emb_random_crop_rate", "save_clip", "save_t5xxl", "weighting_scheme",
    *(f"flux1_{name}" for name in ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "clip_l",
                                   "t5xxl")),
    *(f"sd3_{name}" for name in ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "clip_l", "t5xxl",
                                 "fused_backward_pass", "clip_l_dropout_rate", "disable_mmap_load_safetensors",
                                 "enable_scaled_pos_embed", "t5_dropout_rate", "text_encoder_batch_size")),
}  # fmt: skip
"""Settings about speed, machine, window or upload, or of models that aren't trained here: the adapter is the same
without them."""

_REASONS = {
    "resume": "states of other trainers are not read; adapter.start_from takes the LoRA that was saved with it",
    "resume_from_huggingface": "states of other trainers are not read; adapter.start_from takes a LoRA file",
    "dim_from_weights": "set adapter.rank to that of the file that adapter.start_from names",
    "fp8_base": "base_model.quantization holds the base in int8 or nf4",
    "fp8_base_unet": "base_model.quantization holds the base in int8 or nf4",
}

_WINDOW_NAMES = {
    "optimizer_type": "optimizer",
    "resolution": "max_resolution",
    "debiased_estimation": "debiased_estimation_loss",
    "preset": "LyCORIS_preset",
}
"""Options of sd-scripts that kohya_ss calls otherwise."""
_MOST_LEVELS = 10


_NUMBERS = (
    "network_dim", "network_alpha", "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "learning_rate",
    "unet_lr", "stop_text_encoder_training", "stop_text_encoder_training_pct", "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "max_train_epochs", "epoch", "max_train_steps",
    "lr_warmup", "lr_warmup_steps", "save_every_n_steps", "save_every_n_epochs", "sample_every_n_steps",
    "sample_every_n_epochs", "noise_offset", "multires_noise_iterations", "multires_noise_discount",
    "bucket_reso_steps", "min_snr_gamma",
)  # fmt: skip
_WHOLE = ("network_dim", "conv_dim", "epoch", "max_train_epochs", "max_train_steps", "multires_noise_iterations")
_SWITCHES = (
    "sdxl", "v2", "v_parameterization", "sd3_checkbox", "flux1_checkbox", "network_train_unet_only",
    "network_train_text_encoder_only", "noise_offset_random_strength", "ip_noise_gamma_random_strength", "use_wandb",
    "use_8bit_adam", "use_lion_optimizer", "masked_loss", "alpha_mask", "color_aug", "full_bf16", "full_fp16",
    "debiased_estimation_loss", "full_matrix",
)  # fmt: skip
"""What is read outside `SETTINGS`, where each conversion answers for itself."""


def from_gui(settings: Mapping[str, Any]) -> Translation:
    """The settings that kohya_ss saves as JSON. Raises ValueError for models that are no Stable Diffusion."""
    result = Translation()
    settings = legible({**settings, **_more_parameters(settings, result)}, result, _NUMBERS, _SWITCHES)
    settings = _with_old_switches(settings)
    result.note_fractions(settings, _WHOLE)
    known = result.take(settings, SETTINGS) | result.pass_over(settings, WITHOUT_EFFECT) | {"additional_parameters"}
    known |= _families(settings, result) | adapter_kind(settings, result) | ranks(settings, result)
    known |= rates(settings, result) | steps(settings, result) | _noise(settings, result)
    known |= _weighting(settings, result) | optimizer_options(settings, result) | _prompts(settings, result)
    known |= _images(settings, result) | _base_weights(settings, result)
    if same(settings.get("metadata_description")) and same(settings.get("training_comment")):
        result.lose("training_comment", settings["training_comment"], "metadata_description is the description")
    known |= _logging(settings, result) | scheduler(settings, result) | block_weights(settings, result)
    result.lose_rest(settings, known, reasons=_REASONS)
    return result


def _more_parameters(settings: Mapping[str, Any], result: Translation) -> dict[str, Any]:
    """The command-line options that kohya_ss passes on, as settings by its names."""
    text = re.sub(r"\\(?![\"'])", "/", str(settings.get("additional_parameters") or ""))  # paths of Windows
    try:
        words = shlex.split(text)
    except ValueError as error:
        result.lose("additional_parameters", settings["additional_parameters"], f"not understood ({error})")
        return {}
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = [value] if equals else []
        elif found:
            found[next(reversed(found))].append(word)
        else:
            result.lose("additional_parameters", word, "not understood, it belongs to no option")
    for argument in found.pop("network_args", ()):
        name, _, value = argument.partition("=")
        found[name] = [value]
    return {
        _WINDOW_NAMES.get(name, name): values[0] if len(values) == 1 else " ".join(values) or True
        for name, values in found.items()
    }


def _with_old_switches(settings: dict[str, Any]) -> dict[str, Any]:
    """Optimizers were switches once; they count where no other optimizer is named."""
    for name, kind in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if switch(settings.pop(name, None)) and settings.get("optimizer") in (None, "", "AdamW"):
            settings["optimizer"] = kind
    return settings


def _families(settings: Mapping[str, Any], result: Translation) -> set[str]:
    families = {"sdxl": "sdxl", "v2": "sd2"}
    other = [
        name
        for name in OTHER_MODELS
        if any(switch(settings.get(f"{name}{end}")) for end in ("1_checkbox", "_checkbox"))
    ]
    if other:
        raise ValueError(f"it trains {other[0].upper()}; only Stable Diffusion 1.x, 2.x and XL can be trained here")
    result.put("base_model.family", next((ours for name, ours in families.items() if switch(settings.get(name))), None))
    if switch(settings.get("v_parameterization")):
        result.put("base_model.prediction", "v_prediction")
    if result.values.get("base_model.family") == "sdxl" and result.values.get("base_model.clip_skip", 1) > 1:
        result.drop("base_model.clip_skip", "SDXL has its own fixed layer")
    return {*families, "v_parameterization"}


def _noise(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """noise_offset_type chooses one of the two noises; without it both hold."""
    kind = str(settings.get("noise_offset_type") or "").lower()
    if kind not in ("", "original", "multires"):
        result.lose("noise_offset_type", settings["noise_offset_type"], "neither Original nor Multires; both count")
    offset, levels = some(settings.get("noise_offset")), count(settings.get("multires_noise_iterations"))
    if kind != "multires":
        result.put("objective.noise_offset", offset)
        result.put("objective.noise_offset_random", offset and switch(settings.get("noise_offset_random_strength")))
    if kind != "original" and levels:
        if levels > _MOST_LEVELS:
            result.change("multires_noise_iterations", levels, f"no picture has more than {_MOST_LEVELS} levels")
            levels = _MOST_LEVELS
        result.put("objective.multires_noise_iterations", levels)
        result.put("objective.multires_noise_discount", some(settings.get("multires_noise_discount")))
    if result.values.get("objective.input_perturbation"):
        result.put("objective.input_perturbation_random", switch(settings.get("ip_noise_gamma_random_strength")))
    return {
        "noise_offset_type", "noise_offset", "noise_offset_random_strength", "multires_noise_iterations",
        "multires_noise_discount", "ip_noise_gamma_random_strength",
    }  # fmt: skip


def _base_weights(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """LoRAs merged into the base model: paths and factors between spaces, or lists."""
    paths, factors = (_words(settings.get(name)) for name in ("base_weights", "base_weights_multiplier"))
    merged = [{"file": path, "weight": float(factor)} for path, factor in zip_longest(paths, factors, fillvalue=1)]
    result.put("base_model.adapters", merged[: len(paths)] or None)
    return {"base_weights", "base_weights_multiplier"}


def _logging(settings: Mapping[str, Any], result: Translation) -> set[str]:
    trackers = str(settings.get("log_with") or "").lower()
    if trackers not in ("", "none", "tensorboard", "wandb", "all"):
        result.lose("log_with", settings["log_with"], "outputs.tensorboard and outputs.wandb are possible")
    result.put("outputs.tensorboard", True if trackers in ("tensorboard", "all") else None)
    if switch(settings.get("use_wandb")) or trackers in ("wandb", "all"):
        result.put("outputs.wandb", True)
        result.put("outputs.wandb_project", same(settings.get("log_tracker_name")))
    return {"use_wandb", "log_with", "log_tracker_name"}


def _words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [str(one) for one in value]
    # shlex reads backslashes as escapes, but these are Windows paths.
    return shlex.split(str(value or "").replace("\\", "/"))


def _images(settings: Mapping[str, Any], result: Translation) -> set[str]:
    if switch(settings.get("masked_loss")) and not switch(settings.get("alpha_mask")):
        result.lose(
            "masked_loss", True, "put the masks beside the images as NAME-masklabel.png and set images.mask=file"
        )
    if settings.get("caption_extension") == "":
        result.put("captions.extension", ".caption")
        result.change("caption_extension", "", "empty means .caption there")
    known = augmentation(settings, result) | sizes(settings, "max_resolution", result)
    for name in ("full_bf16", "full_fp16"):
        if switch(settings.get(name)):
            result.change(name, True, "the adapter's weights are trained in fp32 here, which loses no small updates")
    return known | {"masked_loss", "full_bf16", "full_fp16"}


def _weighting(settings: Mapping[str, Any], result: Translation) -> set[str]:
    gamma = some(settings.get("min_snr_gamma"))
    if switch(settings.get("debiased_estimation_loss")):
        result.put("objective.weighting", "debiased")
        if gamma:
            result.lose("min_snr_gamma", gamma, "one weighting at a time: debiased is taken")
    elif gamma:
        result.put("objective.weighting", "min_snr")
        result.put("objective.min_snr_gamma", gamma)
    is_plain = settings.get("huber_scale") in (1, "1", "1.0")
    return {"min_snr_gamma", "debiased_estimation_loss", *(["huber_scale"] if is_plain else [])}


def _prompts(settings: Mapping[str, Any], result: Translation) -> set[str]:
    given = settings.get("sample_prompts") or ""
    text = "\n".join(map(str, given)) if isinstance(given, list) else str(given)
    lines = [line.strip() for line in text.splitlines()]
    prompts = [prompt_line(result, "sample_prompts", line) for line in lines if line and not line.startswith("#")]
    result.put("previews.prompts", prompts or None)
    return {"sample_prompts"}
