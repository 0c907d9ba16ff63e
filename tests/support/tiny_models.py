"""Random base models of every family in their true layout, for tests and trials: real topology, reduced or true width.

build("sdxl", folder)                    a diffusers folder that any tool can load
save_single_file(folder, "model.safetensors")   the same weights as one file in the original layout
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdlora.adapters.files.metadata import MODELSPEC_PREDICTIONS
from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.models.configs import ModelConfig, shipped_configs
from sdlora.models.detection import detect
from sdlora.models.families import FAMILIES
from sdlora.models.progress_bars import no_progress_bars
from sdlora.models.recognition import (
    SD1_TEXT_PREFIX,
    SD2_TEXT_PREFIX,
    SDXL_TEXT_2_PREFIX,
    SDXL_TEXT_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
)
from sdlora.models.tokenizer import END, OPENCLIP_PAD, clip_tokenizer
from tests.support.original_names import original_openclip_name, original_unet_name, original_vae_name

Width = Literal["tiny", "true"]

_UNET_WIDTHS: dict[FamilyName, list[int]] = {
    "sd1": [32, 32, 64, 64],
    "sd2": [64, 64, 128, 128],
    "sdxl": [32, 64, 64],
}
_SCHEDULERS: dict[Prediction, ModelConfig] = {
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    "edm_v": {
        "_class_name": "EDMEulerScheduler",
        "prediction_type": "v_prediction",
        "sigma_data": 1.0,
        "sigma_min": 0.002,
        "sigma_max": 120.0,
        "sigma_schedule": "exponential",
    },
}
_VAE_WIDTHS = [32, 32, 64, 64]
_TEXT_WIDTH, _TEXT_2_WIDTH = 64, 128
_OPENCLIP_PARTS: dict[FamilyName, tuple[str, ...]] = {
    "sd1": (),
    "sd2": ("text_encoder",),
    "sdxl": ("text_encoder_2",),
}


def build(
    family: FamilyName,
    folder: Path,
    *,
    width: Width = "tiny",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    prediction: Prediction = "epsilon",
    zero_terminal_snr: bool = False,
    inpainting: bool = False,
    shallow: bool = False,
) -> Path:
    """Write a random model as a diffusers folder, and return the folder.

    width: "tiny" (a few million weights, mostly the text encoders' vocabulary) or "true" (SD 1.5 in bf16 takes 2 GB).
    shallow: attention on one level only, or of one layer (SDXL), and three layers of text encoder, which makes runs
    much shorter.
    """
    configs = narrow_configs(family, prediction) if width == "tiny" else shipped_configs(family, prediction)
    if shallow:
        _make_shallow(configs)
    if inpainting:
        configs["unet"]["in_channels"] = 9
    if prediction in _SCHEDULERS:
        configs["scheduler"] = dict(_SCHEDULERS[prediction])
    else:
        configs["scheduler"]["rescale_betas_zero_snr"] = zero_terminal_snr
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), no_progress_bars():
            torch.manual_seed(seed)
            for part, config in configs.items():
                if part != "scheduler":
                    _make(part, config).save_pretrained(folder / part)
    finally:
        torch.set_default_dtype(before)
    _write_rest(folder, family, configs)
    return folder


def narrow_configs(family: FamilyName, prediction: Prediction = "epsilon") -> dict[str, ModelConfig]:
    """The configs of a family's parts with the widths cut; levels, layers and depths stay."""
    configs = shipped_configs(family, prediction)
    unet, vae = configs["unet"], configs["vae"]
    unet["block_out_channels"] = _UNET_WIDTHS[family]
    if isinstance(unet["attention_head_dim"], list):
        unet["attention_head_dim"] = [width // 64 for width in _UNET_WIDTHS[family]]
    unet["cross_attention_dim"] = _TEXT_WIDTH + (_TEXT_2_WIDTH if family == "sdxl" else 0)
    if family == "sdxl":
        unet["projection_class_embeddings_input_dim"] = _TEXT_2_WIDTH + 6 * unet["addition_time_embed_dim"]
    vae["block_out_channels"] = _VAE_WIDTHS
    for part, width in (("text_encoder", _TEXT_WIDTH), ("text_encoder_2", _TEXT_2_WIDTH)):
        if part in configs:
            configs[part].update(
                hidden_size=width,
                intermediate_size=2 * width,
                num_attention_heads=width // 64,
                projection_dim=width,
            )
    return configs


def _make_shallow(configs: Mapping[str, ModelConfig]) -> None:
    # What is left has the names that it has in the whole model, and every kind of layer is left.
    unet = configs["unet"]
    if "transformer_layers_per_block" in unet:  # SDXL's, whose first level has no attention
        unet["transformer_layers_per_block"] = [1] * len(unet["down_block_types"])
    else:
        first, *others = unet["down_block_types"]
        *_, last = unet["up_block_types"]
        unet["down_block_types"] = [first, *["DownBlock2D"] * len(others)]
        unet["up_block_types"] = [*["UpBlock2D"] * len(others), last]
    configs["vae"]["layers_per_block"] = 1
    for part, config in configs.items():
        if part.startswith("text_encoder"):
            config["num_hidden_layers"] = 3


def _make(part: str, config: ModelConfig) -> Any:
    if part == "unet":
        return UNet2DConditionModel.from_config(config)
    if part == "vae":
        return AutoencoderKL.from_config(config)
    projected = config["architectures"] == ["CLIPTextModelWithProjection"]
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))
    return _with_biases(encoder)


