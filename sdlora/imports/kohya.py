"""kohya_ss GUI settings in our terms.

Facts from the documentation of sd-scripts (train_network, dataset config) and from saved settings of kohya_ss.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from sdlora.config.optimization import OWN_RATE
from sdlora.config.preview_prompts import parse_preview
from sdlora.constants import LATENT_FACTOR
from sdlora.imports.sd_scripts_data import SUBSET, augmentation, resolution_of
from sdlora.imports.translation import (
    OPTIMIZER,
    OTHER_MODELS,
    PRECISION,
    SCHEDULE,
    Convert,
    Translation,
    count,
    epochs,
    file_name,
    number,
    one_of,
    refuse_other_model,
    same,
    some,
    switch,
)


def _token_length(value: Any) -> int | None:
    length = count(value)
    if length not in (None, 75, 150, 225):
        raise ValueError("75, 150 or 225 is possible")
    return length


def _timestep(value: Any) -> int | None:
    step = number(value)
    return None if step is None else min(int(step), 999)


def _sampler(value: Any) -> str | None:
    if value in ("", None):
        return None
    return parse_preview(f"x --ss {value}").sampler


SETTINGS: dict[str, tuple[str, Convert]] = {
    **SUBSET,
    "output_name": ("name", file_name),
    "seed": ("seed", count),
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
    "factor": ("adapter.lokr_factor", lambda value: int(value) if value not in ("", None) else None),
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
    "optimizer": ("optimization.optimizer", OPTIMIZER),
    "lr_scheduler": ("optimization.schedule", SCHEDULE),
    "lr_scheduler_num_cycles": ("optimization.schedule_cycles", count),
    "lr_scheduler_power": ("optimization.schedule_power", some),
    "lr_scheduler_min_lr_ratio": ("optimization.schedule_floor", some),
    "lr_scheduler_timescale": ("optimization.schedule_timescale", some),
    "lr_decay_steps": (
        "optimization.schedule_decay",
        lambda value: share if (share := some(value)) and share < 1 else None,
    ),
    "ip_noise_gamma": ("objective.input_perturbation", some),
    "loss_type": ("objective.loss", one_of(l2="mse", l1="l1", huber="huber", smooth_l1="smooth_l1")),
    "huber_c": ("objective.huber_delta", some),
    "huber_schedule": ("objective.huber_schedule", one_of(snr="snr", constant="constant", exponential="exponential")),
    "scale_v_pred_loss_like_noise_pred": ("objective.v_loss_like_epsilon", switch),
    "min_timestep": ("objective.min_timestep", _timestep),
    "max_timestep": ("objective.max_timestep", _timestep),
    "prior_loss_weight": ("objective.prior_weight", some),
    "sample_sampler": ("previews.sampler", _sampler),
    "sample_every_n_steps": ("previews.every", count),
    "sample_every_n_epochs": ("previews.every", epochs),
    "output_dir": ("outputs.folder", same),
    "save_every_n_steps": ("outputs.checkpoint_every", count),
    "save_every_n_epochs": ("outputs.checkpoint_every", epochs),
    "save_last_n_epochs": ("outputs.keep_checkpoints", count),
    "save_precision": ("outputs.precision", PRECISION),
    "metadata_author": ("outputs.author", same),
    "metadata_description": ("outputs.description", same),
    "training_comment": ("outputs.description", same),
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
    "huggingface_repo_id", "huggingface_repo_type", "huggingface_repo_visibility", "huggingface_token", "resume",
    "resume_from_huggingface", "metadata_title", "metadata_tags", "metadata_license", "bypass_mode",
    "dim_from_weights", "no_token_padding", "guidance_scale", "sd3_checkbox", "flux1_checkbox", "fp8_base",
    "fp8_base_unet", "split_mode", "tokenizer_cache_dir", "max_train_steps_or_epochs", "conditioning_data_dir",
    "skip_cache_check", "config_file", "output_config", "torch_compile", "ddp_timeout",
    "ddp_gradient_as_bucket_view", "ddp_static_graph", "console_log_level", "console_log_file",
    "console_log_simple", "disable_mmap_load_safetensors", "debug_dataset", "deepspeed",
    "cpu_offload_checkpointing", "blocks_to_swap", "fused_backward_pass", "offload_optimizer_device",
}  # fmt: skip
"""Settings about speed, machine, window or upload, or of models that aren't trained here: the adapter is the same
without them."""

NO_COUNTERPART = {
    "adaptive_noise_scale", "caption_dropout_every_n_epochs", "block_dims",
    "block_alphas", "conv_block_dims", "conv_block_alphas", "conv_dims", "conv_alphas", "block_lr_zero_threshold",
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr", "constrain", "rescaled", "use_scalar",
    "train_norm", "rank_dropout_scale", "v_pred_like_loss", "lr_scheduler_type", "save_last_n_steps",
    "token_warmup_min", "token_warmup_step", "train_blocks", "train_double_block_indices",
    "train_single_block_indices", "in_dims", "initial_step", "initial_epoch", "skip_until_initial_step",
    "weighting_scheme", "huber_scale", "dataset_repeats",
    "sample_at_first", "sdxl_network_text_encoder", "no_vae", "additional_parameters",
}  # fmt: skip
"""Settings that ours can't hold; each is listed when it is switched on."""

