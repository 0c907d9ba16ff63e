"""ai-toolkit's YAML in our terms. Facts from the example settings that come with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdlora.imports.translation import (
    OPTIMIZER,
    PRECISION,
    SCHEDULE,
    Convert,
    Translation,
    caption_ending,
    count,
    edges,
    file_name,
    number,
    one_of,
    same,
    some,
    switch,
)

_FAMILIES = {"sd1": "sd1", "sd15": "sd1", "sd2": "sd2", "sdxl": "sdxl"}


def _noise_scheduler(value: Any) -> None:
    if value != "ddpm":
        raise ValueError("noise is added as in DDPM")


_SECTIONS: dict[str, dict[str, tuple[str, Convert]]] = {
    "network": {
        "type": ("adapter.algorithm", one_of(lora="lora", locon="lora", loha="loha", lokr="lokr")),
        "linear": ("adapter.rank", count),
        "rank": ("adapter.rank", count),
        "linear_alpha": ("adapter.alpha", some),
        "alpha": ("adapter.alpha", some),
        "conv": ("adapter.conv_rank", count),
        "conv_alpha": ("adapter.conv_alpha", some),
        "dropout": ("adapter.dropout", some),
    },
    "save": {
        "dtype": ("outputs.precision", PRECISION),
        "save_every": ("outputs.checkpoint_every", count),
        "max_step_saves_to_keep": ("outputs.keep_checkpoints", count),
    },
    "train": {
        "batch_size": ("optimization.batch_size", count),
        "steps": ("optimization.steps", count),
        "gradient_accumulation_steps": ("optimization.accumulation", count),
        "gradient_accumulation": ("optimization.accumulation", count),
        "gradient_checkpointing": ("optimization.gradient_checkpointing", switch),
        "optimizer": ("optimization.optimizer", OPTIMIZER),
        "lr": ("optimization.learning_rate", some),
        "unet_lr": ("optimization.learning_rate", some),
        "lr_scheduler": ("optimization.schedule", SCHEDULE),
        "train_text_encoder": ("adapter.text_encoder", switch),
        "text_encoder_lr": ("optimization.text_encoder_learning_rate", some),
        "max_grad_norm": ("optimization.max_gradient_norm", number),
        "dtype": ("optimization.precision", PRECISION),
        "noise_offset": ("objective.noise_offset", some),
        "loss_type": ("objective.loss", one_of(mse="mse", mae="l1")),
        "min_denoising_steps": ("objective.min_timestep", count),
        "max_denoising_steps": ("objective.max_timestep", lambda value: min(int(value), 999)),
        "noise_scheduler": ("", _noise_scheduler),
    },
    "sample": {
        "prompts": ("previews.prompts", same),
        "neg": ("previews.negative", same),
        "sample_every": ("previews.every", count),
        "sample_steps": ("previews.steps", count),
        "guidance_scale": ("previews.guidance", number),
        "width": ("previews.width_px", count),
        "height": ("previews.height_px", count),
        "seed": ("previews.seed", count),
    },
}
_DATASET: dict[str, tuple[str, Convert]] = {
    "resolution": ("images.resolution", edges),
    "num_repeats": ("images.repeats", count),
    "flip_x": ("images.horizontal_flip", switch),
    "random_crop": ("images.random_crop", switch),
    "buckets": ("images.buckets", lambda value: None if value else False),
    "caption_ext": ("captions.extension", caption_ending),
    "caption_dropout_rate": ("captions.dropout", some),
    "shuffle_tokens": ("captions.shuffle_tags", switch),
    "keep_tokens": ("captions.keep_tags", count),
    "token_dropout_rate": ("captions.tag_dropout", some),
    "default_caption": ("captions.default", same),
}
_WITHOUT_EFFECT = {"cache_latents", "cache_latents_to_disk", "sampler", "walk_seed", "num_workers", "prefetch_factor"}
_WITHOUT_EFFECT |= {"train_unet", "skip_first_sample", "push_to_hub", "sample_start_step", "is_flux"}


def from_job(job: Mapping[str, Any]) -> Translation:
    """A job's settings; of several processes the first."""
    result = Translation()
    config = job.get("config") or {}
    processes = config.get("process") or []
    if not processes:
        raise ValueError("it has no config.process")
    process = processes[0]
    for other in processes[1:]:
        result.lose("config.process", other.get("type"), "only the first process is taken")
    result.put("name", file_name(config.get("name", "")))
    result.put("outputs.folder", process.get("training_folder"))
    result.put("captions.trigger", process.get("trigger_word"))
    for section, table in _SECTIONS.items():
        settings = _flattened(process.get(section) or {})
        known = result.take(settings, table, f"{section}.") | _WITHOUT_EFFECT
        known |= _special(section, settings, result)
        result.lose_rest(settings, known, f"{section}.")
    # Put the trigger into prompts that hold its place as [trigger]
    trigger, prompts = result.values.get("captions.trigger", ""), result.values.get("previews.prompts")
    if prompts:
        result.put("previews.prompts", [str(prompt).replace("[trigger]", trigger).strip() for prompt in prompts])
    _datasets(process.get("datasets") or [], result)
    _model(process.get("model") or {}, result)
    top = {
        *_SECTIONS,
        "datasets",
        "model",
        "type",
        "training_folder",
        "trigger_word",
        "device",
        "performance_log_every",
    }
    result.lose_rest(process, top)
    return result


