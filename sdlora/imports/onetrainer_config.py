"""OneTrainer's training configuration in our terms, saved by its window or shipped as a preset.

Names, values and defaults as in its TrainConfig (versions 0 to 12); what a file leaves out has OneTrainer's default,
not ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

from sdlora.config.adapter import REGEX_PREFIX
from sdlora.imports.onetrainer import from_concepts
from sdlora.imports.onetrainer_optimizer import put_optimizer
from sdlora.imports.onetrainer_parts import count_updates, part_of, parts, put_end, scale, stops
from sdlora.imports.previews import preview_line
from sdlora.imports.translation import (
    Convert,
    Translation,
    averaged,
    count,
    edges,
    legible,
    number,
    one_of,
    put_edges,
    same,
    some,
    switch,
)

_DEFAULTS: dict[str, Any] = {
    "model_type": "STABLE_DIFFUSION_15",
    "base_model_name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "learning_rate": 3e-6,
    "learning_rate_warmup_steps": 200,
    "epochs": 100,
    "train_dtype": "FLOAT_16",
    "output_dtype": "FLOAT_32",
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "layer_filter_preset": "full",
    "unmasked_weight": 0.1,
}
_FAMILIES = {
    "STABLE_DIFFUSION_15": ("sd1", None),
    "STABLE_DIFFUSION_20": ("sd2", "v_prediction"),
    "STABLE_DIFFUSION_20_BASE": ("sd2", None),
    "STABLE_DIFFUSION_21": ("sd2", "v_prediction"),
    "STABLE_DIFFUSION_21_BASE": ("sd2", None),
    "STABLE_DIFFUSION_XL_10_BASE": ("sdxl", None),
}
_LAYERS = {"full": "all+conv", "attn-mlp": "all", "attn-only": "attention"}
_PRECISION = one_of(float_32="fp32", tfloat_32="fp32", float_16="fp16", bfloat_16="bf16")
_SAMPLERS = {
    "EULER": "Euler", "EULER_A": "Euler a", "DPMPP": "DPM++ 2M", "DPMPP_KARRAS": "DPM++ 2M Karras",
    "DPMPP_SDE": "DPM++ SDE", "DPMPP_SDE_KARRAS": "DPM++ SDE Karras", "UNIPC": "UniPC",
}  # fmt: skip
_KNOWN_OF_SAMPLES = {
    "__version", "enabled", "prompt", "random_seed", "noise_scheduler", "frames", "length",
    "transformer_attention_mask", "prior_attention_mask",
}  # fmt: skip
_UNITS = {"sample_after": "MINUTE", "save_every": "NEVER", "validate_after": "EPOCH", "backup_after": "MINUTE"}
"""Of intervals whose unit a file leaves out."""
_BACKUP = (30, "MINUTE")
"""What the window comes with: states that are written besides the saved adapters."""
_MAGNITUDES = "with a magnitude for each output here, for each input there"
_TIMESTEPS = one_of(uniform="uniform", logit_normal="logit_normal")
_SCHEDULE = one_of(
    constant="constant",
    linear="linear",
    cosine="cosine",
    cosine_with_restarts="cosine_with_restarts",
    cosine_with_hard_restarts="cosine_with_restarts",
    rex="rex",
)


SETTINGS: dict[str, tuple[str, Convert]] = {
    "base_model_name": ("base_model.model", same),
    "rescale_noise_scheduler_to_zero_terminal_snr": ("base_model.zero_terminal_snr", switch),
    "output_model_destination": ("name", lambda value: PureWindowsPath(str(value)).stem or None),
    "output_dtype": ("outputs.precision", _PRECISION),
    "resolution": ("images.resolution", edges),
    "aspect_ratio_bucketing": ("images.buckets", lambda value: None if value else False),
    "masked_training": ("images.mask", lambda value: "file" if switch(value) else None),
    "learning_rate": ("optimization.learning_rate", some),
    "learning_rate_scheduler": ("optimization.schedule", _SCHEDULE),
    "learning_rate_warmup_steps": ("optimization.warmup", some),
    "learning_rate_cycles": ("optimization.schedule_cycles", count),
    "learning_rate_min_factor": ("optimization.schedule_floor", some),
    "epochs": ("optimization.epochs", count),
    "batch_size": ("optimization.batch_size", count),
    "gradient_accumulation_steps": ("optimization.accumulation", count),
    "train_dtype": ("optimization.precision", _PRECISION),
    "clip_grad_norm": ("optimization.max_gradient_norm", lambda value: number(value) or 0),
    "peft_type": ("adapter.algorithm", one_of(lora="lora", loha="loha", lokr="lokr")),
    "lora_rank": ("adapter.rank", count),
    "lora_alpha": ("adapter.alpha", some),
    "lora_decompose": ("adapter.dora", switch),
    "lora_model_name": ("adapter.start_from", same),
    "dropout_probability": ("adapter.dropout", some),
    "offset_noise_weight": ("objective.noise_offset", some),
    "masked_prior_preservation_weight": ("objective.prior_outside_mask", some),
    "perturbation_noise_weight": ("objective.input_perturbation", some),
    "timestep_distribution": (
        "objective.timestep_distribution",
        _TIMESTEPS,
    ),
    # Strengths are shares of the 1000 timesteps; our last timestep counts as trained, so it is one less.
    "min_noising_strength": ("objective.min_timestep", lambda value: round(1000 * float(value)) or None),
    "max_noising_strength": ("objective.max_timestep", lambda value: round(1000 * float(value)) - 1),
}
_TOLD_APART = (
    "__version", "training_method", "model_type", "weight_dtype", "unmasked_probability", "embedding", "embeddings",
    "token_count", "initial_embedding_text", "lora_decompose_output_axis", "optimizer_defaults", "validation",
)  # fmt: skip
_WITHOUT_EFFECT = {
    "__version", "training_method", "model_type", "debug_mode", "debug_dir", "workspace_dir", "cache_dir", "validation",
    "continue_last_backup", "prevent_overwrites", "include_train_config", "output_model_format", "async_offloading",
    "enable_async_offloading", "enable_activation_offloading", "image_caching", "text_caching", "latent_caching",
    "latent_caching_epochs", "clear_cache_before_training", "dataloader_threads",
    "caching_threads", "prefetch_next_batch", "train_device", "temp_device", "fallback_train_dtype", "frames",
    "enable_autocast_cache", "only_cache", "attention_mechanism", "vb_loss_strength", "compile", "weight_dtype",
    "embedding_weight_dtype", "embedding", "embeddings", "cloud",
    "optimizer_defaults", "secrets", "quantization", "custom_learning_rate_scheduler",
    "lora_decompose_norm_epsilon", "lora_decompose_output_axis",
    "text_encoder_sequence_length", "text_encoder_2_sequence_length", "device_indexes",
    "layer_offload_fraction", "samples_to_tensorboard", "non_ema_sampling", "rolling_backup", "rolling_backup_count",
    "backup_before_save", "extra_model_name", "text_encoder_weight_dtype", "vae_weight_dtype", "token_count",
    "circular_mask_generation", "unmasked_probability", "initial_embedding_text",
}  # fmt: skip
"""Settings about speed, machine, window or other kinds of training: the adapter is the same without them."""
_OTHER_PREFIXES = (
    "tensorboard", "validate_", "sample_", "backup_", "save_", "oft_", "lokr_", "gradient_reduce", "async_gradient",
    "fused_gradient", "multi_gpu", "unconditional_", "effnet_", "decoder", "prior", "transformer", "text_encoder_3",
    "text_encoder_4", "dynamic_", "dora_oft",
)  # fmt: skip
"""Beginnings of names that are dealt with elsewhere, or belong to models that can't be trained here."""