def _with_biases(encoder: nn.Module) -> nn.Module:
    """Random biases, which transformers starts at 0: a mixed-up bias would not show."""
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
    return encoder


def _write_rest(folder: Path, family: FamilyName, configs: Mapping[str, ModelConfig]) -> None:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", configs["scheduler"].get("_class_name", "DDIMScheduler")],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for part, config in configs.items():
        if part.startswith("text_encoder"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            index[part] = ["transformers", config["architectures"][0]]
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
            padding = OPENCLIP_PAD if part in _OPENCLIP_PARTS[family] else END
            clip_tokenizer(padding).save_pretrained(folder / tokenizer)
    if family == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None]}
        index["requires_safety_checker"] = False
    scheduler = folder / "scheduler"
    scheduler.mkdir(exist_ok=True)
    (scheduler / "scheduler_config.json").write_text(json.dumps(configs["scheduler"], indent=2), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def save_single_file(folder: Path, file: Path, *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a diffusers folder's weights as one file in the original layout (.safetensors or .ckpt), and return it.

    metadata: by default ModelSpec's, which says what the model predicts. SD 2.x's text encoder gets its 24th layer back
    (as zeros), which the original files have and nobody uses.
    """
    detection = detect(BaseModelConfig(model=str(folder)))
    weights = {
        **_original_unet(folder),
        **_original_vae(folder),
        **_original_text_encoders(folder, detection.family),
    }
    if detection.zero_terminal_snr:
        weights["ztsnr"] = torch.tensor([])
    if detection.prediction == "edm_v":
        weights |= {
            f"edm_vpred.sigma_m{end}": torch.tensor(value)
            for end, value in zip(("in", "ax"), detection.sigmas, strict=True)
        }
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    if file.suffix == ".ckpt":
        torch.save({"state_dict": weights}, file)
        return file
    if metadata is None:
        family = FAMILIES[detection.family]
        metadata = {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": family.modelspec_architecture(detection.prediction),
            "modelspec.prediction_type": MODELSPEC_PREDICTIONS[detection.prediction],
        }
    save_file(weights, file, metadata=dict(metadata))
    return file


def _read(folder: Path) -> dict[str, Tensor]:
    """All weights of one part, from one file or several."""
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def _original_unet(folder: Path) -> dict[str, Tensor]:
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    attentions = ["CrossAttn" in kind for kind in config["up_block_types"]]
    layers = config["layers_per_block"]
    return {
        UNET_PREFIX + original_unet_name(name, layers, attentions): tensor
        for name, tensor in _read(folder / "unet").items()
    }


def _original_vae(folder: Path) -> dict[str, Tensor]:
    weights = _read(folder / "vae")
    levels = len({name.split(".")[2] for name in weights if name.startswith("encoder.down_blocks.")})
    original = {}
    for name, tensor in weights.items():
        linear = ".attentions." in name and tensor.ndim == 2  # a 1x1 convolution in the original
        original[VAE_PREFIX + original_vae_name(name, levels)] = tensor[:, :, None, None] if linear else tensor
    return original


def _original_text_encoders(folder: Path, family: FamilyName) -> dict[str, Tensor]:
    first = _with_text_model(_read(folder / "text_encoder"))
    if family == "sd1":
        return {SD1_TEXT_PREFIX + name: tensor for name, tensor in first.items()}
    if family == "sd2":
        return _openclip(first, SD2_TEXT_PREFIX, unused_layer=True)
    second = _with_text_model(_read(folder / "text_encoder_2"))
    return {
        **{SDXL_TEXT_PREFIX + name: tensor for name, tensor in first.items()},
        **_openclip(second, SDXL_TEXT_2_PREFIX, unused_layer=False),
    }


def _with_text_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    start = ("text_model.", "text_projection.")
    return {name if name.startswith(start) else f"text_model.{name}": tensor for name, tensor in weights.items()}


def _openclip(weights: dict[str, Tensor], prefix: str, *, unused_layer: bool) -> dict[str, Tensor]:
    original: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        target = original_openclip_name(name)
        if ".q_proj." in name:
            rest = [weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "kv"]
            original[target] = torch.cat([tensor, *rest])
        elif name == "text_projection.weight":
            original[target] = tensor.T
        elif ".k_proj." not in name and ".v_proj." not in name:
            original[target] = tensor
    original["logit_scale"] = torch.tensor(4.6052)
    if unused_layer:
        last = max(int(name.split(".")[2]) for name in original if name.startswith("transformer.resblocks."))
        start = f"transformer.resblocks.{last}."
        for name, tensor in list(original.items()):
            if name.startswith(start):
                original[name.replace(start, f"transformer.resblocks.{last + 1}.")] = torch.zeros_like(tensor)
        width = len(original["ln_final.weight"])
        original["text_projection"] = torch.eye(width)
    return {prefix + name: tensor for name, tensor in original.items()}
