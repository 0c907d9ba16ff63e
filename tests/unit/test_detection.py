"""What a base model is, from headers and configs, and what is said about everything else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import ModelError
from sdlora.models.bundle import Bundle
from sdlora.models.detection import Detection, detect
from sdlora.models.headers import read_header
from sdlora.models.loading import load
from sdlora.models.probe import probed_prediction
from sdlora.models.schedule import NoiseSchedule
from sdlora.models.single_file import read_weights
from tests.support.base_headers import SD1, SD1_UNET, SD2, SDXL, SDXL_UNET, TWO_ENCODERS, UNET, folder, safetensors

BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"


def found(model: Path, **settings: object) -> Detection:
    return detect(BaseModelConfig(model=str(model), **settings))  # type: ignore[arg-type]


# ---- single files


@pytest.mark.parametrize(("shapes", "family"), [(SD1, "sd1"), (SD2, "sd2"), (SDXL, "sdxl")])
def test_single_files_are_told_apart_by_names_and_shapes(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], family: str
) -> None:
    detection = found(safetensors(tmp_path / "model.safetensors", shapes))
    assert (detection.family, detection.prediction, detection.source_kind) == (family, "epsilon", "file")
    assert detection.native_resolution == (1024 if family == "sdxl" else 512)


@pytest.mark.parametrize(
    ("metadata", "prediction"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon", "modelspec.architecture": "stable-diffusion-v2-768-v"}, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
    ],
)
def test_metadata_tells_the_prediction(tmp_path: Path, metadata: dict[str, str], prediction: str) -> None:
    detection = found(safetensors(tmp_path / "model.safetensors", SD2, metadata))
    assert detection.prediction == prediction
    assert detection.native_resolution == (768 if prediction == "v_prediction" else 512)
    assert "the file's metadata" in detection.notes[0]


def test_marker_tensors_tell_v_prediction_and_zero_terminal_snr(tmp_path: Path) -> None:
    detection = found(safetensors(tmp_path / "noob.safetensors", {**SDXL, "v_pred": (0,), "ztsnr": (0,)}))
    assert (detection.prediction, detection.zero_terminal_snr) == ("v_prediction", True)
    assert detection.notes == (
        "sdxl, 1024 px; prediction v_prediction (marker tensor v_pred); zero terminal SNR on (marker tensor ztsnr)",
    )


def test_file_names_never_decide(tmp_path: Path) -> None:
    assert found(safetensors(tmp_path / "sdxl-vpred-ztsnr.safetensors", SD1)).prediction == "epsilon"


@pytest.mark.parametrize(("spread", "prediction"), [(0.2, "v_prediction"), (0.05, "epsilon")])
def test_sd2_without_metadata_is_guessed_and_the_user_told(tmp_path: Path, spread: float, prediction: str) -> None:
    weights = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in SD2.items()}
    weights[BIAS] = spread * torch.tensor([1.0, -1.0] * 160).half()
    save_file(weights, tmp_path / "model.safetensors")
    detection = found(tmp_path / "model.safetensors")
    assert detection.prediction == prediction
    assert f"{prediction} was guessed: set base_model.prediction to be sure" in detection.notes[1]
    certain = found(tmp_path / "model.safetensors", prediction="v_prediction")
    assert len(certain.notes) == 1


def test_settings_overrule_what_was_found_and_it_is_said(tmp_path: Path) -> None:
    model = safetensors(tmp_path / "model.safetensors", SD1, {"modelspec.prediction_type": "epsilon"})
    detection = found(model, prediction="v_prediction", zero_terminal_snr=True)
    assert (detection.prediction, detection.zero_terminal_snr) == ("v_prediction", True)
    assert (
        "prediction v_prediction (base_model.prediction, overruling epsilon (the file's metadata))"
        in (detection.notes[0])
    )
    assert "zero terminal SNR on (base_model.zero_terminal_snr)" in detection.notes[0]


def test_zero_terminal_snr_with_epsilon_is_refused(tmp_path: Path) -> None:
    model = safetensors(tmp_path / "model.safetensors", SD1)
    with pytest.raises(ModelError, match=r"zero terminal SNR needs v-prediction.*set base_model.prediction=v_pred"):
        found(model, zero_terminal_snr=True)


def test_another_family_than_configured_is_refused(tmp_path: Path) -> None:
    model = safetensors(tmp_path / "model.safetensors", SD1)
    with pytest.raises(ModelError, match=r"is of family sd1, but base_model.family says sdxl"):
        found(model, family="sdxl")


def without(shapes: dict[str, tuple[int, ...]], *starts: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lora_unet_mid_block.lora_down.weight": (4, 8)}, "this is a LoRA file.*use adapter.start_from"),
        ({"unet.mid_block.to_q.lora_A.weight": (4, 8)}, "this is a LoRA file"),
        ({"lora_unet_x.hada_w1_a": (4, 8)}, "this is a LoRA file"),
        ({**SD1, f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)}, "an InstructPix2Pix .*8 channels, not 4 or 9"),
        ({f"{UNET}joint_blocks.0.x.weight": (8,)}, "this is Stable Diffusion 3; sdlora trains"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}, "this is Flux; sdlora trains"),
        ({**SDXL, "edm_mean": (4,)}, "Playground v2.5"),
        ({"control_model.time_embed.0.weight": (8,)}, "this is a ControlNet"),
        (
            {
                **without(SDXL, "conditioner."),
                "conditioner.embedders.0.model.ln_final.weight": (1280,),
            },
            "this is the SDXL refiner; train the SDXL base",
        ),
        ({"first_stage_model.encoder.conv_in.weight": (8,)}, "this is a VAE.*use base_model.vae"),
        ({"down_blocks.0.resnets.0.conv1.weight": (8,)}, "the UNet alone of a diffusers model; give the folder"),
        ({"text_model.final_layer_norm.weight": (8,)}, "this is a text encoder"),
        ({"emb_params": (1, 768)}, "a textual-inversion embedding"),
        ({"some.weight": (8,)}, "not a Stable Diffusion model.*Looked at: 1 tensors, the first are some.weight"),
        (without(SD1, "cond_stage_model."), "a UNet of family sd1 but no text encoder"),
        (without(SD1, f"{UNET}input_blocks.0."), "incomplete, the UNet's first layer is missing"),
        (
            without(SDXL, f"{UNET}input_blocks.7.1.transformer_blocks.9."),
            r"unknown family.*Looked at: 9 input blocks .*width 2048 .*depth 9 .*a size embedding.*embedders.0",
        ),
    ],
)
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        found(safetensors(tmp_path / "model.safetensors", shapes))


def test_a_truncated_file_is_called_incomplete(tmp_path: Path) -> None:
    model = safetensors(tmp_path / "model.safetensors", SD1)
    with model.open("rb+") as file:
        file.truncate(model.stat().st_size - 1000)
    with pytest.raises(ModelError, match=r"incomplete, .* bytes are not what its header tells of; download or copy"):
        found(model)


def test_another_format_under_the_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("<html>not found</html>")
    with pytest.raises(ModelError, match="is a web page: its download was answered with one"):
        found(tmp_path / "model.safetensors")
    (tmp_path / "short.safetensors").write_bytes((20).to_bytes(8, "little") + b"{" * 20)
    with pytest.raises(ModelError, match="damaged or not a safetensors file: invalid JSON in header"):
        found(tmp_path / "short.safetensors")


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this code would have run",)


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "callback": _Harmful()}, tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match="loading it could run code; it is not opened"):
        found(tmp_path / "model.ckpt")
    assert capsys.readouterr().out == ""


def test_unreadable_and_empty_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ModelError, match="can't be read as a checkpoint"):
        found(tmp_path / "broken.ckpt")
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(ModelError, match="holds no tensors"):
        found(tmp_path / "empty.ckpt")


def test_checkpoints_of_the_old_format_are_read(tmp_path: Path) -> None:
    weights = {"state_dict": {"weight": torch.zeros(2, 3)}}
    torch.save(weights, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_header(tmp_path / "old.ckpt").shapes == {"weight": (2, 3)}


# ---- folders


def test_folders_are_told_apart_by_their_unet(tmp_path: Path) -> None:
    narrow = found(folder(tmp_path / "a", SD1_UNET, {}))
    assert (narrow.family, narrow.native_resolution, narrow.source_kind) == ("sd1", 128, "folder")
    assert found(folder(tmp_path / "b", {**SD1_UNET, "use_linear_projection": True}, {})).family == "sd2"
    assert found(folder(tmp_path / "c", SDXL_UNET, TWO_ENCODERS)).family == "sdxl"


def test_a_folders_scheduler_tells_the_prediction(tmp_path: Path) -> None:
    model = folder(tmp_path / "a", SD1_UNET, {}, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    detection = found(model)
    assert (detection.prediction, detection.zero_terminal_snr) == ("v_prediction", True)
    assert "zero terminal SNR on (scheduler_config.json)" in detection.notes[0]


@pytest.mark.parametrize(
    ("unet", "index", "message"),
    [
        ({**SD1_UNET, "in_channels": 8}, {}, "an InstructPix2Pix model"),
        (SDXL_UNET, {"text_encoder": [None, None], "text_encoder_2": ["transformers", "CLIP"]}, "the SDXL refiner"),
        ({**SD1_UNET, "layers_per_block": 1}, {}, r"unknown family.*4 levels .*layers_per_block 1 \(2\)"),
        (
            SD1_UNET,
            {"unet": [None, None], "_class_name": "FluxPipeline"},
            "a FluxPipeline model, it has no UNet",
        ),
    ],
)
def test_other_folders_are_named_for_what_they_are(
    tmp_path: Path, unet: dict[str, object], index: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        found(folder(tmp_path / "model", unet, index))


def test_an_unknown_prediction_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="prediction_type is 'sample'; sdlora trains epsilon, v_prediction, flow and edm_v"
    ):
        found(folder(tmp_path / "model", SD1_UNET, {}, prediction_type="sample"))


def test_a_folder_that_is_no_model_names_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index.json is missing$"):
        found(tmp_path)
    safetensors(tmp_path / "anything.safetensors", SD1)
    with pytest.raises(ModelError, match=r"did you mean the file .*anything.safetensors\?"):
        found(tmp_path)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", SD1_UNET, {})
    (model / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"unet/config.json: not valid JSON"):
        found(model)


# ---- places


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("builtin:cats", "'builtin:cats' is not a built-in model; there is: builtin:emoji"),
        ("nowhere/to/be/found", "was not found: it is no folder and no file here, and not a hub name"),
        ("nowhere/model.safetensors", "model.safetensors: no such file"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        detect(BaseModelConfig(model=model))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"a base model file ends in .safetensors or .ckpt or .pt, not '.txt'"):
        found(tmp_path / "notes.txt")


# ---- models that are trained otherwise


EDM_FOLDER = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0}


def test_models_of_another_edm_are_refused_until_the_user_says_otherwise(tmp_path: Path) -> None:
    model = folder(tmp_path / "model", SD1_UNET, {}, **EDM_FOLDER)
    with pytest.raises(
        ModelError, match=r"an EDM noise schedule other than CosXL's .scheduler_config.json.*set base_model.prediction"
    ):
        found(model)
    overruled = found(model, prediction="epsilon")
    assert overruled.prediction == "epsilon"
    assert "overruling an EDM noise schedule" in overruled.notes[0]


def test_a_flow_takes_its_shift_from_its_scheduler_else_from_the_settings(tmp_path: Path) -> None:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    told = found(folder(tmp_path / "told", SD1_UNET, {}, **flow, shift=2.5))
    assert (told.shift, "shift 2.5 (scheduler_config.json)" in told.notes[0]) == (2.5, True)
    usual = found(folder(tmp_path / "usual", SD1_UNET, {}, **flow))
    assert (usual.shift, "shift 3 (the usual)" in usual.notes[0]) == (3.0, True)
    own = found(tmp_path / "told", flow_shift=6)
    assert (own.shift, "shift 6 (base_model.flow_shift)" in own.notes[0]) == (6.0, True)


def test_a_shift_by_image_size_is_refused_unless_the_user_gives_one(tmp_path: Path) -> None:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    model = folder(tmp_path / "model", SD1_UNET, {}, **flow)
    with pytest.raises(ModelError, match=r"by each image's size .use_dynamic_shifting.*set base_model.flow_shift"):
        found(model)
    assert found(model, flow_shift=3).shift == 3.0


def test_a_shift_without_a_flow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"flow_shift has no effect, as this model predicts epsilon.*prediction=flow"):
        found(folder(tmp_path / "model", SD1_UNET, {}), flow_shift=3)
    with pytest.raises(ValueError, match=r"flow_shift has no effect with prediction=epsilon"):
        BaseModelConfig(prediction="epsilon", flow_shift=3)


def test_zero_terminal_snr_is_refused_where_noise_levels_are_others(tmp_path: Path) -> None:
    model = safetensors(tmp_path / "model.safetensors", SDXL, {"modelspec.prediction_type": "flow"})
    with pytest.raises(ModelError, match=r"zero_terminal_snr has no effect with flow.*leave it at auto"):
        found(model, zero_terminal_snr=True)


def test_cosxls_noise_levels_are_read_from_its_tensors(tmp_path: Path) -> None:
    weights = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in SDXL.items()}
    weights |= {"edm_vpred.sigma_max": torch.tensor(100.0), "edm_vpred.sigma_min": torch.tensor(0.01)}
    save_file(weights, tmp_path / "cosxl.safetensors")
    detection = found(tmp_path / "cosxl.safetensors")
    assert detection.prediction == "edm_v"
    assert detection.sigmas == pytest.approx((0.01, 100.0))


def test_a_contradiction_is_said_and_the_unet_asked(tmp_path: Path) -> None:
    model = safetensors(
        tmp_path / "merge.safetensors", {**SDXL, "v_pred": (0,)}, {"modelspec.prediction_type": "epsilon"}
    )
    detection = found(model)
    assert (detection.prediction, detection.prediction_told) == ("v_prediction", False)
    assert "its metadata say epsilon and its marker tensor v_pred v_prediction, which is taken" in detection.notes[1]
    assert found(model, prediction="epsilon").prediction_told


def test_only_what_a_model_tells_counts_as_told(tmp_path: Path) -> None:
    model = safetensors(tmp_path / "model.safetensors", SDXL)
    assert not found(model).prediction_told
    assert found(model, prediction="epsilon").prediction_told
    assert found(safetensors(tmp_path / "v.safetensors", {**SDXL, "v_pred": (0,)})).prediction_told


class As(torch.nn.Module):
    """A UNet that predicts noise, turned into one that predicts v or a flow's velocity."""

    def __init__(self, unet: torch.nn.Module, schedule: NoiseSchedule, prediction: str) -> None:
        super().__init__()
        self.unet, self.config, self.schedule, self.prediction = unet, unet.config, schedule, prediction

    def forward(self, latents: torch.Tensor, timestep: int, text: torch.Tensor) -> SimpleNamespace:
        if self.prediction == "v_prediction":
            signal, spread = self.schedule.rates_at(timestep)
            noise = self.unet(latents, timestep, text).sample
            image = (latents - spread * noise) / signal
            return SimpleNamespace(sample=signal * noise - spread * image)
        spread = timestep / 1000
        # the timestep at which the UNet knows this ratio of noise, and its input on the scale that it knows
        ratios = self.schedule.spread_T / self.schedule.signal_T
        own = int((ratios - spread / (1 - spread)).abs().argmin())
        noise = self.unet(latents * self.schedule.rates_at(own)[1] / spread, own, text).sample
        image = (latents - spread * noise) / (1 - spread) if spread < 0.9 else torch.zeros_like(latents)
        return SimpleNamespace(sample=noise - image)