_NUMBERS = (
    "learning_rate", "epochs", "batch_size", "mse_strength", "mae_strength", "huber_strength", "huber_delta",
    "min_snr_gamma", "loss_weight_strength", "unmasked_weight", "ema_decay", "sample_after", "save_every", "lokr_dim",
    "lokr_decompose_factor", "text_encoder_layer_skip", "weight_decay", "min_noising_strength", "max_noising_strength",
    "timestep_shift", "noising_weight", "noising_bias", "text_encoder_2_layer_skip", "gradient_accumulation_steps",
    "ema_update_step_interval", "validate_after",
)  # fmt: skip
_SWITCHES = (
    "force_v_prediction", "force_epsilon_prediction", "masked_training", "lokr_decompose_both", "lokr_full_matrix",
    "lokr_use_tucker", "lokr_weight_decompose", "validation", "lokr_dora_on_output", "lora_decompose_output_axis",
    "layer_filter_regex", "lora_layers_regex",
)  # fmt: skip
_NUMBERS_OF_PARTS = ("learning_rate", "stop_training_after", "dropout_probability")
"""What is read outside `SETTINGS`, where each conversion answers for itself."""


def from_config(
    settings: Mapping[str, Any], concepts: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]
) -> Translation:
    """The whole configuration; concepts and samples are those of the file, or of the files that it names."""
    result = from_concepts(concepts) if concepts else Translation()
    known = result.pass_over(settings, _WITHOUT_EFFECT, read_apart=_TOLD_APART)
    is_filtered = _filter_name(settings) or settings.get("lora_layer_preset")
    result.assume(_DEFAULTS, {*settings, *(["layer_filter_preset"] if is_filtered else [])})
    settings = legible({**_DEFAULTS, **settings}, result, _NUMBERS, _SWITCHES)
    result.note_fractions(settings, ("lokr_dim", "text_encoder_layer_skip", "sample_after", "save_every"))
    own_resolution = result.values.get("images.resolution")
    known |= result.take(settings, SETTINGS)
    put_edges(result, "resolution", settings.get("resolution"), "images.resolution")
    result.put("images.resolution", own_resolution)  # a concept's resolution goes before that of the run
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if isinstance(settings.get(part), Mapping):
            settings[part] = legible(settings[part], result, _NUMBERS_OF_PARTS, ("train",), f"{part}.")
    known |= _model(settings, result) | _layers(settings, result) | parts(settings, result)
    known |= (
        _new_tokens(settings, result)
        | put_optimizer(settings, result)
        | _averaging(settings, result)
        | _loss(settings, result)
    )
    known |= _masks(settings, result) | _timesteps(settings, result)
    known |= _samples(settings, samples, result) | {"concepts", "concept_file_name"}
    if result.values.get("optimization.warmup") == 1:
        result.drop("optimization.warmup", "is the whole run there: set it to a share of the steps, or to their number")
    scale(settings, result)  # of all rates, so after the tokens' own
    count_updates(settings, result)
    result.lose_rest({name: value for name, value in settings.items() if not name.startswith(_OTHER_PREFIXES)}, known)
    return result


