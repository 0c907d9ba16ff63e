"""What base models are detected as, by every way that they tell: docs/guides/base-models.md.

python -m tests.support.base_model_table     write the page anew
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import ModelError
from sdlora.models.detection import detect
from tests.support.base_headers import SD1, SD1_UNET, SD2, SDXL, SDXL_UNET, TWO_ENCODERS, UNET, folder, safetensors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "base-models.md"
_BEGIN, _END = "<!-- written by python -m tests.support.base_model_table -->", "<!-- end -->"

_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
_FIRST = f"{UNET}input_blocks.0.0.weight"


@dataclass(frozen=True)
class Case:
    """A kind of base model: how it tells what it is, and what it must be detected as."""

    what: str
    make: Callable[[Path], Path]
    expected: str
    """Family, prediction and the rest, or `refused: ` and a part of the message."""


def detected(case: Case) -> str:
    """What the case's model is detected as, in the words of `expected`."""
    with tempfile.TemporaryDirectory() as place:
        model = case.make(Path(place) / "model")
        try:
            found = detect(BaseModelConfig(model=str(model)))
        except ModelError as error:
            return f"refused: {error}"
    parts = [found.family, *(["inpainting"] if found.is_inpainting else []), found.prediction]
    parts += ["zero terminal SNR"] if found.zero_terminal_snr else []
    parts += [f"shift {found.shift:g}"] if found.prediction == "flow" else []
    parts += [f"noise {found.sigmas[0]:g} to {found.sigmas[1]:g}"] if found.prediction == "edm_v" else []
    return ", ".join(parts) + ("" if found.prediction_told else "; the UNet is asked")


def _sd1(**scheduler: object) -> Callable[[Path], Path]:
    return lambda path: folder(path, SD1_UNET, {}, **scheduler)


def _sdxl(**scheduler: object) -> Callable[[Path], Path]:
    return lambda path: folder(path, SDXL_UNET, TWO_ENCODERS, **scheduler)


def _without_scheduler(path: Path) -> Path:
    made = folder(path, SD1_UNET, {})
    (made / "scheduler" / "scheduler_config.json").unlink()
    return made


def _file(shapes: Mapping[str, tuple[int, ...]], **metadata: str) -> Callable[[Path], Path]:
    told = {f"modelspec.{name}": value for name, value in metadata.items()}
    return lambda path: safetensors(path.with_suffix(".safetensors"), shapes, told)