@pytest.fixture(scope="module")
def emoji() -> Bundle:
    return load(BaseModelConfig(model="builtin:emoji", precision="fp32"))


def test_two_calls_of_a_unet_tell_what_it_predicts(emoji: Bundle) -> None:
    assert probed_prediction(emoji.unet, torch.float32) == "epsilon"
    for prediction in ("v_prediction", "flow"):
        assert probed_prediction(As(emoji.unet, emoji.schedule, prediction), torch.float32) == prediction


def test_an_untrained_unet_tells_nothing(emoji: Bundle) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = UNet2DConditionModel.from_config(emoji.unet.config)
    assert probed_prediction(untrained, torch.float32) is None


@pytest.mark.parametrize(
    "beside",
    ["scaled_fp8", "a.scale_weight", "a.weight_scale", "a.weight.absmax", "a.weight.quant_state.bitsandbytes__nf4"],
)
def test_a_quantised_file_is_refused_as_its_weights_mean_nothing_without_their_scales(
    tmp_path: Path, beside: str
) -> None:
    with pytest.raises(
        ModelError, match=f"its weights are quantised .*{beside.split('.')[-1]}.*take the model in fp16"
    ):
        found(safetensors(tmp_path / "model.safetensors", {**SDXL, f"{UNET}{beside}": (2,)}))


def test_a_file_with_weights_in_whole_numbers_is_refused(tmp_path: Path) -> None:
    name = f"{UNET}input_blocks.1.1.proj_in.weight"
    save_file({name: torch.zeros(4, 4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 weights are whole numbers, such as .*proj_in.weight in int8: quantised"):
        read_weights(tmp_path / "model.safetensors")
