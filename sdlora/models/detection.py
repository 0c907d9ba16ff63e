"""What a base model is, told by its configs or its file's header: no weights are read, no torch is loaded for
.safetensors files and folders, and it takes milliseconds.

Family: folders by the UNet's config, single files by their names and shapes. Prediction and zero terminal SNR: folders
by scheduler/scheduler_config.json; single files by the marker tensors `v_pred`, `ztsnr` and `edm_vpred.sigma_max` that
SDXL models carry and other tools go by, then by ModelSpec metadata, and otherwise the family's usual (epsilon), until
the loaded UNet is asked (`probe`). SD 2.x at 768 px (v) and 512 px (epsilon) have the same names and shapes; without
metadata their weights are asked (`_guess_sd2_prediction`). File names never decide anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.constants import LATENT_FACTOR, SIGMA_MAX, SIGMA_MIN
from sdlora.errors import ModelError
from sdlora.models.headers import Header, read_header, read_tensor
from sdlora.models.hub import model_file
from sdlora.models.recognition import (
    EMA_PREFIX,
    INPAINTING_CHANNELS,
    UNET_PREFIX,
    recognise_config,
    recognise_header,
    refuse_quantised_config,
    refuse_quantised_file,
)
from sdlora.models.source import PARTS, Source, SourceKind, locate, weight_files
from sdlora.text_files import parse_json, read_text

_RESOLUTIONS: dict[FamilyName, int] = {"sd1": 512, "sd2": 512, "sdxl": 1024}
_SD2_V_RESOLUTION = 768
_SD2_TELLTALE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SD2_THRESHOLD = 0.09
_USUAL_SHIFT = 3.0
"""Of rectified flow at a megapixel (Esser et al. 2024, section 5.3.2), where a model doesn't tell its own."""
_CONFIG = "scheduler_config.json"
_EDM = "an EDM noise schedule other than CosXL's"
_SPELLINGS: dict[str, Prediction] = {
    **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v_pred", "vpred", "velocity"), "v_prediction"),
    **dict.fromkeys(
        ("flow", "rectified_flow", "flow_matching", "flow_prediction", "flow_match", "rf", "const"), "flow"
    ),
    **dict.fromkeys(("edm_v", "edm_vpred", "edm_v_pred", "edm_v_prediction", "v_prediction_edm"), "edm_v"),
}
_EDM_USUAL_MAX = 80.0
"""Of diffusers' EDM schedulers, where their config leaves it out."""
_EDM_LARGEST, _EDM_LEAST = "edm_vpred.sigma_max", "edm_vpred.sigma_min"


@dataclass(frozen=True)
class Detection:
    """What the model is. `notes` are sentences for the user: what was found, where, and what was overridden."""

    family: FamilyName
    prediction: Prediction
    zero_terminal_snr: bool
    source_kind: SourceKind
    native_resolution: int
    notes: tuple[str, ...] = ()
    is_inpainting: bool = False
    """Whether its UNet takes a mask and a picture, too."""
    prediction_told: bool = True
    """Whether the model, or the user, tells what it predicts; else it is the family's usual."""
    shift: float = _USUAL_SHIFT
    """Of rectified flow's steps in generating."""
    sigmas: tuple[float, float] = (SIGMA_MIN, SIGMA_MAX)
    """Least and largest noise, of edm_v."""


@dataclass(frozen=True)
class _Found:
    """Detected values and the places they come from."""

    family: FamilyName
    prediction: Prediction
    prediction_from: str
    zero_terminal_snr: bool
    zero_terminal_snr_from: str
    native_resolution: int
    advice: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    """What else is said, whatever the settings are."""
    is_inpainting: bool = False
    untrained: str = ""
    """What it predicts instead, when that is nothing that is trained here."""
    is_sure: bool = True
    """Whether that is what the model says, without contradiction; else its UNet is asked."""
    shift: float | None = None
    varying_shift: bool = False
    """Whether the shift is another for each image size, as its config says."""
    sigmas: tuple[float, float] = (SIGMA_MIN, SIGMA_MAX)


def detect(config: BaseModelConfig) -> Detection:
    """Read what the base model is; settings of `config` other than "auto" overrule it.

    Raises ModelError when it isn't there, can't be read, or isn't a model that sdlora trains.
    """
    source = locate(config.model)
    if source.kind == "file":
        assert source.path is not None
        found = _detect_file(read_header(source.path))
    else:
        found = _detect_folder(source, config.revision)
        _refuse_quantised(source, config)
    return _overruled(found, config, source.kind)


