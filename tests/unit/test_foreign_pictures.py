"""Settings that other programs write as JSON, read into requests: found, or named as not understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.config import files
from sdlora.config.generate import GenerateConfig
from sdlora.errors import DataError
from sdlora.generation.restore.image_files import read_image_settings

COMFY: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 5, "steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1,
        "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "xl\\base.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["20", 0], "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "style/ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0],
        "clip": ["4", 1]}},
    "11": {"class_type": "FreeU_V2", "inputs": {"model": ["10", 0], "b1": 1.3}},
    "20": {"class_type": "PrimitiveString", "inputs": {"value": "a cat"}},
}  # fmt: skip
INVOKE = {
    "app_version": "5.6.0", "generation_mode": "sdxl_txt2img", "positive_prompt": "a cat", "negative_prompt": "blurry",
    "width": 512, "height": 768, "seed": 5, "cfg_scale": 7.0, "steps": 20, "scheduler": "dpmpp_2m_k",
    "model": {"name": "base", "hash": "blake3:12", "base": "sdxl"}, "cfg_rescale_multiplier": 0,
    "loras": [{"model": {"name": "ink"}, "weight": 0.8}], "ref_images": [],
}  # fmt: skip
NOVELAI = {
    "prompt": "{{a cat}}, [dog], 1.3::hat ::", "uc": "blurry", "steps": 20, "height": 768, "width": 512, "scale": 7.0,
    "seed": 5, "sampler": "k_dpmpp_2m", "noise_schedule": "karras", "n_samples": 1, "cfg_rescale": 0.2,
}  # fmt: skip
FOOOCUS = {
    "prompt": "a cat", "negative_prompt": "blurry", "steps": 20, "guidance_scale": 7.0, "resolution": "(512, 768)",
    "sampler": "dpmpp_2m", "scheduler": "karras", "seed": "5", "base_model": "base", "performance": "Speed",
    "loras": [["ink", 0.8, "46e3576bb990"]], "metadata_scheme": "fooocus",
}  # fmt: skip
CIVITAI = {
    "extra": {"airs": []},
    "extraMetadata": json.dumps({"prompt": "a cat", "negativePrompt": "blurry", "cfgScale": 7, "steps": 20, "seed": 5,
                                 "sampler": "DPM++ 2M Karras", "width": 512, "height": 768, "resources": [{"id": 1}]}),
}  # fmt: skip


def picture(path: Path, key: str, content: object) -> Path:
    info = PngInfo()
    info.add_text(key, content if isinstance(content, str) else json.dumps(content))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("key", "content", "prompt", "model", "unknown"),
    [
        ("prompt", COMFY, "a cat <lora:ink:0.5:0.8>", "base", {"ComfyUI nodes": "FreeU_V2"}),
        ("invokeai_metadata", INVOKE, "a cat <lora:ink:0.8>", "base", {"app_version": "5.6.0"}),
        ("Comment", NOVELAI, "(a cat:1.1), (dog:0.952), (hat:1.3)", None, {"cfg_rescale": "0.2"}),
        ("parameters", FOOOCUS, "a cat <lora:ink:0.8>", "base", {"performance": "Speed"}),
        ("parameters", CIVITAI, "a cat", None, {"resources": '[{"id": 1}]'}),
    ],
)  # fmt: skip
def test_pictures_of_other_programs_become_requests(
    tmp_path: Path, key: str, content: dict[str, Any], prompt: str, model: str | None, unknown: dict[str, str]
) -> None:
    read = read_image_settings(picture(tmp_path / "a.png", key, content))
    assert read.values == {
        "prompt": prompt, "negative": "blurry", "sampler": "DPM++ 2M Karras", "steps": 20, "guidance": 7.0, "seed": 5,
        "width_px": 512, "height_px": 768,
    }  # fmt: skip
    files.validate(read.values, "the picture", GenerateConfig)
    assert read.model_name == model
    assert unknown.items() <= read.unknown.items()


def test_a_comfyui_graph_of_single_parts_is_followed(tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]}},
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "3": {"class_type": "CFGGuider", "inputs": {"cfg": 4.5, "model": ["8", 0], "positive": ["7", 0],
                                                     "negative": ["9", 0]}},
        "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "5": {"class_type": "BasicScheduler", "inputs": {"steps": 12, "scheduler": "beta", "denoise": 1}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog"}},
        "8": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
            "lora_1": {"on": True, "lora": "a.safetensors", "strength": 1},
            "lora_2": {"on": False, "lora": "b.safetensors", "strength": 1}, "model": ["10", 0]}},
        "9": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["7", 0]}},
        "10": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
        "11": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0]}},
        "12": {"class_type": "SaveImage", "inputs": {"images": ["11", 0]}},
    }  # fmt: skip
    read = read_image_settings(picture(tmp_path / "a.png", "prompt", graph))
    assert read.values == {
        "prompt": "a dog <lora:a:1>", "negative": "", "sampler": "Euler", "steps": 12, "guidance": 4.5, "seed": 7,
        "width_px": 64, "height_px": 64,
    }  # fmt: skip
    assert read.warnings == ("Schedule type: there is no 'beta' here for Euler, which keeps its own",)


def test_what_a_graph_does_beyond_one_sampling_is_said(tmp_path: Path) -> None:
    graph = {name: dict(node) for name, node in COMFY.items()}
    graph["30"] = {"class_type": "KSampler", "inputs": {**COMFY["3"]["inputs"], "latent_image": ["3", 0], "seed": 6}}
    graph["8"] = {"class_type": "VAEDecode", "inputs": {"samples": ["30", 0]}}
    graph["6"] = {"class_type": "StrangeTexts", "inputs": {}}
    read = read_image_settings(picture(tmp_path / "a.png", "prompt", graph))
    assert read.values["seed"] == 5
    assert "its ComfyUI graph samples 2 times; the first time is taken, the others are not" in read.warnings
    assert "the prompt can't be found in its ComfyUI graph" in read.warnings
    assert read.unknown["ComfyUI nodes"] == "FreeU_V2, StrangeTexts"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"1": {"class_type": "LoadImage", "inputs": {}}}, "its ComfyUI graph has no sampler that is known here"),
        ({"hello": 1}, "JSON of an unknown program, with hello"),
        ([1, 2], "JSON of an unknown kind, a list"),
    ],
)
def test_json_of_unknown_programs_is_never_a_prompt(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_image_settings(picture(tmp_path / "a.png", "parameters", content))


def test_a_graph_in_a_circle_ends(tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["2", 0], "model": ["2", 0]}},
        "2": {"class_type": "Loop", "inputs": {"conditioning": ["2", 0], "model": ["2", 0], "text": ["2", 0]}},
    }
    assert read_image_settings(picture(tmp_path / "a.png", "prompt", graph)).values["seed"] == 1
