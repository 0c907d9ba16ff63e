"""SimpleTuner's configuration, its data backends and LyCORIS file, taken over; what can't be is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdlora.errors import ConfigError
from tests.support.imported_settings import imported, lost_names, read_back

CONFIG: dict[str, Any] = {
    "--model_family": "sdxl",
    "--model_type": "lora",
    "--pretrained_model_name_or_path": "Laxhar/noobai-XL-Vpred-1.0",
    "--prediction_type": "v_prediction",
    "--rescale_betas_zero_snr": True,
    "--lora_type": "standard",
    "--lora_rank": 32,
    "--lora_alpha": 16,
    "--lora_dropout": 0.05,
    "--data_backend_config": "config/multidatabackend.json",
    "--output_dir": "output/hero run",
    "--seed": 42,
    "--learning_rate": 1e-4,
    "--lr_scheduler": "polynomial",
    "--lr_end": 1e-5,
    "--lr_warmup_steps": 100,
    "--max_train_steps": 3000,
    "--num_train_epochs": 0,
    "--train_batch_size": 2,
    "--gradient_accumulation_steps": 3,
    "--gradient_checkpointing": "true",
    "--optimizer": "bnb-adamw8bit",
    "--optimizer_config": "weight_decay=0.05,eps=1e-6",
    "--mixed_precision": "bf16",
    "--base_model_precision": "int8-quanto",
    "--caption_dropout_probability": 0.1,
    "--snr_gamma": 5,
    "--resolution": 1.0,
    "--resolution_type": "area",
    "--validation_prompt": "a zeta hero",
    "--validation_resolution": "1024x768",
    "--validation_guidance": 4.5,
    "--validation_step_interval": 250,
    "--checkpoint_step_interval": 500,
    "--checkpoints_total_limit": 4,
    "--report_to": "wandb",
    "--tracker_project_name": "mine",
    "--user_prompt_library": "prompts.json",
    "--push_to_hub": False,
}
BACKENDS: list[dict[str, Any]] = [
    {
        "id": "hero", "type": "local", "instance_data_dir": "pictures/hero", "caption_strategy": "textfile",
        "resolution": 1.0, "resolution_type": "area", "crop": False, "repeats": 4, "cache_dir_vae": "cache/hero",
        "prepend_instance_prompt": True, "instance_prompt": "zeta",
        "caption_shuffle": {"enable": True, "position_start": 1}, "minimum_image_size": 0,
    },
    {
        "id": "friend", "type": "local", "instance_data_dir": "pictures/friend", "caption_strategy": "instanceprompt",
        "instance_prompt": "a friend", "resolution": 768, "resolution_type": "pixel_area", "probability": 0.5,
    },
    {"id": "people", "instance_data_dir": "pictures/people", "caption_strategy": "textfile",
     "is_regularisation_data": True, "resolution": 1024},
    {"id": "off", "instance_data_dir": "pictures/off", "disabled": True},
    {"id": "web", "type": "huggingface", "dataset_name": "a/b", "caption_strategy": "textfile"},
    {"id": "text", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
]  # fmt: skip


def write_backends(folder: Path, backends: list[dict[str, Any]]) -> None:
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "multidatabackend.json").write_text(json.dumps(backends), encoding="utf-8")


def test_a_configuration_is_taken_over_with_its_data_backends(tmp_path: Path) -> None:
    write_backends(tmp_path, BACKENDS)
    result = imported(tmp_path, "config.json", CONFIG)
    config = result.config
    assert result.tool == "SimpleTuner"
    assert (config.name, config.seed, str(config.outputs.folder)) == ("hero run", 42, "output")
    base = config.base_model
    assert (base.family, base.prediction, base.zero_terminal_snr, base.quantization) == (
        "sdxl", "v_prediction", True, "int8",
    )  # fmt: skip
    adapter = config.adapter
    assert (adapter.rank, adapter.alpha, adapter.dropout, adapter.layers) == (32, 16, 0.05, "attention")
    optimization = config.optimization
    assert (optimization.steps, optimization.epochs, optimization.batch_size) == (3000, None, 2)
    assert (optimization.accumulation, optimization.optimizer) == (3, "adamw8bit")
    assert (optimization.weight_decay, optimization.optimizer_options) == (0.05, {"eps": 1e-6})
    assert (optimization.schedule, round(optimization.schedule_floor, 6)) == ("polynomial", 0.1)
    hero, friend, people = config.images.folders
    assert (hero.repeats, hero.resolution, hero.prefix) == (5, 1000, "zeta "), "4 repeats there are five times here"
    assert (hero.shuffle_tags, hero.keep_tags) == (True, 1)
    assert (friend.default, friend.resolution, friend.repeats) == ("a friend", 768, 1)
    assert (people.is_class, people.resolution) == (True, 1024)
    assert (config.objective.weighting, config.captions.dropout) == ("min_snr", 0.1)
    previews = config.previews
    assert (previews.prompts, previews.width_px, previews.height_px) == (("a zeta hero",), 1024, 768)
    assert (config.outputs.checkpoint_every, config.outputs.keep_checkpoints) == (500, 4)
    assert (config.outputs.wandb, config.outputs.wandb_project) == (True, "mine")
    assert lost_names(result) == {
        "user_prompt_library", "web", "pictures/friend: probability", "pictures/friend: captions.wildcards",
    }  # fmt: skip
    changed = "\n".join(result.changed)
    assert "max_grad_norm=2.0: each gradient is held below it there, the norm of all of them here" in changed
    assert "max_grad_norm=2.0" in result.assumed
    assert not any(each.startswith("lora_rank") for each in result.assumed)
    assert "# Not in the file, so as by default there: " in result.as_yaml()
    assert "pictures/people: is_regularisation_data=True" in changed
    assert "pictures/friend: caption_strategy=instanceprompt: captions.default" in changed
    read_back(result, tmp_path)


def test_a_lycoris_file_gives_the_adapter(tmp_path: Path) -> None:
    write_backends(tmp_path, BACKENDS[:1])
    lycoris = {
        "bypass_mode": True, "algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "factor": 12,
        "apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 12}}},
    }  # fmt: skip
    (tmp_path / "config" / "lycoris_config.json").write_text(json.dumps(lycoris), encoding="utf-8")
    settings = {**CONFIG, "--lora_type": "lycoris", "--lycoris_config": "config/lycoris_config.json"}
    result = imported(tmp_path, "config.json", settings)
    adapter = result.config.adapter
    assert (adapter.algorithm, adapter.lokr_full, adapter.lokr_factor, adapter.layers) == (
        "lokr",
        True,
        12,
        "attention",
    )
    assert "linear_dim=10000: stands for a full matrix" in "\n".join(result.changed)
    assert "lycoris_config: module_algo_map" in lost_names(result)
    read_back(result, tmp_path)


def test_data_backends_alone_are_taken_over(tmp_path: Path) -> None:
    result = imported(tmp_path, "multidatabackend.json", BACKENDS[:1])
    assert result.tool == "SimpleTuner data backends"
    assert result.config.images.folder == Path("pictures/hero")
    assert (result.config.images.repeats, result.config.captions.prefix) == (5, "zeta ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--model_family": "flux"}, "it trains flux; only Stable Diffusion"),
        ({"--model_family": "qwen_image"}, "it trains qwen_image; only Stable Diffusion"),
        ({"--controlnet": True}, "it trains a ControlNet"),
        ({"--prediction_type": "flow_matching"}, "it trains flow matching"),
    ],
)
def test_what_cannot_be_trained_here_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_backends(tmp_path, BACKENDS)
    with pytest.raises(ConfigError, match=said):
        imported(tmp_path, "config.json", {**CONFIG, **changes})


def test_backends_without_a_folder_of_images_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of images on this machine .*web=a/b: only folders"):
        imported(tmp_path, "multidatabackend.json", BACKENDS[4:])
