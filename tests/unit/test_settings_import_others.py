"""Settings of OneTrainer and ai-toolkit, taken over; what can't be is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.foreign_settings import AI_TOOLKIT, CONCEPTS, ONETRAINER, SAMPLES
from tests.support.imported_settings import imported, lost_names, read_back


def test_concepts_give_folders_and_say_what_differs(tmp_path: Path) -> None:
    result = imported(tmp_path, "concepts.json", CONCEPTS)
    config = result.config
    assert config.images.folder == (Path("pictures/hero"), Path("pictures/friend"))
    assert config.validation.folder == Path("pictures/held-out")
    assert (config.images.repeats, config.images.resolution) == (3, (512, 768))
    assert (config.images.horizontal_flip, config.images.random_crop) == (True, True)
    captions = config.captions
    assert (captions.shuffle_tags, captions.keep_tags, captions.tag_dropout, captions.separator) == (True, 2, 0.1, ";")
    assert lost_names(result) == {
        "loss_weight",
        "text.prompt_source",
        "image.enable_random_rotate",
        "image.random_rotate_max_angle",
        "pictures/friend: balancing",
        "pictures/prior: type",
    }
    read_back(result, tmp_path)


def test_a_onetrainer_configuration_is_taken_over_with_the_files_it_names(tmp_path: Path) -> None:
    for file, content in (
        ("training_concepts/concepts.json", CONCEPTS[:1]),
        ("training_samples/samples.json", SAMPLES),
    ):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "presets").mkdir()
    result = imported(tmp_path / "presets", "mine.json", ONETRAINER)
    assert result.tool == "OneTrainer"
    config = result.config
    assert config.name == "my hero"
    base = config.base_model
    assert (base.model, base.family) == ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl")
    assert (base.vae, base.quantization) == ("madebyollin/sdxl-vae-fp16-fix", "nf4")
    assert (config.images.folder, config.images.repeats) == (Path("pictures/hero"), 3)
    assert config.images.resolution == (512, 768), "the concept's own resolution goes before that of the run"
    assert (config.images.mask, config.images.unmasked_weight) == ("file", 0.2)
    assert (config.captions.dropout, config.captions.tag_dropout) == (0.05, 0.1)
    adapter = config.adapter
    assert (adapter.rank, adapter.alpha, adapter.layers, adapter.dropout) == (32, 16, "all", 0.1)
    optimization = config.optimization
    assert optimization.learning_rates == {"unet": 1e-4, "text_encoder": 3e-5, "text_encoder_2": 0}
    assert (optimization.epochs, optimization.batch_size, optimization.accumulation) == (12, 2, 4)
    assert (optimization.schedule, optimization.warmup, optimization.schedule_floor) == ("cosine", 50, 0.1)
    assert (optimization.optimizer, optimization.weight_decay, optimization.ema) == ("adamw8bit", 0.02, 0.995)
    assert optimization.optimizer_options == {"betas": [0.9, 0.99]}
    assert (optimization.precision, optimization.gradient_checkpointing) == ("bf16", True)
    objective = config.objective
    assert (objective.weighting, objective.min_snr_gamma, objective.max_timestep) == ("min_snr", 7, 899)
    assert (objective.noise_offset, objective.timestep_distribution) == (0.03, "logit_normal")
    previews = config.previews
    assert (previews.prompts, previews.negative, previews.width_px) == (("a zeta hero",), "blurry", 1024)
    assert (config.outputs.checkpoint_every, config.outputs.precision) == (250, "bf16")
    assert lost_names(result) == {
        "loss_weight",
        "text.prompt_source",
        "image.enable_random_rotate",
        "image.random_rotate_max_angle",
        "generalized_offset_noise",
        "text_encoder.stop_training_after",
        "unmasked_probability",
        "sample_after",
    }
    read_back(result, tmp_path)


def test_what_a_onetrainer_preset_leaves_out_has_its_own_defaults(tmp_path: Path) -> None:
    preset = {"model_type": "STABLE_DIFFUSION_15", "training_method": "LORA", "batch_size": 4, "resolution": "512"}
    result = imported(tmp_path, "preset.json", preset)
    config = result.config
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.layers) == (16, 1, "all+conv")
    assert (config.optimization.epochs, config.optimization.learning_rate) == (100, 3e-6)
    assert (config.optimization.precision, config.outputs.precision) == ("fp16", "fp32")
    assert config.adapter.text_encoder
    assert result.lost == ()
    read_back(result, tmp_path)


@pytest.mark.parametrize(
    ("changes", "setting", "value", "lost"),
    [
        ({"concept_file_name": "gone.json"}, "images.folder", None, "concept_file_name=gone.json: no such file near"),
        ({"model_type": "FLUX_DEV_1"}, "base_model.family", "auto", "model_type=FLUX_DEV_1: only Stable Diffusion"),
        ({"training_method": "FINE_TUNE"}, "adapter.rank", 32, "taken as LORA"),
        ({"model_type": "STABLE_DIFFUSION_21"}, "base_model.prediction", "v_prediction", ""),
        ({"force_epsilon_prediction": True}, "base_model.prediction", "epsilon", ""),
        ({"layer_filter_preset": "custom", "layer_filter": "down"}, "adapter.layers", "all", "layer_filter=down: set"),
        ({"mse_strength": 0, "huber_strength": 1}, "objective.loss", "huber", ""),
        ({"mae_strength": 0.5}, "objective.loss", "mse", "mae_strength=0.5: one loss at a time: mse is taken"),
        ({"loss_weight_fn": "P2"}, "objective.weighting", "none", "loss_weight_fn=P2: no counterpart"),
        ({"unet": {"weight_dtype": "FLOAT_8"}}, "base_model.quantization", "none", "int8 and nf4 are possible"),
        ({"unet": {"train": False}}, "optimization.learning_rate", 3e-4, "the UNet's layers are always trained"),
        ({"peft_type": "LOKR", "lokr_dim": 4, "lokr_decompose_factor": 8}, "adapter.lokr_factor", 8, ""),
        ({"peft_type": "OFT_2"}, "adapter.algorithm", "lora", "peft_type=OFT_2: no counterpart"),
        (
            {"optimizer": {"optimizer": "PRODIGY"}, "learning_rate": 1, "unet": {}},
            "optimization.optimizer",
            "prodigy",
            "",
        ),
        ({"ema": "OFF"}, "optimization.ema", 0, ""),
        ({"text_encoder_layer_skip": 1}, "base_model.clip_skip", 1, "SDXL has its own fixed layer"),
    ],
)
def test_variants_of_onetrainer_settings(
    tmp_path: Path, changes: dict[str, Any], setting: str, value: object, lost: str
) -> None:
    result = imported(tmp_path, "mine.json", {**ONETRAINER, "concept_file_name": "", **changes})
    found: Any = result.config
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == value
    assert lost in "\n".join(result.lost)
    read_back(result, tmp_path)


def test_a_version_0_onetrainer_file_has_its_settings_side_by_side(tmp_path: Path) -> None:
    flat = {
        "training_method": "LORA",
        "model_type": "STABLE_DIFFUSION_15",
        "base_model_name": "builtin:emoji",
        "optimizer": "ADAMW",
        "weight_decay": 0.05,
        "train_text_encoder": False,
        "train_unet": True,
        "train_unet_epochs": 100000,
        "unet_learning_rate": 0.0002,
        "unet_weight_dtype": "NONE",
        "text_encoder_layer_skip": 1,
        "resolution": 512,
        "min_snr_gamma": 5,
        "gradient_checkpointing": False,
    }
    result = imported(tmp_path, "old.json", flat)
    assert not result.config.adapter.text_encoder
    assert (result.config.optimization.learning_rate, result.config.optimization.weight_decay) == (2e-4, 0.05)
    assert (result.config.base_model.clip_skip, result.config.objective.weighting) == (2, "min_snr")
    assert not result.config.optimization.gradient_checkpointing
    assert result.lost == ()


def test_an_ai_toolkit_job_is_taken_over(tmp_path: Path) -> None:
    result = imported(tmp_path, "job.yaml", AI_TOOLKIT)
    config = result.config
    assert (config.name, config.captions.trigger) == ("my_first_lora", "zeta")
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.layers) == (16, 8, "all+conv")
    assert (config.images.folder, config.images.resolution) == (Path("pictures"), (512, 768))
    assert (config.optimization.steps, config.optimization.ema) == (2000, 0.99)
    assert (config.base_model.family, config.base_model.quantization) == ("sdxl", "int8")
    assert config.objective.max_timestep == 999
    assert config.previews.prompts == ("zeta playing chess", "a bear")
    assert (config.outputs.checkpoint_every, config.outputs.keep_checkpoints) == (250, 4)
    assert result.lost == ("datasets.mask_path=masks: no counterpart",)
    read_back(result, tmp_path)


def test_a_model_that_is_no_stable_diffusion_is_listed(tmp_path: Path) -> None:
    job = json.loads(json.dumps(AI_TOOLKIT))
    job["config"]["process"][0]["model"] = {"name_or_path": "a/b", "is_flux": True}
    job["config"]["process"][0]["train"]["noise_scheduler"] = "flowmatch"
    lost = "\n".join(imported(tmp_path, "job.yaml", job).lost)
    assert "model.arch=flux: only Stable Diffusion 1.x, 2.x and XL can be trained" in lost
    assert "train.noise_scheduler=flowmatch: noise is added as in DDPM" in lost
