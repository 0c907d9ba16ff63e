"""A request as the text that other tools read in pictures, and such texts as requests. Needs no torch.

Pictures made by AUTOMATIC1111's web UI and its relatives (Forge, SD.Next) are read too: what has a counterpart here
becomes a setting, the rest is listed by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from sdlora.config import files, schema
from sdlora.config.generate import GenerateConfig, Sampler, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.generation.generated import GenerationFacts
from sdlora.generation.restore.infotext_grammar import ParsedInfotext, parse_infotext, write_infotext
from sdlora.library.prompt_tags import plain_number, write_tags
from sdlora.text_files import parse_json
from sdlora.version import __version__

_KARRAS = " Karras"
_AUTOMATICALLY_KARRAS = ("DPM++ 2M", "DPM++ SDE")
"""Samplers for which the web UI's schedule type Automatic means Karras (since its version 1.9)."""
_PLAIN_SCHEDULES = ("", "Automatic", "Uniform")
_ALIASES: dict[str, Sampler] = {
    "euler": "Euler", "euler_ancestral": "Euler a", "euler_a": "Euler a", "heun": "Heun", "ddim": "DDIM",
    "ddim_v3": "DDIM", "unipc": "UniPC", "uni_pc": "UniPC", "lcm": "LCM", "dpmpp_2m": "DPM++ 2M",
    "dpm++_2m": "DPM++ 2M", "dpmpp_sde": "DPM++ SDE", "dpm++_sde": "DPM++ SDE", "dpm_solver++": "DPM++ 2M",
    "dpmpp_sde_gpu": "DPM++ SDE",
}  # fmt: skip
"""Samplers by the names of ComfyUI, InvokeAI, NovelAI and k-diffusion."""
_UPSCALERS = {"latent": "Latent", "lanczos": "Lanczos"}
# What would end a tag, or the line that it stands in.
_UNTAGGABLE = str.maketrans("", "", ":<>=\n")


@dataclass(frozen=True)
class Infotext:
    """Settings read from a picture, as a YAML request holds them, and what could not become one."""

    values: dict[str, Any]
    """Settings of GenerateConfig; the prompt still has its `<lora:...>` tags."""

    unknown: dict[str, str] = field(default_factory=dict)
    """What has no counterpart here, by the name the other tool gives it."""

    warnings: tuple[str, ...] = ()
    """Sentences on what will differ."""

    model_name: str | None = None
    model_hash: str | None = None
    """The base model as the picture names it; the settings tell it only if sdlora drew the picture."""

    adapter_hashes: dict[str, str] = field(default_factory=dict)
    """Short hashes by the adapters' names."""

    by_sdlora: bool = False
    """Whether this is a whole request that sdlora wrote, so that it can be repeated exactly."""


def to_infotext(config: GenerateConfig, facts: GenerationFacts) -> str:
    """The text for one generated image: `config` is the request for this image alone, `facts` what made it.

    Adapters stand in the prompt as tags. Their blocks, start and end, and the names of the start image and mask have no
    place in this grammar.
    """
    negative = config.negative
    adapters = [adapter.model_copy(update={"file": f"{_tag_name(adapter)}.safetensors"}) for adapter in config.adapters]
    return write_infotext(write_tags(config.prompt, adapters), negative, _settings(config, facts))


def _tag_name(adapter: UsedAdapter) -> str:
    return Path(adapter.file).stem.translate(_UNTAGGABLE).strip() or "adapter"