def _overruled(found: _Found, config: BaseModelConfig, kind: SourceKind) -> Detection:
    if config.family not in ("auto", found.family):
        raise ModelError(
            f"{config.model} is of family {found.family}, but base_model.family says {config.family}; leave it at auto"
        )
    notes = [f"{found.family}{', inpainting' if found.is_inpainting else ''}, {found.native_resolution} px"]
    prediction, zero_terminal_snr, advice = found.prediction, found.zero_terminal_snr, found.advice
    if found.untrained and config.prediction == "auto":
        raise ModelError(
            f"{config.model}: this model is trained with {found.untrained} ({found.prediction_from}); sdlora trains "
            "epsilon, v_prediction, flow and edm_v, which would spoil it. Take such a version of the model or, if you "
            "know that it is one, set base_model.prediction"
        )
    if config.prediction != "auto":
        prediction, advice = config.prediction, ()
        before = found.untrained or found.prediction
        changed = "" if prediction == before else f", overruling {before} ({found.prediction_from})"
        notes.append(f"prediction {prediction} (base_model.prediction{changed})")
    else:
        notes.append(f"prediction {prediction} ({found.prediction_from})")
    if prediction == "flow":
        notes.append(_shift_note(found, config))
    elif config.flow_shift != "auto":
        raise ModelError(
            f"{config.model}: base_model.flow_shift has no effect, as this model predicts {prediction}, which is no "
            "rectified flow; if you know that it is one, set base_model.prediction=flow"
        )
    if config.zero_terminal_snr != "auto":
        zero_terminal_snr = config.zero_terminal_snr
        notes.append(f"zero terminal SNR {'on' if zero_terminal_snr else 'off'} (base_model.zero_terminal_snr)")
    elif prediction in ("flow", "edm_v"):
        zero_terminal_snr = False  # of marker tensors: these two have noise levels of their own
    elif zero_terminal_snr:
        notes.append(f"zero terminal SNR on ({found.zero_terminal_snr_from})")
    if zero_terminal_snr and prediction in ("flow", "edm_v"):
        raise ModelError(
            f"{config.model}: base_model.zero_terminal_snr has no effect with {prediction}, whose noise levels are its "
            "own (rectified flow ends in pure noise anyway); leave it at auto"
        )
    if zero_terminal_snr and prediction == "epsilon":
        raise ModelError(
            f"{config.model}: zero terminal SNR needs v-prediction, as pure noise tells nothing about epsilon; set "
            "base_model.prediction=v_prediction or base_model.zero_terminal_snr=false"
        )
    return Detection(
        family=found.family,
        prediction=prediction,
        zero_terminal_snr=zero_terminal_snr,
        source_kind=kind,
        native_resolution=found.native_resolution,
        notes=("; ".join(notes), *advice, *found.beside),
        is_inpainting=found.is_inpainting,
        prediction_told=config.prediction != "auto" or found.is_sure,
        shift=found.shift or _USUAL_SHIFT if config.flow_shift == "auto" else config.flow_shift,
        sigmas=found.sigmas,
    )


def _shift_note(found: _Found, config: BaseModelConfig) -> str:
    if config.flow_shift != "auto":
        return f"shift {config.flow_shift:g} (base_model.flow_shift)"
    if found.varying_shift:
        raise ModelError(
            f"{config.model}: its scheduler_config.json shifts the steps of its flow by each image's size "
            "(use_dynamic_shifting), which sdlora doesn't; set base_model.flow_shift, 3 being usual at a megapixel"
        )
    return f"shift {found.shift:g} (scheduler_config.json)" if found.shift else f"shift {_USUAL_SHIFT:g} (the usual)"


# ---- folders and hub models


def _read_json(source: Source, filename: str, revision: str | None) -> dict[str, Any] | None:
    """The content of one of the model's JSON files, None when there is no such file."""
    path = model_file(source, filename, revision)
    if path is None:
        return None
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    return content if isinstance(content, dict) else None