def _model(settings: Mapping[str, Any], result: Translation) -> set[str]:
    kind = str(settings["model_type"])
    family, prediction = _FAMILIES.get(kind, (None, None))
    if family is None:
        raise ValueError(f"it trains {kind}; only Stable Diffusion 1.x, 2.x and XL can be trained here")
    method = settings.get("training_method", "LORA")
    if method != "LORA":
        alone = "; for tokens alone set adapter.new_tokens and adapter.rank=0" if method == "EMBEDDING" else ""
        result.lose("training_method", method, f"adapters are trained here, so it is taken as LORA{alone}")
    if switch(settings.get("force_v_prediction")):
        prediction = "v_prediction"
    elif switch(settings.get("force_epsilon_prediction")):
        prediction = "epsilon"
    result.put("base_model.family", family)
    result.put("base_model.prediction", prediction)
    result.put("base_model.vae", same(part_of(settings, "vae").get("model_name")))
    return {"vae", "vae_model_name", "force_v_prediction", "force_epsilon_prediction"}


def _layers(settings: Mapping[str, Any], result: Translation) -> set[str]:
    name = _filter_name(settings)
    preset = str(settings.get("lora_layer_preset") or settings["layer_filter_preset"])
    if name is None:
        # The preset of the window, which fills in the filter from it.
        layers = _LAYERS.get(preset)
        if layers is None:
            called = "lora_layer_preset" if settings.get("lora_layer_preset") else "layer_filter_preset"
            result.lose(called, preset, "set adapter.layers to a layer set or regex:PATTERN")
    else:
        layers = _filtered(name, settings, result)
        if layers and _LAYERS.get(preset, layers) != layers:
            result.change(name, settings[name], f"taken, as there; the preset {preset} is only for its window")
    result.put("adapter.layers", layers)
    if settings.get("peft_type", "LORA") != "LORA":
        result.values.pop("adapter.dora", None)  # lora_decompose is LoRA's alone there
    elif result.values.get("adapter.dora") and not switch(settings.get("lora_decompose_output_axis")):
        result.change("lora_decompose", True, _MAGNITUDES)
    if settings.get("peft_type") == "LOKR":
        result.put("adapter.rank", count(settings.get("lokr_dim")))
        result.put("adapter.lokr_factor", count(settings.get("lokr_decompose_factor")) or -1)
        result.put("adapter.lokr_decompose_both", switch(settings.get("lokr_decompose_both")))
        result.put("adapter.lokr_full", switch(settings.get("lokr_full_matrix")))
        if str(result.values.get("adapter.layers")).startswith(("all+conv", REGEX_PREFIX)):
            result.put("adapter.tucker", switch(settings.get("lokr_use_tucker")))
        result.put("adapter.dora", switch(settings.get("lokr_weight_decompose")))
        if result.values.get("adapter.dora") and not switch(settings.get("lokr_dora_on_output", True)):
            result.change("lokr_weight_decompose", True, _MAGNITUDES)
    names = {"layer_filter", "layer_filter_preset", "layer_filter_regex"}
    return names | {"lora_layers", "lora_layer_preset", "lora_layers_regex"}