def _settings(config: GenerateConfig, facts: GenerationFacts) -> dict[str, object]:
    sampler, schedule = _split_sampler(config.sampler)
    second_pass = config.second_pass if config.second_pass.scale > 1 else None
    strength = second_pass.strength if second_pass else config.start.strength if config.start.image else None
    sizes = (config.width_px, config.height_px)
    hashes = {
        _tag_name(adapter).replace(",", ""): facts.adapter_hashes[Path(adapter.file).stem]
        for adapter in config.adapters
        if Path(adapter.file).stem in facts.adapter_hashes
    }
    return {
        "Steps": config.steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": plain_number(config.guidance),
        "Seed": config.seed,
        "Size": None if None in sizes else f"{config.width_px}x{config.height_px}",
        "Model hash": facts.model_hash,
        "Model": facts.model_name,
        "Merged adapters": ", ".join(f"{Path(one.file).stem}: {one.weight:g}" for one in config.base_model.adapters)
        or None,
        "Denoising strength": None if strength is None else plain_number(strength),
        "Clip skip": config.base_model.clip_skip if config.base_model.clip_skip > 1 else None,
        # A1111 then draws the noise on the processor, too, which brings the picture nearer to ours.
        "RNG": "CPU",
        "Mask blur": plain_number(config.start.mask_blur_px) if config.start.mask else None,
        "Hires upscale": plain_number(second_pass.scale) if second_pass else None,
        "Hires steps": second_pass.steps if second_pass else None,
        "Hires upscaler": _UPSCALERS[second_pass.upscaler] if second_pass else None,
        "Lora hashes": ", ".join(f"{name}: {short}" for name, short in hashes.items()) or None,
        "Version": f"sdlora {__version__}",
    }


def _split_sampler(sampler: Sampler) -> tuple[str, str]:
    """Sampler and schedule type by the web UI's names."""
    if sampler.endswith(_KARRAS):
        return sampler.removesuffix(_KARRAS), _KARRAS.strip()
    return sampler, "Uniform" if sampler in _AUTOMATICALLY_KARRAS else "Automatic"


def from_infotext(text: str) -> Infotext:
    """The settings in a picture's text. Raises DataError when the text is too long to be one."""
    return from_parsed(parse_infotext(text))


def from_parsed(parsed: ParsedInfotext) -> Infotext:
    """The settings behind the parts of a text, whichever tool wrote them."""
    found = _Found(dict(parsed.settings))
    found.warnings += parsed.warnings
    found.put("prompt", parsed.prompt)
    found.put("negative", parsed.negative)
    _take_sampler(found)
    for name, (setting, convert) in _COUNTERPARTS.items():
        found.take(name, setting, convert)
    _take_size(found)
    _take_second_pass(found)
    # Not told means the card, A1111's default.
    if found.left.pop("RNG", "GPU").upper() != "CPU" and parsed.settings:
        found.warnings.append("its noise came from the graphics card: the same seed gives another picture here")
    if "seed" not in found.values:
        found.warnings.append("it tells no seed that can be taken, so another picture comes of it; a seed is drawn")
    hashes = _adapter_hashes(found.left.pop("Lora hashes", ""), found.left.pop("Hashes", ""))
    found.left.pop("Version", None)
    return Infotext(
        values=found.values,
        model_name=found.left.pop("Model", None),
        model_hash=found.left.pop("Model hash", None),
        adapter_hashes=hashes,
        unknown=found.left,
        warnings=tuple(found.warnings),
    )


def _whole(text: str) -> int:
    # Some tools write whole numbers as 7.0.
    return int(text.removesuffix(".0"))


def _seed(text: str) -> int:
    seed = _whole(text)
    if seed < 0:  # asked for a random one
        raise ValueError
    return seed


_COUNTERPARTS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", _whole),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", _seed),
    "Clip skip": ("base_model.clip_skip", int),
    "Mask blur": ("start.mask_blur_px", float),
}


class _Found:
    """Settings found so far, and the names of the text that are still left."""

    def __init__(self, left: dict[str, str]) -> None:
        self.left = left
        self.values: dict[str, Any] = {}
        self.warnings: list[str] = []

    def take(self, name: str, setting: str, convert: Callable[[str], Any]) -> None:
        """Make a setting of what the text calls `name`; what does not fit stays left, with a warning."""
        if name not in self.left:
            return
        try:
            self.put(setting, convert(self.left[name]))
            del self.left[name]
        except ConfigError as error:
            self.warnings.append(f"{name}: {'; '.join(error.problems)}")
        except ValueError:
            self.warnings.append(f"{name}: '{self.left[name][:40]}' is not a number")

    def put(self, setting: str, value: Any) -> None:
        """Set `section.name`. Raises ConfigError when the value doesn't fit."""
        files.validate(schema.nest({setting: value}), "the picture", GenerateConfig)
        schema.put(self.values, setting, value)


