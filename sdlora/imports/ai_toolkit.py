"""ai-toolkit's YAML in our terms. Facts from the example settings that come with it and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdlora.imports.ai_toolkit_data import as_always, put_datasets
from sdlora.imports.optimizers import optimizer, put_options
from sdlora.imports.previews import preview_line, prompt_line, sampler
from sdlora.imports.translation import (
    PRECISION,
    SCHEDULE,
    Convert,
    Translation,
    alpha,
    count,
    legible,
    number,
    one_of,
    put_edges,
    same,
    some,
    switch,
)

_FAMILIES = {"sd1": "sd1", "sd15": "sd1", "sd2": "sd2", "sdxl": "sdxl"}
_NOISIEST = 999
_TRAIN_DEFAULTS: dict[str, Any] = {
    "steps": 1000, "lr": 1e-6, "optimizer": "adamw", "dtype": "fp32", "gradient_checkpointing": True,
}  # fmt: skip
"""What a file leaves out, where ours differs."""
_USUAL: dict[str, dict[str, Any]] = {
    "train": {
        "loss_target": "noise", "num_train_timesteps": 1000, "img_multiplier": 1, "latent_multiplier": 1,
        "noisy_latent_multiplier": 1, "noise_multiplier": 1, "target_noise_multiplier": 1, "cfg_scale": 1,
        "pred_scaler": 1,
    },
    "network": {},
}  # fmt: skip
"""What a setting that we don't have is by default there, and always is here."""
_ON_THERE = {"model": ("use_text_encoder_1", "use_text_encoder_2")}
"""On by default there and always here, so that it is to be said when they are off."""
_JOBS = ("sd_trainer", "ui_trainer", "diffusion_trainer")


def _noise_scheduler(value: Any) -> None:
    if value != "ddpm":
        raise ValueError("noise is added as in DDPM")


def _schedule(value: Any) -> str | None:
    found: str | None = SCHEDULE("constant" if value == "none" else value)
    return found


SECTIONS: dict[str, dict[str, tuple[str, Convert]]] = {
    "network": {
        "type": ("adapter.algorithm", one_of(lora="lora", locon="lora", loha="loha", lokr="lokr", dora="lora")),
        "linear": ("adapter.rank", count),
        "rank": ("adapter.rank", count),
        "conv": ("adapter.conv_rank", count),
        "dropout": ("adapter.dropout", some),
        "pretrained_lora_path": ("adapter.start_from", same),
    },
    "save": {
        "dtype": ("outputs.precision", PRECISION),
        "save_every": ("outputs.checkpoint_every", count),
        "max_step_saves_to_keep": ("outputs.keep_checkpoints", count),
    },
    "train": {
        "batch_size": ("optimization.batch_size", count),
        "steps": ("optimization.steps", count),
        "gradient_accumulation": ("optimization.accumulation", count),
        "gradient_checkpointing": ("optimization.gradient_checkpointing", switch),
        "optimizer": ("optimization.optimizer", optimizer),
        "lr": ("optimization.learning_rate", some),
        "unet_lr": ("optimization.learning_rate", some),
        "lr_scheduler": ("optimization.schedule", _schedule),
        "train_text_encoder": ("adapter.text_encoder", switch),
        "text_encoder_lr": ("optimization.text_encoder_learning_rate", some),
        "max_grad_norm": ("optimization.max_gradient_norm", number),
        "dtype": ("optimization.precision", PRECISION),
        "noise_offset": ("objective.noise_offset", some),
        "loss_type": ("objective.loss", one_of(mse="mse", mae="l1", pseudo_huber="huber")),
        "reg_weight": ("objective.prior_weight", some),
        "prompt_dropout_prob": ("captions.dropout", some),
        "text_dropout_rate": ("captions.dropout", some),
        "noise_scheduler": ("", _noise_scheduler),
    },
    "sample": {
        "sampler": ("previews.sampler", sampler),
        "neg": ("previews.negative", lambda value: same(value) or None),
        "sample_every": ("previews.every", count),
        "sample_steps": ("previews.steps", count),
        "guidance_scale": ("previews.guidance", number),
        "width": ("previews.width_px", count),
        "height": ("previews.height_px", count),
        "seed": ("previews.seed", count),
    },
    "logging": {
        "use_wandb": ("outputs.wandb", switch),
        "project_name": ("outputs.wandb_project", same),
    },
}
_TOLD_APART = ("lokr_factor", "lokr_full_rank", "disable_sampling", "train_unet", "dtype", "qtype")
WITHOUT_EFFECT: dict[str, set[str]] = {
    "network": {"transformer_only", "old_lokr_format", "lokr_factor", "lokr_full_rank", "layer_offloading"},
    "save": {"save_format", "push_to_hub", "hf_repo_id", "hf_private"},
    "train": {
        "train_unet", "skip_first_sample", "force_first_sample", "disable_sampling", "xformers", "sdp",
        "attention_backend", "cache_text_embeddings", "timestep_type", "linear_timesteps", "linear_timesteps2",
        "switch_boundary_every", "single_item_batching", "paramiter_swapping_factor", "gelu_acceleration_enabled",
        "attention_f32_rope_enabled", "refiner_lr", "embedding_lr", "adapter_lr", "train_refiner",
    },
    "sample": {
        "sample_start_step", "format", "ext", "num_frames", "fps", "refiner_start_at",
        "extend_prompts", "use_embeddings",
    },
    "logging": {"log_every", "verbose", "use_ui_logger", "run_name"},
    "model": {"low_vram", "dtype", "qtype", "qtype_te", "quantize_te", "model_kwargs", "layer_offloading", "compile"},
}  # fmt: skip
"""About speed, caches, window or upload, or of models that aren't trained here."""

