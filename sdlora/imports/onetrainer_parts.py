"""The parts of OneTrainer's model in our terms: which are trained, at which rate and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdlora.imports.translation import Translation, count, some

_END_OF_RUN = 1_000_000_000.0
"""Steps that no run has: a text encoder that is trained to the end although the other one is not."""
_RATES = (
    "optimization.learning_rate", "optimization.text_encoder_learning_rate",
    "optimization.text_encoder_2_learning_rate", "optimization.new_token_learning_rate",
)  # fmt: skip
_IN_STEPS = (
    "optimization.text_encoder_until", "optimization.text_encoder_2_until", "optimization.new_tokens_until",
    "previews.every", "outputs.checkpoint_every", "validation.every",
)  # fmt: skip
"""What may be a number of steps, beside the warm-up."""

_KNOWN_OF_PARTS = {
    "__version", "include", "train", "stop_training_after", "stop_training_after_unit", "learning_rate",
    "weight_dtype", "dropout_probability", "train_embedding", "attention_mask", "guidance_scale",
    "gradient_checkpointing",
}  # fmt: skip
"""What a part may hold; no more of it concerns Stable Diffusion than what is read here."""


def _quantization(value: Any) -> str | None:
    if value in (None, "", "NONE", "FLOAT_32", "TFLOAT_32", "FLOAT_16", "BFLOAT_16"):
        return None
    kinds = {"INT_8": "int8", "NFLOAT_4": "nf4"}
    if str(value) not in kinds:
        raise ValueError("int8 and nf4 are possible")
    return kinds[str(value)]


def part_of(settings: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The settings of a model part, from a mapping or, as in old files, from `train_unet`, `unet_learning_rate`, ..."""
    own = settings.get(part)
    found = dict(own) if isinstance(own, Mapping) else {}
    old = {
        "train": f"train_{part}",
        "stop_training_after": f"train_{part}_epochs",
        "learning_rate": f"{part}_learning_rate",
        "weight_dtype": f"{part}_weight_dtype",
        "model_name": f"{part}_model_name",
    }
    return {name: settings[old_name] for name, old_name in old.items() if old_name in settings} | found


def parts(settings: Mapping[str, Any], result: Translation) -> set[str]:
    unet, text_encoder, second = (part_of(settings, part) for part in ("unet", "text_encoder", "text_encoder_2"))
    for name, part in (("unet", unet), ("text_encoder", text_encoder), ("text_encoder_2", second)):
        reasons = {"model_name": f"another {name} than the base model's: set base_model.model to one that holds it"}
        result.lose_rest(part, _KNOWN_OF_PARTS, f"{name}.", reasons)
    if unet.get("train") is False:
        result.put("adapter.unet", False)
    if stops(unet):
        result.lose("unet.stop_training_after", _stop_in_words(unet), "the UNet is trained to the end")
    result.put("optimization.learning_rate", some(unet.get("learning_rate")))
    try:
        result.put("base_model.quantization", _quantization(held_as := _weight_dtype(unet, settings)))
    except ValueError as error:
        result.lose("unet.weight_dtype", held_as, str(error))
    checkpointed = unet.get("gradient_checkpointing", settings.get("gradient_checkpointing", True))
    result.put("optimization.gradient_checkpointing", checkpointed not in (False, "OFF"))
    if checkpointed not in (False, True, "OFF", "ON"):
        result.change("gradient_checkpointing", checkpointed, "on, and nothing is moved off the device")
    _text_encoders(settings, text_encoder, second, result)
    if settings.get("lora_weight_dtype", "FLOAT_32") not in ("FLOAT_32", "NONE", None):
        why = "the adapter's weights are trained in fp32 here, which loses no small updates"
        result.change("lora_weight_dtype", settings["lora_weight_dtype"], why)
    names = ("unet", "text_encoder", "text_encoder_2")
    old = {f"{part}_{ending}" for part in names for ending in ("learning_rate", "weight_dtype", "layer_skip")}
    old |= {f"train_{part}{ending}" for part in names for ending in ("", "_epochs")}
    scalers = {"learning_rate_scaler", "loss_scaler", "lora_weight_dtype"}
    return {*names, *old, *scalers, "gradient_checkpointing"}


