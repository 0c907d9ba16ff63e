"""Live adapters on real tiny models: nothing changes at first, gradients reach every layer, masters stay fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.writing import write_adapter
from sdlora.adapters.live.attach import Adapter, attach
from sdlora.adapters.live.starting_point import check_fit
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig, Precision, Quantization
from sdlora.errors import AdapterError, ConfigError
from sdlora.models.bundle import Bundle
from tests.support.copied_models import copy_of

ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "lora"},
    {"algorithm": "lora", "rslora": True},
    {"algorithm": "lora", "dora": True},
    {"algorithm": "loha"},
    {"algorithm": "lokr", "lokr_factor": 4},
    {"algorithm": "loha", "dora": True},
    {"algorithm": "lokr", "lokr_factor": 4, "dora": True},
]
IDS = ["lora", "rslora", "dora", "loha", "lokr", "loha-dora", "lokr-dora"]


@pytest.fixture(scope="module")
def fresh(shallow_sd1: Path) -> Callable[..., Bundle]:
    """Gives a bundle of its own each time."""

    def copy(precision: Precision = "fp32", quantization: Quantization = "none") -> Bundle:
        return copy_of(BaseModelConfig(model=str(shallow_sd1), precision=precision, quantization=quantization))

    return copy


def config(**settings: Any) -> AdapterConfig:
    return AdapterConfig(**{"rank": 4, "layers": "all+conv", "text_encoder": True, **settings})


def inputs(bundle: Bundle) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents_BCHW = torch.randn(1, 4, 16, 16, generator=generator)  # smaller, the middle's attention has one position
    states_BTD = torch.randn(1, 77, bundle.unet.config.cross_attention_dim, generator=generator)
    return latents_BCHW, states_BTD


def predict(bundle: Bundle, dtype: torch.dtype = torch.float32) -> Tensor:
    latents_BCHW, states_BTD = inputs(bundle)
    predicted_BCHW: Tensor = bundle.unet(latents_BCHW.to(dtype), 500, states_BTD.to(dtype)).sample
    return predicted_BCHW


def encode(bundle: Bundle) -> Tensor:
    states_BTD: Tensor = bundle.text_encoders[0](torch.arange(77)[None]).last_hidden_state
    return states_BTD


@torch.no_grad()
def shake(adapter: Adapter, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


@pytest.mark.parametrize(
    ("algorithm", "precision", "autocast"),
    [
        *((name, "fp32", False) for name in IDS),
        *((name, "bf16", False) for name in ("lora", "dora", "lokr")),
        *((name, "bf16", True) for name in ("lora", "dora", "loha-dora", "lokr-dora")),
    ],
)
def test_a_new_adapter_changes_no_output_bit_and_every_layer_of_it_learns(
    fresh: Callable[..., Bundle], algorithm: str, precision: Precision, autocast: bool
) -> None:
    bundle = fresh(precision)
    settings = ALGORITHMS[IDS.index(algorithm)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            before, text_before = predict(bundle, bundle.dtype), encode(bundle)
        adapter = attach(bundle, config(**settings))
        predicted, text = predict(bundle, bundle.dtype), encode(bundle)
    assert torch.equal(predicted, before)
    assert torch.equal(text, text_before)
    (predicted.float().square().mean() + text.float().square().mean()).backward()
    assert adapter.dead_modules() == []
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters)
    others = {id(p): p for model in adapter.models.values() for p in model.parameters()}
    for parameter in adapter.parameters:
        del others[id(parameter)]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in others.values())
    assert adapter.total_parameters == adapter.trainable_parameters + sum(p.numel() for p in others.values())


@pytest.mark.parametrize("settings", [ALGORITHMS[0], ALGORITHMS[2]], ids=["lora", "dora"])
def test_bf16_gradients_are_those_of_fp32_to_bf16_precision(
    fresh: Callable[..., Bundle], settings: dict[str, Any]
) -> None:
    gradients = []
    for precision in ("fp32", "bf16"):
        bundle = fresh(precision)
        adapter = attach(bundle, config(text_encoder=False, **settings))
        shake(adapter, 0.01)
        predict(bundle, bundle.dtype).float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.parameters if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.1


@pytest.mark.parametrize("settings", ALGORITHMS[1:], ids=IDS[1:])
def test_what_is_written_is_what_the_forward_pass_adds(fresh: Callable[..., Bundle], settings: dict[str, Any]) -> None:
    bundle, merged = fresh(), fresh()
    adapter = attach(bundle, config(**settings))
    shake(adapter)
    with torch.no_grad():
        for (part, path), weights in adapter.module_weights().items():
            model = merged.unet if part == "unet" else merged.text_encoders[0]
            weight: Any = model.get_submodule(path).weight
            weight += weights.delta_on(weight).reshape(weight.shape).to(weight.dtype)
            if not settings.get("dora"):
                delta = weights.delta().to(weight.dtype).reshape(weight.shape)
                torch.testing.assert_close(adapter.delta_weight(part, path).reshape(weight.shape), delta)
        torch.testing.assert_close(predict(bundle), predict(merged), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(encode(bundle), encode(merged), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("quantization", "settings"),
    [("int8", ALGORITHMS[0]), ("nf4-double", ALGORITHMS[0]), *(("nf4", settings) for settings in ALGORITHMS[2:])],
    ids=["int8", "nf4-double", *IDS[2:]],
)
def test_quantised_bases_take_every_algorithm(
    fresh: Callable[..., Bundle], settings: dict[str, Any], quantization: Quantization
) -> None:
    pytest.importorskip("bitsandbytes")
    bundle = fresh("bf16", quantization)
    with torch.no_grad():
        before = predict(bundle, bundle.dtype)
    adapter = attach(bundle, config(text_encoder=False, **settings))
    predicted = predict(bundle, bundle.dtype)
    assert torch.equal(predicted, before)
    predicted.float().square().mean().backward()
    assert adapter.dead_modules() == []
    assert type(bundle.unet.get_submodule("down_blocks.0.resnets.0.conv1.base_layer")).__name__ == "QuantizedConv2d"


def test_the_seed_decides_the_first_values(fresh: Callable[..., Bundle]) -> None:
    torch.manual_seed(99)
    states = [
        attach(fresh(), config(layers="regex:proj_in", text_encoder=False), seed=seed).state() for seed in (1, 1, 2)
    ]
    name = "unet.mid_block.attentions.0.proj_in.lora_A"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_disabled_gives_the_base_model_and_leaves_training_as_it_was(fresh: Callable[..., Bundle]) -> None:
    bundle = fresh()
    with torch.no_grad():
        before = predict(bundle)
    adapter = attach(bundle, config())
    shake(adapter)
    changed = predict(bundle)
    with torch.no_grad(), adapter.disabled():
        assert torch.equal(predict(bundle), before)
    assert not torch.equal(changed, before)
    changed.square().mean().backward()  # the graph from before `disabled` still works
    assert torch.equal(predict(bundle), changed)
    assert all(parameter.requires_grad for parameter in adapter.parameters)


def test_scale_multiplies_the_update_but_not_the_file(fresh: Callable[..., Bundle]) -> None:
    adapter = attach(fresh(), config(rslora=True))
    shake(adapter)
    path = "mid_block.attentions.0.proj_in"
    delta, stored = adapter.delta_weight("unet", path), adapter.module_weights()["unet", path].delta()
    adapter.set_scale(0.5)
    torch.testing.assert_close(adapter.delta_weight("unet", path), 0.5 * delta)
    assert torch.equal(adapter.module_weights()["unet", path].delta(), stored)


def test_state_goes_out_and_in_and_foreign_state_is_refused(fresh: Callable[..., Bundle]) -> None:
    adapter = attach(fresh(), config())
    start = adapter.state()
    shake(adapter)
    moved = adapter.state()
    adapter.load_state(start)
    assert all(torch.equal(value, start[name]) for name, value in adapter.state().items())
    adapter.load_state(moved)
    assert not torch.equal(adapter.parameters[1], start[adapter.weights()[1].name])
    with pytest.raises(AdapterError, match=r"1 of 350 tensors differ in name or shape, the first is unet\.up_blocks"):
        adapter.load_state({name: value for name, value in start.items() if name != max(start)})


def test_dropout_acts_in_training_only(fresh: Callable[..., Bundle]) -> None:
    bundle = fresh()
    adapter = attach(bundle, config(dropout=0.5))
    shake(adapter)
    with torch.no_grad():
        assert not torch.equal(predict(bundle), predict(bundle))
        adapter.train(False)
        assert torch.equal(predict(bundle), predict(bundle))


def test_weights_tell_their_block_and_which_is_lora_plus_b(fresh: Callable[..., Bundle]) -> None:
    weights = attach(fresh(), config()).weights()
    assert {weight.block for weight in weights if weight.part == "unet"} == {
        *(f"down_blocks.{i}" for i in range(4)),
        "mid_block",
        *(f"up_blocks.{i}" for i in range(4)),
    }
    assert sum(weight.is_B for weight in weights) == len(weights) // 2
    assert all(weight.is_B == bool((weight.parameter == 0).all()) for weight in weights)


def test_dead_layers_and_broken_values_are_found(fresh: Callable[..., Bundle]) -> None:
    bundle = fresh()
    adapter = attach(bundle, config())
    predict(bundle).square().mean().backward()
    assert len(adapter.dead_modules()) == 18  # the text encoder took no part
    assert adapter.dead_modules()[0].startswith("text_encoder.")
    assert not adapter.has_nonfinite()
    with torch.no_grad():
        adapter.parameters[5].view(-1)[0] = float("inf")
    assert adapter.has_nonfinite()


def test_a_second_adapter_in_the_same_model_is_refused(fresh: Callable[..., Bundle]) -> None:
    bundle = fresh()
    attach(bundle, config())
    with pytest.raises(AdapterError, match="already has adapter layers"):
        attach(bundle, config())


# Going on from a file


@pytest.fixture(scope="module")
def saved(
    fresh: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Adapter]]:
    """An exported adapter with uneven ranks, and the adapter itself."""

    def make(file_format: Any = "kohya", **settings: Any) -> tuple[Path, Adapter]:
        adapter = attach(fresh(), config(block_ranks={"mid_block": 6}, conv_rank=2, **settings))
        shake(adapter)
        path = tmp_path_factory.mktemp("files") / "a.safetensors"
        write_adapter(
            path,
            adapter.module_weights(),
            TrainingFacts("a", adapter.family),
            file_format=file_format,
            precision="fp32",
        )
        return path, adapter

    return make


@pytest.mark.parametrize(
    ("settings", "file_format"),
    [*((settings, "kohya") for settings in ALGORITHMS[1:]), (ALGORITHMS[2], "diffusers")],
    ids=[*IDS[1:], "dora-diffusers"],
)
def test_starting_from_a_file_gives_its_updates_ranks_and_algorithm(
    fresh: Callable[..., Bundle], saved: Callable[..., Any], settings: dict[str, Any], file_format: str
) -> None:
    path, before = saved(file_format, **settings)
    after = attach(fresh(), config(start_from=str(path), rank=64))
    assert after.algorithm == before.algorithm
    assert [(part, name) for part, name, _ in after.modules()] == [(part, name) for part, name, _ in before.modules()]
    for part, name, _ in before.modules():
        torch.testing.assert_close(
            after.delta_weight(part, name), before.delta_weight(part, name), rtol=1e-4, atol=1e-6
        )
    if after.algorithm == "lora":
        ranks = {target.path: target.rank for target in before.targets}
        assert {target.path: target.rank for target in after.targets} == ranks
        assert len(set(ranks.values())) == 3
    if settings.get("dora"):
        name = "unet.mid_block.resnets.0.conv1.magnitude"
        assert torch.equal(after.state()[name], before.state()[name])


def test_starting_from_a_file_of_another_family_is_refused(saved: Callable[..., Any], tmp_path: Path) -> None:
    _, adapter = saved()
    write_adapter(tmp_path / "a.safetensors", adapter.module_weights(), TrainingFacts("a", "sd1"))
    file = replace(read(tmp_path / "a.safetensors"), family="sd2")
    with pytest.raises(AdapterError, match=r"a\.safetensors was trained on sd2, this base model is sd1"):
        check_fit(file, config(), "sd1")


def test_text_encoder_setting_must_agree_with_the_file(fresh: Callable[..., Bundle], saved: Callable[..., Any]) -> None:
    path, _ = saved()
    with pytest.raises(ConfigError, match=r"holds text-encoder layers; set adapter\.text_encoder: true"):
        attach(fresh(), config(start_from=str(path), text_encoder=False))
    path, _ = saved(text_encoder=False)
    with pytest.raises(ConfigError, match=r"holds no text-encoder layers; set adapter\.text_encoder: false"):
        attach(fresh(), config(start_from=str(path)))


def test_layers_of_other_sizes_are_refused(
    fresh: Callable[..., Bundle], saved: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = saved()
    bundle = fresh()
    bundle.unet.mid_block.attentions[0].proj_in = nn.Conv2d(8, 8, 1)
    with pytest.raises(AdapterError, match=r"doesn't fit .*: mid_block\.attentions\.0\.proj_in changes 64 x "):
        attach(bundle, config(start_from=str(path)))


def test_reading_back_gives_the_live_factors(saved: Callable[..., Any]) -> None:
    path, adapter = saved()
    file = read(path)
    assert len(file.modules) == len(adapter.targets)
    assert file.metadata["ss_network_args"] == '{"conv_dim": "2", "conv_alpha": "2.0"}'