def _cosxl(path: Path) -> Path:
    weights = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in SDXL.items()}
    weights |= {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    save_file(weights, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


CASES = (
    Case("folder, `prediction_type: epsilon`", _sd1(prediction_type="epsilon"), "sd1, epsilon"),
    Case("folder whose scheduler doesn't name one (old SD 1.x)", _sd1(_class_name="PNDMScheduler"), "sd1, epsilon"),
    Case("folder without a scheduler", _without_scheduler, "sd1, epsilon; the UNet is asked"),
    Case("folder, `prediction_type: v_prediction`", _sdxl(prediction_type="v_prediction"), "sdxl, v_prediction"),
    Case(
        "the same with `rescale_betas_zero_snr`",
        _sdxl(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        "sdxl, v_prediction, zero terminal SNR",
    ),
    Case("folder, `FlowMatchEulerDiscreteScheduler`, `shift: 6`", _sdxl(**_FLOW, shift=6.0), "sdxl, flow, shift 6"),
    Case("the same without a shift", _sd1(**_FLOW), "sd1, flow, shift 3"),
    Case(
        "folder, `use_flow_sigmas`, `flow_shift: 2`",
        _sdxl(_class_name="UniPCMultistepScheduler", use_flow_sigmas=True, flow_shift=2.0),
        "sdxl, flow, shift 2",
    ),
    Case("folder, `prediction_type: flow_prediction`", _sdxl(prediction_type="flow_prediction"), "sdxl, flow, shift 3"),
    Case(
        "folder, `use_dynamic_shifting`",
        _sdxl(**_FLOW, use_dynamic_shifting=True),
        "refused: its scheduler_config.json shifts the steps of its flow by each image's size",
    ),
    Case(
        "folder, `EDMEulerScheduler`, `v_prediction`, `sigma_data: 1` (CosXL)",
        _sdxl(
            _class_name="EDMEulerScheduler",
            sigma_data=1.0,
            sigma_min=0.002,
            sigma_max=120.0,
            prediction_type="v_prediction",
        ),
        "sdxl, edm_v, noise 0.002 to 120",
    ),
    Case(
        "folder, `EDMDPMSolverMultistepScheduler`, `sigma_data: 0.5` (Playground v2.5)",
        _sdxl(_class_name="EDMDPMSolverMultistepScheduler", sigma_data=0.5, prediction_type="epsilon"),
        "refused: trained with an EDM noise schedule other than CosXL's",
    ),
    Case(
        "folder, `prediction_type: sample`",
        _sd1(prediction_type="sample"),
        "refused: its scheduler's prediction_type is 'sample'",
    ),
    Case(
        "folder, UNet of 9 channels",
        lambda path: folder(path, {**SDXL_UNET, "in_channels": 9}, TWO_ENCODERS, prediction_type="epsilon"),
        "sdxl, inpainting, epsilon",
    ),
    Case(
        "folder, UNet with a `quantization_config`",
        lambda path: folder(path, {**SD1_UNET, "quantization_config": {"load_in_4bit": True}}, {}),
        "refused: its UNet is quantised",
    ),
    Case(
        "folder, UNet with a `time_cond_proj_dim` (LCM)",
        lambda path: folder(path, {**SD1_UNET, "time_cond_proj_dim": 256}, {}),
        "refused: a latent consistency model",
    ),
    Case("file that tells nothing", _file(SDXL), "sdxl, epsilon; the UNet is asked"),
    Case("file, metadata `prediction_type: epsilon`", _file(SD1, prediction_type="epsilon"), "sd1, epsilon"),
    Case("file, metadata `prediction_type: v`", _file(SDXL, prediction_type="v"), "sdxl, v_prediction"),
    Case("file, metadata `prediction_type: flow`", _file(SDXL, prediction_type="flow"), "sdxl, flow, shift 3"),
    Case("file, metadata `predict_key: v` (ComfyUI)", _file(SDXL, predict_key="v"), "sdxl, v_prediction"),
    Case(
        "file, metadata `architecture: stable-diffusion-v2-768-v`",
        _file(SD2, architecture="stable-diffusion-v2-768-v"),
        "sd2, v_prediction",
    ),
    Case("file, tensor `v_pred`", _file({**SDXL, "v_pred": (0,)}), "sdxl, v_prediction"),
    Case(
        "file, tensors `v_pred` and `ztsnr`",
        _file({**SDXL, "v_pred": (0,), "ztsnr": (0,)}),
        "sdxl, v_prediction, zero terminal SNR",
    ),
    Case(
        "file, tensor `v_pred` but metadata `epsilon`",
        _file({**SDXL, "v_pred": (0,)}, prediction_type="epsilon"),
        "sdxl, v_prediction; the UNet is asked",
    ),
    Case("file, tensor `edm_vpred.sigma_max` (CosXL)", _cosxl, "sdxl, edm_v, noise 0.002 to 120"),
    Case("file, tensor `edm_mean` (Playground v2.5)", _file({**SDXL, "edm_mean": (4,)}), "refused: Playground v2.5"),
    Case("file, metadata `edm`", _file(SDXL, prediction_type="edm"), "refused: trained with an EDM noise schedule"),
    Case(
        "file, UNet of 9 channels",
        _file({**SD1, _FIRST: (320, 9, 3, 3)}),
        "sd1, inpainting, epsilon; the UNet is asked",
    ),
    Case(
        "file, tensors `scale_weight` or `weight_scale` (scaled fp8)",
        _file({**SDXL, f"{_FIRST.removesuffix('weight')}scale_weight": (1,)}),
        "refused: its weights are quantised",
    ),
    Case(
        "file, tensors `absmax` (nf4 of bitsandbytes)",
        _file({**SDXL, f"{_FIRST}.absmax": (8,)}),
        "refused: its weights are quantised",
    ),
    Case(
        "file, tensor `time_embed.cond_proj.weight` (LCM)",
        _file({**SD1, f"{UNET}time_embed.cond_proj.weight": (320, 256)}),
        "refused: a latent consistency model",
    ),
    Case(
        "file, UNet of 8 channels (InstructPix2Pix, CosXL-Edit)",
        _file({**SDXL, _FIRST: (320, 8, 3, 3)}),
        "refused: an InstructPix2Pix model",
    ),
)


def page() -> str:
    """The page's text, with the table anew."""
    before, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    rows = [f"| {case.what} | {case.expected} |" for case in CASES]
    table = "\n".join(["| a base model | is taken as |", "|---|---|", *rows])
    return f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} is written")
