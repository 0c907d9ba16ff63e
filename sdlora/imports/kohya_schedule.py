"""Learning rates, steps, schedule and optimizer options of kohya_ss and sd-scripts in our terms."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from sdlora.imports.optimizers import put_options
from sdlora.imports.translation import Convert, Translation, count, number, same, some, switch

_OPTION = re.compile(r"(\w+)=(\([^)]*\)|\[[^\]]*\]|\S+)")
_WHOLE_RUN = 0.9999
"""As a share; 1 would be a step."""
_SECOND_RATE: dict[str, tuple[str, Convert]] = {
    "text_encoder_lr": ("optimization.text_encoder_2_learning_rate", lambda value: number(value or None))
}


def rates(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """unet_lr and text_encoder_lr, which are learning_rate when empty; a part at 0 isn't trained."""
    everywhere = some(settings.get("learning_rate"))
    unet, text_encoder = number(settings.get("unet_lr")), settings.get("text_encoder_lr")
    if isinstance(text_encoder, (list, tuple)) or " " in str(text_encoder).strip():
        several = list(text_encoder) if isinstance(text_encoder, (list, tuple)) else str(text_encoder).split()
        text_encoder = several[0] if several else None
        result.take({"text_encoder_lr": several[1:2] and several[1]}, _SECOND_RATE)
    try:
        text_encoder = number(text_encoder)
    except ValueError as error:
        result.lose("text_encoder_lr", text_encoder, str(error))
        text_encoder = None
    if not unet and not text_encoder:  # two rates of 0 are as good as none there
        unet = text_encoder = None
    unet = everywhere if unet is None else unet
    text_encoder = everywhere if text_encoder is None else text_encoder
    only_text = switch(settings.get("network_train_text_encoder_only")) or (unet == 0 and text_encoder)
    result.put("optimization.learning_rate", (text_encoder if only_text else unet) or None)
    if only_text:
        result.put("adapter.unet", False)
    is_lycoris = str(settings.get("LoRA_type")).lower().startswith("lycoris")
    is_unet_only = is_lycoris and str(settings.get("LyCORIS_preset")).startswith("unet-")
    if text_encoder and not (is_unet_only or switch(settings.get("network_train_unet_only"))):
        result.put("adapter.text_encoder", True)
        result.put("optimization.text_encoder_learning_rate", text_encoder)
    until = number(settings.get("stop_text_encoder_training_pct", settings.get("stop_text_encoder_training"))) or 0
    if until > 0 and result.values.get("adapter.text_encoder"):
        result.put("optimization.text_encoder_until", until / 100 if until < 100 else None)
        result.change(
            "stop_text_encoder_training", f"{until:g}", "percent, at its word; kohya_ss passes over it for LoRA"
        )
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


def steps(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """max_train_epochs wins over max_train_steps as there, and that over the window's own field `epoch`."""
    epochs, shown = count(settings.get("max_train_epochs")), count(settings.get("epoch"))
    most = count(settings.get("max_train_steps"))
    if epochs and most:
        result.change("max_train_steps", most, f"epochs win over steps, as there: {epochs} epochs")
    elif most and shown:
        result.change("epoch", shown, f"max_train_steps wins over it, as there: {most} steps")
    result.put("optimization.epochs", epochs or (None if most else shown))
    result.put("optimization.steps", None if epochs else most)
    schedule = settings.get("lr_scheduler")
    share, number_of = some(settings.get("lr_warmup")), some(settings.get("lr_warmup_steps"))
    warmup = number_of if number_of else min(share / 100, _WHOLE_RUN) if share else None
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


def scheduler(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """A scheduler by its class can't be had; the steps of a piecewise one stand among its arguments."""
    schedule, arguments = settings.get("lr_scheduler"), settings.get("lr_scheduler_args") or ""
    text = " ".join(map(str, arguments)) if isinstance(arguments, list) else str(arguments)
    by_class = settings.get("lr_scheduler_type")
    if same(by_class):
        used = result.values.get("optimization.schedule", "constant")
        result.lose(
            "lr_scheduler_type", by_class, f"schedules by class are not here; '{used}' of lr_scheduler is taken"
        )
    elif result.values.get("optimization.schedule") == "piecewise":
        rules = re.search(r"step_rules=[\"']?([\d.:,eE+-]+)", text)
        try:
            result.put("optimization.schedule_points", _points(rules[1] if rules else ""))
            text = ""
        except ValueError:
            result.values.pop("optimization.schedule")
            result.lose("lr_scheduler", schedule, "its step_rules are not understood; a constant rate is taken")
    if str(schedule).lower() == "adafactor":
        result.change("lr_scheduler", schedule, "only shows the rate that Adafactor finds there; constant here")
    if text:
        result.lose("lr_scheduler_args", text)
    return {"lr_scheduler_type", "lr_scheduler_args"}


def _points(rules: str) -> list[list[float]]:
    """Steps and factors from diffusers' rules: 1:10,0.1:20,0.01 is 1 up to step 10, 0.1 up to step 20, then 0.01."""
    *parts, last = rules.split(",")
    points, start = [], 0.0
    for part in parts:
        factor, _, end = part.partition(":")
        points.append([start, float(factor)])
        start = float(end)
    return [*points, [start, float(last)]]


def optimizer_options(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """`weight_decay=0.1 betas=0.9,0.99` and the like, in quotes or not."""
    options: dict[str, Any] = {}
    given = settings.get("optimizer_args") or ""
    text = " ".join(str(one) for one in given) if isinstance(given, list) else str(given)
    for name, value in _OPTION.findall(text):
        try:
            options[name] = _literal(value.strip("\"'"))
        except (ValueError, SyntaxError):
            result.lose("optimizer_args", f"{name}={value}", "not understood")
    for word in _OPTION.sub("", text).replace('"', " ").replace("'", " ").split():
        result.lose("optimizer_args", word, "not understood, options are name=value")
    is_nesterov = str(settings.get("optimizer")).lower().startswith("sgdnesterov")
    put_options(result, options, {"momentum": 0.9, "nesterov": True} if is_nesterov else None)
    return {"optimizer_args"}


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "inf": float("inf")}
    value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    return list(value) if isinstance(value, tuple) else value
