"""LyCORIS reads our files: every algorithm, linear and convolution, does in its layers what the live adapter does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdlora.adapters.algebra.base_weights import open_base
from sdlora.adapters.algebra.operands import layer_update
from sdlora.adapters.files.kohya import kohya_name
from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.writing import write_adapter
from sdlora.adapters.live.attach import Adapter, attach
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from tests.support.copied_models import copy_of

modules = pytest.importorskip("lycoris.modules")

LAYERS = (
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.1.resnets.0.conv_shortcut",
)


CONV = "lora_unet_mid_block_resnets_0_conv1"


@torch.no_grad()
def trained(model: Path, **settings: Any) -> Adapter:
    bundle = copy_of(BaseModelConfig(model=str(model), precision="fp32"))
    adapter = attach(bundle, AdapterConfig(rank=4, alpha=3.0, layers="all+conv", **settings))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return adapter


def example_input(layer: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(layer, nn.Conv2d):
        return torch.randn(2, layer.in_channels, 6, 6, generator=generator)
    return torch.randn(2, layer.in_features, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [{}, {"dora": True}, {"algorithm": "loha"}, {"algorithm": "lokr"}],
    ids=["lora-and-locon", "dora", "loha", "lokr"],
)
def test_lycoris_gives_the_outputs_of_the_live_adapter(
    shallow_sd1: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = trained(shallow_sd1, **settings)
    path = tmp_path / "a.safetensors"
    write_adapter(path, adapter.module_weights(), TrainingFacts("a", adapter.family), precision="fp32")
    tensors, ours = load_file(path), read(path)
    base = open_base(str(shallow_sd1))
    live = {layer_path: layer for part, layer_path, layer in adapter.modules() if part == "unet"}
    for layer_path in LAYERS:
        name = kohya_name("unet", layer_path, "sd1")
        plain: nn.Module = live[layer_path].get_base_layer()
        inputs = example_input(plain)
        before, expected = plain(inputs), live[layer_path](inputs)
        kind, parameters = modules.get_module(tensors, name)
        theirs = modules.make_module(kind, parameters, name, plain)
        theirs.multiplier = 1.0
        theirs.eval()
        theirs.apply_to()
        found = plain(inputs)
        theirs.restore()
        assert float((expected - before).norm()) > 1e-3 * float(before.norm()), layer_path
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=layer_path)
        update = layer_update(name, ours.modules[name], base.weight, path.name).matrix()
        shifted = plain.weight.double() + update.reshape(plain.weight.shape)
        convolve = {"stride": plain.stride, "padding": plain.padding} if isinstance(plain, nn.Conv2d) else {}
        operation = nn.functional.conv2d if convolve else nn.functional.linear
        bias = None if plain.bias is None else plain.bias.double()
        mine = operation(inputs.double(), shifted, bias, **convolve)
        torch.testing.assert_close(mine.float(), expected, rtol=1e-4, atol=1e-5, msg=layer_path)


@torch.no_grad()
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("locon", "LoConModule"), ("loha", "LohaModule"), ("lokr", "LokrModule")])
def test_what_lycoris_writes_is_read_as_the_update_it_makes(tmp_path: Path, kind: str, name: str, tucker: bool) -> None:
    layer = nn.Conv2d(8, 12, 3, padding=1, bias=False)
    module_class = getattr(import_module(f"lycoris.modules.{kind}"), name)
    theirs = module_class(CONV, layer, 1.0, lora_dim=2, alpha=3.0, use_tucker=tucker)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    state = {f"{CONV}.{key}": value.contiguous() for key, value in theirs.custom_state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    file = read(tmp_path / "a.safetensors")
    assert file.unused == ()
    (weights,) = file.modules.values()
    inputs = example_input(layer)
    before = layer(inputs)
    theirs.multiplier = 1.0
    theirs.eval()
    theirs.apply_to()
    expected = layer(inputs) - before
    theirs.restore()
    found = nn.functional.conv2d(inputs, weights.delta(torch.float32).reshape(layer.weight.shape), padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
