"""Settings of OneTrainer and ai-toolkit, taken over; what can't be is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdlora.config.adapter import NewTokenConfig
from sdlora.errors import ConfigError
from tests.support.foreign_settings import AI_TOOLKIT, CONCEPTS, ONETRAINER, SAMPLES
from tests.support.imported_settings import imported, lost_names, read_back


def test_concepts_give_folders_and_say_what_differs(tmp_path: Path) -> None:
    result = imported(tmp_path, "concepts.json", CONCEPTS)
    config = result.config
    hero, friend = config.images.folders
    assert (hero.folder, hero.repeats, hero.loss_weight) == (Path("pictures/hero"), 3, 0.5)
    assert (hero.resolution, hero.horizontal_flip) == ((512, 768), True)
    assert (hero.shuffle_tags, hero.keep_tags, hero.tag_dropout) == (True, 2, 0.1)
    assert (friend.folder, friend.repeats, friend.horizontal_flip) == (Path("pictures/friend"), 1, None)
    assert config.validation.folder == Path("pictures/held-out")
    assert (config.images.random_crop, config.images.rotation, config.captions.separator) == (True, 5, ";")
    assert config.images.hue_jitter == 0, "a strength counts only where its switch is on"
    assert lost_names(result) == {
        "pictures/hero: text.prompt_source",
        "pictures/friend: balancing",
        "pictures/friend: images.random_crop",
        "pictures/friend: images.rotation",
        "pictures/friend: captions.separator",
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
    (hero,) = config.images.folders
    assert (hero.folder, hero.repeats, hero.loss_weight) == (Path("pictures/hero"), 3, 0.5)
    assert config.images.resolution == (512, 768), "the concept's own resolution goes before that of the run"
    assert config.optimization.text_encoder_until is None, "it stops after the run's end"
    assert (config.images.mask, config.images.unmasked_weight) == ("file", 0.2)
    assert (config.captions.dropout, config.captions.tag_dropout) == (0.05, 0.1)
    adapter = config.adapter
    assert (adapter.rank, adapter.alpha, adapter.layers, adapter.dropout) == (32, 16, "all", 0.1)
    optimization = config.optimization
    rates = {part: rate for part, rate in optimization.learning_rates.items() if part != "new_tokens"}
    assert rates == {"unet": 1e-4, "text_encoder": 3e-5, "text_encoder_2": 0}
    assert (optimization.epochs, optimization.batch_size, optimization.accumulation) == (12, 2, 4)
    assert (optimization.schedule, optimization.warmup, optimization.schedule_floor) == ("cosine", 12, 0.1)
    assert (optimization.optimizer, optimization.weight_decay, optimization.ema) == ("adamw8bit", 0.02, 0.998998)
    assert optimization.optimizer_options == {"betas": [0.9, 0.99]}
    assert (optimization.precision, optimization.gradient_checkpointing) == ("bf16", True)
    objective = config.objective
    assert (objective.weighting, objective.min_snr_gamma, objective.max_timestep) == ("min_snr", 7, 899)
    assert (objective.noise_offset, objective.timestep_distribution) == (0.03, "logit_normal")
    previews = config.previews
    assert previews.prompts == ("a zeta hero --n blurry --w 1024 --h 768 --d 42 --l 6.0 --s 20",)
    assert (config.outputs.checkpoint_every, config.outputs.precision) == (62, "bf16")
    assert lost_names(result) == {
        "text.prompt_source",
        "generalized_offset_noise",
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
        ({"training_method": "FINE_TUNE"}, "adapter.rank", 32, "taken as LORA"),
        ({"model_type": "STABLE_DIFFUSION_21"}, "base_model.prediction", "v_prediction", ""),
        ({"force_epsilon_prediction": True}, "base_model.prediction", "epsilon", ""),
        ({"layer_filter_preset": "custom", "layer_filter": "down"}, "adapter.layers", "regex:down", ""),
        ({"mse_strength": 0, "huber_strength": 1}, "objective.loss", "huber", ""),
        ({"mae_strength": 0.5}, "objective.loss", "mse", "mae_strength=0.5: one loss at a time: mse is taken"),
        ({"loss_weight_fn": "P2"}, "objective.weighting", "none", "loss_weight_fn=P2: no counterpart"),
        ({"unet": {"weight_dtype": "FLOAT_8"}}, "base_model.quantization", "none", "int8 and nf4 are possible"),
        ({"unet": {"train": False}}, "adapter.unet", False, ""),
        ({"epochs": 60}, "optimization.text_encoder_until", 0.5, ""),
        ({"masked_prior_preservation_weight": 0.5}, "objective.prior_outside_mask", 0.5, ""),
        ({"learning_rate_scheduler": "REX"}, "optimization.schedule", "rex", ""),
        ({"save_every_unit": "EPOCH", "save_every": 1}, "outputs.checkpoint_every", "1 epoch", ""),
        ({"peft_type": "LOKR", "lokr_full_matrix": True}, "adapter.lokr_full", True, ""),
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


def test_the_embeddings_that_onetrainer_trains_with_an_adapter_are_new_tokens(tmp_path: Path) -> None:
    fox = {
        "placeholder": "<fox>", "initial_embedding_text": "red fox", "token_count": 3, "train": True,
        "stop_training_after": 30, "stop_training_after_unit": "EPOCH",
    }  # fmt: skip
    kept = {"placeholder": "<kept>", "train": False, "model_name": "kept.safetensors"}
    changes = {"additional_embeddings": [fox, kept], "embedding_learning_rate": 2e-4, "epochs": 60}
    result = imported(tmp_path, "mine.json", {**ONETRAINER, "concept_file_name": "", **changes})
    assert result.config.adapter.new_tokens == {"<fox>": NewTokenConfig(init="red fox", vectors=3)}
    assert result.config.captions.trigger == "<fox>"
    assert result.config.optimization.new_token_learning_rate == 2e-4
    assert result.config.optimization.new_tokens_until == 0.5
    assert result.config.outputs.bundle_embeddings
    assert "additional_embeddings=<kept>: only tokens that begin with words are trained" in "\n".join(result.lost)
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
    assert lost_names(result) == {"datasets.mask_path", "sample.sampler"}
    read_back(result, tmp_path)


FLUX = {"name_or_path": "black-forest-labs/FLUX.1-dev"}
AI_MODELS = [
    {"arch": "qwen_image", "name_or_path": "a/b"},
    {"is_flux": True, "name_or_path": "a/b"},
    {"arch": "wan21", "name_or_path": "a/b"},
    {"is_v3": True, "name_or_path": "a/b"},
    FLUX,
]


@pytest.mark.parametrize("model", AI_MODELS)
def test_ai_toolkit_jobs_for_other_models_are_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    job = json.loads(json.dumps(AI_TOOLKIT))
    job["config"]["process"][0]["model"] = model
    with pytest.raises(ConfigError, match=r"it trains .*; only Stable Diffusion 1\.x, 2\.x and XL can be trained here"):
        imported(tmp_path, "job.yaml", job)


def test_jobs_of_other_kinds_are_refused(tmp_path: Path) -> None:
    job = json.loads(json.dumps(AI_TOOLKIT))
    job["config"]["process"][0]["type"] = "concept_slider"
    with pytest.raises(ConfigError, match="it is a job of type concept_slider"):
        imported(tmp_path, "job.yaml", job)


@pytest.mark.parametrize(
    "kind", ["FLUX_DEV_1", "QWEN", "STABLE_DIFFUSION_35", "WUERSTCHEN_2", "STABLE_DIFFUSION_XL_10_BASE_INPAINTING"]
)
def test_onetrainer_settings_for_other_models_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"it trains {kind}; only Stable Diffusion"):
        imported(tmp_path, "mine.json", {**ONETRAINER, "model_type": kind})


def test_ai_toolkit_datasets_keep_their_settings(tmp_path: Path) -> None:
    job = json.loads(json.dumps(AI_TOOLKIT))
    process = job["config"]["process"][0]
    process["datasets"] = [
        {"folder_path": "a", "num_repeats": 3, "caption_ext": "txt", "flip_x": True, "trigger_word": "zeta one"},
        {"folder_path": "b", "resolution": [512], "loss_multiplier": 0.5, "alpha_mask": True, "mask_min_value": 0.1},
        {"folder_path": "c", "is_reg": True},
    ]
    process["train"] |= {"inverted_mask_prior": True, "loss_type": "pseudo_huber", "content_or_style": "content"}
    process["sample"] = {"samples": [{"prompt": "[trigger] runs", "width": 768, "seed": 7}], "sample_every": 100}
    result = imported(tmp_path, "job.yaml", job)
    config = result.config
    first, second, third = config.images.folders
    assert (first.repeats, first.horizontal_flip, first.trigger) == (3, True, "zeta one")
    assert (second.resolution, second.loss_weight, second.mask) == (512, 0.5, "alpha")
    assert third.is_class
    assert (config.images.unmasked_weight, config.objective.prior_outside_mask) == (0.1, 0.5)
    assert (config.objective.loss, config.objective.huber_delta) == ("huber", 0.01)
    assert config.objective.timestep_distribution == "cubic"
    assert config.previews.prompts == ("zeta runs --w 768 --d 7",)
    read_back(result, tmp_path)


def test_preservation_of_other_captions_keeps_its_weight(tmp_path: Path) -> None:
    job = json.loads(json.dumps(AI_TOOLKIT))
    train = job["config"]["process"][0]["train"]
    train |= {"diff_output_preservation": True, "diff_output_preservation_multiplier": 0.5}
    objective = imported(tmp_path, "job.yaml", job).config.objective
    assert (objective.prior_preservation, objective.prior_weight) == ("base_prediction", 0.5)
    job["config"]["process"][0]["datasets"].append({"folder_path": "people", "is_reg": True})
    result = imported(tmp_path, "job.yaml", job)
    assert result.config.objective.prior_preservation == "class_images"
    assert "objective.prior_preservation" in lost_names(result)