def _flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Inner mappings as `outer.inner`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            flat[name] = value
    return flat


def _special(section: str, settings: Mapping[str, Any], result: Translation) -> set[str]:
    """What takes more than a table."""
    if section == "network":
        convolutions = count(settings.get("conv")) is not None
        result.put("adapter.layers", "all+conv" if convolutions else None)
        return set()
    if section != "train":
        return set()
    if some(settings.get("min_snr_gamma")) or some(settings.get("snr_gamma")):
        result.put("objective.weighting", "min_snr")
        result.put("objective.min_snr_gamma", some(settings.get("min_snr_gamma")) or some(settings.get("snr_gamma")))
    if switch(settings.get("ema_config.use_ema")):
        result.put("optimization.ema", number(settings.get("ema_config.ema_decay", 0.999)))
    result.put("optimization.weight_decay", number(settings.get("optimizer_params.weight_decay")))
    prefix = "optimizer_params."
    options = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    options.pop("weight_decay", None)
    result.put("optimization.optimizer_options", options or None)
    handled = {"min_snr_gamma", "snr_gamma", "ema_config.use_ema", "ema_config.ema_decay"}
    return handled | {name for name in settings if name.startswith(prefix)}


def _datasets(datasets: list[Mapping[str, Any]], result: Translation) -> None:
    trained = [dataset for dataset in datasets if not switch(dataset.get("is_reg"))]
    classes = [dataset for dataset in datasets if switch(dataset.get("is_reg"))]
    folders = [str(dataset["folder_path"]) for dataset in trained if dataset.get("folder_path")]
    result.put("images.folder", folders[0] if len(folders) == 1 else folders or None)
    result.put("images.class_folder", classes[0].get("folder_path") if classes else None)
    for dataset in classes[1:]:
        result.lose("datasets", dataset.get("folder_path"), "there is one folder of class images")
    if not trained:
        return
    known = result.take(trained[0], _DATASET, "datasets.") | _WITHOUT_EFFECT | {"folder_path", "is_reg"}
    result.lose_rest(trained[0], known, "datasets.")
    for dataset in trained[1:]:
        for name in dataset.keys() - known | (dataset.keys() & _DATASET.keys()):
            if dataset[name] != trained[0].get(name):
                what = f"{dataset.get('folder_path')}: {name}"
                result.lose(what, dataset[name], "folders share the settings of the first")


def _model(model: Mapping[str, Any], result: Translation) -> None:
    result.put("base_model.model", same(model.get("name_or_path")))
    result.put("base_model.vae", same(model.get("vae_path")))
    flags = {"is_xl": "sdxl", "is_v2": "sd2"}
    families = [family for flag, family in flags.items() if switch(model.get(flag))]
    architecture = str(model.get("arch") or "")
    if architecture in _FAMILIES:
        families.append(_FAMILIES[architecture])
    elif architecture or switch(model.get("is_flux")):
        result.lose("model.arch", architecture or "flux", "only Stable Diffusion 1.x, 2.x and XL can be trained")
    result.put("base_model.family", families[0] if families else None)
    result.put("base_model.prediction", "v_prediction" if switch(model.get("is_v_pred")) else None)
    if switch(model.get("quantize")):
        result.put("base_model.quantization", "int8")
    known = {"name_or_path", "vae_path", "arch", "is_v_pred", "quantize", "low_vram", "is_flux", *flags}
    result.lose_rest(model, known, "model.")
