"""Memory estimates against what autograd really keeps, and measured peaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model

from sdlora import disk
from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.constants import MIB
from sdlora.training.preflight.memory import (
    DiskPlan,
    MemoryPlan,
    UNetShape,
    activation_bytes,
    estimate,
    is_out_of_memory,
    peak_gib,
)

SMALL = {
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 4),
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
SHAPE = UNetShape.from_config(SMALL)
SD15 = UNetShape((320, 640, 1280, 1280), (2, 2, 2, 2), (1, 1, 1, 0), 1)


def plan(**changes) -> MemoryPlan:
    values = {
        "frozen_bytes": 1_720_000_000,
        "trained_parameters": 1_600_000,
        "optimizer": "adamw",
        "with_average": False,
        "unet": SD15,
        "with_convolutions": False,
        "batch_size": 1,
        "width_px": 256,
        "height_px": 256,
        "precision": "bf16",
        "checkpointing": False,
    }
    return MemoryPlan(**{**values, **changes})


def kept_bytes(precision: str, checkpointing: bool = False, with_convolutions: bool = False) -> int:
    """What a forward pass of a small UNet with LoRA keeps for its backward pass, shared storage counted once."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SMALL).requires_grad_(False)
    for parameter in unet.parameters():
        parameter.data = parameter.data.to(dtype)
    names = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    names += ["conv1", "conv2"] if with_convolutions else []
    inject_adapter_in_model(LoraConfig(r=8, target_modules=names), unet)
    for parameter in unet.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    unet.train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    latents, text = torch.randn(1, 4, 32, 32, dtype=dtype), torch.randn(1, 77, 64, dtype=dtype)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=precision != "fp32"),
    ):
        unet(latents, torch.tensor([500]), text)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("with_convolutions", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_estimated_activations_meet_what_a_real_unet_keeps(precision, with_convolutions):
    estimated = activation_bytes(plan(unet=SHAPE, precision=precision, with_convolutions=with_convolutions))
    assert estimated == pytest.approx(kept_bytes(precision, with_convolutions=with_convolutions), rel=0.15)


def test_estimated_checkpointed_activations_cover_what_a_real_unet_keeps():
    estimated = activation_bytes(plan(unet=SHAPE, precision="fp32", checkpointing=True))
    kept = kept_bytes("fp32", checkpointing=True)
    assert 0.9 * kept < estimated < 3 * kept  # the estimate also holds the largest layer, computed again


def test_unet_shape_reads_depths_per_level_and_levels_without_attention():
    assert UNetShape((32, 64, 64), (2, 2, 2), (0, 2, 4), 4) == SHAPE


def test_estimate_for_sd15_at_256_px_is_near_the_measured_3_gib():
    assert estimate(plan()).total_gib == pytest.approx(3.0, rel=0.25)


def test_estimate_grows_with_batch_and_size_and_shrinks_with_checkpointing_and_8_bit_state():
    base = estimate(plan())
    assert estimate(plan(batch_size=4)).activation_bytes == 4 * base.activation_bytes
    assert estimate(plan(width_px=512, height_px=512)).activation_bytes == 4 * base.activation_bytes
    assert estimate(plan(checkpointing=True)).activation_bytes < base.activation_bytes / 2
    assert estimate(plan(optimizer="adamw8bit")).optimizer_bytes < base.optimizer_bytes / 3
    assert estimate(plan(with_average=True)).adapter_bytes == base.adapter_bytes + 4 * 1_600_000


def test_estimate_knows_no_other_optimizer_but_still_counts_one():
    assert estimate(plan(optimizer="some.Optimizer")).optimizer_bytes == 8 * 1_600_000


@pytest.mark.slow
def test_peak_of_the_process_counts_memory_that_was_given_back():
    script = (
        "import torch; from sdlora.training.preflight.memory import peak_gib\n"
        "before = peak_gib(torch.device('cpu')); torch.ones(2**27); print(before, peak_gib(torch.device('cpu')))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    before, after = map(float, output.split())
    assert after - before == pytest.approx(0.5, abs=0.1)
    assert peak_gib(torch.device("cpu")) > 0


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out_are_known(error: Exception, is_one: bool):
    assert is_out_of_memory(error) == is_one


def test_a_run_that_the_disk_has_no_room_for_is_told_with_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = DiskPlan.of(TrainConfig(), 2**20, 1000, 10.0)
    assert plan.adapter_bytes == 2 * MIB
    assert plan.checkpoint_bytes == (2 + 4 + 8) * MIB
    assert plan.total_bytes == (2 + 4 * 14) * MIB

    assert plan.problem(tmp_path) is None
    monkeypatch.setattr(disk, "free_bytes", lambda path: 57 * MIB)
    assert "takes up to 58 MiB, of which a checkpoint takes 14, but" in str(plan.problem(tmp_path))
    monkeypatch.setattr(disk, "free_bytes", lambda path: 58 * MIB)
    assert plan.problem(tmp_path) is None
    assert "encoded images take up to 59 MiB" in str(plan.problem(tmp_path, 59 * MIB, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("outputs", "validation", "kept"),
    [
        ({}, {}, 3),
        ({}, {"fraction": 0.1}, 4),
        ({"keep_checkpoints": 10**9, "checkpoint_every": 25}, {}, 13),
        ({"keep_checkpoints": 10**9}, {}, 300),
        ({"keep_every": 100}, {}, 6),
        ({"keep_every": "2 epochs", "checkpoint_every": 10}, {}, 18),
        ({"checkpoint_every": 0}, {"fraction": 0.1}, 1),
    ],
)
def test_no_more_checkpoints_are_counted_than_stay(outputs: Any, validation: Any, kept: int) -> None:
    config = files.validate({"outputs": outputs, "validation": validation}, "test")
    assert DiskPlan.of(config, 2**20, 300, 10.0).kept_checkpoints == kept
