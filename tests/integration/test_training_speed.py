"""optimization.speed: faster layers beneath an adapter change how fast it is trained, and nothing of what is."""

from __future__ import annotations

import copy
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdlora.adapters.live.attach import Adapter, attach
from sdlora.config import files
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.optimization import Speed
from sdlora.config.train import TrainConfig
from sdlora.events import EventStream, StepFinished, Validated, parse_event
from sdlora.models.bundle import Bundle
from sdlora.models.detection import detect
from sdlora.models.frozen.attention import PlainAttention
from sdlora.models.frozen.engine import calculates_in_bf16, speed_up, without_gradients
from sdlora.models.frozen.packed import PackedLayer, packed
from sdlora.models.layout import unet_layout
from sdlora.models.loading import load
from sdlora.models.quantize import parameter_count
from sdlora.training.loop.prepare import prepare
from sdlora.training.loop.run import resume, train
from sdlora.training.loop.trainer import Trainer
from sdlora.training.outputs.validation import Validation
from sdlora.training.preflight import speed as speeds
from sdlora.training.preflight.checks import check
from sdlora.training.preflight.memory import MemoryPlan
from sdlora.training.preflight.summary import summarise
from sdlora.training.workers import Workers
from tests.integration.test_resume import CutAtCheckpoint

KINDS = {
    "attention": {"layers": "attention"},
    "convolutions and feed-forward": {"layers": "all+conv"},
    "dora": {"layers": "all+conv", "dora": True},
    "loha": {"layers": "all+conv", "algorithm": "loha"},
    "lokr": {"layers": "all+conv", "algorithm": "lokr"},
}
FASTER: tuple[Speed, ...] = ("fast", "lean")
INPUTS = 6
needs_bf16 = pytest.mark.skipif(
    not calculates_in_bf16(), reason="this processor doesn't calculate in bf16 (no AVX-512)"
)


@pytest.fixture(autouse=True)
def _pack_small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' linear layers, too, which are too small to gain by it."""
    monkeypatch.setattr("sdlora.models.frozen.engine._LEAST_LINEAR", 2**11)


