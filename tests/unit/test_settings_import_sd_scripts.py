"""sd-scripts' blocks and precision, as its own code counts and writes them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.support.imported_settings import imported

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