def _detect_folder(source: Source, revision: str | None) -> _Found:
    index = _read_json(source, "model_index.json", revision)
    if index is None:
        raise ModelError(
            f"{source.name}: not a diffusers model, model_index.json is missing" + _files_hint(source.path)
        )
    parts = {name for name, value in index.items() if isinstance(value, list) and value and value[0]}
    unet = _read_json(source, "unet/config.json", revision) if "unet" in parts else None
    family = recognise_config(source.name, index, unet)
    assert unet is not None
    scheduler = _read_json(source, "scheduler/scheduler_config.json", revision) if "scheduler" in parts else None
    where = _CONFIG if scheduler is not None else f"the usual, as there is no {_CONFIG}"
    scheduler = scheduler or {}
    prediction, untrained = _scheduler_prediction(scheduler)
    if prediction is None:
        raise ModelError(
            f"{source.name}: its scheduler's prediction_type is '{scheduler.get('prediction_type')}'; sdlora trains "
            "epsilon, v_prediction, flow and edm_v"
        )
    shift = scheduler.get("shift", scheduler.get("flow_shift"))
    return _Found(
        family=family,
        prediction=prediction,
        prediction_from=where,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        zero_terminal_snr_from=where,
        native_resolution=int(unet.get("sample_size") or _RESOLUTIONS[family] // LATENT_FACTOR) * LATENT_FACTOR,
        is_inpainting=unet.get("in_channels") == INPAINTING_CHANNELS,
        untrained=untrained,
        is_sure=where == _CONFIG,
        shift=None if shift is None else float(shift),
        varying_shift=bool(scheduler.get("use_dynamic_shifting", False)),
        sigmas=(float(scheduler.get("sigma_min", SIGMA_MIN)), float(scheduler.get("sigma_max", _EDM_USUAL_MAX))),
    )


def _refuse_quantised(source: Source, config: BaseModelConfig) -> None:
    """Raise ModelError where a part is quantised; of a hub model, by what its configs tell."""
    for part in PARTS if source.kind != "builtin" else ():
        refuse_quantised_config(source.name, part, _read_json(source, f"{part}/config.json", config.revision))
        if source.path is not None:
            for path in weight_files(source.path / part, config.variant):
                refuse_quantised_file(path)


def _scheduler_prediction(scheduler: dict[str, Any]) -> tuple[Prediction | None, str]:
    """What a scheduler's config says, None for what no model of Stable Diffusion predicts; and what it says instead of
    anything that is trained here, for people who overrule it by base_model.prediction."""
    kind, said = str(scheduler.get("_class_name", "")), _spelled(str(scheduler.get("prediction_type", "epsilon")))
    if "FlowMatch" in kind or scheduler.get("use_flow_sigmas") or said == "flow":
        return "flow", ""
    if kind.startswith("EDM") or "sigma_data" in scheduler:
        # A spread of the data other than 1 is another loss, with latents scaled to it (Playground v2.5).
        is_cosxl = said == "v_prediction" and float(scheduler.get("sigma_data", 0.5)) == 1.0
        return "edm_v" if is_cosxl else "epsilon", "" if is_cosxl else _EDM
    return said, ""


def _spelled(said: str) -> Prediction | None:
    """A prediction by any of the names that it goes by."""
    return _SPELLINGS.get(said.strip().lower().replace("-", "_").replace(" ", "_"))


def _files_hint(folder: Path | None) -> str:
    if folder is None:
        return "; if it offers a single .safetensors file, download that and give its path"
    files = sorted(path.name for path in folder.glob("*.safetensors")) + sorted(
        path.name for path in folder.glob("*.ckpt")
    )
    return f"; did you mean the file {folder / files[0]}?" if files else ""


# ---- single files


def _detect_file(header: Header) -> _Found:
    family = recognise_header(header)
    found = _Found(
        family=family,
        prediction="epsilon",
        prediction_from=f"usual for {family}, the file doesn't say",
        zero_terminal_snr=False,
        zero_terminal_snr_from="",
        native_resolution=_RESOLUTIONS[family],
        is_inpainting=header.shapes[f"{UNET_PREFIX}input_blocks.0.0.weight"][1] == INPAINTING_CHANNELS,
        is_sure=False,
    )
    said, marked = _metadata_prediction(header.metadata), _marked_prediction(header)
    if marked is not None:
        found = replace(found, prediction=marked[0], prediction_from=f"marker tensor {marked[1]}", is_sure=True)
        if said is not None and said != marked[0]:
            found = _contradicted(found, said)
    elif said is not None:
        found = replace(found, prediction=said, prediction_from="the file's metadata", is_sure=True)
    elif untrained := _untrained_file(header):
        found = replace(found, untrained=_EDM, prediction_from=untrained)
    elif family == "sd2":
        found = _guess_sd2_prediction(header, found)
    if found.prediction == "edm_v":
        found = replace(found, sigmas=_marked_sigmas(header))
    if "ztsnr" in header.shapes:
        found = replace(found, zero_terminal_snr=True, zero_terminal_snr_from="marker tensor ztsnr")
    elif _metadata_says(header.metadata, "ss_zero_terminal_snr", "modelspec.zero_terminal_snr"):
        found = replace(found, zero_terminal_snr=True, zero_terminal_snr_from="the file's metadata")
    if averaged := sum(name.startswith(EMA_PREFIX) for name in header.shapes):
        words = "are not used: as other tools do, sdlora takes the weights themselves (model.diffusion_model.*)"
        found = replace(found, beside=(f"{averaged} tensors of a moving average (model_ema.*) {words}",))
    return replace(found, native_resolution=file_resolution(family, found.prediction))


def file_resolution(family: FamilyName, prediction: Prediction) -> int:
    """Edge in pixels that a single-file model was trained at; SD 2's two sizes go with what it predicts."""
    return _SD2_V_RESOLUTION if family == "sd2" and prediction == "v_prediction" else _RESOLUTIONS[family]


def _contradicted(found: _Found, said: str) -> _Found:
    """Merges copy one model's metadata beside another's tensors; the tensors are what other tools generate by."""
    advice = f"its metadata say {said} and its {found.prediction_from} {found.prediction}, which is taken"
    return replace(found, advice=(f"{advice}; base_model.prediction overrules both",), is_sure=False)


def _marked_prediction(header: Header) -> tuple[Prediction, str] | None:
    """What the tensors say that some files carry for this, and which of them."""
    for marker in (_EDM_LARGEST, _EDM_LEAST):
        if marker in header.shapes:
            return "edm_v", marker
    return ("v_prediction", "v_pred") if "v_pred" in header.shapes else None


def _marked_sigmas(header: Header) -> tuple[float, float]:
    """Least and largest noise by the tensors for that, CosXL's where they are left out."""
    found = {
        marker: float(read_tensor(header.path, marker).float().reshape(-1)[0])
        for marker in (_EDM_LEAST, _EDM_LARGEST)
        if math.prod(header.shapes.get(marker, (0,)))
    }
    return found.get(_EDM_LEAST, SIGMA_MIN), found.get(_EDM_LARGEST, SIGMA_MAX)


def _metadata_prediction(metadata: dict[str, str]) -> Prediction | None:
    """ModelSpec's prediction_type or ComfyUI's predict_key (epsilon, v, flow), else ModelSpec's architecture, where
    `-v` marks SD 2's 768 px v-model."""
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if (said := _spelled(metadata.get(key, ""))) is not None:
            return said
    architecture = metadata.get("modelspec.architecture", "").split("/")[0]
    if architecture.startswith("stable-diffusion-v2"):
        return "v_prediction" if architecture.endswith("-v") else "epsilon"
    return None


def _untrained_file(header: Header) -> str | None:
    """Where a file says that it is trained with another EDM; None if it doesn't."""
    if header.metadata.get("modelspec.prediction_type", "").strip().lower().startswith("edm"):
        return "the file's metadata"
    return "marker tensor sigma_data" if "sigma_data" in header.shapes else None


def _metadata_says(metadata: dict[str, str], *names: str) -> bool:
    return any(metadata.get(name, "").strip().lower() in ("true", "1") for name in names)


def _guess_sd2_prediction(header: Header, found: _Found) -> _Found:
    """Epsilon or v by one bias vector's spread, which sets Stability's 512 px and 768 px models and those made from
    them apart (the threshold is the one ComfyUI goes by). A rule of thumb, so the user is told to check."""
    import torch

    if _SD2_TELLTALE not in header.shapes:
        return found
    spread = float(torch.std(read_tensor(header.path, _SD2_TELLTALE).float(), unbiased=False))
    prediction: Prediction = "v_prediction" if spread > _SD2_THRESHOLD else "epsilon"
    return replace(
        found,
        prediction=prediction,
        prediction_from="guessed from the weights",
        advice=(
            "this SD 2 file doesn't say whether it predicts v (768 px models) or epsilon (512 px models); "
            f"{prediction} was guessed: set base_model.prediction to be sure",
        ),
    )