_LORA_TYPES = {
    "standard": ("lora", "all"),
    "kohya locon": ("lora", "all+conv"),
    "lycoris/locon": ("lora", "all+conv"),
    "lycoris/loha": ("loha", "all+conv"),
    "lycoris/lokr": ("lokr", "all+conv"),
}
_LYCORIS_PRESETS = {"full": None, "full-lin": "all", "attn-mlp": "all", "attn-only": "attention"}
_LARGEST_RANK = 1024


def from_gui(settings: Mapping[str, Any]) -> Translation:
    """The settings that kohya_ss saves as JSON. Raises ValueError for models that are no Stable Diffusion."""
    result = Translation()
    settings = {**settings, **_more_parameters(settings, result)}
    known = result.take(settings, SETTINGS) | WITHOUT_EFFECT | {"additional_parameters"}
    known |= _families(settings, result) | _adapter_kind(settings, result) | _sizes(settings, result)
    known |= _rates(settings, result) | _steps(settings, result) | _noise(settings, result)
    known |= _weighting(settings, result) | _optimizer_options(settings, result) | _prompts(settings, result)
    known |= _images(settings, result) | _base_weights(settings, result)
    known |= _logging(settings, result)
    result.lose_rest(settings, known)
    return result


def _more_parameters(settings: Mapping[str, Any], result: Translation) -> dict[str, Any]:
    """The command-line options that kohya_ss passes on, as settings."""
    try:
        words = shlex.split(str(settings.get("additional_parameters") or ""))
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
    return {name: values[0] if len(values) == 1 else " ".join(values) or True for name, values in found.items()}


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
    return {*families, "v_parameterization"}


def _adapter_kind(settings: Mapping[str, Any], result: Translation) -> set[str]:
    kind = str(settings.get("LoRA_type", "Standard"))
    refuse_other_model(kind)
    if kind.lower() not in _LORA_TYPES:
        result.change("LoRA_type", kind, "has no counterpart, so a plain LoRA is trained")
    algorithm, layers = _LORA_TYPES.get(kind.lower(), _LORA_TYPES["standard"])
    # 0 there means that convolutions get no adapter.
    if layers == "all+conv" and settings.get("conv_dim") in (0, "0"):
        layers = "all"
    preset = settings.get("LyCORIS_preset")
    if preset and kind.lower().startswith("lycoris") and preset not in _LYCORIS_PRESETS:
        result.lose("LyCORIS_preset", preset, "set adapter.layers")
    elif preset and kind.lower().startswith("lycoris"):
        layers = _LYCORIS_PRESETS[preset] or layers
    result.put("adapter.algorithm", algorithm)
    result.put("adapter.layers", layers)
    if layers == "all+conv" and algorithm == "lora":
        result.values.pop("adapter.tucker", None)
    for name, algorithms in (("lokr_decompose_both", ("lokr",)), ("tucker", ("loha", "lokr"))):
        if algorithm not in algorithms and result.values.pop(f"adapter.{name}", None):
            result.lose(name, True, f"goes with {' and '.join(algorithms)} only")
    for name in ("rank_dropout", "module_dropout"):
        if (share := some(settings.get(name))) is None:
            continue
        if algorithm == "lora":
            result.put(f"adapter.{name}", share)
        elif name == "rank_dropout" and "adapter.dropout" not in result.values:
            result.put("adapter.dropout", share)
        else:
            result.lose(name, share, f"{algorithm} has one dropout here, adapter.dropout")
    return {"LoRA_type", "LyCORIS_preset", "rank_dropout", "module_dropout"}


