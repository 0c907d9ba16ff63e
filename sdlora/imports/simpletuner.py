"""SimpleTuner's config.json, with the data backends and the LyCORIS file that it names, in our terms.

Names, meanings and defaults from its documentation of options; what a file leaves out has SimpleTuner's default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from sdlora.constants import LATENT_FACTOR
from sdlora.imports.optimizers import put_options
from sdlora.imports.previews import plain_line, sampler
from sdlora.imports.simpletuner_data import edge_of, from_backends, put_resolution
from sdlora.imports.translation import (
    PRECISION,
    SCHEDULE,
    Convert,
    Translation,
    alpha,
    averaged,
    count,
    epochs,
    legible,
    number,
    one_of,
    put_edges,
    same,
    some,
    switch,
)

ReadJson = Callable[[str], Any]
"""The content of a JSON file that the configuration names, None where there is none."""

_DEFAULTS: dict[str, Any] = {
    "lora_rank": 16,
    "lora_dropout": 0.1,
    "learning_rate": 4e-7,
    "lr_scheduler": "sine",
    "mixed_precision": "bf16",
    "max_grad_norm": 2.0,
    "train_batch_size": 4,
    "optimizer": "adamw_bf16",
    "caption_dropout_probability": 0.0,
    "ema_decay": 0.995,
}
_FEWEST_PIXELS = 64
"""Numbers below it are megapixels."""
_FAMILIES = {"sdxl": "sdxl", "legacy": "sd1", "sd1x": "sd1", "sd2x": "sd2", "sd1": "sd1", "sd2": "sd2"}
_MODELS = {
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
}
_OPTIMIZER = one_of(
    adamw_bf16="adamw",
    ao_adamw8bit="adamw8bit",
    bnb_adamw="adamw",
    bnb_adamw_paged="adamw",
    bnb_adamw8bit="adamw8bit",
    bnb_adamw8bit_paged="paged_adamw8bit",
    bnb_lion="lion",
    bnb_ademamix="ademamix",
    optimi_adamw="adamw",
    optimi_adan="adan",
    optimi_lion="lion",
    optimi_stableadamw="stable_adamw",
    adamw_schedulefree="schedule_free_adamw",
    prodigy="prodigy",
    soap="soap",
    muon="muon",
)


def _quantization(value: Any) -> str | None:
    if value in (None, "", "no_change"):
        return None
    kinds = {"int8-quanto": "int8", "int8-torchao": "int8", "nf4-bnb": "nf4"}
    if value not in kinds:
        raise ValueError("int8 and nf4 are possible")
    return kinds[value]


def _sampler(value: Any) -> str | None:
    names = {"dpm++": "DPM++ 2M", "unipc": "UniPC", "ddim": "DDIM", "euler": "Euler", "euler-a": "Euler a"}
    return names[value] if value in names else sampler(value)


SETTINGS: dict[str, tuple[str, Convert]] = {
    "pretrained_model_name_or_path": ("base_model.model", same),
    "pretrained_vae_model_name_or_path": ("base_model.vae", same),
    "vae_path": ("base_model.vae", same),
    "revision": ("base_model.revision", same),
    "variant": ("base_model.variant", same),
    "rescale_betas_zero_snr": ("base_model.zero_terminal_snr", switch),
    "base_model_precision": ("base_model.quantization", _quantization),
    "mixed_precision": ("optimization.precision", PRECISION),
    "use_dora": ("adapter.dora", switch),
    "init_lora": ("adapter.start_from", same),
    "seed": ("seed", count),
    "learning_rate": ("optimization.learning_rate", some),
    "text_encoder_lr": ("optimization.text_encoder_learning_rate", some),
    "train_text_encoder": ("adapter.text_encoder", switch),
    "lr_scheduler": ("optimization.schedule", SCHEDULE),
    "lr_warmup_steps": ("optimization.warmup", some),
    "lr_num_cycles": ("optimization.schedule_cycles", count),
    "lr_power": ("optimization.schedule_power", some),
    "num_train_epochs": ("optimization.epochs", count),
    "max_train_steps": ("optimization.steps", count),
    "train_batch_size": ("optimization.batch_size", count),
    "gradient_accumulation_steps": ("optimization.accumulation", count),
    "gradient_checkpointing": ("optimization.gradient_checkpointing", switch),
    "optimizer": ("optimization.optimizer", _OPTIMIZER),
    "max_grad_norm": ("optimization.max_gradient_norm", number),
    "adam_weight_decay": ("optimization.weight_decay", number),
    "caption_dropout_probability": ("captions.dropout", some),
    "loss_type": ("objective.loss", one_of(l2="mse", huber="huber", smooth_l1="smooth_l1")),
    "huber_c": ("objective.huber_delta", some),
    "huber_schedule": ("objective.huber_schedule", one_of(snr="snr", constant="constant", exponential="exponential")),
    "input_perturbation": ("objective.input_perturbation", some),
    "aspect_bucket_alignment": ("images.bucket_step", count),
    "validation_negative_prompt": ("previews.negative", same),
    "validation_guidance": ("previews.guidance", number),
    "validation_num_inference_steps": ("previews.steps", count),
    "validation_seed": ("previews.seed", count),
    "validation_noise_scheduler": ("previews.sampler", _sampler),
    "validation_steps": ("previews.every", count),
    "validation_step_interval": ("previews.every", count),
    "validation_epoch_interval": ("previews.every", epochs),
    "checkpointing_steps": ("outputs.checkpoint_every", count),
    "checkpoint_step_interval": ("outputs.checkpoint_every", count),
    "checkpoint_epoch_interval": ("outputs.checkpoint_every", epochs),
    "checkpoints_total_limit": ("outputs.keep_checkpoints", count),
    "tracker_project_name": ("outputs.wandb_project", same),
}
_TOLD_APART = ("data_backend_config", "lycoris_config", "model_type", "noise_offset_probability", "offset_noise")
WITHOUT_EFFECT = {
    "model_type", "lora_format", "data_backend_config", "resume_from_checkpoint", "push_to_hub", "hub_model_id",
    "push_checkpoints_to_hub", "push_to_hub_background", "model_card_private", "model_card_safe_for_work",
    "model_card_note", "publishing_config", "disable_benchmark", "attention_mechanism", "aspect_bucket_rounding",
    "validation_torch_compile", "validation_torch_compile_mode",
    "allow_tf32", "disable_tf32", "set_grads_to_none", "max_workers", "read_batch_size", "write_batch_size",
    "image_processing_batch_size", "torch_num_threads", "dataloader_prefetch", "dataloader_prefetch_qlen",
    "vae_batch_size", "vae_cache_ondemand", "vae_cache_preprocess", "vae_enable_tiling", "vae_enable_slicing",
    "vae_cache_scan_behaviour", "cache_dir", "cache_dir_text", "cache_dir_vae", "compress_disk_cache",
    "keep_vae_loaded", "skip_file_discovery", "override_dataset_config", "preserve_data_backend_cache",
    "metadata_update_interval", "debug_aspect_buckets", "debug_dataset_loader", "print_filenames",
    "print_sampler_statistics", "seed_for_each_device", "local_rank", "quantize_via",
    "text_encoder_1_precision", "text_encoder_2_precision", "text_encoder_3_precision", "optimizer_offload_gradients",
    "optimizer_cpu_offload_method", "optimizer_release_gradients", "fuse_optimizer", "gradient_precision",
    "gradient_checkpointing_interval", "enable_watermark", "framerate", "tracker_image_layout",
    "webhook_reporting_interval", "checkpointing_use_tempdir", "ema_cpu_only", "ema_foreach_disable", "ema_validation",
    "ema_device", "offload_during_startup", "offload_during_save", "ramtorch",
    "enable_group_offload", "group_offload_type", "fuse_qkv_projections", "aspect_bucket_disable_rebuild",
    "aspect_bucket_worker_count", "enable_multiprocessing", "aws_max_pool_connections", "dynamo_backend",
    "dynamo_mode", "training_dynamo_backend", "inference_scheduler_timestep_spacing", "tokenizer_max_length",
    "unet_attention_slice", "hub_repo_id", "context", "accelerator_cache_clear_interval", "num_eval_images",
    "eval_steps_interval", "eval_epoch_interval", "eval_dataset_id", "eval_timesteps", "eval_dataset_pooling",
    "evaluation_type", "disable_accelerator", "disable_segmented_timestep_sampling", "lycoris_config", "log_level",
    "logging_dir", "print_trainable_parameters", "num_validation_images", "delete_unwanted_images",
    "delete_problematic_images", "disable_bucket_pruning", "offset_noise", "noise_offset_probability",
}  # fmt: skip
"""About speed, caches, machine, upload or models that aren't trained here."""