def _weight_dtype(unet: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """The UNet's own, or else that of all parts."""
    own = unet.get("weight_dtype")
    return settings.get("weight_dtype") if own in (None, "", "NONE") else own


def count_updates(settings: Mapping[str, Any], result: Translation) -> None:
    """Steps are batches there, of which `gradient_accumulation_steps` make an update; ours are updates."""
    batches = count(settings.get("gradient_accumulation_steps")) or 1
    divided = {}
    warmup = result.values.get("optimization.warmup") or 0
    if batches > 1 and warmup > 1:
        divided["optimization.warmup"] = int(warmup / batches)
        result.values.pop("optimization.warmup")
        result.put("optimization.warmup", divided["optimization.warmup"] or None)
    for name in _IN_STEPS if batches > 1 else ():
        steps = result.values.get(name)
        if isinstance(steps, (int, float)) and 1 < steps < _END_OF_RUN:
            divided[name] = max(1, round(steps / batches))
            result.put(name, divided[name])
    if divided:
        all_of_them = ", ".join(f"{name}={value}" for name, value in divided.items())
        why = f"steps are batches there and updates here, so they are divided by {batches}: {all_of_them}"
        result.change("gradient_accumulation_steps", batches, why)


def scale(settings: Mapping[str, Any], result: Translation) -> None:
    """Rates times the square root of what an update sees; a loss times that, which ours has no setting for."""
    batch, accumulation = (count(settings.get(name)) or 1 for name in ("batch_size", "gradient_accumulation_steps"))
    seen = {
        "BATCH": batch,
        "ACCUMULATION": accumulation,
        "GRADIENT_ACCUMULATION": accumulation,
        "BOTH": batch * accumulation,
    }
    kind = settings.get("learning_rate_scaler") or "NONE"
    if kind in seen:
        for name in _RATES:
            if rate := result.values.get(name):
                result.put(name, float(f"{rate * math.sqrt(seen[kind]):.6g}"))
        what = f"rates are multiplied by the square root of {seen[kind]}, as there"
        result.change("learning_rate_scaler", kind, f"{what}: {result.values.get(_RATES[0])}")
    elif kind != "NONE":
        result.lose("learning_rate_scaler", kind)
    scaler = settings.get("loss_scaler") or "NONE"
    if scaler != "NONE":
        by = f" by {seen[scaler]}" if scaler in seen else ""
        why = f"multiplies the loss{by} there, which counts for max_gradient_norm and optimizers that follow its size"
        result.lose("loss_scaler", scaler, why)


def _text_encoders(
    settings: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any], result: Translation
) -> None:
    is_sdxl = result.values.get("base_model.family") == "sdxl"
    trained = [first.get("train", True), is_sdxl and second.get("train", True)]
    if any(trained):
        result.put("adapter.text_encoder", True)
        rates = [some(part.get("learning_rate")) or some(settings["learning_rate"]) for part in (first, second)]
        result.put("optimization.text_encoder_learning_rate", rates[0] if trained[0] else 0.0)
        if is_sdxl:
            result.put("optimization.text_encoder_2_learning_rate", rates[1] if trained[1] else 0.0)
    for name, part, is_trained in zip(("text_encoder", "text_encoder_2"), (first, second), trained, strict=True):
        if is_trained and stops(part):
            put_end(name, part, settings, result)
    if stops(first) and trained[0] and trained[1] and not stops(second):
        result.put("optimization.text_encoder_2_until", _END_OF_RUN)
    result.put("captions.dropout", some(first.get("dropout_probability")))
    if is_sdxl and count(settings.get("text_encoder_2_layer_skip")):
        skipped = settings["text_encoder_2_layer_skip"]
        result.lose("text_encoder_2_layer_skip", skipped, "SDXL has its own fixed layer")
    skip = count(settings.get("text_encoder_layer_skip"))
    if skip and is_sdxl:
        result.lose("text_encoder_layer_skip", skip, "SDXL has its own fixed layer")
    elif skip:
        # Skipped layers there, the layer taken here, counted from the end with 1 for the last.
        result.put("base_model.clip_skip", 1 + skip)


def stops(part: Mapping[str, Any]) -> bool:
    return bool(count(part.get("stop_training_after"))) and part.get("stop_training_after_unit") not in ("NEVER", None)


def _stop_in_words(part: Mapping[str, Any]) -> str:
    return f"{part['stop_training_after']} {part.get('stop_training_after_unit')}"


def put_end(name: str, part: Mapping[str, Any], settings: Mapping[str, Any], result: Translation) -> None:
    """Steps as they are, epochs as a share of the run's; what ends with the run needs no setting."""
    after, unit = float(part["stop_training_after"]), part.get("stop_training_after_unit")
    epochs = count(settings.get("epochs")) or 1
    if unit == "STEP":
        result.put(f"optimization.{name}_until", after)
    elif unit == "EPOCH":
        result.put(f"optimization.{name}_until", after / epochs if after < epochs else None)
    else:
        result.lose(f"{name}.stop_training_after", _stop_in_words(part), f"set optimization.{name}_until")
