"""A base model by name, folder or file: detected, loaded frozen, quantised if asked, with its notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.config.shipped import BUILTIN_PREFIX
from sdlora.constants import MIB
from sdlora.errors import ModelError
from sdlora.models.bundle import Bundle
from sdlora.models.completeness import check_parts, check_vae
from sdlora.models.components import Parts
from sdlora.models.detection import Detection, detect, file_resolution
from sdlora.models.dtypes import DTYPES
from sdlora.models.families import FAMILIES
from sdlora.models.folder import DiffusersModel, load_vae_folder
from sdlora.models.identity import weights_identity
from sdlora.models.probe import probed_prediction
from sdlora.models.quantize import quantize_, weight_bytes
from sdlora.models.schedule import build_schedule
from sdlora.models.single_file import SingleFile, load_vae_file
from sdlora.models.source import locate
from sdlora.models.text import check_clip_skip
from sdlora.words import count

Change = Callable[[FamilyName, Sequence[nn.Module]], list[str]]
"""Changes the weights of a UNet and its text encoders in place; returns notes for the user."""


def load(
    config: BaseModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    change: Change | None = None,
) -> Bundle:
    """The base model of `config`, frozen, in eval mode, on `device`. Its adapters are left to `change`.

    dtype: number type of the weights; by default that of config.precision (auto: bf16). change: called with the loaded
    weights before they are quantised and named. Raises ModelError when the model isn't there, can't be read or isn't of
    a known family, MissingPackageError when NF4 needs bitsandbytes.
    """
    assert change is not None or not config.adapters, "adapters.algebra.loaded_base.load_base merges them"
    detection = detect(config)
    check_parts(config, detection.family)
    if config.vae is not None:
        check_vae(config.vae)
    if dtype is None:
        dtype = torch.bfloat16 if config.precision == "auto" else DTYPES[config.precision]
    notes = list(detection.notes)
    parts = _parts(config, detection)
    text_encoders = parts.text_encoders(dtype)
    if detection.family == "sdxl" and config.clip_skip > 1:
        notes.append("base_model.clip_skip has no effect: SDXL always takes the last layer but one")
    check_clip_skip(config.clip_skip, text_encoders[0].config.num_hidden_layers)
    vae = _load_vae(config, parts, detection.family, dtype, notes)
    # Last and largest: what can be wrong with the rest is found out before its gigabytes are read.
    unet = parts.unet(dtype)
    for module in (unet, vae, *text_encoders):
        module.requires_grad_(False).eval()
    names = ("UNet", "VAE", "text encoder", "second text encoder")
    for name, module in zip(names, (unet, vae, *text_encoders), strict=False):
        _refuse_nonfinite(config.model, name, module)
    if change is not None:
        notes += change(detection.family, [unet, *text_encoders])
    identity = weights_identity([unet, vae, *text_encoders])
    # None is a weight, but all change what is cached: the factors scale and shift latents, clip_skip chooses the layer.
    shift = getattr(vae.config, "shift_factor", None)
    vae_identity = weights_identity([vae], repr(vae.config.scaling_factor), *([repr(shift)] if shift else []))
    text_identity = weights_identity(text_encoders, config.clip_skip)
    prediction, native_resolution = detection.prediction, detection.native_resolution
    if not detection.prediction_told:
        prediction = _asked(unet, detection, dtype, notes)
        if detection.source_kind == "file":
            native_resolution = file_resolution(detection.family, prediction)
    schedule = build_schedule(
        parts.scheduler_config(),
        prediction,
        detection.zero_terminal_snr,
        shift=detection.shift,
        sigmas=detection.sigmas,
    )
    plain_bytes = weight_bytes(unet)
    quantize_(unet, config.quantization, device)
    if config.quantization != "none":
        notes.append(f"UNet in {config.quantization}: {_mib(weight_bytes(unet))} MiB, not {_mib(plain_bytes)}")
    bundle = Bundle(
        family=FAMILIES[detection.family],
        unet=unet,
        vae=vae,
        text_encoders=text_encoders,
        tokenizers=parts.tokenizers(),
        schedule=schedule,
        config=config,
        source=config.model,
        dtype=dtype,
        native_resolution=native_resolution,
        identity=identity,
        vae_identity=vae_identity,
        text_identity=text_identity,
        clip_skip=config.clip_skip,
        notes=notes,
    )
    return bundle.to(device)


def _refuse_nonfinite(model: str, part: str, module: nn.Module) -> None:
    """Raise ModelError where weights are NaN or infinite: all pictures would be black, all losses NaN."""
    # The extremes tell, as NaN passes through them: one pass over the weights, without a copy of any.
    broken = [
        (name, str(weight.dtype).removeprefix("torch."))
        for name, weight in module.named_parameters()
        if weight.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(weight))
    ]
    if broken:
        (name, kind), number = broken[0], count(len(broken), "weight")
        raise ModelError(
            f"{model}: {number} of its {part} with NaN or infinite values in {kind}, such as {name}: it is damaged"
            + (", or its values are too large for fp16: try base_model.precision=bf16" if kind == "float16" else "")
        )


def _asked(unet: UNet2DConditionModel, detection: Detection, dtype: torch.dtype, notes: list[str]) -> Prediction:
    """What the UNet itself shows to predict, where its file doesn't tell; what was found is said."""
    found, usual = probed_prediction(unet, dtype), detection.prediction
    if found is None or usual == "edm_v":  # whose timesteps are others, so that its answers mean nothing
        notes.append(
            "whether it predicts epsilon, v or flow is not certain, as two calls of the UNet gave no clear answer: "
            f"taken as {usual}; base_model.prediction overrules that"
        )
        return usual
    agree = "and two calls of the UNet say the same" if found == usual else f"but two calls of the UNet show {found}"
    notes.append(
        f"its file doesn't say for certain what it predicts; {usual} is likely, {agree}: taken as {found}; "
        "base_model.prediction overrules that"
    )
    return found