def _sizes(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """Ranks and alphas: an alpha of 0 means the rank, a LoKr of more than any layer holds is a full matrix."""
    is_lokr = result.values.get("adapter.algorithm") == "lokr"
    for rank_name, alpha_name, ours in (("network_dim", "network_alpha", ""), ("conv_dim", "conv_alpha", "conv_")):
        rank = count(settings.get(rank_name))
        alpha = number(settings.get(alpha_name))
        if ours and result.values.get("adapter.layers") != "all+conv":
            continue
        if rank and rank > _LARGEST_RANK and is_lokr:
            result.put("adapter.lokr_full", True)
            result.change(rank_name, rank, "stands for a full matrix: adapter.lokr_full, whose scale is always 1")
            continue
        if rank and rank > _LARGEST_RANK:
            result.change(rank_name, rank, f"the largest rank is {_LARGEST_RANK}")
            rank = _LARGEST_RANK
        result.put(f"adapter.{ours}rank", rank)
        if alpha == 0 and rank:
            result.change(alpha_name, 0, f"means the rank there, {rank}")
            alpha = float(rank)
        result.put(f"adapter.{ours}alpha", alpha or None)
    return {"network_dim", "network_alpha", "conv_dim", "conv_alpha"}


def _rates(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """unet_lr and text_encoder_lr, which are learning_rate when empty; a part at 0 isn't trained."""
    everywhere = some(settings.get("learning_rate"))
    unet, text_encoder = number(settings.get("unet_lr")), settings.get("text_encoder_lr")
    if isinstance(text_encoder, (list, tuple)) or " " in str(text_encoder).strip():
        rates = list(text_encoder) if isinstance(text_encoder, (list, tuple)) else str(text_encoder).split()
        text_encoder = rates[0] if rates else None
        result.put("optimization.text_encoder_2_learning_rate", number(rates[1]) if len(rates) > 1 else None)
    text_encoder = number(text_encoder)
    unet = everywhere if unet is None else unet
    text_encoder = everywhere if text_encoder is None else text_encoder
    only_text = switch(settings.get("network_train_text_encoder_only")) or (unet == 0 and text_encoder)
    result.put("optimization.learning_rate", (text_encoder if only_text else unet) or None)
    if only_text:
        result.put("adapter.unet", False)
    if text_encoder and not switch(settings.get("network_train_unet_only")):
        result.put("adapter.text_encoder", True)
        result.put("optimization.text_encoder_learning_rate", text_encoder)
    until = number(settings.get("stop_text_encoder_training_pct", settings.get("stop_text_encoder_training"))) or 0
    if until > 0 and result.values.get("adapter.text_encoder"):
        result.put("optimization.text_encoder_until", until / 100)
    # Below 0 it is not trained at all there, whatever its rate.
    elif until < 0:
        result.values.pop("adapter.text_encoder", None)
    ratios = {name: some(settings.get(f"loraplus_{name}lr_ratio")) for name in ("", "unet_", "text_encoder_")}
    result.put("optimization.lora_plus_ratio", ratios["unet_"] or ratios[""])
    if ratios["text_encoder_"] not in (None, ratios["unet_"] or ratios[""]):
        result.lose("loraplus_text_encoder_lr_ratio", ratios["text_encoder_"], "one ratio holds for all parts")
    return {
        "learning_rate", "unet_lr", "text_encoder_lr", "network_train_unet_only", "network_train_text_encoder_only",
        "stop_text_encoder_training", "stop_text_encoder_training_pct", "loraplus_lr_ratio", "loraplus_unet_lr_ratio",
        "loraplus_text_encoder_lr_ratio",
    }  # fmt: skip


def _steps(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """Epochs win over steps, as there; kohya_ss writes its own field `epoch` beside max_train_epochs."""
    epochs = count(settings.get("max_train_epochs")) or count(settings.get("epoch"))
    steps = count(settings.get("max_train_steps"))
    if epochs and steps:
        result.change("max_train_steps", steps, f"epochs win over steps, as there: {epochs} epochs")
    result.put("optimization.epochs", epochs)
    result.put("optimization.steps", None if epochs else steps)
    schedule = settings.get("lr_scheduler")
    share, number_of = some(settings.get("lr_warmup")), some(settings.get("lr_warmup_steps"))
    # kohya_ss counts lr_warmup in per cent of the run.
    warmup = number_of if number_of else share / 100 if share else None
    if warmup and schedule == "constant":
        result.lose("lr_warmup", warmup, "the scheduler 'constant' has no warm-up there either")
    else:
        result.put("optimization.warmup", warmup)
    for name in ("save_every_n", "sample_every_n"):
        if count(settings.get(f"{name}_steps")) and count(settings.get(f"{name}_epochs")):
            ours = "outputs.checkpoint_every" if name.startswith("save") else "previews.every"
            steps_between = int(settings[f"{name}_steps"])
            result.put(ours, steps_between)
            result.lose(
                f"{name}_epochs", settings[f"{name}_epochs"], f"one interval is possible: {steps_between} steps"
            )
    if count(settings.get("save_every_n_epochs")):
        result.put("outputs.checkpoint_names", "epoch")
    return {"max_train_epochs", "epoch", "max_train_steps", "lr_warmup", "lr_warmup_steps"}


def _noise(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """noise_offset_type chooses one of the two noises; without it both hold."""
    kind = str(settings.get("noise_offset_type") or "").lower()
    offset, levels = some(settings.get("noise_offset")), count(settings.get("multires_noise_iterations"))
    if kind != "multires":
        result.put("objective.noise_offset", offset)
        result.put("objective.noise_offset_random", offset and switch(settings.get("noise_offset_random_strength")))
    if kind != "original" and levels:
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
    resolution = settings.get("max_resolution")
    try:
        result.put("images.resolution", resolution_of(resolution))
    except (ValueError, TypeError):
        result.lose("max_resolution", resolution, "not understood")
    edges = str(resolution).replace(" ", "").strip("[]()").split(",")
    if len(edges) == 2 and edges[0] != edges[1]:
        edge = result.values.get("images.resolution")
        if result.values.get("images.buckets") is False:
            why = f"a rectangle without buckets can't be held; images are cropped to squares of {edge} px"
        else:
            why = f"buckets of the area of {edge}x{edge} px"
        result.change("max_resolution", resolution, why)
    step = count(settings.get("bucket_reso_steps"))
    if step:
        nearest = max(LATENT_FACTOR, round(step / LATENT_FACTOR) * LATENT_FACTOR)
        result.put("images.bucket_step", nearest)
        if nearest != step:
            result.change("bucket_reso_steps", step, f"a multiple of {LATENT_FACTOR} is needed: {nearest}")
    for name in ("bucket_min", "bucket_max"):
        edge = result.values.get(f"images.{name}")
        if edge and edge < 32:
            result.change(f"{name}_reso", edge, "at least 32")
            result.put(f"images.{name}", 32)
    if switch(settings.get("masked_loss")) and not switch(settings.get("alpha_mask")):
        result.lose(
            "masked_loss", True, "put the masks beside the images as NAME-masklabel.png and set images.mask=file"
        )
    augmented = augmentation(settings, result)
    for name in ("full_bf16", "full_fp16"):
        if switch(settings.get(name)):
            result.change(name, True, "the adapter's weights are trained in fp32 here, which loses no small updates")
    return {"max_resolution", "bucket_reso_steps", "masked_loss", "full_bf16", "full_fp16"} | augmented


def _weighting(settings: Mapping[str, Any], result: Translation) -> set[str]:
    gamma = some(settings.get("min_snr_gamma"))
    if switch(settings.get("debiased_estimation_loss")):
        result.put("objective.weighting", "debiased")
        if gamma:
            result.lose("min_snr_gamma", gamma, "one weighting at a time: debiased is taken")
    elif gamma:
        result.put("objective.weighting", "min_snr")
        result.put("objective.min_snr_gamma", gamma)
    return {"min_snr_gamma", "debiased_estimation_loss"}


def _optimizer_options(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """`weight_decay=0.1 betas=0.9,0.99` and the like, in quotes or not."""
    options: dict[str, Any] = {}
    given = settings.get("optimizer_args") or ""
    for part in re.findall(
        r"(\w+)=(\([^)]*\)|\[[^\]]*\]|\S+)", " ".join(given) if isinstance(given, list) else str(given)
    ):
        try:
            value = ast.literal_eval(part[1].strip("\"'"))
        except (ValueError, SyntaxError):
            result.lose("optimizer_args", "=".join(part), "not understood")
            continue
        options[part[0]] = list(value) if isinstance(value, tuple) else value
    result.put("optimization.weight_decay", options.pop("weight_decay", None))
    kind, rate = result.values.get("optimization.optimizer"), result.values.get("optimization.learning_rate")
    if kind == "adafactor":
        # transformers' Adafactor finds its own step unless told not to; sd-scripts leaves that default alone.
        if options.setdefault("relative_step", True):
            options.setdefault("scale_parameter", True)
            result.change("learning_rate", rate, "Adafactor with relative_step finds its own")
            result.put("optimization.learning_rate", 1e-3)
            for name in ("optimization.text_encoder_learning_rate", "optimization.text_encoder_2_learning_rate"):
                if name in result.values:
                    result.put(name, 1e-3)
    elif kind in OWN_RATE and rate and rate < 0.1:
        result.change("learning_rate", rate, f"{kind} finds its own and takes a factor, usually 1")
        # The dadaptation package calls decouple what pytorch_optimizer, whose optimizer ours is, calls weight_decouple.
        result.put("optimization.learning_rate", 1.0)
    if kind == "dadapt_adam" and "decouple" in options:
        options["weight_decouple"] = options.pop("decouple")
    result.put("optimization.optimizer_options", options or None)
    return {"optimizer_args"}


def _prompts(settings: Mapping[str, Any], result: Translation) -> set[str]:
    lines = [line.strip() for line in str(settings.get("sample_prompts") or "").splitlines()]
    prompts = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        try:
            parse_preview(line)
        except ValueError as error:
            result.lose("sample_prompts", line, str(error))
            line = line.partition(" --")[0].strip()
        prompts.append(line)
    result.put("previews.prompts", prompts or None)
    return {"sample_prompts"}