@needs_bf16
@pytest.mark.parametrize(("stride", "size"), [(1, 8), (1, 5), (2, 16), (2, 15)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_packed_convolution_is_torchs_to_the_last_bit_but_for_gradients_of_strides(
    stride: int, size: int, batch: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 48, 3, stride, 1, dtype=torch.bfloat16).requires_grad_(False)
    fast = packed(layer, torch.bfloat16)
    layer.to(memory_format=torch.channels_last)
    inputs = torch.randn(batch, 32, size, size, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    (expected, to_expected), (found, to_found) = (_with_gradient(one, inputs) for one in (layer, fast))
    assert torch.equal(found, expected)
    if stride == 1:
        assert torch.equal(to_found, to_expected)
    else:  # with AMX oneDNN sums in another order here
        torch.testing.assert_close(to_found, to_expected)
    assert torch.equal(fast.weight, layer.weight)


@needs_bf16
def test_a_packed_1x1_convolution_is_torchs_but_for_the_order_of_sums() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 48, 1, dtype=torch.bfloat16).requires_grad_(False)
    fast = packed(layer, torch.bfloat16)
    for size in (4, 9):
        inputs = torch.randn(2, 32, size, size, dtype=torch.bfloat16)
        torch.testing.assert_close(_with_gradient(fast, inputs), _with_gradient(layer, inputs))
    assert torch.equal(fast.weight, layer.weight)


@needs_bf16
def test_a_packed_linear_layer_is_torchs_to_the_last_bit() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 96, dtype=torch.bfloat16).requires_grad_(False)
    fast = packed(layer, torch.bfloat16)
    inputs = torch.randn(2, 20, 64, dtype=torch.bfloat16)
    (expected, to_expected), (found, to_found) = (_with_gradient(one, inputs) for one in (layer, fast))
    assert torch.equal(found, expected)
    assert torch.equal(to_found, to_expected)
    assert torch.equal(fast.weight, layer.weight)


def _with_gradient(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    inputs = inputs.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = layer(inputs)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs.dtype)
    weights = weights.contiguous(memory_format=torch.channels_last) if outputs.ndim == 4 else weights
    return outputs.detach(), torch.autograd.grad(outputs, inputs, weights)[0]


def started(model: Path, kind: str, dtype: torch.dtype) -> tuple[Bundle, Adapter]:
    """A model with an adapter that has learned something: with B at 0, A would get no gradient."""
    bundle = load(BaseModelConfig(model=str(model)), dtype=dtype)
    adapter = attach(bundle, AdapterConfig(rank=4, **KINDS[kind]))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in adapter.weights():
            noise = torch.randn(weight.parameter.shape, generator=generator)
            weight.parameter.add_(0.02 * noise)
    return bundle, adapter


def gradients(bundle: Bundle, adapter: Adapter, speed: Speed) -> list[Tensor]:
    """Of every trained tensor, the gradients for several inputs."""
    if speed != "plain":
        adapter.leave_casts_to_autocast()
        speed_up(bundle.unet, speed, kept=adapter.base_layers() if adapter.reads_base_weights else ())
        adapter.fuse()
    found: list[list[Tensor]] = []
    for seed in range(INPUTS):
        generator = torch.Generator().manual_seed(seed)
        noisy_BCHW, wanted_BCHW = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
        states_BTD = torch.randn(2, 77, bundle.unet.config.cross_attention_dim, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bundle.dtype == torch.bfloat16):
            predicted_BCHW = bundle.unet(
                noisy_BCHW.to(bundle.dtype), torch.tensor([20, 700]), states_BTD.to(bundle.dtype), return_dict=False
            )[0]
        loss = (predicted_BCHW.float() - wanted_BCHW).square().mean()
        found.append(list(torch.autograd.grad(loss, adapter.parameters)))
    return [torch.stack(each) for each in zip(*found, strict=True)]


def errors(found: list[Tensor], expected: list[Tensor]) -> tuple[float, float]:
    """Relative error of all gradients together, and the median of each tensor's own."""
    differences = [one - other for one, other in zip(found, expected, strict=True)]
    each = sorted(float(one.norm() / other.norm()) for one, other in zip(differences, expected, strict=True))
    together = [torch.cat([one.flatten() for one in tensors]).norm() for tensors in (differences, expected)]
    return float(together[0] / together[1]), each[len(each) // 2]


@needs_bf16
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_as_close_to_fp32_as_those_of_plain_layers(tiny_sd1: Path, kind: str) -> None:
    """Over several inputs: bf16 rounds each one otherwise, and one alone is a tenth better or worse by chance."""
    expected = gradients(*started(tiny_sd1, kind, torch.float32), "plain")
    plain = errors(gradients(*started(tiny_sd1, kind, torch.bfloat16), "plain"), expected)
    for speed in FASTER:
        faster = errors(gradients(*started(tiny_sd1, kind, torch.bfloat16), speed), expected)
        print(f"{kind}, {speed}: {faster[0]:.4f} and {faster[1]:.4f}, plain {plain[0]:.4f} and {plain[1]:.4f}")
        assert faster[0] <= 1.1 * plain[0]
        assert faster[1] <= 1.1 * plain[1]


@needs_bf16
def test_packing_leaves_the_adapter_and_the_counts_as_they_are(tiny_sd1: Path) -> None:
    bundle, adapter = started(tiny_sd1, "convolutions and feed-forward", torch.bfloat16)
    names, total = list(adapter.state()), parameter_count(bundle.unet)
    weights = {name: copy.deepcopy(layer.weight) for name, layer in bundle.unet.named_modules() if _is_base(layer)}
    speed_up(bundle.unet, "fast")
    assert list(adapter.state()) == names
    assert parameter_count(bundle.unet) == total
    assert any(isinstance(layer, PackedLayer) for layer in adapter.base_layers())
    for name, weight in weights.items():
        assert torch.equal(bundle.unet.get_submodule(name).weight, weight)


def _is_base(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.requires_grad


@needs_bf16
@pytest.mark.parametrize("kind", ["dora", "loha", "lokr"])
def test_layers_whose_weight_an_adapter_reads_stay_plain(tiny_sd1: Path, kind: str) -> None:
    bundle, adapter = started(tiny_sd1, kind, torch.bfloat16)
    speed_up(bundle.unet, "fast", kept=adapter.base_layers())
    assert not any(isinstance(layer, PackedLayer) for layer in adapter.base_layers())


@pytest.mark.parametrize("speed", ["plain", *FASTER])
def test_a_resumed_run_repeats_the_uninterrupted_one_at_every_speed(
    speed: Speed, tiny_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    cut = CutAtCheckpoint(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    whole = train(_config(speed, tiny_sd1, tiny_images, tmp_path / "whole", steps=4), [cut])
    parts = resume(tmp_path / "parts" / "run")
    assert _sha256(parts.adapter) == _sha256(whole.adapter)


def _sha256(adapter: Path) -> str:
    """Of the weights alone: the metadata tells of two parts."""
    weights = load_file(adapter)
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


def _config(speed: str, model: Path | str, images: Path | str, folder: Path, *more: str, steps: int) -> TrainConfig:
    settings = [
        "name=run", f"base_model.model={model}", f"images.folder={images}", "images.resolution=64", "adapter.rank=4",
        "adapter.layers=all+conv", f"optimization.steps={steps}", "optimization.precision=bf16",
        "optimization.learning_rate=1e-3", f"optimization.speed={speed}", "optimization.device=cpu",
        "outputs.precision=fp32", "outputs.checkpoint_every=2", f"outputs.folder={folder}",
    ]  # fmt: skip
    return files.load(overrides=[*settings, *more])


def test_losses_are_those_of_the_plain_run_within_noise(tmp_path: Path) -> None:
    """The noise is that of bf16 itself: how far plain bf16 is from plain fp32."""
    places, less = ("builtin:emoji", "builtin:blueprint"), ("adapter.layers=attention", "outputs.self_test=false")
    runs = {
        name: train(_config(speed, *places, tmp_path / name, precision, *less, steps=15)).folder
        for name, speed, precision in (
            ("fp32", "plain", "optimization.precision=fp32"),
            *((speed, speed, "optimization.precision=bf16") for speed in ("plain", *FASTER)),
        )
    }
    curves = {name: _losses(folder) for name, folder in runs.items()}
    noise = _distance(curves["plain"], curves["fp32"])
    for speed in FASTER:
        found = _distance(curves[speed], curves["fp32"])
        print(f"{speed}: {found:.5f} from fp32, plain bf16 {noise:.5f}")
        assert found <= 1.5 * noise + 1e-4


def _losses(folder: Path) -> list[float]:
    events = map(parse_event, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [event.loss for event in events if isinstance(event, StepFinished)]


def _distance(one: list[float], other: list[float]) -> float:
    """Mean distance of the losses, relative to the mean loss."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / sum(other)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimization.speed=fast", r"^fast: .*0.0 GiB more .*=fast: taken as asked, but so narrow a UNet gains"),
        ("optimization.speed=lean", r"^lean: "),
        ("optimization.speed=plain", r"^plain: torch's own layers$"),
        ("optimization.speed=auto", r"^plain: .*optimization.speed=auto: so narrow a UNet gains nothing"),
        ("optimization.precision=fp32", r"^plain: .*for bf16 only, and optimization.precision is fp32"),
        ("optimization.device=cuda", r"^plain: .*only a processor gains from it, and this run trains on cuda"),
        ("base_model.quantization=int8", r"^plain: .*base_model.quantization=int8 has its own layers"),
    ],
)
def test_the_dry_run_says_which_speed_and_why(
    setting: str, words: str, tiny_sd1: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # a dry run refuses a card that isn't there
    monkeypatch.setattr(speeds, "calculates_in_bf16", lambda: True)
    wanted = "auto" if "speed" in setting else "fast"
    config = _config(wanted, tiny_sd1, tiny_images, tmp_path, setting, steps=1)
    said = dict(summarise(config).lines())["speed"]
    assert re.search(words, said), said


def test_auto_is_fast_where_the_unet_is_wide_and_memory_allows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = _config("auto", "builtin:emoji", "builtin:blueprint", tmp_path, steps=1)
    unet = unet_layout(config.base_model, detect(config.base_model))
    monkeypatch.setattr("sdlora.models.frozen.engine._WIDE", 1)
    monkeypatch.setattr(speeds, "calculates_in_bf16", lambda: True)
    plan = MemoryPlan.of(config, check(config), unet, 1000)
    assert speeds.choose_speed(config.optimization, config.base_model, unet, plan).speed == "fast"
    monkeypatch.setattr(speeds, "_MOST_MEMORY", 0)
    chosen = speeds.choose_speed(config.optimization, config.base_model, unet, plan)
    assert chosen.speed == "lean"
    assert "fast takes about" in chosen.text
    monkeypatch.setattr(speeds, "calculates_in_bf16", lambda: False)
    chosen = speeds.choose_speed(config.optimization, config.base_model, unet, plan)
    assert (chosen.speed, "this processor" in chosen.text) == ("plain", True)


def test_the_base_is_measured_once_before_the_first_step(
    tiny_sd1: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new adapter changes nothing yet, so its loss is the base's."""
    calls: list[Validation] = []
    measure = Validation.loss
    monkeypatch.setattr(Validation, "loss", lambda self: calls.append(self) or measure(self))
    result = train(
        _config("plain", tiny_sd1, tiny_images, tmp_path, "validation.fraction=0.2", "outputs.self_test=false", steps=1)
    )
    events = map(parse_event, (result.folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    first, last = [event for event in events if isinstance(event, Validated)]
    assert len(calls) == 2
    assert (first.relative_loss, first.step, last.step) == (1.0, 0, 1)
    assert last.relative_loss != 1.0


def test_previews_leave_the_attention_of_the_steps_as_it_was(tiny_sd1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdlora.models.frozen.engine.calculates_in_bf16", lambda: True)
    unet = load(BaseModelConfig(model=str(tiny_sd1)), dtype=torch.bfloat16).unet
    before = unet.attn_processors
    with without_gradients(unet, torch.device("cpu")):
        assert all(isinstance(processor, PlainAttention) for processor in unet.attn_processors.values())
    assert unet.attn_processors == before
    assert len(before) > 0


@needs_bf16
@pytest.mark.parametrize("speed", FASTER)
def test_recomputed_activations_give_the_gradients_they_gave(tiny_sd1: Path, speed: Speed) -> None:
    found = []
    for recompute in (False, True):
        bundle, adapter = started(tiny_sd1, "attention", torch.bfloat16)
        if recompute:
            bundle.unet.enable_gradient_checkpointing()
            bundle.unet.train()
        found.append(gradients(bundle, adapter, speed))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_bf16
@pytest.mark.parametrize("speed", FASTER)
def test_a_base_in_fp32_is_calculated_in_bf16_as_autocast_has_it(tiny_sd1: Path, speed: Speed) -> None:
    bundle, adapter = started(tiny_sd1, "convolutions and feed-forward", torch.float32)
    speed_up(bundle.unet, speed)
    adapter.fuse()
    found = dict.fromkeys(layer.__class__.__name__ for _, _, layer in adapter.modules())
    assert ("FusedLinear" in found) == (speed == "fast")  # there the layers beneath are in bf16
    types = set[torch.dtype]()
    for layer in adapter.base_layers():
        layer.register_forward_hook(lambda _, __, output: types.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        bundle.unet(torch.randn(1, 4, 16, 16), 500, torch.randn(1, 77, bundle.unet.config.cross_attention_dim))
    assert types <= {torch.bfloat16}


class _Counted(TorchDispatchMode):
    """Counts the operations that calculate or copy; views cost nothing on any device."""

    VIEWS = ("t", "view", "detach", "slice", "transpose", "_unsafe_view", "expand", "permute", "unsqueeze", "split")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        self.counts[name] += name not in self.VIEWS
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("speed", "settings", "most", "most_casts"),
    [
        ("plain", [], 3470, 570),
        pytest.param("fast", [], 3230, 535, marks=needs_bf16),
        ("plain", ["adapter.layers=all+conv", "adapter.text_encoder=true"], 7260, 1540),
        pytest.param("fast", ["adapter.layers=all+conv", "adapter.text_encoder=true"], 6000, 1500, marks=needs_bf16),
    ],
)
def test_a_step_launches_no_more_operations_than_it_did(
    speed: str, settings: list[str], most: int, most_casts: int, tiny_sd1: Path, tiny_images: Path, tmp_path: Path
) -> None:
    """On a fast card a step of one image takes as long as its launches: a new copy in every layer shows here first."""
    layers = [] if settings else ["adapter.layers=attention"]
    config = _config(speed, tiny_sd1, tiny_images, tmp_path, *settings, *layers, steps=9)
    events, workers = EventStream([]), Workers("cpu")
    made = prepare(config, check(config), events, workers)
    trainer = Trainer(config, 9, made.adapter, made.batches, made.loss_function, events, workers)
    trainer._step()
    with _Counted() as counted:
        trainer._step()
    total, casts = counted.counts.total(), counted.counts["_to_copy"]
    print(f"{speed} {settings}: {total} operations, {casts} casts; most {counted.counts.most_common(5)}")
    assert total <= most
    assert casts <= most_casts
