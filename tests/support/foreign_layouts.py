"""How other tools name the layers and factors of an adapter file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sdlora.adapters.files.kohya import TEXT_MODEL, Part, kohya_name, to_ldm
from sdlora.config.base_model import FamilyName

_KOHYA_FACTORS = {"lora_down": "lora_down.weight", "lora_up": "lora_up.weight", "lora_mid": "lora_mid.weight"}
_KOHYA_FACTORS |= {name: f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "oft_R")}
_KOHYA_FACTORS |= {"ia3": "weight", "lora_bias": "lora_up.bias"}
_PEFT_FACTORS = {**_KOHYA_FACTORS, "lora_down": "lora_A.weight", "lora_up": "lora_B.weight"}
_PEFT_FACTORS |= {"lora_bias": "lora_B.bias", "magnitude": "lora_magnitude_vector"}
_DEFAULT_FACTORS = {**_PEFT_FACTORS, "lora_down": "lora_A.default.weight", "lora_up": "lora_B.default.weight"}


def _dotted_ldm(path: str) -> str:
    """A UNet path in the original code's dotted spelling."""
    flat = to_ldm(path.replace(".", "_"))
    words = ["transformer_blocks", "input_blocks", "middle_block", "output_blocks", "emb_layers", "in_layers"]
    words += ["out_layers", "skip_connection", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out"]
    for word in words:
        flat = flat.replace(word, word.replace("_", "-"))
    return flat.replace("_", ".").replace("-", "_")


def _kohya(part: Part, path: str, family: FamilyName) -> str:
    return kohya_name(part, path, family)


def _kohya_diffusers(part: Part, path: str, family: FamilyName) -> str:
    return "lora_unet_" + path.replace(".", "_") if part == "unet" else kohya_name(part, path, family)


def _kohya_ldm(part: Part, path: str, family: FamilyName) -> str:
    return "lora_unet_" + to_ldm(path.replace(".", "_")) if part == "unet" else kohya_name(part, path, family)


def _diffusers(part: Part, path: str, _: FamilyName) -> str:
    return f"{part}.{path}"


def _comfyui(part: Part, path: str, family: FamilyName) -> str:
    if part == "unet":
        return f"diffusion_model.{_dotted_ldm(path)}"
    clip = "clip_g" if part == "text_encoder_2" else "clip_h" if family == "sd2" else "clip_l"
    return f"text_encoders.{clip}.transformer.{path}"


def _original(part: Part, path: str, _: FamilyName) -> str | None:
    return _dotted_ldm(path) if part == "unet" else None


def _simpletuner(part: Part, path: str, _: FamilyName) -> str | None:
    return f"lycoris_{path.replace('.', '_')}" if part == "unet" else None


def _peft(part: Part, path: str, _: FamilyName) -> str | None:
    return f"base_model.model.{path}" if part == "unet" else None


def _peft_text(part: Part, path: str, _: FamilyName) -> str | None:
    return f"base_model.model.{path.removeprefix(TEXT_MODEL)}" if part == "text_encoder" else None


def _wrapped(part: Part, path: str, _: FamilyName) -> str:
    return f"{part}.base_model.model.{path}"


def _omi(part: Part, path: str, _: FamilyName) -> str:
    return {"unet": f"unet.{_dotted_ldm(path)}", "text_encoder": f"clip_l.{path}", "text_encoder_2": f"clip_g.{path}"}[
        part
    ]


def _both(part: Part, path: str, family: FamilyName) -> str:
    return kohya_name(part, path, family) if part == "unet" else f"{part}.{path}"


def _onetrainer(part: Part, path: str, family: FamilyName) -> str:
    start = "lora_unet" if part == "unet" else kohya_name(part, path, family).split("_text_model")[0]
    return f"{start}.{path}"


@dataclass(frozen=True)
class Layout:
    """How a tool names things. `place` gives None for parts that it writes no file of."""

    who: str
    place: Callable[[Part, str, FamilyName], str | None]
    factors: Mapping[str, str]
    has_config: bool = False


LAYOUTS: dict[str, Layout] = {
    "kohya": Layout("sd-scripts, LyCORIS, OneTrainer, ai-toolkit", _kohya, _KOHYA_FACTORS),
    "kohya, diffusers names": Layout("OneTrainer (SDXL), older LyCORIS", _kohya_diffusers, _KOHYA_FACTORS),
    "kohya, original names": Layout("converted SD 1.x files", _kohya_ldm, _KOHYA_FACTORS),
    "kohya, PEFT factors": Layout("`lora_unet_....lora_A.default.weight`", _kohya, _DEFAULT_FACTORS),
    "kohya UNet, diffusers text": Layout("mixed by hand", _both, _KOHYA_FACTORS),
    "diffusers": Layout("diffusers, SimpleTuner", _diffusers, _PEFT_FACTORS),
    "diffusers, kohya factors": Layout("`unet....lora_down.weight`", _diffusers, _KOHYA_FACTORS),
    "wrapped": Layout("`unet.base_model.model....`, distillation scripts", _wrapped, _PEFT_FACTORS),
    "PEFT folder": Layout("PEFT's save_pretrained, a UNet", _peft, _PEFT_FACTORS, has_config=True),
    "PEFT folder, text": Layout("the same of a text encoder", _peft_text, _PEFT_FACTORS, has_config=True),
    "ComfyUI": Layout("TrainLora, Extract and Save", _comfyui, _KOHYA_FACTORS),
    "ComfyUI, PEFT factors": Layout("OneTrainer's COMFY format", _comfyui, _PEFT_FACTORS),
    "original": Layout("OneTrainer's ORIGINAL format, a bare UNet", _original, _PEFT_FACTORS),
    "OMI": Layout("OneTrainer's OMI format", _omi, _KOHYA_FACTORS),
    "OneTrainer, dotted": Layout("`lora_unet.down_blocks....`", _onetrainer, _KOHYA_FACTORS),
    "SimpleTuner": Layout("`lycoris_...`", _simpletuner, _KOHYA_FACTORS),
}