_NUMBERS = (
    "lora_rank", "lora_alpha", "lora_dropout", "train_batch_size", "gradient_accumulation_steps", "lr_end", "ema_decay",
    "ema_update_interval", "adam_epsilon", "max_grad_norm", "snr_gamma", "soft_min_snr_sigma_data", "noise_offset",
    "noise_offset_probability", "resolution",
)  # fmt: skip
_SWITCHES = ("lr_scale", "lr_scale_sqrt", "use_ema", "use_soft_min_snr", "offset_noise")
"""What is read outside `SETTINGS`, where each conversion answers for itself."""


def from_config(settings: Mapping[str, Any], read_json: ReadJson) -> Translation:
    """The whole configuration. Raises ValueError for models that are no Stable Diffusion, and for ControlNets."""
    plain = {name.lstrip("-").replace("-", "_"): value for name, value in settings.items()}
    result = Translation()
    family = _family(plain)
    given = legible({**_DEFAULTS, **plain}, result, _NUMBERS, _SWITCHES)
    result.assume(_DEFAULTS, plain)
    known = result.take(given, SETTINGS) | result.pass_over(plain, WITHOUT_EFFECT, read_apart=_TOLD_APART)
    result.put("base_model.family", family)
    if "base_model.model" not in result.values:
        result.put("base_model.model", _MODELS[family])
        if same(plain.get("model_flavour")):
            result.lose("model_flavour", plain["model_flavour"], f"{_MODELS[family]} is taken: set base_model.model")
    step = "aspect_bucket_alignment"
    put_edges(result, step, given.get(step), "images.bucket_step", LATENT_FACTOR)
    known |= _kind(given, result, read_json) | _names(given, result) | _rates(given, result)
    known |= _optimizer(given, result) | _loss(given, result) | _previews(given, result)
    data = _data(given, result, read_json)
    known |= data | {"model_family", "controlnet", "prediction_type", "model_flavour"}
    result.lose_rest(plain, known)
    return result


