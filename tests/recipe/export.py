"""The trained parts as one diffusers folder in fp16, swapped into place in one go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from .files import load_checkpoint, write_json
from .optimizer import unflatten
from .unet import build_noise_schedule, build_text_encoder, build_unet
from .vae import SCALING_FACTOR, build_vae

TEXT_PREFIX = "text_model."
"""Real SD 1.5 files have it in the text encoder's keys; transformers 5 leaves it out when it saves."""


def export(work: Path, folder: Path) -> None:
    """Write the pipeline to `folder`, with averaged UNet and text weights; keeps its model card and picture."""
    pipeline = assemble(work)
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(beside, safe_serialization=True)
    _tidy(work, beside)
    for kept in ("MODEL_CARD.md", "samples.png"):
        if (folder / kept).exists():
            shutil.copy2(folder / kept, beside / kept)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    beside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def assemble(work: Path) -> StableDiffusionPipeline:
    """The pipeline from the latest checkpoints in fp32; an untrained UNet if there is none yet."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer", model_max_length=77)
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    state = load_checkpoint(work / "unet.pt")
    if state is not None:
        unflatten(state["average"], [unet, text_encoder])
    schedule = build_noise_schedule().config
    scheduler = PNDMScheduler.from_config(schedule, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    scheduler.register_to_config(clip_sample=False)  # as in SD 1.5; DDPM samplers made from it would clip latents
    return StableDiffusionPipeline(
        vae=trained_vae(work),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def trained_vae(work: Path) -> AutoencoderKL:
    """The VAE from the latest of the three VAE checkpoints, fp32."""
    vae = build_vae()
    for name in ("decoder.pt", "vae_joint.pt", "vae.pt"):
        state = load_checkpoint(work / name)
        if state is not None:
            vae.load_state_dict(state["vae"])
            break
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
    return vae.eval()


def _tidy(work: Path, folder: Path) -> None:
    """SD 1.5's key names for the text encoder, CLIP's two tokenizer files, no version noise."""
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    renamed = {
        key if key.startswith(TEXT_PREFIX) else TEXT_PREFIX + key: value.contiguous() for key, value in tensors.items()
    }
    save_file(renamed, weights, metadata={"format": "pt"})
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(work / "tokenizer", folder / "tokenizer")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        values.pop("_name_or_path", None)
        if "dtype" in values:
            values["dtype"] = "float32"  # stored in fp16, but loaded in fp32 unless the caller asks otherwise
        write_json(path, values)