def _parts(config: BaseModelConfig, detection: Detection) -> Parts:
    source = locate(config.model)
    if source.kind == "file":
        assert source.path is not None
        return SingleFile(source.path, detection)
    # The embedded models have one variant; what asks for another is said to have no effect.
    variant = None if config.model.startswith(BUILTIN_PREFIX) else config.variant
    return DiffusersModel(source, detection.family, config.revision, variant)


def _load_vae(
    config: BaseModelConfig, parts: Parts, family: FamilyName, dtype: torch.dtype, notes: list[str]
) -> AutoencoderKL:
    """The model's own or another VAE; SDXL's in fp32 when fp16 is asked for, as it overflows there."""
    vae = _with_factors(parts.vae(dtype) if config.vae is None else load_vae(config.vae, family, dtype), config)
    # There are VAEs whose weights were scaled to fit fp16; their config tells so, or else their file's name.
    name = Path(config.vae or "").name.lower().replace("_", "-")
    fits_fp16 = not vae.config.force_upcast or "fp16-fix" in name
    if dtype != torch.float16 or family != "sdxl" or fits_fp16:
        return vae
    notes.append("SDXL's VAE overflows in fp16, so it is held in fp32")
    # loaded afresh: what was rounded to fp16 stays rounded
    vae = parts.vae(torch.float32) if config.vae is None else load_vae(config.vae, family, torch.float32)
    return _with_factors(vae, config)


def _with_factors(vae: AutoencoderKL, config: BaseModelConfig) -> AutoencoderKL:
    """The VAE with the factors on its latents that the settings give it."""
    if config.vae_scale is not None:
        vae.register_to_config(scaling_factor=config.vae_scale)
    if config.vae_shift is not None:
        vae.register_to_config(shift_factor=config.vae_shift)
    return vae


def load_vae(name: str, family: FamilyName, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE by itself: a folder, a file or a hub name. Raises ModelError when it isn't there or is no VAE."""
    source = locate(name)
    if source.kind == "file":
        assert source.path is not None
        return load_vae_file(source.path, family, dtype)
    return load_vae_folder(source, dtype)


def _mib(number: int) -> int:
    return round(number / MIB)