def _family(settings: Mapping[str, Any]) -> str:
    family = str(settings.get("model_family", "")).lower()
    if family not in _FAMILIES:
        raise ValueError(
            f"it trains {family or 'a model of no named family'}; only Stable Diffusion 1.x, 2.x and XL can be trained "
            "here"
        )
    if switch(settings.get("controlnet")) or switch(settings.get("control")):
        raise ValueError("it trains a ControlNet; only adapters can be trained here")
    if settings.get("prediction_type") == "flow_matching":
        raise ValueError(
            "it trains flow matching, whose settings are not taken over: begin with a preset for the model's family, "
            "base_model.prediction=flow and objective.timestep_distribution=logit_normal"
        )
    return _FAMILIES[family]


def _kind(given: Mapping[str, Any], result: Translation, read_json: ReadJson) -> set[str]:
    if given.get("model_type", "lora") != "lora":
        result.change("model_type", given["model_type"], "adapters are trained here, so it is taken as lora")
    if given.get("prediction_type") in ("epsilon", "v_prediction"):
        result.put("base_model.prediction", given["prediction_type"])
    elif same(given.get("prediction_type")):
        result.lose("prediction_type", given["prediction_type"], "epsilon and v_prediction are possible")
    if given.get("lora_type", "standard") not in ("standard", "lycoris"):
        result.lose("lora_type", given["lora_type"], "standard and lycoris are possible; standard is taken")
    known = {"lora_type", "lora_rank", "lora_alpha", "lora_dropout"}
    if given.get("lora_type", "standard") != "lycoris":
        rank = count(given.get("lora_rank"))
        result.put("adapter.rank", rank)
        result.put("adapter.alpha", some(given.get("lora_alpha")) or (float(rank) if rank else None))
        result.put("adapter.dropout", some(given.get("lora_dropout")))
        result.put("adapter.layers", "attention")  # PEFT's targets there: to_q, to_k, to_v, to_out.0
        return known
    file = str(given.get("lycoris_config") or "config/lycoris_config.json")
    lycoris = read_json(file)
    if not isinstance(lycoris, Mapping):
        result.lose("lycoris_config", file, "no such file near this one; set the adapter section")
        return known
    _lycoris(lycoris, result)
    return known


