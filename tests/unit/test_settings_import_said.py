"""Nothing that changes what is trained, shown or written is left out, or called otherwise, without a word."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from sdlora.config.preview_prompts import parse_preview
from sdlora.errors import ConfigError
from sdlora.imports.read import Imported, import_settings
from tests.support.foreign_settings import AI_TOOLKIT, KOHYA, ONETRAINER
from tests.support.imported_settings import imported, read_back, told
from tests.support.kohya_presets import PLAIN

BATCHES = {"batch_size": 2, "gradient_accumulation_steps": 8}
SIMPLETUNER = {"model_family": "sdxl", "pretrained_model_name_or_path": "a/b", "learning_rate": 1e-4}


def onetrainer(tmp_path: Path, changes: dict[str, Any]) -> Imported:
    return imported(tmp_path, "mine.json", {**ONETRAINER, "concept_file_name": "", **changes})


def ai_toolkit(tmp_path: Path, section: str, changes: dict[str, Any]) -> Imported:
    job: dict[str, Any] = copy.deepcopy(AI_TOOLKIT)
    part = job["config"]["process"][0][section]
    (part[0] if isinstance(part, list) else part).update(changes)
    return imported(tmp_path, "job.yaml", job)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("BATCH", 2), ("ACCUMULATION", 8), ("GRADIENT_ACCUMULATION", 8), ("BOTH", 16), ("NONE", 1), (None, 1)],
)
def test_rates_of_onetrainer_are_scaled_as_there(tmp_path: Path, kind: str | None, factor: int) -> None:
    parts = {"unet": {"learning_rate": 1e-4}, "text_encoder": {"train": True, "learning_rate": 2e-5}}
    result = onetrainer(tmp_path, {**BATCHES, **parts, "learning_rate_scaler": kind})
    rates = result.config.optimization.learning_rates
    assert rates["unet"] == pytest.approx(1e-4 * math.sqrt(factor), rel=1e-5)
    assert rates["text_encoder"] == pytest.approx(2e-5 * math.sqrt(factor), rel=1e-5)
    assert ("learning_rate_scaler=" in told(result)) == (kind not in ("NONE", None))
    read_back(result, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate_scaler": "CUBE"}, "learning_rate_scaler=CUBE: no counterpart"),
        ({**BATCHES, "loss_scaler": "BOTH"}, "loss_scaler=BOTH: multiplies the loss by 16 there"),
        ({"lora_weight_dtype": "BFLOAT_16"}, "lora_weight_dtype=BFLOAT_16: the adapter's weights are trained in fp32"),
        ({"timestep_shift": 3.0}, "timestep_shift=3.0: timesteps are drawn without a shift"),
        ({"noising_bias": 0.5}, "noising_bias=0.5: logit_normal has one shape here"),
        ({"cep_gamma": 0.1}, "cep_gamma=0.1: no counterpart"),
        ({"text_encoder_2_layer_skip": 1}, "text_encoder_2_layer_skip=1: SDXL has its own fixed layer"),
        ({"unet": {}, "weight_dtype": "FLOAT_8"}, "unet.weight_dtype=FLOAT_8: int8 and nf4 are possible"),
        ({"ema_decay": 0.9}, "ema_decay=0.9: every 5 steps there; 0.979148 after each step is as slow"),
        (
            {"peft_type": "LOKR", "lokr_weight_decompose": True, "lokr_dora_on_output": False},
            "lokr_weight_decompose=True: with a magnitude for each output here",
        ),
    ],
)
def test_what_changes_a_training_of_onetrainer_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in told(onetrainer(tmp_path, changes))


def test_what_is_off_in_an_optimizer_of_onetrainer_stays_off(tmp_path: Path) -> None:
    off = {"optimizer": "PRODIGY_PLUS_SCHEDULE_FREE", "split_groups": False, "factored": False}
    result = onetrainer(tmp_path, {"optimizer": off, "learning_rate": 1, "unet": {}, "text_encoder": {}, "ema": "OFF"})
    assert result.config.optimization.optimizer_options == {"split_groups": False, "factored": False}
    said = told(onetrainer(tmp_path, {"optimizer": {"optimizer": "ADAN", "no_prox": True}}))
    assert "optimizer.no_prox=True: no counterpart" in said


def test_what_is_as_here_is_not_said(tmp_path: Path) -> None:
    usual = {
        "loss_scaler": "NONE", "learning_rate_scaler": "NONE", "timestep_shift": 1.0, "noising_weight": 0.0,
        "noising_bias": 0.0, "lora_weight_dtype": "FLOAT_32", "ema_update_step_interval": 1, "cep_gamma": 0.0,
    }  # fmt: skip
    text = told(onetrainer(tmp_path, usual))
    assert not [name for name in usual if f"{name}=" in text]
    assert "ema_decay" not in text
    text = told(ai_toolkit(tmp_path, "train", {"loss_target": "noise", "num_train_timesteps": 1000}))
    assert "loss_target" not in text
    assert "num_train_timesteps" not in text


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("train", {"loss_target": "source"}, "train.loss_target=source: the noise, or the velocity, is predicted here"),
        ("train", {"num_train_timesteps": 500}, "train.num_train_timesteps=500: all 1000 timesteps are trained here"),
        ("train", {"unload_text_encoder": True}, "train.unload_text_encoder=True: there all images are trained on the"),
        ("train", {"do_paramiter_swapping": True}, "train.do_paramiter_swapping=True: no counterpart"),
        ("train", {"ema_config": {"use_ema": True, "use_feedback": True}}, "ema_config.use_feedback=True"),
        ("train", {"disable_sampling": "banana"}, "train.disable_sampling=banana: is neither on nor off"),
        ("sample", {"sampler": "flowmatch"}, "sample.sampler=flowmatch: --ss flowmatch: no such sampler here"),
        ("datasets", {"bucket_tolerance": 30}, "datasets.bucket_tolerance=30: bucket edges are multiples of 8"),
    ],
)
def test_what_changes_a_job_of_ai_toolkit_is_said(
    tmp_path: Path, section: str, changes: dict[str, Any], said: str
) -> None:
    assert said in told(ai_toolkit(tmp_path, section, changes))


def test_what_ai_toolkit_calls_otherwise_is_taken_over(tmp_path: Path) -> None:
    result = ai_toolkit(tmp_path, "sample", {"sampler": "euler_a"})
    assert result.config.previews.sampler == "Euler a"
    assert ai_toolkit(tmp_path, "datasets", {"bucket_tolerance": 32}).config.images.bucket_step == 32


def test_of_two_gammas_the_one_that_counts_there_is_taken(tmp_path: Path) -> None:
    result = ai_toolkit(tmp_path, "train", {"min_snr_gamma": 5, "snr_gamma": 3})
    assert (result.config.objective.weighting, result.config.objective.min_snr_gamma) == ("min_snr", 3)
    assert "train.min_snr_gamma=5.0: snr_gamma goes before it there, and is taken" in told(result)
    assert "train.snr_gamma=3.0: as min_snr: gamma / SNR, but here never above 1" in told(result)
    assert "snr_gamma" not in told(ai_toolkit(tmp_path, "train", {"min_snr_gamma": 5}))


def test_a_job_without_samples_writes_no_previews(tmp_path: Path) -> None:
    result = ai_toolkit(tmp_path, "train", {"disable_sampling": True})
    assert result.config.previews.prompts == ()
    assert "train.disable_sampling=True: no previews, as there" in told(result)
    assert "sample.sampler" not in told(result)


ODD_LINES = [
    ("a cat --ctrl_img p.png", "a cat", "a cat=--ctrl_img p.png: --ctrl_img is no option of a preview"),
    ("a cat --ctrl_img p.png --w 512", "a cat --w 512", "a cat=--ctrl_img p.png: --ctrl_img is no option"),
    ("a cat --n", "a cat", "a cat=--n: an option without a value"),
    ("a cat --n --w 512", "a cat --w 512", "a cat=--n: an option without a value"),
    ("a cat --w 513 --d 4", "a cat --d 4", "a cat=--w 513: --w 513: must be a whole number"),
    ("a cat --frames 3", "a cat", "a cat=--frames 3: --frames is no option of a preview"),
    ("a cat -- b", "a cat -- b", ""),
    ("a cat --5", "a cat --5", ""),
]


@pytest.mark.parametrize(("line", "kept", "said"), ODD_LINES)
def test_options_of_prompts_that_are_not_here_are_taken_off_and_said(
    tmp_path: Path, line: str, kept: str, said: str
) -> None:
    found = {
        "sample.prompts": ai_toolkit(tmp_path, "sample", {"prompts": [line]}),
        "sample_prompts": imported(tmp_path, "preset.json", {**PLAIN, "sample_prompts": line}),
    }
    for name, result in found.items():
        assert result.config.previews.prompts == (kept,)
        assert (f"{name}: {said}" if said else "") in told(result)


def test_what_looks_like_an_option_is_prompt_where_the_trainer_has_none(tmp_path: Path) -> None:
    line = "a cat --n ugly --w 512 --5"
    found = {
        "samples": onetrainer(tmp_path, {"samples": [{"prompt": line, "negative_prompt": "blurry"}]}),
        "validation_prompt": imported(tmp_path, "config.json", {**SIMPLETUNER, "validation_prompt": line}),
    }
    for name, result in found.items():
        prompt = parse_preview(result.config.previews.prompts[0])
        assert prompt.prompt == "a cat -- n ugly -- w 512 --5"
        assert prompt.negative == ("blurry" if name == "samples" else None)
        assert f"{name}: {line}=--: text there and options here" in told(result)


def test_the_adapters_weight_in_a_prompt_of_ai_toolkit_is_kept(tmp_path: Path) -> None:
    result = ai_toolkit(tmp_path, "sample", {"prompts": ["a cat --m 0.5"]})
    assert result.config.previews.prompts == ("a cat --am 0.5",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resume": "runs/state"}, "resume=runs/state: states of other trainers are not read; adapter.start_from"),
        ({"dim_from_weights": True}, "dim_from_weights=True: set adapter.rank to that of the file"),
        ({"no_token_padding": True}, "no_token_padding=True: no counterpart"),
        ({"fp8_base": True}, "fp8_base=True: base_model.quantization holds the base in int8 or nf4"),
    ],
)
def test_what_changes_a_training_of_kohya_ss_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in told(imported(tmp_path, "preset.json", {**KOHYA, **changes}))


def test_a_share_held_out_for_validation_is_taken_over(tmp_path: Path) -> None:
    text = '[[datasets]]\nvalidation_split = 0.1\n[[datasets.subsets]]\nimage_dir = "a"\n'
    assert imported(tmp_path, "a.toml", text).config.validation.fraction == 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_flavour": "base-0.9"}, ""),
        (
            {"pretrained_model_name_or_path": "", "model_flavour": "base-0.9"},
            "model_flavour=base-0.9: stabilityai/stable-diffusion-xl-base-1.0 is taken: set base_model.model",
        ),
        ({"quantize_activations": True}, "quantize_activations=True: no counterpart"),
        (
            {"use_ema": True, "ema_decay": 0.9, "ema_update_interval": 5},
            "ema_decay=0.9: every 5 steps there; 0.979148 after each step is as slow",
        ),
        (
            {"lr_scale": True, "lr_scale_sqrt": True, "train_batch_size": 4},
            "lr_scale=True: times the square root of batch size and accumulation, as there on one card: 0.0002",
        ),
    ],
)
def test_what_changes_a_training_of_simpletuner_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    text = told(imported(tmp_path, "config.json", {**SIMPLETUNER, **changes}))
    assert said in text
    assert said or "model_flavour" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop": True, "crop_aspect": "random"}, "crop_aspect=random: images keep their own shapes, in buckets"),
        ({"max_upscale_threshold": 0.2}, "max_upscale_threshold=0.2: no counterpart"),
    ],
)
def test_what_changes_the_images_of_a_backend_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    backend = {"instance_data_dir": "a", "caption_strategy": "textfile", **changes}
    assert said in told(imported(tmp_path, "backends.json", [backend]))


ODD_NAME = "a:b:c"


def named(tmp_path: Path, trainer: str, name: str) -> Imported:
    if trainer == "kohya_ss":
        return imported(tmp_path, "preset.json", {**PLAIN, "output_name": name})
    if trainer == "sd-scripts":
        return imported(tmp_path, "train.toml", f"network_dim = 8\noutput_name = {json.dumps(name)}\n")
    if trainer == "OneTrainer":
        return onetrainer(tmp_path, {"output_model_destination": f"models/{name}.safetensors"})
    if trainer == "SimpleTuner":
        return imported(tmp_path, "config.json", {**SIMPLETUNER, "tracker_run_name": name})
    job: dict[str, Any] = copy.deepcopy(AI_TOOLKIT)
    job["config"]["name"] = name
    return imported(tmp_path, "job.yaml", job)


@pytest.mark.parametrize(
    ("trainer", "setting"),
    [
        ("kohya_ss", "output_name"), ("sd-scripts", "output_name"), ("OneTrainer", "output_model_destination"),
        ("SimpleTuner", "tracker_run_name"), ("ai-toolkit", "config.name"),
    ],
)  # fmt: skip
def test_a_changed_name_is_said(tmp_path: Path, trainer: str, setting: str) -> None:
    result = named(tmp_path, trainer, ODD_NAME)
    assert result.config.name == "a-b-c"
    assert f"{setting}=a:b:c: called a-b-c here, as files are named after it" in told(result)
    assert setting not in told(named(tmp_path, trainer, "my hero (2)"))
    assert f"{setting}=???: no name that a file can have" in told(named(tmp_path, trainer, "???"))


@pytest.mark.parametrize("full", [True, False])
def test_whole_matrices_of_lokr_are_taken_over(tmp_path: Path, full: bool) -> None:
    lycoris = {"algo": "lokr", "linear_dim": 8, "linear_alpha": 1, "full_matrix": full}
    (tmp_path / "lycoris.json").write_text(json.dumps(lycoris))
    arguments = f'network_args = ["algo=lokr", "full_matrix={full}", "decompose_both=True"]'
    kohya = {**PLAIN, "LoRA_type": "LyCORIS/LoKr", "full_matrix": full, "decompose_both": True}
    found = [
        imported(tmp_path, "preset.json", kohya),
        imported(tmp_path, "train.toml", f'network_module = "lycoris.kohya"\nnetwork_dim = 8\n{arguments}\n'),
        imported(tmp_path, "config.json", {**SIMPLETUNER, "lora_type": "lycoris", "lycoris_config": "lycoris.json"}),
        onetrainer(tmp_path, {"peft_type": "LOKR", "lokr_full_matrix": full}),
        ai_toolkit(tmp_path, "network", {"type": "lokr", "lokr_full_rank": full, "conv": None}),
    ]
    for result in found:
        assert (result.config.adapter.algorithm, result.config.adapter.lokr_full) == ("lokr", full)
        assert "full_matrix" not in told(result)
        assert "lokr_full_rank" not in told(result)
        read_back(result, tmp_path)
    assert (found[-1].config.adapter.layers == "all+conv") == full


def test_whole_matrices_are_of_lokr_alone(tmp_path: Path) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, "LoRA_type": "LyCORIS/LoHa", "full_matrix": True})
    assert (result.config.adapter.algorithm, result.config.adapter.lokr_full) == ("loha", False)


@pytest.mark.parametrize("name", ["preset.json", "concepts.json"])
def test_a_setting_that_a_json_file_has_twice_is_refused(tmp_path: Path, name: str) -> None:
    twice = '{"learning_rate": 1e-4, "learning_rate": 1e-5}'
    (tmp_path / "concepts.json").write_text(f"[{twice}]")
    main = {**ONETRAINER, "concept_file_name": "concepts.json"}
    (tmp_path / "preset.json").write_text(twice if name == "preset.json" else json.dumps(main))
    with pytest.raises(ConfigError, match="sets 'learning_rate' twice"):
        import_settings(tmp_path / "preset.json")