def _take_sampler(found: _Found) -> None:
    if "Sampler" not in found.left:
        return
    written, schedule = found.left["Sampler"], found.left.get("Schedule type", "")
    known = {name.casefold(): name for name in get_args(Sampler)}
    plain, karras_too = known.get(written.casefold()), False
    if plain is None:
        word = re.sub(r"[^a-z0-9+]+", "_", written.lower()).removeprefix("k_").removeprefix("sample_k_")
        for ending in ("_karras", "_k"):
            if word.endswith(ending):
                word, karras_too = word.removesuffix(ending), True
        plain = _ALIASES.get(word)
    if karras_too:
        schedule = "Karras"
    schedule = {"karras": "Karras", "uniform": "Uniform", "automatic": "Automatic"}.get(schedule, schedule)
    if plain is None:
        names = ", ".join(known.values())
        found.warnings.append(f"Sampler: there is no '{written}' here; choose one of {names}")
        return
    karras = known.get(f"{plain}{_KARRAS}".casefold())
    automatic = schedule == "Automatic" and plain in _AUTOMATICALLY_KARRAS
    if karras and (schedule == "Karras" or automatic):
        plain = karras
    elif schedule not in _PLAIN_SCHEDULES and not plain.endswith(f" {schedule}"):
        found.warnings.append(f"Schedule type: there is no '{schedule}' here for {plain}, which keeps its own")
        found.put("sampler", plain)
        del found.left["Sampler"]
        return
    found.put("sampler", plain)
    del found.left["Sampler"]
    found.left.pop("Schedule type", None)


def _take_size(found: _Found) -> None:
    if "Size" not in found.left and {"Size-1", "Size-2"} <= found.left.keys():  # of versions before Size
        found.left["Size"] = f"{found.left.pop('Size-1')}x{found.left.pop('Size-2')}"
    sides = _sides(found.left.get("Size", ""))
    if sides is None:
        return
    try:
        found.put("width_px", sides[0])
        found.put("height_px", sides[1])
        del found.left["Size"]
    except ConfigError as error:
        # A width without its height would be a size that nobody asked for.
        found.values.pop("width_px", None)
        found.warnings.append(f"Size: {'; '.join(error.problems)}")


def _take_second_pass(found: _Found) -> None:
    target = _sides(found.left.get("Hires resize", ""))
    if target and "width_px" in found.values and "Hires upscale" not in found.left:
        found.left["Hires upscale"] = plain_number(target[0] / found.values["width_px"])
        del found.left["Hires resize"]
    if "Hires upscale" not in found.left:
        if "Denoising strength" in found.left:
            found.take("Denoising strength", "start.strength", float)
            found.warnings.append("it was generated over a start image, which is not in the file; set start.image")
        return
    found.take("Hires upscale", "second_pass.scale", float)
    found.take("Denoising strength", "second_pass.strength", float)
    # 0 is A1111's "as many as the first pass", which is what no number means here.
    if found.left.get("Hires steps") == "0":
        del found.left["Hires steps"]
    found.take("Hires steps", "second_pass.steps", int)
    upscaler = found.left.get("Hires upscaler", "")
    ours = {theirs: name for name, theirs in _UPSCALERS.items()}.get(upscaler)
    if ours is not None:
        found.put("second_pass.upscaler", ours)
        del found.left["Hires upscaler"]
    elif upscaler:
        found.warnings.append(f"Hires upscaler: there is no '{upscaler}' here; lanczos is used")


def _sides(text: str) -> tuple[int, int] | None:
    width, _, height = (part.strip() for part in text.replace("×", "x").lower().partition("x"))
    both_numbers = width.isdecimal() and height.isdecimal() and len(text) < 20
    return (int(width), int(height)) if both_numbers else None


def _adapter_hashes(lora_hashes: str, civitai_hashes: str) -> dict[str, str]:
    found = {}
    for part in lora_hashes.split(","):
        name, colon, short = part.rpartition(":")
        if colon:
            found[name.strip()] = short.strip()
    try:
        named = parse_json(civitai_hashes) if civitai_hashes else {}
    except ValueError:
        return found
    for name, short in named.items() if isinstance(named, dict) else ():
        if name.startswith("lora:") and isinstance(short, str):
            found.setdefault(name.removeprefix("lora:"), short)
    return found