def _lycoris(settings: Mapping[str, Any], result: Translation) -> None:
    table: dict[str, tuple[str, Convert]] = {
        "algo": ("adapter.algorithm", one_of(lora="lora", locon="lora", loha="loha", lokr="lokr")),
        "factor": ("adapter.lokr_factor", count),
        "decompose_both": ("adapter.lokr_decompose_both", switch),
        "use_tucker": ("adapter.tucker", switch),
        "full_matrix": ("adapter.lokr_full", switch),
        "dropout": ("adapter.dropout", some),
        "weight_decompose": ("adapter.dora", switch),
    }
    settings = legible(settings, result, ("linear_dim", "linear_alpha"), (), "lycoris_config: ")
    known = result.take(settings, table, "lycoris_config: ")
    algorithm, rank = result.values.get("adapter.algorithm", "lora"), count(settings.get("linear_dim"))
    if algorithm != "lokr":
        for name in ("lokr_factor", "lokr_decompose_both", "lokr_full"):
            result.values.pop(f"adapter.{name}", None)
    # LyCORIS' way to ask for whole matrices: a dimension that no layer reaches.
    if rank and rank >= 10000 and algorithm == "lokr":
        result.put("adapter.lokr_full", True)
        result.values.pop("adapter.lokr_decompose_both", None)  # no rank is below such a one
        result.change("linear_dim", rank, "stands for a full matrix: adapter.lokr_full, whose scale is always 1")
    else:
        result.put("adapter.rank", rank)
        result.put("adapter.alpha", alpha(settings.get("linear_alpha"), rank, 1.0))
    if algorithm in ("loha", "lokr"):
        result.drop("adapter.dropout", "has no effect on LoHa and LoKr there either; adapter.dropout leaves out rows")
    preset = settings.get("apply_preset") or {}
    targets = {str(one) for one in preset.get("target_module") or ()}
    layers = "attention+ff" if "FeedForward" in targets else "attention" if targets == {"Attention"} else "all"
    result.put("adapter.layers", layers)
    if preset.get("module_algo_map"):
        result.lose("lycoris_config: module_algo_map", preset["module_algo_map"], "one algorithm for all layers")
    known |= {"linear_dim", "linear_alpha", "apply_preset", "bypass_mode", "multiplier"}
    result.lose_rest(settings, known, "lycoris_config: ")


def _names(given: Mapping[str, Any], result: Translation) -> set[str]:
    place = PurePosixPath(PureWindowsPath(str(given.get("output_dir") or "output/simpletuner")).as_posix())
    result.put("name", given.get("tracker_run_name") or place.name or None)
    result.sources["name"] = "tracker_run_name" if given.get("tracker_run_name") else "output_dir"
    result.put("outputs.folder", str(place.parent) if given.get("output_dir") else None)
    trackers = str(given.get("report_to") or "none").replace(",", " ").split()
    for tracker in trackers:
        if tracker in ("wandb", "tensorboard"):
            result.put(f"outputs.{tracker}", True)
        elif tracker != "none":
            result.lose("report_to", tracker, "outputs.wandb and outputs.tensorboard are possible")
    if "wandb" not in trackers:
        result.values.pop("outputs.wandb_project", None)
    return {"output_dir", "tracker_run_name", "report_to"}


def _rates(given: Mapping[str, Any], result: Translation) -> set[str]:
    rate = result.values.get("optimization.learning_rate")
    if switch(given.get("lr_scale")) and rate:
        factor = (count(given.get("train_batch_size")) or 1) * (count(given.get("gradient_accumulation_steps")) or 1)
        by_root = switch(given.get("lr_scale_sqrt"))
        scaled = rate * (math.sqrt(factor) if by_root else factor)
        result.put("optimization.learning_rate", float(f"{scaled:.6g}"))
        of = "the square root of batch size and" if by_root else "batch size and"
        result.change("lr_scale", True, f"times {of} accumulation, as there on one card: {scaled:g}")
    end = some(given.get("lr_end"))
    if end and rate and result.values.get("optimization.schedule") in ("linear", "polynomial", "cosine"):
        result.put("optimization.schedule_floor", min(1.0, end / rate))
    for name, schedules in (("cycles", ("cosine_with_restarts",)), ("power", ("polynomial",))):
        if result.values.get("optimization.schedule") not in schedules:
            result.values.pop(f"optimization.schedule_{name}", None)
    if switch(given.get("use_ema")):
        decay, every = number(given.get("ema_decay")), count(given.get("ema_update_interval"))
        result.put("optimization.ema", ours := averaged(decay, every))
        if ours != decay:
            result.change("ema_decay", decay, f"every {every} steps there; {ours} after each step is as slow")
    return {"lr_scale", "lr_scale_sqrt", "lr_end", "use_ema", "ema_decay", "ema_update_interval"}


