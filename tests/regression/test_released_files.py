"""What version 0.1 wrote opens: a stopped run goes on, runs are listed, adapters, mixes and images are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

import sdlora
from tests.support.released import Released, open_studio


@pytest.fixture
def released(tmp_path: Path) -> Released:
    """A copy of the studio of 0.1."""
    return open_studio("0.1", tmp_path / "studio")


@pytest.fixture
def from_json(cli: Any) -> Any:
    """Runs a command that prints JSON, and gives what it printed."""

    def call(*arguments: object) -> Any:
        result = cli(*arguments, "--json")
        assert result.code == 0, result.errors
        return json.loads(result.output)

    return call


def losses(run: Path) -> dict[int, float]:
    """The loss of each step a run has taken."""
    events = map(json.loads, (run / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return {event["step"]: event["loss"] for event in events if event["kind"] == "step_finished"}


def test_its_runs_are_listed_as_they_stand(released: Released, from_json: Any) -> None:
    found = {Path(run["folder"]).name: run for run in from_json("runs", released.runs)}
    assert set(found) == {"ink", "stopped"}
    assert (found["ink"]["status"], found["ink"]["step"], found["ink"]["total_steps"]) == ("finished", 6, 6)
    assert (found["stopped"]["status"], found["stopped"]["step"]) == ("stopped", 3)


def test_a_stopped_run_goes_on_as_the_old_version_would_have(released: Released) -> None:
    before = losses(released.runs / "stopped")
    result = sdlora.resume(released.runs / "stopped")
    assert result.step == 6
    after = losses(released.runs / "stopped")
    assert list(before) == [1, 2, 3]
    assert [after[step] for step in range(1, 7)] == pytest.approx(released.losses, rel=1e-4)
    assert (released.runs / "stopped" / "previews" / "step_000006" / "01.png").is_file()
    whole = sdlora.read_adapter(released.runs / "ink" / "ink.safetensors")
    resumed = sdlora.read_adapter(result.adapter)
    assert set(resumed.modules) == set(whole.modules)


def test_its_settings_are_those_of_a_new_run(released: Released, from_json: Any) -> None:
    plan = from_json("train", "--preset", released.runs / "stopped" / "config.yaml", "--dry-run")
    assert plan["problems"] == []
    assert plan["figures"]["total_steps"] == 6
    config = sdlora.load_config(released.runs / "ink" / "config.yaml")
    assert config.adapter.layers == "regex:mid_block.*(attn2.to_q|attn2.to_v|resnets.0.conv1)"
    assert (config.outputs.format, config.captions.trigger, config.optimization.ema) == ("diffusers", "zwx", 0.9)


@pytest.mark.parametrize(
    "file",
    [
        "runs/ink/ink.safetensors",
        "runs/ink/checkpoints/step_000004/ink-step_000004.safetensors",
        "runs/stopped/checkpoints/step_000003/stopped-step_000003.safetensors",
        "adapters/wash.safetensors",
    ],
)
def test_its_adapters_are_inspected(released: Released, from_json: Any, file: str) -> None:
    told = from_json("inspect", released.root / file)["files"][0]
    assert told["family"] == "sd1"
    assert told["num_modules"] == 15
    assert told["trigger"] == "zwx"


def test_both_layouts_are_converted_into_each_other(released: Released, cli: Any, tmp_path: Path) -> None:
    in_kohya, in_diffusers = released.root / "adapters/wash.safetensors", released.runs / "ink/ink.safetensors"
    for layout, source in (("diffusers", in_kohya), ("kohya", in_diffusers)):
        result = cli("convert", source, "--to", layout, "--out", tmp_path / f"{layout}.safetensors")
        assert result.code == 0, result.errors
        assert sdlora.read_adapter(tmp_path / f"{layout}.safetensors").modules.keys() == (
            sdlora.read_adapter(source).modules.keys()
        )


def test_its_mix_file_makes_an_adapter(released: Released, cli: Any, tmp_path: Path) -> None:
    mix = released.root / "mixes" / "both.yaml"
    result = cli("mix", "--config", mix, "--out", tmp_path / "both.safetensors")
    assert result.code == 0, result.errors
    assert "exact" in result.output
    assert len(sdlora.read_adapter(tmp_path / "both.safetensors").modules) == 15


def test_its_images_are_generated_again(released: Released, cli: Any, tmp_path: Path) -> None:
    (before,) = released.root.glob("outputs/fp32/*.png")
    folders = ["--adapter-folder", released.root / "adapters", "--adapter-folder", released.runs / "ink"]
    result = cli("generate", "--from", before, "--out", tmp_path / "out", *folders)
    assert result.code == 0, result.errors
    (after,) = (tmp_path / "out").rglob("*.png")
    with Image.open(before) as old, Image.open(after) as new:
        difference = numpy.abs(numpy.asarray(old.convert("RGB"), int) - numpy.asarray(new.convert("RGB"), int))
    assert difference.mean() < 0.1


def test_the_checkpoints_of_a_finished_run_are_swept(released: Released, cli: Any, tmp_path: Path) -> None:
    sweep = ["--grid", "checkpoint=all", "--steps", 1, "--out", tmp_path / "out"]
    result = cli("generate", "--run", released.runs / "ink", "--prompt", "a zwx cat", *sweep)
    assert result.code == 0, result.errors
    assert len(list((tmp_path / "out").rglob("x*.png"))) == 4  # three checkpoints and the end