_REASONS = {
    "unload_text_encoder": "there all images are trained on the trigger alone; here on their captions",
    "loss_target": "the noise, or the velocity, is predicted here",
    "num_train_timesteps": "all 1000 timesteps are trained here",
}
_READ_APART: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "network": (
        ("linear", "rank", "conv", "alpha", "linear_alpha", "conv_alpha", "lokr_factor"), ("lokr_full_rank",)
    ),
    "train": (
        ("min_snr_gamma", "snr_gamma", "ema_config.ema_decay", "pseudo_huber_c", "inverted_mask_prior_multiplier",
         "text_encoder_lr", "lr", "min_denoising_steps", "max_denoising_steps", "optimizer_params.weight_decay",
         "diff_output_preservation_multiplier", "gradient_accumulation_steps"),
        ("train_unet", "ema_config.use_ema", "inverted_mask_prior", "diff_output_preservation", "disable_sampling"),
    ),
    "sample": (("network_multiplier", "seed"), ("walk_seed",)),
}  # fmt: skip
"""Numbers and switches of a section that are read outside `SECTIONS`."""


def from_job(job: Mapping[str, Any]) -> Translation:
    """A job's settings; of several processes the first. Raises ValueError for jobs and models of other kinds."""
    result = Translation()
    config = job.get("config") or {}
    processes = config.get("process") or []
    if not processes:
        raise ValueError("it has no config.process")
    process = processes[0]
    kind = str(process.get("type", "sd_trainer"))
    if kind not in _JOBS:
        raise ValueError(f"it is a job of type {kind}; only trainings of an adapter on images can be taken over")
    for other in processes[1:]:
        result.lose("config.process", other.get("type"), "only the first process is taken")
    result.put("name", same(config.get("name")))
    result.sources["name"] = "config.name"
    result.put("outputs.folder", process.get("training_folder"))
    result.put("captions.trigger", process.get("trigger_word"))
    _model(process.get("model") or {}, result)
    is_without_previews = False
    for section, table in SECTIONS.items():
        if section == "sample" and is_without_previews:
            continue
        settings = _flattened(process.get(section) or {})
        if section == "train":
            result.assume(_TRAIN_DEFAULTS, settings, "train.")
            settings = {**_TRAIN_DEFAULTS, **settings}
        settings = legible(settings, result, *_READ_APART.get(section, ((), ())), f"{section}.")
        known = result.take(settings, table, f"{section}.")
        known |= result.pass_over(settings, WITHOUT_EFFECT[section], f"{section}.", _TOLD_APART)
        for edge in ("width", "height") if section == "sample" else ():
            put_edges(result, f"sample.{edge}", settings.get(edge), f"previews.{edge}_px")
        known |= as_always(settings, _USUAL.get(section, {}))
        known |= _SPECIAL.get(section, _nothing)(settings, result)
        result.lose_rest(settings, known, f"{section}.", _REASONS)
        if section == "train" and switch(settings.get("disable_sampling")):
            is_without_previews = True
            result.change("train.disable_sampling", True, "no previews, as there: what `sample` says is left out")
    if not result.values.get("outputs.wandb"):
        result.values.pop("outputs.wandb_project", None)
    # Put the trigger into prompts that hold its place as [trigger]
    trigger, prompts = result.values.get("captions.trigger", ""), result.values.get("previews.prompts")
    if prompts:
        result.put("previews.prompts", [str(prompt).replace("[trigger]", trigger).strip() for prompt in prompts])
    device = str(process.get("device") or "cuda")
    result.put("optimization.device", None if device in ("cuda", "cuda:0") else device)
    _batches_between_steps(process.get("train") or {}, result)
    put_datasets(process.get("datasets") or [], result)
    top = {*SECTIONS, "datasets", "model", "type", "training_folder", "trigger_word", "device", "performance_log_every"}
    result.lose_rest(process, top | {"sqlite_db_path", "meta"})
    return result