def _optimizer(given: Mapping[str, Any], result: Translation) -> set[str]:
    options: dict[str, Any] = {}
    for part in str(given.get("optimizer_config") or "").split(","):
        name, equals, value = part.strip().partition("=")
        if equals:
            options[name] = _number_or_word(value)
        elif name:
            result.lose("optimizer_config", name, "not understood, options are name=value")
    own = [options.pop(f"beta{index}", None) for index in (1, 2)]
    if own != [None, None]:
        options["betas"] = [usual if beta is None else beta for beta, usual in zip(own, (0.9, 0.999), strict=True)]
    betas = [given.get(f"{kind}_beta{index}") for kind in ("optimizer", "adam") for index in (1, 2)]
    for first, second in (betas[:2], betas[2:]):
        if first is not None and second is not None:
            options.setdefault("betas", [first, second])
    if given.get("adam_epsilon") is not None:
        options["eps"] = number(given["adam_epsilon"])
    put_options(result, options)
    if given.get("optimizer") == "adamw_bf16":
        result.change("optimizer", "adamw_bf16", "AdamW with fp32 weights and moments")
    if given.get("grad_clip_method", "value") == "value" and number(given.get("max_grad_norm")):
        limit = given["max_grad_norm"]
        result.change("max_grad_norm", limit, "each gradient is held below it there, the norm of all of them here")
    return {
        "optimizer_config", "optimizer_beta1", "optimizer_beta2", "adam_beta1", "adam_beta2", "adam_epsilon",
        "grad_clip_method",
    }  # fmt: skip


def _number_or_word(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def _loss(given: Mapping[str, Any], result: Translation) -> set[str]:
    gamma = some(given.get("snr_gamma"))
    if switch(given.get("use_soft_min_snr")):
        result.put("objective.weighting", "soft_min_snr")
        sigma = some(given.get("soft_min_snr_sigma_data"))
        if sigma:
            result.lose("soft_min_snr_sigma_data", sigma, "objective.min_snr_gamma is the cap here")
    elif gamma:
        result.put("objective.weighting", "min_snr")
    result.put("objective.min_snr_gamma", gamma)
    offset = some(given.get("noise_offset"))
    if offset and switch(given.get("offset_noise")):
        result.put("objective.noise_offset", offset)
        share = number(given.get("noise_offset_probability"))
        if share != 1:
            result.change(
                "noise_offset", offset, f"added to all images, not to a share of {0.25 if share is None else share:g}"
            )
    return {"snr_gamma", "use_soft_min_snr", "soft_min_snr_sigma_data", "noise_offset"}


def _previews(given: Mapping[str, Any], result: Translation) -> set[str]:
    prompt = same(given.get("validation_prompt"))
    result.put("previews.prompts", [plain_line(result, "validation_prompt", prompt)] if prompt else None)
    sizes = str(given.get("validation_resolution") or "").lower().split(",")
    edges = [edge_of(edge, "area") for edge in sizes[0].split("x") if edge.strip().replace(".", "").isdigit()]
    if not edges and same(given.get("validation_resolution")):
        result.lose("validation_resolution", given["validation_resolution"], "not understood")
    if edges:
        written = [number(edge) for edge in sizes[0].split("x") if edge.strip().replace(".", "").isdigit()]
        if any(edge != taken and (edge or 0) >= _FEWEST_PIXELS for edge, taken in zip(written, edges, strict=False)):
            size = "x".join(map(str, edges))
            result.change("validation_resolution", sizes[0], f"a multiple of {LATENT_FACTOR} is needed: {size}")
        result.put("previews.width_px", edges[0])
        result.put("previews.height_px", edges[-1])
    if len(sizes) > 1:
        result.lose(
            "validation_resolution", ",".join(sizes[1:]), "one size; a prompt may have its own: --w 768 --h 1024"
        )
    return {"validation_prompt", "validation_resolution"}


def _data(given: Mapping[str, Any], result: Translation, read_json: ReadJson) -> set[str]:
    kind = str(given.get("resolution_type", "pixel_area"))
    put_resolution(result, given, kind)
    file = given.get("data_backend_config")
    backends = read_json(str(file)) if file else None
    if not isinstance(backends, list):
        result.lose("data_backend_config", file or "", "no such file near this one; set images.folder")
        return {"resolution", "resolution_type"}
    data = from_backends(backends)
    result.join(data)
    return {"resolution", "resolution_type"}
