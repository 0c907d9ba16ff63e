"""Settings of other trainers keep their meaning: what is left at a default there, what has no effect, what wins."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from sdlora.adapters.live.layers import choose, matches_block
from sdlora.errors import ConfigError
from sdlora.imports import kohya, optimizers
from sdlora.imports.read import Imported, import_settings
from sdlora.models.configs import shipped_configs
from sdlora.training.optimization import optimizers as trained
from tests.support.foreign_settings import AI_TOOLKIT, CONCEPTS, KOHYA, ONETRAINER
from tests.support.imported_settings import imported, read_back, told
from tests.support.kohya_presets import MEANT, PLAIN


def value_of(result: Imported, setting: str) -> Any:
    found: Any = result.config
    for part in setting.split("."):
        found = getattr(found, part)
    return found


def ai_toolkit(tmp_path: Path, section: str, changes: dict[str, Any]) -> Imported:
    job: dict[str, Any] = copy.deepcopy(AI_TOOLKIT)
    job["config"]["process"][0][section].update(changes)
    return imported(tmp_path, "job.yaml", job)


@pytest.mark.parametrize(("changes", "setting", "value", "said"), MEANT)
def test_kohya_settings_mean_what_they_mean_there(
    tmp_path: Path, changes: dict[str, Any], setting: str, value: object, said: str
) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, **changes})
    assert value_of(result, setting) == value
    assert said in told(result)
    trained.check(result.config.optimization)
    read_back(result, tmp_path)


PRODIGY = {"optimizer": "Prodigy", "learning_rate": 1}
ZEROS = {"down_lr_weight": "zeros", "up_lr_weight": "zeros", "mid_lr_weight": "0"}


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"mid_lr_weight": "0.5"}, {"mid_block": 0.5}),
        ({"down_lr_weight": "1,1,1,1,0.2"}, {"down_blocks.1.attentions.0": 0.2}),
        ({"up_lr_weight": "1,1,1,1,0.05,2", "block_lr_zero_threshold": 0.1},
         {"up_blocks.1.attentions.1": 0.0, "up_blocks.1.attentions.2": 2.0}),
        ({"down_lr_weight": "linear+.25"}, {
            "down_blocks.0.attentions.0": 0.340909, "down_blocks.0.attentions.1": 0.431818,
            "down_blocks.1.attentions.0": 0.613636, "down_blocks.1.attentions.1": 0.704545,
            "down_blocks.2.attentions.0": 0.886364, "down_blocks.2.attentions.1": 0.977273,
        }),
    ],
)  # fmt: skip
def test_learning_rates_by_block_are_taken_over(
    tmp_path: Path, changes: dict[str, Any], rates: dict[str, float]
) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, **changes})
    assert result.config.optimization.block_learning_rates == rates
    assert not [name for name in changes if name in told(result)]
    read_back(result, tmp_path)


@pytest.mark.parametrize("kind", ["Standard", "Kohya LoCon"])
def test_rates_by_block_name_every_layer_of_the_unet(tmp_path: Path, kind: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(shipped_configs("sd1", "epsilon")["unet"])
    result = imported(tmp_path, "preset.json", {**PLAIN, **ZEROS, "LoRA_type": kind, "conv_dim": 4})
    patterns = result.config.optimization.block_learning_rates
    chosen = choose({"unet": unet}, result.config.adapter).targets
    left_out = [each.path for each in chosen if not any(matches_block(one, "unet", each.path) for one in patterns)]
    assert left_out == []
    unused = [one for one in patterns if not any(matches_block(one, "unet", each.path) for each in chosen)]
    assert unused == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sdxl": True, "mid_lr_weight": 0.5}, "mid_lr_weight=0.5: for SDXL set optimization.block_learning_rates"),
        (
            {"mid_lr_weight": "0.5", "optimizer": "Prodigy", "learning_rate": 1},
            "prodigy takes one learning rate for all blocks",
        ),
        ({"down_lr_weight": "steep"}, "down_lr_weight=steep: not understood; set optimization.block_learning_rates"),
        ({"block_dims": "4,8"}, "block_dims=4,8: adapter.block_ranks holds ranks by block"),
    ],
)
def test_what_cannot_be_held_by_block_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in told(imported(tmp_path, "preset.json", {**PLAIN, **changes}))


@pytest.mark.parametrize("name", [*optimizers.NAMES, "prodigyplus.ProdigyPlusScheduleFree", "torch.optim.AdamW"])
def test_every_optimizer_that_kohya_ss_offers_can_be_built(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pytorch_optimizer")
    result = imported(tmp_path, "preset.json", {**PLAIN, "optimizer": name, "learning_rate": 1.0})
    trained.check(result.config.optimization)


def test_an_optimizer_that_is_not_here_leaves_neither_its_rate_nor_its_options(tmp_path: Path) -> None:
    changes = {"optimizer": "Wizard", "learning_rate": 1.0, "unet_lr": 1.0, "optimizer_args": "spell=3"}
    result = imported(tmp_path, "preset.json", {**PLAIN, **changes})
    optimization = result.config.optimization
    assert (optimization.optimizer, optimization.learning_rate) == ("adamw", 1e-4)
    assert optimization.optimizer_options == {}
    assert "optimizer=Wizard: no counterpart" in told(result)
    assert "learning_rate=1.0: far too high for adamw" in told(result)
    assert "they belong to an optimizer that is not here" in told(result)


def test_a_data_set_that_the_window_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\nnum_repeats = 3\n')
    result = imported(tmp_path, "preset.json", {**PLAIN, "dataset_config": "data.toml", "epoch": 7})
    assert (result.config.images.folder, result.config.images.repeats) == (Path("a"), 3)
    assert (result.config.optimization.steps, result.config.optimization.epochs) == (1600, None)
    assert "epoch=7: has no effect there beside a dataset_config" in told(result)
    lost = imported(tmp_path, "preset.json", {**PLAIN, "dataset_config": "gone.toml"}).lost
    assert "dataset_config=gone.toml: no such file beside this one; set images.folder" in lost


@pytest.mark.parametrize(
    ("text", "setting", "value", "said"),
    [
        ("", "captions.extension", ".caption", ""),
        ('optimizer_type = "Prodigy"', "optimization.weight_decay", 0, ""),
        ('network_module = "networks.dylora"', "adapter.algorithm", "lora", "LoRA_type=networks.dylora"),
        ('network_args = ["conv_dim=4"]', "adapter.conv_alpha", 1, ""),
        ('network_args = ["conv_dim=4", "dora_wd"]', "adapter.dora", False, "network_args=dora_wd: not understood"),
        ('network_module = "lycoris.kohya"\nnetwork_args = ["algo=loha", "dora_wd=True"]', "adapter.dora", True, ""),
        ("use_8bit_adam = true", "optimization.optimizer", "adamw8bit", ""),
        ("max_timestep = 800", "objective.max_timestep", 799, ""),
    ],
)
def test_training_configs_of_sd_scripts_mean_what_they_mean_there(
    tmp_path: Path, text: str, setting: str, value: object, said: str
) -> None:
    head = "" if "network_module" in text else 'network_module = "networks.lora"\n'
    result = imported(tmp_path, "train.toml", f"{head}network_dim = 8\n{text}\n")
    assert value_of(result, setting) == value
    assert said in told(result)


@pytest.mark.parametrize(
    ("section", "changes", "setting", "value", "said"),
    [
        ("network", {"alpha": 2, "linear_alpha": 12}, "adapter.alpha", 12, ""),
        ("network", {"linear_alpha": 0}, "adapter.alpha", 16, "network.linear_alpha=0: means the rank there"),
        ("network", {"conv_alpha": None}, "adapter.conv_alpha", 8, ""),
        ("network", {"type": "lokr", "dropout": 0.2}, "adapter.dropout", 0, "network.dropout=0.2: has no effect on"),
        ("train", {"optimizer": "prodigy", "lr": 1e-4}, "optimization.learning_rate", 1.0, "prodigy finds its own"),
        ("train", {"train_text_encoder": True}, "optimization.text_encoder_learning_rate", 1e-4, ""),
        ("train", {"min_denoising_steps": 200}, "objective.max_timestep", 799, "counted from the noisiest there"),
        ("train", {"max_denoising_steps": 600}, "objective.min_timestep", 399, "counted from the noisiest there"),
        ("train", {"min_snr_gamma": "five"}, "objective.weighting", "none", "train.min_snr_gamma=five: is no number"),
        ("train", {"ema_config": "on"}, "optimization.ema", 0, "train.ema_config=on"),
        ("sample", {"samples": "a cat"}, "previews.seed", 42, "sample.samples=a cat: no list"),
    ],
)
def test_ai_toolkit_settings_mean_what_they_mean_there(
    tmp_path: Path, section: str, changes: dict[str, Any], setting: str, value: object, said: str
) -> None:
    result = ai_toolkit(tmp_path, section, changes)
    assert value_of(result, setting) == value
    assert said in told(result)


@pytest.mark.parametrize(
    ("changes", "setting", "value", "said"),
    [
        ({"peft_type": "LOKR", "lokr_weight_decompose": True}, "adapter.dora", True, ""),
        ({"peft_type": "LOHA", "lora_decompose": True}, "adapter.dora", False, ""),
        ({"lora_decompose": True}, "adapter.dora", True, "lora_decompose=True: with a magnitude for each output here"),
        (
            {"optimizer": {"optimizer": "ADAFACTOR", "relative_step": True}},
            "optimization.learning_rate",
            1e-3,
            "its own",
        ),
        ({"optimizer": {"optimizer": "DADAPT_LION"}}, "optimization.optimizer", "pytorch_optimizer.DAdaptLion", ""),
        (
            {"optimizer": {"optimizer": "ADAMW", "cautious": True}},
            "optimization.optimizer",
            "adamw",
            "optimizer.cautious=True",
        ),
        ({"unet": {"learning_rate": "high"}}, "adapter.rank", 32, "unet.learning_rate=high: is no number"),
        ({"samples": "a cat"}, "adapter.rank", 32, "samples=a cat: no list of samples"),
    ],
)
def test_onetrainer_settings_mean_what_they_mean_there(
    tmp_path: Path, changes: dict[str, Any], setting: str, value: object, said: str
) -> None:
    result = imported(tmp_path, "mine.json", {**ONETRAINER, "concept_file_name": "", **changes})
    assert value_of(result, setting) == value
    assert said in told(result)


def test_prodigy_of_onetrainer_keeps_what_is_switched_off(tmp_path: Path) -> None:
    off = {"optimizer": "PRODIGY", "use_bias_correction": False, "safeguard_warmup": False, "weight_decay": 0.0}
    changes = {"optimizer": off, "learning_rate": 1, "unet": {}, "text_encoder": {}}
    optimization = imported(
        tmp_path, "mine.json", {**ONETRAINER, "concept_file_name": "", **changes}
    ).config.optimization
    assert (optimization.optimizer, optimization.weight_decay) == ("prodigy", 0)
    assert optimization.optimizer_options == {"use_bias_correction": False, "safeguard_warmup": False}


def test_lycoris_files_of_simpletuner_mean_what_they_mean_there(tmp_path: Path) -> None:
    lycoris = {"algo": "lokr", "linear_dim": 8, "dropout": 0.2, "weight_decompose": True}
    (tmp_path / "lycoris.json").write_text(json.dumps(lycoris))
    settings = {"model_family": "sdxl", "lora_type": "lycoris", "lycoris_config": "lycoris.json"}
    result = imported(tmp_path, "config.json", settings)
    adapter = result.config.adapter
    assert (adapter.alpha, adapter.dropout, adapter.dora) == (1, 0, True)
    assert "lycoris_config: dropout=0.2: has no effect on LoHa and LoKr" in told(result)


@pytest.mark.parametrize("value", ["banana", [1, 2], {"a": 1}, float("nan"), float("inf"), 10**400, "512x512", "\x00"])
@pytest.mark.parametrize("name", sorted({*kohya._NUMBERS, "keep_tokens", "scale_weight_norms", "factor"}))
def test_what_is_no_number_is_said_and_nothing_breaks(tmp_path: Path, name: str, value: Any) -> None:
    assert f"{name}=" in told(imported(tmp_path, "preset.json", {**KOHYA, "LoRA_type": "LyCORIS/LoKr", name: value}))


@pytest.mark.parametrize("name", sorted(kohya._SWITCHES))
def test_what_is_neither_on_nor_off_is_said(tmp_path: Path, name: str) -> None:
    assert f"{name}=banana: is neither on nor off" in told(imported(tmp_path, "preset.json", {**KOHYA, name: "banana"}))


@pytest.mark.parametrize("value", [True, "True", "true", "TRUE", "yes", "on", 1, "1"])
def test_a_switch_may_be_written_in_many_ways(tmp_path: Path, value: Any) -> None:
    assert imported(tmp_path, "preset.json", {**PLAIN, "sdxl": value}).config.base_model.family == "sdxl"


def test_a_concept_with_nonsense_in_it_says_so(tmp_path: Path) -> None:
    concepts = copy.deepcopy(CONCEPTS)
    concepts[0] |= {"balancing": "thrice", "loss_weight": [1]}
    concepts[0]["text"]["keep_tags_count"] = "two"
    concepts[0]["image"]["resolution_override"] = "512,big"
    text = told(imported(tmp_path, "concepts.json", concepts))
    for said in (
        "balancing=thrice: is no number",
        "loss_weight=[1]: is no number",
        "text.keep_tags_count=two: is no number",
        "image.resolution_override=512,big: not understood",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "it is empty"),
        ("a.toml", " \n", "it is empty"),
        ("a.yaml", "", "it is empty"),
        ("a.json", {"3": {"class_type": "KSampler"}}, "neither settings of"),
        ("a.json", {"lora": PLAIN}, "neither settings of"),
        ("a.json", [1], "a list of concepts holds something else than concepts"),
        ("a.json", [{"dataset_type": "image"}, 3], "a list of data backends holds something else than backends"),
        ("a.toml", "network_dim = 8\nsubsets = 3", "where a section or a list belongs"),
        ("a.yaml", {"config": {"process": ["x"]}}, "where a section or a list belongs"),
        ("a.yaml", {"config": {"process": [{"train": "x"}]}}, "'x' stands where a section of settings belongs"),
    ],
)
def test_files_of_another_shape_say_so(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, name, content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "MINE.JSON").write_text(json.dumps(PLAIN), encoding=encoding)
    assert import_settings(tmp_path / "MINE.JSON").config.adapter.rank == 8


def test_settings_of_a_tool_may_stand_in_the_other_notation(tmp_path: Path) -> None:
    assert imported(tmp_path, "job.json", AI_TOOLKIT).tool == "ai-toolkit"
    assert imported(tmp_path, "kohya.yaml", KOHYA).tool == "kohya_ss"
