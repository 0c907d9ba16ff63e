"""What each option of the adapter and its training does, against the same run without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdlora.config import files
from sdlora.config.adapter import AdapterConfig
from sdlora.config.optimization import OptimizationConfig
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.events import Event, StepFinished
from sdlora.training.loop.run import train
from sdlora.training.optimization.schedules import part_factor


class Steps:
    """The steps of a run."""

    def __init__(self) -> None:
        self.events: list[StepFinished] = []

    def emit(self, event: Event) -> None:
        self.events += [event] if isinstance(event, StepFinished) else []

    def close(self) -> None:
        pass


@pytest.fixture
def configure(shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def with_overrides(*overrides: str) -> TrainConfig:
        settings = [
            f"base_model.model={shallow_sd1}", f"images.folder={tiny_images}", "images.resolution=64",
            "images.bucket_step=32", "adapter.rank=4", "optimization.steps=4", "optimization.precision=fp32",
            "optimization.learning_rate=1e-2", "optimization.threads=1", f"outputs.folder={tmp_path / 'runs'}",
            "outputs.self_test=false",
        ]  # fmt: skip
        return files.load(overrides=[*settings, *overrides])

    return with_overrides


def trained(config: TrainConfig) -> tuple[dict[str, torch.Tensor], list[StepFinished]]:
    steps = Steps()
    return load_file(train(config, [steps]).adapter), steps.events


def test_the_text_encoder_alone_is_trained_and_exported(configure) -> None:
    tensors, _ = trained(configure("adapter.unet=false", "adapter.text_encoder=true", "outputs.self_test=true"))
    assert tensors
    assert all(name.startswith("lora_te_") for name in tensors)
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_up" in name)


def test_a_run_without_unet_and_text_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.unet=false leaves nothing to train|unet=false leaves nothing"):
        files.load(overrides=["adapter.unet=false"])


def test_a_text_encoder_is_trained_until_its_step_and_stays_as_it_is(configure) -> None:
    common = ("adapter.text_encoder=true", "optimization.text_encoder_learning_rate=1e-2", "name=short")
    stopped, events = trained(configure(*common, "optimization.text_encoder_until=0.5"))
    short, _ = trained(configure(*common, "optimization.steps=2"))
    whole, _ = trained(configure(*common))
    text = [name for name in stopped if name.startswith("lora_te_")]
    assert all(torch.equal(stopped[name], short[name]) for name in text)
    assert not all(torch.equal(stopped[name], whole[name]) for name in text)
    assert [event.learning_rates["text_encoder"] > 0 for event in events] == [True, True, False, False]


def test_the_second_text_encoder_follows_the_first_or_its_own() -> None:
    config = OptimizationConfig(text_encoder_until=10, text_encoder_2_until=0.5)
    got = [[part_factor(part, step, 40, config) for step in (9, 10, 19, 20)] for part in
           ("unet", "text_encoder", "text_encoder_2")]  # fmt: skip
    assert got == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]
    assert part_factor("text_encoder_2", 10, 40, OptimizationConfig(text_encoder_until=10)) == 0


def norms(tensors: dict[str, torch.Tensor]) -> list[float]:
    names = [name.removesuffix(".lora_up.weight") for name in tensors if name.endswith(".lora_up.weight")]
    found = []
    for name in names:
        up, down = (tensors[f"{name}.{which}.weight"].float().flatten(1) for which in ("lora_up", "lora_down"))
        found.append(float((up @ down).norm() * tensors[f"{name}.alpha"].float() / len(down)))
    return found


def test_norms_are_held_below_their_limit_and_reported(configure) -> None:
    free, plain_events = trained(configure("outputs.precision=fp32"))
    limit = max(norms(free)) / 3
    held, events = trained(configure("outputs.precision=fp32", f"optimization.max_weight_norm={limit}"))
    assert max(norms(held)) <= limit * 1.001
    assert max(norms(held)) > limit * 0.9
    assert all(event.weight_norm is None for event in plain_events)
    assert events[-1].weight_norm is not None
    assert events[-1].weight_norm > limit * 0.9


def test_dropout_of_ranks_and_modules_changes_training_and_repeats(configure) -> None:
    common = ("adapter.layers=all+conv", "optimization.steps=2")
    plain, _ = trained(configure(*common))
    for option in ("rank_dropout=0.5", "module_dropout=0.5"):
        first, second = (trained(configure(*common, f"adapter.{option}"))[0] for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first), option
        assert any(not torch.equal(first[name], plain[name]) for name in first), option


def test_dropped_ranks_are_made_up_for_by_the_others() -> None:
    from sdlora.adapters.live.injection import _RankDropout

    torch.manual_seed(0)
    for layer, shape in ((torch.nn.Linear(2, 8), (4000, 3, 8)), (torch.nn.Conv2d(2, 8, 1), (4000, 8, 3, 3))):
        dropped = _RankDropout(0.25, 0.0)(layer, (), torch.ones(shape))
        assert dropped is not None
        assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
        assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        layer.eval()
        assert _RankDropout(0.25, 0.0)(layer, (), torch.ones(shape)) is None


@pytest.mark.parametrize(
    ("settings", "has", "lacks"),
    [
        (("adapter.algorithm=lokr", "adapter.lokr_full=true"), "lokr_w2", "lokr_w2_a"),
        (("adapter.algorithm=lokr", "adapter.lokr_decompose_both=true", "adapter.rank=1", "adapter.lokr_factor=8"),
         "lokr_w1_a", "lora_up"),
        (("adapter.algorithm=lokr", "adapter.tucker=true", "adapter.layers=all+conv", "adapter.rank=2"),
         "lokr_t2", "x"),
        (("adapter.algorithm=loha", "adapter.tucker=true", "adapter.layers=all+conv"), "hada_t1", "x"),
    ],
)  # fmt: skip
def test_forms_of_lokr_and_loha_are_trained_and_pass_their_self_test(
    configure, settings: tuple[str, ...], has: str, lacks: str
) -> None:
    tensors, events = trained(configure(*settings, "outputs.self_test=true"))
    kinds = {name.rpartition(".")[2] for name in tensors}
    assert has in kinds
    assert lacks not in kinds
    assert len(events) == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tucker": True}, "tucker goes with algorithm loha and lokr only"),
        ({"algorithm": "lokr", "tucker": True}, "tucker has no effect with layers=all"),
        ({"algorithm": "loha", "lokr_full": True}, "lokr_full goes with algorithm lokr only"),
        ({"algorithm": "loha", "rank_dropout": 0.1}, "rank_dropout and module_dropout go with algorithm lora only"),
    ],
)
def test_options_of_another_algorithm_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdapterConfig(**settings)  # type: ignore[arg-type]
