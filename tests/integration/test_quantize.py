"""Quantised UNet weights: sizes, errors, gradients, and PEFT's adapters on them."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from torch import nn

from sdlora.config.base_model import BaseModelConfig, Quantization
from sdlora.errors import MissingPackageError
from sdlora.models.loading import load
from sdlora.models.quantize import (
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    parameter_count,
    quantize_,
    weight_bytes,
)

KINDS: tuple[Quantization, ...] = ("int8", "nf4", "nf4-double")
LAYERS = r".*(attn2\.to_q|net\.0\.proj|conv1|conv_shortcut|time_emb_proj)$"


def frozen(layer: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer.requires_grad_(False)


def layers() -> list[tuple[nn.Module, Callable[[nn.Module, Quantization], QuantizedLayer], torch.Tensor]]:
    return [
        (frozen(nn.Linear(96, 64)), QuantizedLinear, torch.randn(2, 5, 96)),
        (frozen(nn.Linear(96, 33, bias=False)), QuantizedLinear, torch.randn(2, 5, 96)),
        (frozen(nn.Conv2d(64, 32, 3, stride=2, padding=1)), QuantizedConv2d, torch.randn(2, 64, 9, 9)),
        (frozen(nn.Conv2d(64, 32, 1)), QuantizedConv2d, torch.randn(2, 64, 5, 5)),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(4))
def test_output_and_input_gradient_are_those_of_the_unpacked_weight(number: int, kind: Quantization) -> None:
    plain, packed_type, inputs = layers()[number]
    packed = packed_type(plain, kind)
    reference = copy.deepcopy(plain)
    reference.weight.data = packed.weight
    assert packed.weight.shape == plain.weight.shape
    results = []
    for layer in (packed, reference):
        inputs_here = inputs.clone().requires_grad_()
        outputs = layer(inputs_here)
        outputs.square().sum().backward()
        results.append((outputs.detach(), inputs_here.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.01), ("nf4", 0.1), ("nf4-double", 0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unpacked_weights_are_close_to_the_originals(kind: Quantization, most: float, dtype: torch.dtype) -> None:
    layer = frozen(nn.Conv2d(64, 64, 3)).to(dtype)
    weight = QuantizedConv2d(layer, kind).weight
    assert weight.dtype == dtype
    error = (weight.float() - layer.weight.float()).norm() / layer.weight.float().norm()
    assert error < most


def test_unpacking_follows_bitsandbytes_own_layers() -> None:
    import bitsandbytes

    layer = frozen(nn.Linear(128, 64))
    for kind, double in (("nf4", False), ("nf4-double", True)):
        parameter = bitsandbytes.nn.Params4bit(layer.weight.clone(), quant_type="nf4", compress_statistics=double).to(
            "cpu"
        )
        theirs = bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)
        torch.testing.assert_close(QuantizedLinear(layer, kind).weight, theirs)
    theirs = bitsandbytes.nn.Int8Params(layer.weight.clone(), has_fp16_weights=False, requires_grad=False).to("cpu")
    unpacked = bitsandbytes.functional.int8_vectorwise_dequant(theirs.data, theirs.SCB)
    one_step = float(layer.weight.abs().max()) / 127  # theirs are rounded to fp16 first
    torch.testing.assert_close(QuantizedLinear(layer, "int8").weight, unpacked, rtol=0, atol=1.01 * one_step)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_to_another_number_type_keeps_the_scales_exact(kind: Quantization) -> None:
    layer = QuantizedLinear(frozen(nn.Linear(64, 64)), kind)
    before = layer.weight
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight, before)
    assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_autocast_chooses_the_number_type() -> None:
    layer = QuantizedConv2d(frozen(nn.Conv2d(64, 32, 3)), "nf4")
    inputs = torch.randn(1, 64, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(inputs)
    assert outputs.dtype == torch.bfloat16
    outputs.float().sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.dtype == torch.float32


def test_only_the_packed_weight_waits_for_the_backward_pass() -> None:
    kept: list[torch.Tensor] = []
    layer = QuantizedConv2d(frozen(nn.Conv2d(64, 64, 3)), "nf4")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(1, 64, 5, 5, requires_grad=True))
    assert not kept


def model(path: Path, kind: Quantization) -> Any:
    return load(BaseModelConfig(model=str(path), precision="fp32", quantization=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_unet_spares_the_delicate_layers_and_counts_all_weights(
    kind: Quantization, shallow_sd1: Path
) -> None:
    plain, bundle = model(shallow_sd1, "none"), model(shallow_sd1, kind)
    plain_layers = {name for name, layer in bundle.unet.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)}
    assert plain_layers == {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}
    assert not any(isinstance(layer, QuantizedLayer) for layer in bundle.vae.modules())
    assert (
        parameter_count(bundle.unet) == parameter_count(plain.unet) == sum(p.numel() for p in plain.unet.parameters())
    )
    assert weight_bytes(bundle.unet) < 0.4 * weight_bytes(plain.unet)
    assert f"UNet in {kind}: " in bundle.notes[-1]
    assert bundle.identity == plain.identity


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.505), ("nf4", 0.285), ("nf4-double", 0.262)])
def test_a_wide_layers_bytes_against_fp16(kind: Quantization, share: float) -> None:
    wide = frozen(nn.Conv2d(320, 320, 3)).half()
    assert weight_bytes(QuantizedConv2d(wide, kind)) / weight_bytes(wide) < share


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, LoraConfig(r=2, target_modules=LAYERS)) for kind in KINDS),
        ("int8", LoraConfig(r=2, target_modules=LAYERS, use_dora=True)),
        ("nf4", LoHaConfig(r=2, target_modules=LAYERS)),
        ("nf4", LoKrConfig(r=2, target_modules=LAYERS)),
    ],
    ids=["lora-int8", "lora-nf4", "lora-nf4-double", "dora", "loha", "lokr"],
)
def test_every_adapter_on_a_quantised_base_trains(kind: Quantization, config: Any, shallow_sd1: Path) -> None:
    bundle = model(shallow_sd1, kind)
    noisy_BCHW, states = torch.randn(1, 4, 16, 16), bundle.family.encode_text(bundle, ["a cat"])
    before_BCHW = bundle.family.predict(bundle, noisy_BCHW, torch.tensor([500]), states)
    inject_adapter_in_model(config, bundle.unet)
    with torch.no_grad():  # as a preview would do between steps
        bundle.family.predict(bundle, noisy_BCHW, torch.tensor([500]), states)
    predicted_BCHW = bundle.family.predict(bundle, noisy_BCHW, torch.tensor([500]), states)
    torch.testing.assert_close(predicted_BCHW, before_BCHW)
    predicted_BCHW.square().sum().backward()
    trained = [weight for weight in bundle.unet.named_parameters() if weight[1].requires_grad]
    alive = [name for name, weight in trained if weight.grad is not None and weight.grad.any()]
    assert len(trained) > 100
    assert {_adapted(name) for name in alive} == {_adapted(name) for name, _ in trained}


def _adapted(name: str) -> str:
    """The module that an adapter's weight belongs to."""
    return re.split(r"\.(?:lora|hada|lokr)_", name)[0]


def test_peft_makes_plain_convolutions_for_its_own(shallow_sd1: Path) -> None:
    bundle = model(shallow_sd1, "int8")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=r".*conv1$"), bundle.unet)
    wrapped = bundle.unet.mid_block.resnets[0].conv1
    assert type(wrapped.lora_A["default"]) is nn.Conv2d
    assert isinstance(wrapped.base_layer, QuantizedConv2d)
    assert isinstance(copy.deepcopy(wrapped).base_layer, QuantizedConv2d)


def test_quantising_twice_changes_nothing(shallow_sd1: Path) -> None:
    unet = model(shallow_sd1, "int8").unet
    size = weight_bytes(unet)
    assert weight_bytes(quantize_(unet, "int8")) == size


def test_nf4_without_bitsandbytes_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r"\[8bit\]"):
        quantize_(nn.Sequential(nn.Linear(64, 64)), "nf4")
    packed = QuantizedLinear(frozen(nn.Linear(64, 64)), "int8")
    functional.mse_loss(packed(torch.ones(1, 64)), torch.ones(1, 64))