def _filter_name(settings: Mapping[str, Any]) -> str | None:
    """What the filter is called in this file; files of before version 9 or so call it otherwise."""
    return next((name for name in ("layer_filter", "lora_layers") if isinstance(settings.get(name), str)), None)


def _filtered(name: str, settings: Mapping[str, Any], result: Translation) -> str | None:
    """Layers whose path holds one of the words between commas, or matches one of the patterns; an empty one has all."""
    words = [word.strip() for word in str(settings[name]).split(",")]
    if "" in words:
        return "all+conv"
    if words in (["attentions"], ["attn"]):
        return _LAYERS["attn-mlp" if words == ["attentions"] else "attn-only"]
    is_pattern = any(switch(settings.get(f"{start}_regex")) for start in ("layer_filter", "lora_layers"))
    pattern = "|".join(words if is_pattern else map(re.escape, words))
    try:
        re.compile(pattern)
    except re.error as error:
        result.lose(name, settings[name], f"no regular expression ({error}): set adapter.layers")
        return None
    return f"{REGEX_PREFIX}{pattern}"


def _timesteps(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """What shapes the draw further has no counterpart."""
    shift = number(settings.get("timestep_shift"))
    if shift not in (None, 1):
        result.lose("timestep_shift", shift, "timesteps are drawn without a shift")
    is_shaped = result.values.get("objective.timestep_distribution") == "logit_normal"
    for name in ("noising_weight", "noising_bias"):
        if is_shaped and some(settings.get(name)):
            result.lose(name, settings[name], "logit_normal has one shape here")
    return {"timestep_shift", "noising_weight", "noising_bias"}


def _new_tokens(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """The embeddings that are trained with an adapter; that of an embedding alone is another kind of training."""
    tokens: dict[str, Any] = {}
    for own in settings.get("additional_embeddings") or ():
        token = str(own.get("placeholder", "<embedding>"))
        if own.get("train") is False or own.get("model_name") or own.get("is_output_embedding"):
            why = "only tokens that begin with words are trained; others are used by generate's embedding_folders"
            result.lose("additional_embeddings", token, why)
            continue
        tokens[token] = {
            "init": str(own.get("initial_embedding_text") or "*"),
            "vectors": count(own.get("token_count")),
        }
        if stops(own) and "optimization.new_tokens_until" not in result.values:
            put_end("new_tokens", own, settings, result)
    if tokens:
        result.put("adapter.new_tokens", tokens)
        for part in ("text_encoder", "text_encoder_2"):
            if part_of(settings, part).get("train_embedding") is False:
                result.lose(f"{part}.train_embedding", False, "new tokens are trained for every text encoder")
        if not switch(settings.get("preserve_embedding_norm")):
            result.change("preserve_embedding_norm", False, "new tokens keep near the vocabulary's spread always here")
        if len(tokens) == 1 and "captions.trigger" not in result.values:
            token = next(iter(tokens))
            result.change("additional_embeddings", token, "becomes captions.trigger too, so captions without it get it")
        rate = some(settings.get("embedding_learning_rate")) or some(settings["learning_rate"])
        result.put("optimization.new_token_learning_rate", rate)
        result.put("outputs.bundle_embeddings", switch(settings.get("bundle_additional_embeddings", True)))
    return {
        "additional_embeddings",
        "embedding_learning_rate",
        "bundle_additional_embeddings",
        "preserve_embedding_norm",
    }


def _averaging(settings: Mapping[str, Any], result: Translation) -> set[str]:
    if settings.get("ema", "OFF") != "OFF":
        decay, every = number(settings.get("ema_decay", 0.999)), count(settings.get("ema_update_step_interval", 5))
        result.put("optimization.ema", ours := averaged(decay, every))
        if ours != decay:
            why = f"every {every} steps there; {ours} after each step is as slow"
            result.change("ema_decay", decay, why)
    return {"ema", "ema_decay", "ema_update_step_interval"}


def _loss(settings: Mapping[str, Any], result: Translation) -> set[str]:
    strengths = {"mse": "mse_strength", "l1": "mae_strength", "huber": "huber_strength"}
    weights = {ours: number(settings.get(name, 1 if ours == "mse" else 0)) or 0.0 for ours, name in strengths.items()}
    strongest = max(weights, key=lambda ours: weights[ours])
    for ours, name in strengths.items():
        if weights[ours] and ours != strongest:
            result.lose(name, weights[ours], f"one loss at a time: {strongest} is taken")
    if not any(weights.values()):
        result.change(
            "mse_strength", 0, "nothing is trained there without any strength; the squared error is taken here"
        )
    result.put("objective.loss", strongest)
    if strongest == "huber":
        result.put("objective.huber_delta", some(settings.get("huber_delta", 1.0)))
        result.put("objective.huber_schedule", "constant")
    weighting, gamma = settings.get("loss_weight_fn", "CONSTANT"), some(settings.get("min_snr_gamma"))
    if weighting == "MIN_SNR_GAMMA" or gamma:
        result.put("objective.weighting", "min_snr")
        result.put("objective.min_snr_gamma", gamma or some(settings.get("loss_weight_strength", 5.0)))
    elif weighting == "DEBIASED_ESTIMATION":
        result.put("objective.weighting", "debiased")
    elif weighting != "CONSTANT":
        result.lose("loss_weight_fn", weighting)
    return {*strengths.values(), "huber_delta", "loss_weight_fn", "loss_weight_strength", "min_snr_gamma"}


def _masks(settings: Mapping[str, Any], result: Translation) -> set[str]:
    names = {"unmasked_weight", "normalize_masked_area_loss"}
    if switch(settings.get("masked_training")):
        result.put("images.unmasked_weight", number(settings["unmasked_weight"]))
        asked = {name: settings.get(name) for name in (*sorted(names), "unmasked_probability")}
        result.lose_rest(asked, {"unmasked_weight"})
    return names


def _samples(settings: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], result: Translation) -> set[str]:
    """Prompts, each with its own size, steps, guidance, seed and negative; intervals in steps or epochs."""
    if not isinstance(samples, list) or not all(isinstance(sample, Mapping) for sample in samples):
        result.lose("samples", samples, "no list of samples")
        samples = []
    samples = [legible(sample, result, (), ("enabled",), "samples.") for sample in samples]
    enabled = [sample for sample in samples if switch(sample.get("enabled", True)) and sample.get("prompt")]
    result.put("previews.prompts", [_line(sample, result) for sample in enabled] or None)
    every_of = {"sample_after": "previews.every", "save_every": "outputs.checkpoint_every"}
    if "validation.folder" in result.values and switch(settings.get("validation")):
        every_of["validate_after"] = "validation.every"
    elif folder := result.values.pop("validation.folder", None):
        result.lose("validation", f"off: {folder}", "its concept is left out, as there")
    for name in ("save_filename_prefix", "save_skip_first", "sample_skip_first"):
        result.lose_rest({name: settings.get(name)}, set())
    if (after := (settings.get("backup_after"), settings.get("backup_after_unit", _UNITS["backup_after"])))[
        1
    ] != "NEVER" and after[0]:
        if after == _BACKUP:
            result.without_effect.append("backup_after")
        else:
            shown = f"{after[0]} {after[1]}"
            result.lose("backup_after", shown, "outputs.checkpoint_every writes what a run can be resumed from")
    for name, ours in every_of.items():
        unit, every = settings.get(f"{name}_unit", _UNITS[name]), count(settings.get(name))
        if unit == "STEP":
            result.put(ours, every)
        elif unit == "EPOCH":
            result.put(ours, f"{every} epochs" if every else None)
        elif unit != "NEVER" and every and (ours != "previews.every" or enabled):
            result.lose(name, f"{settings[name]} {unit}", f"steps and epochs are possible: set {ours}")
    return {"samples"}


def _line(sample: Mapping[str, Any], result: Translation) -> str:
    """A sample as a preview prompt with options."""
    letters = {
        "negative_prompt": "n",
        "width": "w",
        "height": "h",
        "seed": "d",
        "cfg_scale": "l",
        "diffusion_steps": "s",
    }
    options = {letter: sample.get(name) for name, letter in letters.items()}
    if switch(sample.get("random_seed")):
        options["d"] = None
    kind = sample.get("noise_scheduler")
    options["ss"] = _SAMPLERS.get(str(kind), kind)
    result.lose_rest(sample, {*letters, *_KNOWN_OF_SAMPLES}, "samples.")
    return preview_line(result, "samples", sample["prompt"], options, is_plain=True)