def _flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Inner mappings as `outer.inner`."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"'{settings}' stands where a section of settings belongs")
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    return flat


def _batches_between_steps(train: Mapping[str, Any], result: Translation) -> None:
    """gradient_accumulation_steps: all that counts steps counts batches there, of which so many make an update."""
    try:
        batches = count(train.get("gradient_accumulation_steps")) or 1
    except ValueError:  # noted where the section is read
        return
    if batches <= 1:
        return
    result.put("optimization.accumulation", batches * result.values.get("optimization.accumulation", 1))
    for name in ("optimization.steps", "outputs.checkpoint_every", "previews.every"):
        if name in result.values:
            result.put(name, max(1, result.values[name] // batches))
    result.change(
        "train.gradient_accumulation_steps",
        batches,
        f"steps are batches there and updates here, so steps and intervals are divided by {batches}",
    )


def _nothing(settings: Mapping[str, Any], result: Translation) -> set[str]:
    return set()


def _network(settings: Mapping[str, Any], result: Translation) -> set[str]:
    rank, conv_rank = count(settings.get("rank")) or count(settings.get("linear")), count(settings.get("conv"))
    result.put("adapter.layers", "all+conv" if conv_rank is not None else None)
    linear_alpha = settings.get("linear_alpha", settings.get("alpha"))
    result.put("adapter.alpha", alpha(linear_alpha, rank, 1.0))
    result.put("adapter.conv_alpha", alpha(settings.get("conv_alpha"), conv_rank, float(conv_rank or 1)))
    for name, value in (("linear_alpha", linear_alpha), ("conv_alpha", settings.get("conv_alpha"))):
        if value is not None and number(value) == 0:
            result.change(f"network.{name}", value, "means the rank there")
    if result.values.get("adapter.algorithm") in ("loha", "lokr"):
        result.drop("adapter.dropout", "has no effect on LoHa and LoKr there either; adapter.dropout leaves out rows")
    if settings.get("type") == "dora":
        result.put("adapter.dora", True)
    if settings.get("type") == "lokr":
        if switch(settings.get("lokr_full_rank")):
            result.put("adapter.lokr_full", True)
            result.put("adapter.layers", "all+conv")  # sets a rank for convolutions there, whatever `conv` says
        factor = count(settings.get("lokr_factor")) or -1
        result.put("adapter.lokr_factor", factor if factor > 0 else None)
    return {"alpha", "linear_alpha", "conv_alpha"}


def _train(settings: Mapping[str, Any], result: Translation) -> set[str]:
    _weighting(settings, result)
    if "train_unet" in settings and not switch(settings["train_unet"]):
        result.put("adapter.unet", False)
        result.put("optimization.learning_rate", some(settings.get("text_encoder_lr")))
    if switch(settings.get("ema_config.use_ema")):
        result.put("optimization.ema", number(settings.get("ema_config.ema_decay", 0.999)))
    if result.values.get("objective.loss") == "huber":
        result.put("objective.huber_delta", some(settings.get("pseudo_huber_c", 0.01)))
        result.put("objective.huber_schedule", "constant")
    if switch(settings.get("inverted_mask_prior")):
        result.put("objective.prior_outside_mask", number(settings.get("inverted_mask_prior_multiplier", 0.5)))
    _preservation(settings, result)
    kind = settings.get("content_or_style", "balanced")
    if kind == "content":
        result.put("objective.timestep_distribution", "cubic")
    elif kind != "balanced":
        result.lose("train.content_or_style", kind, "no draw favours little noise; objective.max_timestep bounds it")
    prefix = "optimizer_params."
    options = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    if options.get("weight_decay") is not None:
        options["weight_decay"] = number(options["weight_decay"])
    is_adafactor = result.values.get("optimization.optimizer") == "adafactor"
    put_options(result, options, {"relative_step": False, "scale_parameter": False} if is_adafactor else None)
    if result.values.get("adapter.text_encoder"):
        rate = some(settings.get("text_encoder_lr")) or some(settings.get("lr"))
        result.put("optimization.text_encoder_learning_rate", rate)
    _timesteps(settings, result)
    handled = {
        "min_snr_gamma", "snr_gamma", "ema_config.use_ema", "ema_config.ema_decay", "pseudo_huber_c",
        "inverted_mask_prior", "inverted_mask_prior_multiplier", "content_or_style", "diff_output_preservation",
        "diff_output_preservation_multiplier", "diff_output_preservation_class", "blank_prompt_preservation_multiplier",
        "min_denoising_steps", "max_denoising_steps", "gradient_accumulation_steps",
    }  # fmt: skip
    handled |= {"optimizer_params", "ema_config"} - settings.keys()  # sections, which are flattened by now
    return handled | {name for name in settings if name.startswith(prefix)}


def _weighting(settings: Mapping[str, Any], result: Translation) -> None:
    """snr_gamma goes before min_snr_gamma there, and has no cap."""
    capped, uncapped = some(settings.get("min_snr_gamma")), some(settings.get("snr_gamma"))
    if uncapped and capped:
        result.lose("train.min_snr_gamma", capped, "snr_gamma goes before it there, and is taken")
    if uncapped:
        result.change("train.snr_gamma", uncapped, "as min_snr: gamma / SNR, but here never above 1")
    if gamma := uncapped or capped:
        result.put("objective.weighting", "min_snr")
        result.put("objective.min_snr_gamma", gamma)


def _timesteps(settings: Mapping[str, Any], result: Translation) -> None:
    """Denoising steps are counted from the noisiest one."""
    first, last = (settings.get(f"{end}_denoising_steps") for end in ("min", "max"))
    lowest, highest = _NOISIEST - min(count(last) or 1000, _NOISIEST), _NOISIEST - (count(first) or 0)
    if (lowest, highest) != (0, _NOISIEST):
        result.put("objective.min_timestep", lowest)
        result.put("objective.max_timestep", highest)
        result.change(
            "train.min_denoising_steps, max_denoising_steps",
            f"{first or 0}, {last or 1000}",
            f"counted from the noisiest there: timesteps {lowest} to {highest}",
        )


def _preservation(settings: Mapping[str, Any], result: Translation) -> None:
    if not switch(settings.get("diff_output_preservation")):
        return
    result.put("objective.prior_preservation", "base_prediction")
    result.put("objective.prior_weight", some(settings.get("diff_output_preservation_multiplier", 1.0)))
    name = settings.get("diff_output_preservation_class")
    result.change(
        "train.diff_output_preservation", True, f"the trigger is taken out of the captions, not replaced by '{name}'"
    )


def _sample(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """Prompts, or the samples of newer files, each with options of its own."""
    letters = {"neg": "n", "width": "w", "height": "h", "seed": "d", "guidance_scale": "l", "sample_steps": "s"}
    letters["network_multiplier"] = "am"
    prompts = settings.get("prompts") or ()
    if isinstance(prompts, str):
        prompts = [prompts]
    for name in ("prompts", "samples"):
        if settings.get(name) and not isinstance(settings[name], (list, str) if name == "prompts" else list):
            result.lose(f"sample.{name}", settings[name], "no list")
    given = prompts if isinstance(prompts, list) else []
    lines = [prompt_line(result, "sample.prompts", prompt, {"m": "am"}) for prompt in given]
    samples = settings.get("samples")
    for sample in samples if isinstance(samples, list) else ():
        if isinstance(sample, Mapping) and sample.get("prompt"):
            options = {letter: sample.get(name) for name, letter in letters.items()}
            lines.append(preview_line(result, "sample.samples", sample["prompt"], options))
        else:
            result.lose("sample.samples", sample, "it has no prompt")
    weight, seed = number(settings.get("network_multiplier")), count(settings.get("seed")) or 0
    if weight not in (None, 1):
        lines = [line if " --am " in line else f"{line} --am {weight:g}" for line in lines]
    if len(lines) > 1 and not switch(settings.get("walk_seed")):
        # One seed for all there, where ours counts up.
        lines = [line if " --d " in line else f"{line} --d {seed}" for line in lines]
    result.put("previews.prompts", lines or None)
    return {"prompts", "samples", "network_multiplier", "walk_seed"}


_SPECIAL = {"network": _network, "train": _train, "sample": _sample}


def _model(model: Mapping[str, Any], result: Translation) -> None:
    model = legible(model, result, (), ("is_xl", "is_v2", "is_v_pred", "quantize"), "model.")
    result.put("base_model.model", same(model.get("name_or_path")))
    result.put("base_model.vae", same(model.get("vae_path")))
    flags = {"is_xl": "sdxl", "is_v2": "sd2"}
    families = [family for flag, family in flags.items() if switch(model.get(flag))]
    architecture = str(model.get("arch") or "")
    others = [name for name in model if name.startswith("is_") and name not in (*flags, "is_v_pred") and model[name]]
    if architecture in _FAMILIES:
        families.append(_FAMILIES[architecture])
    elif architecture or others:
        named = architecture or others[0].removeprefix("is_")
        raise ValueError(f"it trains {named}; only Stable Diffusion 1.x, 2.x and XL can be trained here")
    result.put("base_model.family", families[0] if families else None)
    result.put("base_model.prediction", "v_prediction" if switch(model.get("is_v_pred")) else None)
    if merged := same(model.get("lora_path")):
        result.put("base_model.adapters", [merged])
    if switch(model.get("quantize")):
        result.put("base_model.quantization", "int8")
        if model.get("qtype") not in (None, "int8", "qint8"):
            result.change("model.qtype", model["qtype"], "held in int8 here")
    known = {"name_or_path", "vae_path", "lora_path", "arch", "is_v_pred", "quantize", *flags}
    known |= result.pass_over(model, WITHOUT_EFFECT["model"], "model.", _TOLD_APART)
    known |= {name for name in model if name.startswith("is_")}
    for name in _ON_THERE["model"]:
        known.add(name)
        if name in model and not switch(model[name]):
            result.lose(f"model.{name}", model[name], "both text encoders of a base are always used here")
    result.lose_rest(model, known, "model.")
