"""Grids and repeated pictures on the embedded base model, with the checkpoints of a real four-step run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.generation.generate import Generator
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid, save_grid
from sdlora.generation.restore.image_files import read_image_settings, save_image
from tests.support.emoji_adapters import random_adapter

QUICK: dict[str, Any] = {"prompt": "a cat face", "seed": 5, "steps": 2, "width_px": 64, "height_px": 64, "guidance": 3}


@pytest.fixture(scope="module")
def run(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with four checkpoints, at a learning rate that shows."""
    from sdlora.training.loop.run import train

    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "name": "grid",
        "images.folder": tiny_images,
        "images.resolution": 64,
        "adapter.rank": 2,
        "optimization.steps": 4,
        "optimization.batch_size": 1,
        "optimization.learning_rate": 0.05,
        "optimization.precision": "fp32",
        "outputs.folder": folder,
        "outputs.checkpoint_every": 1,
        "outputs.keep_checkpoints": 4,
        "outputs.self_test": "false",
    }
    train(files.load(overrides=[f"{name}={value}" for name, value in settings.items()]), [])
    return folder / "grid"


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = GenerateConfig()
    return Generator(config.base_model, config.compute)


@pytest.fixture
def cli(cli: Any) -> Callable[..., tuple[int, str]]:
    """The command line of all tests, whose answer is the exit code and everything printed."""
    shared = cli

    def call(*arguments: object) -> tuple[int, str]:
        result = shared(*arguments)
        return result.code, result.output + result.errors

    return call


def pixels(path: Path) -> numpy.ndarray:
    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB"))


def test_a_grid_of_weights_and_checkpoints_from_the_command_line(run: Path, tmp_path: Path, cli) -> None:
    code, printed = cli(
        *("generate", "--run", str(run), "--prompt", "a cat face", "--seed", "5", "--steps", "2", "--cfg", "1"),
        *("--size", "64x64", "--out", str(tmp_path)),
        *("--grid", "adapter.weight=0:1.2:0.3", "--grid", "checkpoint=1:4:1"),
    )
    assert code == 0, printed
    folder = tmp_path / "grid-0001"
    assert f"{folder / 'sheet.png'}: 20 images" in printed
    cells = sorted(path.name for path in folder.iterdir() if path.name != "sheet.png")
    assert cells == sorted(f"x{x:02d}-y{y:02d}.png" for x in range(5) for y in range(4))
    without = [pixels(folder / f"x00-y{y:02d}.png") for y in range(4)]
    assert all(numpy.array_equal(without[0], other) for other in without)
    with_all = [pixels(folder / f"x04-y{y:02d}.png") for y in range(4)]
    assert all(not numpy.array_equal(with_all[0], other) for other in with_all[1:])
    read = read_image_settings(folder / "x03-y02.png")
    (adapter,) = read.values["adapters"]
    assert (adapter["weight"], Path(adapter["file"]).name) == (0.9, "grid-step_000003.safetensors")
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width > 5 * 64
        assert sheet.height > 4 * 64


def test_a_run_is_generated_with_as_it_was_trained(run: Path, tmp_path: Path, cli) -> None:
    """The README's command: base model and adapter, unless adapters are named."""

    def used(*arguments: object) -> tuple[list[tuple[str, float]], str]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        shared = ("--seed", "5", "--steps", "1", "--cfg", "1", "--size", "64x64", "--out", str(out))
        code, printed = cli("generate", "--prompt", "a cat", *map(str, arguments), *shared)
        assert code == 0, printed
        (picture,) = out.iterdir()
        found = read_image_settings(picture).values.get("adapters", ())
        return [(Path(one["file"]).name, one["weight"]) for one in found], " ".join(printed.split())

    own, other = run / "grid.safetensors", random_adapter(tmp_path / "other.safetensors", 1)
    assert used("--run", run)[0] == [("grid.safetensors", 1.0)]
    named, printed = used("--run", run, "--adapter", f"{other}:0.5")
    assert named == [("other.safetensors", 0.5)]
    assert f"--adapter {own} adds the run's own" in printed
    named, printed = used("--run", run, "--adapter", f"{own}:0.5")
    assert (named, "note:" in printed) == ([("grid.safetensors", 0.5)], False)
    copy = tmp_path / "stopped"
    shutil.copytree(run, copy)
    (copy / "grid.safetensors").unlink()
    (used_file, weight), printed = used("--run", copy)[0][0], used("--run", copy)[1]
    assert re.fullmatch(r"grid-step_\d+\.safetensors", used_file)
    assert (weight, "stopped isn't finished" in printed) == (1.0, True)
    shutil.rmtree(copy / "checkpoints")
    code, printed = cli("generate", "--prompt", "a cat", "--run", str(copy))
    told = " ".join(printed.split())
    assert (code, "it has no adapter yet; --base builtin:emoji" in told) == (2, True)


