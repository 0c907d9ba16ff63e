"""OneTrainer's settings as its code reads them: what it trains by, how it counts, and nothing dropped in silence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from sdlora.config.preview_prompts import parse_preview
from sdlora.imports.names import settings_called
from sdlora.imports.read import Imported
from tests.support.foreign_settings import ONETRAINER
from tests.support.imported_settings import imported, read_back, told

UNFILTERED = {name: value for name, value in ONETRAINER.items() if not name.startswith("layer_filter")}


def onetrainer(tmp_path: Path, changes: dict[str, Any], base: dict[str, Any] = ONETRAINER) -> Imported:
    return imported(tmp_path, "mine.json", {**base, "concept_file_name": "", **changes})


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, "all+conv"),
        ({"layer_filter": ""}, "all+conv"),
        ({"layer_filter": "attn"}, "attention"),
        ({"layer_filter": "attentions", "layer_filter_preset": "full"}, "all"),
        ({"layer_filter": "attn1, up_blocks.1"}, r"regex:attn1|up_blocks\.1"),
        ({"layer_filter": "attn[12],ff.net", "layer_filter_regex": True}, "regex:attn[12]|ff.net"),
        ({"lora_layers": "down_blocks", "lora_layer_preset": "full"}, "regex:down_blocks"),
        ({"lora_layer_preset": "attn-only"}, "attention"),
    ],
)
def test_layers_are_those_of_the_filter(tmp_path: Path, changes: dict[str, Any], layers: str) -> None:
    """Its ModuleFilter searches each part between commas in a layer's path; the preset only fills the window."""
    result = onetrainer(tmp_path, changes, UNFILTERED)
    assert result.config.adapter.layers == layers
    assert ("layer_filter_preset=full" in result.assumed) == (not changes)
    read_back(result, tmp_path)


def test_a_filter_that_is_not_the_presets_is_said(tmp_path: Path) -> None:
    said = told(onetrainer(tmp_path, {"layer_filter": "down", "layer_filter_preset": "full"}))
    assert "layer_filter=down: taken, as there; the preset full is only for its window" in said
    assert "layer_filter" not in told(onetrainer(tmp_path, {}))
    said = told(onetrainer(tmp_path, {"layer_filter": "attn(", "layer_filter_regex": True}))
    assert "layer_filter=attn(: no regular expression" in said


TOKENS = {"additional_embeddings": [{"placeholder": "<fox>", "token_count": 2}], "embedding_learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("warmup", "batches", "ours"), [(50, 4, 12), (50, 1, 50), (None, 4, 50), (0.1, 4, 0.1), (3, 4, 0)]
)
def test_a_warm_up_is_counted_in_batches_there(tmp_path: Path, warmup: float | None, batches: int, ours: float) -> None:
    """Its create_lr_scheduler: int(warmup_steps / gradient_accumulation_steps) of those above 1; 200 by default."""
    changes = {"learning_rate_warmup_steps": warmup, "gradient_accumulation_steps": batches, "save_every_unit": "NEVER"}
    given = {name: value for name, value in ONETRAINER.items() if name != "learning_rate_warmup_steps"}
    result = onetrainer(tmp_path, {name: value for name, value in changes.items() if value is not None}, given)
    assert result.config.optimization.warmup == ours
    assert ("steps are batches there and updates here" in told(result)) == (batches > 1 and warmup != 0.1)
    read_back(result, tmp_path)


def test_intervals_and_ends_are_counted_in_batches_there(tmp_path: Path) -> None:
    """Its trainer counts a step after each batch, and lets accumulation decide which of them update the weights."""
    part = {"train": True, "stop_training_after": 100, "stop_training_after_unit": "STEP"}
    every = {"save_every": 250, "sample_after": 1, "sample_after_unit": "STEP", "text_encoder": part}
    config = onetrainer(tmp_path, {**every, "gradient_accumulation_steps": 5}).config
    assert (config.outputs.checkpoint_every, config.previews.every) == (50, 1)
    assert config.optimization.text_encoder_until == 20
    config = onetrainer(tmp_path, {**every, "gradient_accumulation_steps": 1}).config
    assert (config.outputs.checkpoint_every, config.optimization.text_encoder_until) == (250, 100)


def test_rates_of_tokens_are_scaled_too(tmp_path: Path) -> None:
    scaled = {"learning_rate_scaler": "BOTH", "batch_size": 2, "gradient_accumulation_steps": 8}
    config = onetrainer(tmp_path, {**TOKENS, **scaled}).config
    assert config.optimization.new_token_learning_rate == pytest.approx(1e-3 * math.sqrt(16), rel=1e-5)


def rotated(image: dict[str, Any]) -> dict[str, Any]:
    return {"concepts": [{"path": "x", "image": image}]}


