"""`sdlora estimate`: memory by part, and the cheapest settings with which a run fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sdlora.config import files
from sdlora.errors import ConfigError
from sdlora.training.preflight.fitting import MemoryNeeds, parse_memory


@pytest.mark.parametrize(
    ("text", "gib"), [("8", 8.0), ("8GB", 8.0), ("7.5 GiB", 7.5), ("8G", 8.0), ("8192MB", 8.0), ("512 MiB", 0.5)]
)
def test_memory_is_written_in_many_ways(text: str, gib: float) -> None:
    assert parse_memory(text) == gib


@pytest.mark.parametrize("text", ["", "lots", "0", "-4GB", "nan", "8 cats", "1e9"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no amount of memory"):
        parse_memory(text)


def needs(*settings: str) -> MemoryNeeds:
    base = ["images.resolution=512", "optimization.precision=fp32", "adapter.rank=16", "optimization.optimizer=adamw"]
    return MemoryNeeds.of(files.load(overrides=[*base, *settings]), "cuda", "sd1")


def test_the_cheapest_settings_that_fit_are_named_and_really_fit() -> None:
    run = needs("optimization.batch_size=4")
    everything = run.memory().total_gib
    enough = run.fit(everything + 0.1)
    assert enough is not None
    assert enough.switches == ()
    before = 0
    for limit in (0.97, 0.7, 0.5, 0.35):
        found = run.fit(limit * everything)
        assert found is not None, limit
        assert found.memory.total_gib <= limit * everything
        assert run.memory(tuple(found.settings)) == found.memory
        cost = sum(switch.weight for switch in found.switches)
        assert cost >= before
        before = cost
    assert run.fit(0.5) is None


def test_switches_that_a_run_has_already_are_not_proposed() -> None:
    run = needs("optimization.optimizer=adamw8bit", "optimization.gradient_checkpointing=true")
    found = run.fit(0.7 * run.memory().total_gib)
    assert found is not None
    names = {setting.partition("=")[0] for setting in found.settings}
    assert names <= {"optimization.precision", "base_model.quantization"}


def test_the_command_says_so_and_ends_with_1_where_nothing_helps(cli: Callable[..., Any]) -> None:
    said = cli("estimate", "--preset", "sdxl_style.yaml", "--family", "sdxl", "--memory", "8GB", "--json")
    told = json.loads(said.output)
    assert (told["width_px"], told["batch_size"], told["limit_gib"]) == (1024, 4, 8.0)
    assert told["fits_with"]
    assert sum(told["gib"].values()) == pytest.approx(told["total_gib"], abs=0.01)
    assert cli("estimate", "--preset", "sdxl_style.yaml", "--family", "sdxl", "--memory", "1GB").code == 1


def test_the_device_is_that_of_the_settings_and_a_base_that_is_not_here_can_be_counted(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdlora.training.preflight.speed.calculates_in_bf16", lambda: True)

    def total(*options: str) -> float:
        settings = ("--set", "base_model.model=builtin:emoji", "--set", "optimization.speed=fast", "--json")
        return float(json.loads(cli("estimate", *settings, *options).output)["total_gib"])

    on_card = ("--set", "optimization.device=cuda:1")
    assert total(*on_card) == total("--device", "cuda") != total("--device", "cpu") == total()
    missing = cli("estimate", "--set", "base_model.model=nothere.safetensors")
    assert "Or count one of its kind: --family sd1, sd2 or sdxl" in missing.errors