def test_a_cell_generated_again_alone_from_its_file_has_the_same_pixels(
    run: Path, tmp_path: Path, cli, generator
) -> None:
    config = GenerateConfig(**QUICK, batch_size=2, adapters=(UsedAdapter(file=str(run / "grid.safetensors")),))
    grid = Grid(config, parse_axes(["weight=0.5,1", "seed=1,2"], config))
    sheet = save_grid(grid, tmp_path, generator)
    assert sheet is not None
    cell = sheet.parent / "x01-y00.png"
    code, printed = cli("generate", "--from", str(cell), "--out", str(tmp_path / "again"))
    assert code == 0, printed
    (again,) = (tmp_path / "again").iterdir()
    assert again.name == "00000-1.png"
    assert numpy.array_equal(pixels(cell), pixels(again))
    code, printed = cli("generate", "--from", str(cell), "--seed", "77", "--out", str(tmp_path / "other"))
    assert code == 0, printed
    (other,) = (tmp_path / "other").iterdir()
    values, changed = read_image_settings(again).values, read_image_settings(other).values
    assert changed == {**values, "seed": 77}


def test_compare_draws_without_each_alone_and_together(run: Path, tmp_path: Path, cli) -> None:
    first, second = (run / "checkpoints" / f"step_{n:06d}" / f"grid-step_{n:06d}.safetensors" for n in (2, 4))
    code, printed = cli(
        *("generate", "--adapter", f"{first}:0.5", "--adapter", str(second), "--prompt", "a cat", "--seed", "1"),
        *("--steps", "2", "--size", "64x64", "--out", str(tmp_path), "--compare"),
    )
    assert code == 0, printed
    found = [read_image_settings(tmp_path / "grid-0001" / f"x{x:02d}.png").values for x in range(4)]
    weights = [[adapter["weight"] for adapter in values["adapters"]] for values in found]
    assert weights == [[], [0.5], [1.0], [0.5, 1.0]]
    assert {values["seed"] for values in found} == {1}


def test_a_picture_of_the_web_ui_is_generated_with_what_is_found(run: Path, tmp_path: Path, cli) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(
        "parameters",
        "a cat face <lora:grid:0.5>\nNegative prompt: blurry\nSteps: 2, Sampler: Euler, Schedule type: Automatic, "
        "CFG scale: 3, Seed: 9, Size: 64x64, Model: emoji, Face restoration: GFPGAN, Version: v1.10.1",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=info)
    code, printed = cli("generate", "--from", str(tmp_path / "theirs.png"), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "it was generated with 'emoji'; say which file that is: --base FILE" in printed
    assert "<lora:grid:0.5>: no folder to search for it; set adapter_folders (--adapter-folder)" in printed
    code, printed = cli(
        *("generate", "--from", str(tmp_path / "theirs.png"), "--out", str(tmp_path / "out")),
        *("--base", "builtin:emoji", "--adapter-folder", str(run)),
    )
    assert code == 0, printed
    assert "note: not taken over, for want of a counterpart: Face restoration" in printed
    (again,) = (tmp_path / "out").iterdir()
    values = read_image_settings(again).values
    assert (values["seed"], values["sampler"], values["negative"]) == (9, "Euler", "blurry")
    assert values["adapters"][0]["weight"] == 0.5


def test_a_cancelled_grid_keeps_what_is_ready(tmp_path: Path, generator: Generator) -> None:
    config = GenerateConfig(**QUICK, batch_size=1)
    grid = Grid(config, parse_axes(["seed=1:4:1"], config))
    paths: list[Path] = []
    steps: list[tuple[int, int, int]] = []
    sheet = save_grid(
        grid,
        tmp_path,
        generator,
        on_cell=lambda _, path: paths.append(path),
        on_step=lambda step: steps.append((step.image_index, step.num_images, step.step)),
        is_cancelled=lambda: len(paths) == 2,
    )
    assert steps == [(0, 4, 1), (0, 4, 2), (1, 4, 1), (1, 4, 2)]
    assert [path.name for path in paths] == ["x00.png", "x01.png"]
    assert sheet is not None
    assert sheet.is_file()
    assert save_grid(grid, tmp_path, generator, is_cancelled=lambda: True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["grid-0001"]


def test_what_cannot_be_generated_is_listed_before_anything_is(tmp_path: Path, generator: Generator) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    config = GenerateConfig(**QUICK)
    axes = parse_axes(
        [f"adapter.file=none,{tmp_path / 'broken.safetensors'}", "model=builtin:emoji,nowhere/x.ckpt"], config
    )
    with pytest.raises(ConfigError) as caught:
        next(iter(Grid(config, axes).generate(generator)))
    text = str(caught.value)
    assert "broken.safetensors" in text
    assert "nowhere/x.ckpt: no such file" in text


def test_saved_images_carry_what_they_were_generated_with(run: Path, tmp_path: Path, generator: Generator) -> None:
    adapter = UsedAdapter(file=str(run / "grid.safetensors"), weight=0.5)
    (image,) = generator.generate(GenerateConfig(**QUICK, adapters=(adapter,)))
    read = read_image_settings(save_image(image, tmp_path))
    assert read.model_name == "builtin:emoji"
    assert list(read.adapter_hashes) == ["grid"]
    assert len(read.adapter_hashes["grid"]) == 12
