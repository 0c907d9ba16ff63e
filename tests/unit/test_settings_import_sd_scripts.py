"""sd-scripts' blocks and precision, as its own code counts and writes them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.support.imported_settings import imported, read_back, told
from tests.support.kohya_presets import PLAIN

ARGUMENTS = """
pretrained_model_name_or_path = "b"
network_module = "networks.lora"
network_dim = 8
learning_rate = 1e-4
train_data_dir = "x"
"""
DOWN = ",".join(f"0.{index:02d}" for index in range(1, 13))
TRANSFORMERS = [f"down_blocks.{block}.attentions.{index}" for block in range(3) for index in range(2)]
PLACES = [1, 2, 4, 5, 7, 8]
"""Of the factors of those transformers: the first convolution has the first one, samplers have every third."""


def test_factors_down_begin_with_the_first_convolution(tmp_path: Path) -> None:
    """sd-scripts' networks/lora.py: `get_block_index` is 1 + 3 * block + index for a transformer or resnet down.

    No LoRA belongs to 0, and `get_lr_weight` takes down_lr_weight at that index; up it is 3 * block + index.
    """
    text = f'{ARGUMENTS}network_args = ["down_lr_weight={DOWN}", "up_lr_weight={DOWN}"]\n'
    rates = imported(tmp_path, "train.toml", text).config.optimization.block_learning_rates
    assert [rates[name] for name in TRANSFORMERS] == [pytest.approx((1 + place) / 100) for place in PLACES]
    assert rates["up_blocks.1.attentions.0"] == pytest.approx(0.04)
    assert rates["up_blocks.3.attentions.2"] == pytest.approx(0.12)


def test_convolutions_down_are_counted_alike(tmp_path: Path) -> None:
    text = f'{ARGUMENTS}network_args = ["conv_dim=4", "down_lr_weight={DOWN}"]\n'
    rates = imported(tmp_path, "train.toml", text).config.optimization.block_learning_rates
    found = {name: round(100 * rate) for name, rate in rates.items()}
    assert found["down_blocks.0.resnets.0"] == found["down_blocks.0.attentions.0"] == 2
    assert (found["down_blocks.0.downsamplers.0"], found["down_blocks.2.downsamplers.0"]) == (4, 10)
    assert (found["down_blocks.3.resnets.0"], found["down_blocks.3.resnets.1"]) == (11, 12)


def test_a_shape_down_is_counted_alike(tmp_path: Path) -> None:
    text = f'{ARGUMENTS}network_args = ["down_lr_weight=cosine+.25"]\n'
    rates = imported(tmp_path, "train.toml", text).config.optimization.block_learning_rates
    wanted = [math.sin(math.pi / 2 * (11 - place) / 11) + 0.25 for place in PLACES]
    assert [rates[name] for name in TRANSFORMERS] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("line", "precision", "is_default"),
    [
        ("", "fp32", True),
        ("full_bf16 = true\n", "bf16", True),
        ("full_fp16 = true\n", "fp16", True),
        ('save_precision = "fp16"\n', "fp16", False),
    ],
)
def test_a_file_is_saved_as_its_weights_are_trained(
    tmp_path: Path, line: str, precision: str, is_default: bool
) -> None:
    result = imported(tmp_path, "train.toml", ARGUMENTS + line)
    assert result.config.outputs.precision == precision
    assert any(one.startswith("save_precision=") for one in result.assumed) == is_default


def test_a_schedule_that_only_shows_adafactors_rate_is_said(tmp_path: Path) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, "optimizer": "Adafactor", "lr_scheduler": "adafactor"})
    assert result.config.optimization.schedule == "constant"
    assert "lr_scheduler=adafactor: only shows the rate that Adafactor finds there" in told(result)


@pytest.mark.parametrize("kind", ["LyCORIS/GLoRA", "LyCORIS/BOFT", "LyCORIS/Diag-OFT"])
def test_other_kinds_of_lycoris_keep_their_convolutions(tmp_path: Path, kind: str) -> None:
    changes = {"LoRA_type": kind, "network_dim": 8, "conv_dim": 4, "conv_alpha": 2}
    result = imported(tmp_path, "preset.json", {**PLAIN, **changes})
    adapter = result.config.adapter
    assert (adapter.layers, adapter.conv_rank, adapter.conv_alpha) == ("all+conv", 4, 2)
    assert f"LoRA_type={kind}: has no counterpart, so a plain LoRA is trained" in told(result)
    read_back(result, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"LoRA_type": "Standard"}, {"LoRA_type": "LyCORIS/LoHa", "LyCORIS_preset": "attn-mlp"}],
)
def test_ranks_of_convolutions_that_are_not_adapted_are_without_effect(tmp_path: Path, changes: dict[str, str]) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, **changes, "conv_dim": 4, "conv_alpha": 2})
    assert {"conv_dim", "conv_alpha"} <= set(result.without_effect)
    assert result.config.adapter.conv_rank is None


def test_what_differs_by_folder_and_cannot_is_said_once(tmp_path: Path) -> None:
    subsets = [f'\n[[datasets.subsets]]\nimage_dir = "{name}"\n' for name in "abcdef"]
    subsets[0] += 'caption_separator = ";"\n'
    result = imported(tmp_path, "dataset.toml", "[[datasets]]\nresolution = 512\n" + "".join(subsets))
    said = "b, c, d, 2 more: captions.separator=not set: one value holds for all folders: ;"
    assert [one for one in result.lost if "captions.separator" in one] == [said]


PROMPTS = {
    "prompts.toml": '[prompt]\nwidth = 640\n[[prompt.subset]]\nprompt = "a cat"\nseed = 3\ncontrol_image = "c.png"\n'
    '[[prompt.subset]]\nprompt = "a dog"\nsample_sampler = "ddpm"\n',
    "prompts.json": '["a cat --w 640 --d 3", {"prompt": "a dog", "width": 640, "sample_sampler": "ddpm",'
    ' "control_image": "c.png"}]',
}


@pytest.mark.parametrize("saved_window", [False, True])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_file_becomes_previews_and_what_they_lack_is_said(
    tmp_path: Path, name: str, saved_window: bool
) -> None:
    (tmp_path / name).write_text(PROMPTS[name], encoding="utf-8")
    if saved_window:
        result = imported(tmp_path, "preset.json", {**PLAIN, "sample_prompts": name})
    else:
        result = imported(tmp_path, "train.toml", f'{ARGUMENTS}sample_prompts = "{name}"\n')
    assert result.config.previews.prompts == ("a cat --w 640 --d 3", "a dog --w 640")
    said = " ".join(result.lost)
    assert "ddpm" in said
    assert "control_image=c.png" in said


def test_a_prompt_file_that_is_not_there_or_no_prompts_is_said(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text('{"prompt": 1}', encoding="utf-8")
    for name, said in {"gone.txt": "no such file near it", "prompts.json": "can't be read: must hold a list"}.items():
        result = imported(tmp_path, "preset.json", {**PLAIN, "sample_prompts": name})
        assert result.config.previews.prompts == ()
        assert said in " ".join(result.lost)
