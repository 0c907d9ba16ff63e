"""What a base model is, told by its configs or its file's header: no weights are read, no torch is loaded for
.safetensors files and folders, and it takes milliseconds.

Family: folders by the UNet's config, single files by their names and shapes. Prediction and zero terminal SNR: folders
by scheduler/scheduler_config.json; single files by ModelSpec metadata, then by the marker tensors `v_pred` and `ztsnr`
that SDXL v-prediction models carry, and otherwise the family's usual (epsilon). SD 2.x at 768 px (v) and 512 px
(epsilon) have the same names and shapes; without metadata their weights are asked (`_guess_sd2_prediction`). File names
never decide anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdlora.config.base_model import BaseModelConfig, FamilyName, Prediction
from sdlora.constants import LATENT_FACTOR
from sdlora.errors import ModelError
from sdlora.models.headers import Header, read_header, read_tensor
from sdlora.models.hub import model_file
from sdlora.models.recognition import recognise_config, recognise_header
from sdlora.models.source import Source, SourceKind, locate
from sdlora.text_files import parse_json, read_text

_RESOLUTIONS: dict[FamilyName, int] = {"sd1": 512, "sd2": 512, "sdxl": 1024}
_SD2_V_RESOLUTION = 768
_SD2_TELLTALE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_SD2_THRESHOLD = 0.09
_USUAL = "usual for"
_FLOW, _EDM = "rectified flow", "an EDM noise schedule"
_FLOW_WORDS = ("flow", "rectified_flow", "rectified-flow", "flow_matching", "flow-matching", "flow_prediction", "rf")
_EDM_KEYS = ("sigma_data", "edm_mean", "edm_vpred.sigma_max", "edm_vpred.sigma_min")


@dataclass(frozen=True)
class Detection:
    """What the model is. `notes` are sentences for the user: what was found, where, and what was overridden."""

    family: FamilyName
    prediction: Prediction
    zero_terminal_snr: bool
    source_kind: SourceKind
    native_resolution: int
    notes: tuple[str, ...] = ()
    prediction_told: bool = True
    """Whether the model, or the user, tells what it predicts; else it is the family's usual."""


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
    untrained: str = ""
    """What it predicts instead, when that is nothing that is trained here."""


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
    return _overruled(found, config, source.kind)


def _overruled(found: _Found, config: BaseModelConfig, kind: SourceKind) -> Detection:
    if config.family not in ("auto", found.family):
        raise ModelError(
            f"{config.model} is of family {found.family}, but base_model.family says {config.family}; leave it at auto"
        )
    notes = [f"{found.family}, {found.native_resolution} px"]
    prediction, zero_terminal_snr, advice = found.prediction, found.zero_terminal_snr, found.advice
    if found.untrained and config.prediction == "auto":
        raise ModelError(
            f"{config.model}: this model is trained with {found.untrained} ({found.prediction_from}); sdlora trains "
            "epsilon and v_prediction, which would spoil it. Take such a version of the model or, if you know that it "
            "is one, set base_model.prediction"
        )
    if config.prediction != "auto":
        prediction, advice = config.prediction, ()
        before = found.untrained or found.prediction
        changed = "" if prediction == before else f", overruling {before} ({found.prediction_from})"
        notes.append(f"prediction {prediction} (base_model.prediction{changed})")
    else:
        notes.append(f"prediction {prediction} ({found.prediction_from})")
    if config.zero_terminal_snr != "auto":
        zero_terminal_snr = config.zero_terminal_snr
        notes.append(f"zero terminal SNR {'on' if zero_terminal_snr else 'off'} (base_model.zero_terminal_snr)")
    elif zero_terminal_snr:
        notes.append(f"zero terminal SNR on ({found.zero_terminal_snr_from})")
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
        notes=("; ".join(notes), *advice),
        prediction_told=config.prediction != "auto" or not found.prediction_from.startswith(_USUAL),
    )


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
    where = "scheduler_config.json" if scheduler is not None else "the usual, as there is no scheduler_config.json"
    scheduler = scheduler or {}
    prediction = scheduler.get("prediction_type", "epsilon")
    untrained = _untrained_schedule(scheduler)
    if untrained:
        # For people who overrule it by base_model.prediction; all others are refused.
        prediction = "v_prediction" if prediction == "v_prediction" else "epsilon"
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"{source.name}: its scheduler's prediction_type is '{prediction}'; sdlora trains epsilon and v_prediction"
        )
    return _Found(
        family=family,
        prediction=prediction,
        prediction_from=where,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        zero_terminal_snr_from=where,
        native_resolution=int(unet.get("sample_size") or _RESOLUTIONS[family] // LATENT_FACTOR) * LATENT_FACTOR,
        untrained=untrained,
    )


def _untrained_schedule(scheduler: dict[str, Any]) -> str:
    """What a scheduler's config says that is neither epsilon nor v-prediction over Stable Diffusion's noise levels."""
    kind = str(scheduler.get("_class_name", ""))
    flow = "FlowMatch" in kind or scheduler.get("use_flow_sigmas") or scheduler.get("prediction_type") in _FLOW_WORDS
    if flow:
        return _FLOW
    return _EDM if kind.startswith("EDM") or "sigma_data" in scheduler else ""


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
        prediction_from=f"{_USUAL} {family}, the file doesn't say",
        zero_terminal_snr=False,
        zero_terminal_snr_from="",
        native_resolution=_RESOLUTIONS[family],
    )
    said = _metadata_prediction(header.metadata)
    if said is not None:
        found = replace(found, prediction=said, prediction_from="the file's metadata")
    elif untrained := _untrained_file(header):
        found = replace(found, untrained=untrained[0], prediction_from=untrained[1])
    elif "v_pred" in header.shapes:
        found = replace(found, prediction="v_prediction", prediction_from="marker tensor v_pred")
    elif family == "sd2":
        found = _guess_sd2_prediction(header, found)
    if "ztsnr" in header.shapes:
        found = replace(found, zero_terminal_snr=True, zero_terminal_snr_from="marker tensor ztsnr")
    elif _metadata_says(header.metadata, "ss_zero_terminal_snr", "modelspec.zero_terminal_snr"):
        found = replace(found, zero_terminal_snr=True, zero_terminal_snr_from="the file's metadata")
    if family == "sd2" and found.prediction == "v_prediction":
        found = replace(found, native_resolution=_SD2_V_RESOLUTION)
    return found


def _metadata_prediction(metadata: dict[str, str]) -> Prediction | None:
    """ModelSpec's prediction_type (epsilon, v), else its architecture, where `-v` marks SD 2's 768 px v-model."""
    said = metadata.get("modelspec.prediction_type", "").strip().lower()
    if said in ("v", "v_prediction", "v-prediction", "vpred"):
        return "v_prediction"
    if said in ("epsilon", "eps"):
        return "epsilon"
    architecture = metadata.get("modelspec.architecture", "").split("/")[0]
    if architecture.startswith("stable-diffusion-v2"):
        return "v_prediction" if architecture.endswith("-v") else "epsilon"
    return None


def _untrained_file(header: Header) -> tuple[str, str] | None:
    """What a file says that is neither epsilon nor v-prediction, and where."""
    said = header.metadata.get("modelspec.prediction_type", "").strip().lower().replace(" ", "_")
    if said in _FLOW_WORDS:
        return _FLOW, "the file's metadata"
    if said.startswith("edm"):
        return _EDM, "the file's metadata"
    marker = next((key for key in _EDM_KEYS if key in header.shapes), None)
    return None if marker is None else (_EDM, f"marker tensor {marker}")


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
