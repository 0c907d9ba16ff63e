"""Settings that other programs write into pictures as JSON: InvokeAI, NovelAI, Fooocus, Civitai, ComfyUI.

All become the parts of A1111's text, by its names, so that one place turns them into a request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from sdlora.generation.restore.comfy_graph import from_graph, is_graph
from sdlora.generation.restore.infotext_grammar import ParsedInfotext
from sdlora.text_files import parse_json

PNG_KEYS = ("invokeai_metadata", "sd-metadata", "Comment", "prompt")
"""Texts of PNG files that hold such JSON, the most telling first."""

_NAMES = {
    "prompt": "prompt", "positiveprompt": "prompt", "positive": "prompt", "fullprompt": "prompt",
    "negativeprompt": "negative", "negative": "negative", "uc": "negative", "fullnegativeprompt": "negative",
    "steps": "Steps", "numinferencesteps": "Steps", "samplingsteps": "Steps",
    "seed": "Seed", "cfgscale": "CFG scale", "guidancescale": "CFG scale", "scale": "CFG scale", "cfg": "CFG scale",
    "sampler": "Sampler", "samplername": "Sampler", "samplermethod": "Sampler", "scheduler": "Schedule type",
    "noiseschedule": "Schedule type", "scheduletype": "Schedule type", "size": "Size", "resolution": "Size",
    "clipskip": "Clip skip", "model": "Model", "modelname": "Model", "basemodel": "Model", "modelweights": "Model",
    "modelhash": "Model hash", "basemodelhash": "Model hash", "strength": "Denoising strength",
    "denoisingstrength": "Denoising strength", "rng": "RNG",
}  # fmt: skip
"""Names in small letters and digits alone, as ours or A1111's."""
_NOTHING: tuple[Any, ...] = (None, "", [], {}, False)
# What one pair of NovelAI's braces multiplies by; A1111's brackets have 1.1.
_NOVELAI_STEP = 1.05
_NOVELAI_DEFAULTS = {
    "n_samples", "sm", "sm_dyn", "request_type", "signed_hash", "version", "lora_unet_weights", "lora_clip_weights",
    "v4_prompt", "v4_negative_prompt", "params_version", "uncond_scale", "legacy_v3_extend", "legacy",
    "add_original_image",
    "dynamic_thresholding", "skip_cfg_above_sigma", "prefer_brownian", "deliberate_euler_ancestral_bug",
}  # fmt: skip


def from_json(text: str) -> ParsedInfotext:
    """The parts of a request. Raises ValueError for JSON that tells none."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"its settings are no sound JSON ({error})") from None
    if is_graph(content):
        return from_graph(content)
    if not isinstance(content, dict):
        raise ValueError(f"its settings are JSON of an unknown kind, a {type(content).__name__}")
    extra = content.get("extraMetadata")  # Civitai's, beside a ComfyUI graph
    if isinstance(extra, str) and extra.startswith("{"):
        return from_json(extra)
    if isinstance(content.get("image"), dict) and "prompt" in content["image"]:  # InvokeAI 2
        content = {
            **content["image"],
            **{name: content[name] for name in ("model_weights", "model") if name in content},
        }
    if "uc" in content and "prompt" in content:
        return _from_novelai(content)
    return _from_flat(content)


def _from_flat(content: Mapping[str, Any]) -> ParsedInfotext:
    texts, settings, left = {"prompt": "", "negative": ""}, {}, {}
    sides: dict[str, Any] = {}
    tags: list[str] = []
    has_sampler = any(_plain(name) in ("sampler", "samplername") for name in content)
    for name, value in content.items():
        key = _plain(name)
        if key in ("width", "height"):
            sides[key] = value
        elif key in ("loras", "lora") and isinstance(value, list):
            tags += [tag for one in value if (tag := _tag(one))]
        elif key == "scheduler" and not has_sampler:  # InvokeAI calls the sampler so
            settings["Sampler"] = str(value)
        elif key in _NAMES and _NAMES[key] in texts:
            texts[_NAMES[key]] = _words(value)
        elif key in _NAMES and value not in _NOTHING:
            settings.setdefault(_NAMES[key], _value(value))
        elif value not in _NOTHING:
            left[name] = value if isinstance(value, str) else json.dumps(value)
    if not texts["prompt"] and not settings:
        raise ValueError(
            f"its settings are JSON of an unknown program, with {', '.join(list(content)[:6]) or 'nothing'}"
        )
    if len(sides) == 2:
        settings["Size"] = f"{sides['width']}x{sides['height']}"
    settings["Size"] = "x".join(re.findall(r"\d+", settings.get("Size", "")))
    if "app_version" in content:  # InvokeAI draws its noise on the processor
        settings["RNG"] = "CPU"
    shown = {name: value if len(value) <= 200 else value[:197] + "..." for name, value in left.items()}
    settings = {name: value for name, value in settings.items() if value}
    return ParsedInfotext(" ".join([texts["prompt"], *tags]).strip(), texts["negative"], {**settings, **shown})


def _from_novelai(content: Mapping[str, Any]) -> ParsedInfotext:
    plain = {name: value for name, value in content.items() if name not in _NOVELAI_DEFAULTS}
    found = _from_flat(plain)
    warning = "it was generated by NovelAI, whose model is not to be had; its {} and [] are written as (weights:1.05)"
    settings = {**found.settings}
    if settings.get("Schedule type") in ("native", "exponential", "polyexponential"):
        settings["Schedule type"] = settings["Schedule type"].replace("native", "Uniform")
    return ParsedInfotext(_weights(found.prompt), _weights(found.negative), settings, (warning,))


def _weights(text: str) -> str:
    """NovelAI's {more}, [less] and 1.2::words:: as (words:1.2)."""
    text = re.sub(
        r"(-?\d+(?:\.\d+)?)::(.*?)::", lambda match: f"({match[2].strip()}:{match[1]})", text, flags=re.DOTALL
    )
    for opening, closing, factor in (("{", "}", _NOVELAI_STEP), ("[", "]", 1 / _NOVELAI_STEP)):
        pattern = re.compile(rf"(\{opening}+)([^{{}}\[\]]*)(\{closing}+)")

        def weighted(match: re.Match[str], factor: float = factor) -> str:
            depth = min(len(match[1]), len(match[3]))
            before, behind = match[1][depth:], match[3][depth:]
            return f"{before}({match[2]}:{factor**depth:.3g}){behind}"

        text = pattern.sub(weighted, text)
    return text


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _words(value: Any) -> str:
    """A prompt as text, from a text or InvokeAI's old list of texts with weights."""
    if isinstance(value, list):
        return ", ".join(str(one.get("prompt", "")) if isinstance(one, dict) else str(one) for one in value)
    return str(value or "")


def _value(value: Any) -> str:
    if isinstance(value, dict):  # InvokeAI's models
        named = value.get("name") or value.get("model_name") or value.get("key")
        return str(named) if named else json.dumps(value)
    return str(value)


def _tag(entry: Any) -> str:
    """An adapter as a tag, from InvokeAI's {model, weight}, Fooocus' [name, weight, hash] and the like."""
    if isinstance(entry, list) and len(entry) >= 2:
        name, weight = entry[0], entry[1]
    elif isinstance(entry, dict):
        model = entry.get("model", entry.get("lora", entry.get("name")))
        name, weight = _value(model) if model else "", entry.get("weight", entry.get("strength", 1))
    else:
        return ""
    name = re.sub(r"\.safetensors$", "", PureWindowsPath(str(name)).name)
    return f"<lora:{name}:{weight}>" if name and name != "None" else ""