SAMPLE = {"prompt": "a cat"}
SAID = [
    ({"unet": {"model_name": "other.safetensors"}}, "unet.model_name=other.safetensors: another unet than the base"),
    ({"gradient_checkpointing": "CPU_OFFLOADED"}, "gradient_checkpointing=CPU_OFFLOADED: on, and nothing is moved off"),
    ({"mse_strength": 0.0}, "mse_strength=0: nothing is trained there without any strength"),
    (TOKENS, "preserve_embedding_norm=False: new tokens keep near"),
    (TOKENS, "additional_embeddings=<fox>: becomes captions.trigger too"),
    ({"save_filename_prefix": "fox_"}, "save_filename_prefix=fox_: no counterpart"),
    ({"backup_after": 5}, "backup_after=5 MINUTE: outputs.checkpoint_every"),
    ({"backup_after": 5, "backup_after_unit": "EPOCH"}, "backup_after=5 EPOCH: outputs.checkpoint_every"),
    ({"samples": [{**SAMPLE, "force_last_timestep": True}]}, "samples.force_last_timestep=True: no counterpart"),
    ({"samples": [{**SAMPLE, "text_encoder_1_layer_skip": 2}]}, "samples.text_encoder_1_layer_skip=2: no counterpart"),
    ({"text_encoder_1_layer_skip": 2}, "text_encoder_1_layer_skip=2: no counterpart"),
    ({"samples": [{**SAMPLE, "noise_scheduler": "UNIPC_KARRAS"}]}, "UNIPC_KARRAS: --ss UNIPC_KARRAS: no such sampler"),
    ({"optimizer": {"optimizer": "ADAMW", "nu": 0.3}}, "optimizer.nu=0.3: no counterpart"),
    (rotated({"enable_random_rotate": True, "random_rotate_max_angle": 90}), "random_rotate_max_angle=90.0: 45 is the"),
    (rotated({"enable_random_hue": True, "random_hue_max_strength": 2}), "random_hue_max_strength=2.0: 1 is the most"),
]


@pytest.mark.parametrize(("changes", "said"), SAID)
def test_what_is_not_taken_over_as_it_stands_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in told(onetrainer(tmp_path, changes))


def test_the_windows_own_backups_are_not_said(tmp_path: Path) -> None:
    result = onetrainer(tmp_path, {"backup_after": 30, "backup_after_unit": "MINUTE"})
    assert "backup_after" not in told(result)
    assert "backup_after" in result.without_effect


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"optimizer": "PRODIGY", "growth_rate": 1.02}, {"growth_rate": 1.02}),
        ({"optimizer": "PRODIGY", "growth_rate": math.inf, "d_coef": 2.0}, {"d_coef": 2.0}),
        ({"optimizer": "ADAFACTOR", "eps": 1e-30, "eps2": 0.002, "beta1": 0.8}, {"eps": [1e-30, 0.002], "beta1": 0.8}),
        ({"optimizer": "CAME", "beta3": 0.99}, {"betas": [0.9, 0.999, 0.99]}),
        ({"optimizer": "ADAMW", "beta2": 0.95, "min_8bit_size": 4096}, {"betas": [0.9, 0.95]}),
    ],
)
def test_options_of_optimizers_are_taken_over(tmp_path: Path, given: dict[str, Any], options: dict[str, Any]) -> None:
    rates = {"learning_rate": 1.0, "unet": {}, "text_encoder": {}, "ema": "OFF"}
    result = onetrainer(tmp_path, {"optimizer": given, **(rates if given["optimizer"] == "PRODIGY" else {})})
    assert options.items() <= result.config.optimization.optimizer_options.items()
    assert "optimizer." not in told(result)
    read_back(result, tmp_path)


def test_samplers_of_samples_are_ours(tmp_path: Path) -> None:
    kinds = {"DDIM": "DDIM", "EULER_A": "Euler a", "DPMPP_KARRAS": "DPM++ 2M Karras", "UNIPC": "UniPC"}
    result = onetrainer(tmp_path, {"samples": [{**SAMPLE, "noise_scheduler": kind} for kind in kinds]})
    assert [parse_preview(line).sampler for line in result.config.previews.prompts] == list(kinds.values())


def test_a_random_rotation_that_is_taken_is_not_said_to_be_lost(tmp_path: Path) -> None:
    both = {"enable_random_rotate": True, "enable_fixed_rotate": True, "random_rotate_max_angle": 12.0}
    result = onetrainer(tmp_path, rotated(both))
    assert result.config.images.rotation == 12
    assert "random_rotate_max_angle" not in told(result)
    assert "image.enable_fixed_rotate=True: no counterpart" in told(result)


def test_a_preset_of_layers_is_said_by_the_name_it_has(tmp_path: Path) -> None:
    said = told(onetrainer(tmp_path, {"lora_layer_preset": "blocks"}, UNFILTERED))
    assert "lora_layer_preset=blocks: set adapter.layers to a layer set or regex:PATTERN" in said
    assert settings_called("lora_layers") == settings_called("lora_layer_preset") == ["adapter.layers"]


def test_an_interval_without_a_unit_has_that_of_onetrainer(tmp_path: Path) -> None:
    given = {name: value for name, value in ONETRAINER.items() if name not in ("sample_after_unit", "sample_after")}
    result = onetrainer(tmp_path, {"sample_after": 5, "samples": [SAMPLE]}, given)
    assert "sample_after=5 MINUTE: steps and epochs are possible" in told(result)


def test_a_token_that_one_text_encoder_does_not_learn_is_said_to_be_learned_there(tmp_path: Path) -> None:
    token = {"additional_embeddings": [{"placeholder": "<ohwx>", "initial_embedding_text": "fox", "token_count": 2}]}
    part = {**ONETRAINER.get("text_encoder", {}), "train_embedding": False}  # type: ignore[dict-item]
    assert "text_encoder.train_embedding=False: new" in told(onetrainer(tmp_path, {**token, "text_encoder": part}))
    assert "train_embedding" not in told(onetrainer(tmp_path, {"text_encoder": part}))


def test_a_warm_up_of_1_is_the_whole_run_there_and_no_single_step_here(tmp_path: Path) -> None:
    result = onetrainer(tmp_path, {"learning_rate_warmup_steps": 1})
    assert result.config.optimization.warmup == 0
    assert "learning_rate_warmup_steps=1.0: is the whole run there" in told(result)
