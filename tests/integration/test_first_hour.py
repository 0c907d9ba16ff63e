"""What a newcomer tries in the first hour, in order: each works, or says in a line what to do instead.

`python -m pytest tests/integration/test_first_hour.py -s` shows what is printed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdlora.config.shipped import sample_images_folder
from tests.support.emoji_adapters import random_adapter

OK, REFUSED = 0, 2
SMALL = ("--set", "images.resolution=64", "--set", "base_model.model=builtin:emoji")
ACTIONS: list[tuple[tuple[str, ...], int, str]] = [
    (("--version",), OK, "sdlora "),
    (("--help",), OK, "Train an adapter"),
    (("presets",), OK, "sd15_style.yaml"),
    (("presets", "show", "sd15_style"), OK, "learning_rate"),
    (("presets", "show", "sd15_stil"), REFUSED, "did you mean 'sd15_style"),
    (("explain", "adapter.rank"), OK, "adapter.rank = 16"),
    (("explain", "network_dim"), OK, "'network_dim' is here:"),
    (("explain", "save_every_n_epochs"), OK, "outputs.checkpoint_every"),
    (("explain", "generate"), OK, "generate.steps = 25"),
    (("explain", "lerning_rate"), OK, "optimization.learning_rate"),
    (("explain", "wibble"), REFUSED, "no setting is called or mentions 'wibble'"),
    (("train", "--dry-run"), REFUSED, "no image folder is set: use --set images.folder=FOLDER"),
    (("train", "pictures", "--dry-run", *SMALL), OK, "optimizer steps"),
    (("train", "demo", "--dry-run"), OK, "an owl, blueprint style"),
    (("train", "demo.yaml", "--dry-run", "--full"), OK, "wandb_project"),
    (("train", "pictures", "--steps", "100"), REFUSED, "--set optimization.steps=100"),
    (("train", "pictures", "--set", "optimization.steps", "100"), REFUSED, "write it as --set optimization.steps=100"),
    (("train", "--preset", "dmo"), REFUSED, "did you mean 'demo'"),
    (("train", "kohya.json"), REFUSED, "`sdlora dataset import kohya.json`"),
    (("train", "nowhere"), REFUSED, "nowhere"),
    (("train", "--set", "adapter.rnak=8"), REFUSED, "did you mean 'rank'"),
    (("train", "pictures", "--set", "images.folder=", "--dry-run"), REFUSED, "images.folder"),
    (("train", "pictures", "--dry-run", "--set", "base_model.model=gone.safetensors"), REFUSED, "no such file"),
    (("train", "mine.yaml", "--dry-run"), OK, "7 optimizer steps"),
    (("dataset", "check", "pictures"), OK, ""),
    (("dataset", "import", "kohya.json"), OK, "rank: 8"),
    (("generate", "a cat", "--steps", "1", "--size", "64x64", "--out", "outputs"), OK, ".png"),
    (("generate", "--adapter", "gone.safetensors", "--prompt", "a cat"), REFUSED, "gone.safetensors: there is no such"),
    (("generate", "a cat", "--sampler", "euler b"), REFUSED, "Euler"),
    (("mix", "ink.safetensors:0.8", "wash.safetensors:0.5", "--out", "both.safetensors"), OK, "both.safetensors"),
    (("mix", "ink.safetensors", "--out", "both.safetensors"), REFUSED, "exists already"),
    (("inspect", "both.safetensors", "--quick"), OK, "lora"),
    (("resume", "pictures"), REFUSED, "not a run folder"),
    (("runs",), OK, "no runs in runs"),
    (("runs", "pictures"), OK, "no runs in pictures"),
    (("cache", "prune"), REFUSED, "say what to remove"),
    (("push", "ink.safetensors", "me/ink", "--dry-run"), OK, "README.md"),
    (("doctor", "--json"), OK, "torch"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a newcomer has it: pictures with captions, two adapters, files of a tool used before."""
    folder = tmp_path_factory.mktemp("first hour")
    (folder / "pictures").mkdir()
    for path in sorted((sample_images_folder() / "blueprint").glob("*.png"))[:4]:
        shutil.copy(path, folder / "pictures")
        (folder / "pictures" / f"{path.stem}.txt").write_text("a drawing of something, ohwx style", encoding="utf-8")
    random_adapter(folder / "ink.safetensors", 1)
    random_adapter(folder / "wash.safetensors", 2)
    kohya: dict[str, Any] = {"LoRA_type": "Standard", "network_dim": 8, "train_data_dir": "pictures", "sdxl": False}
    (folder / "kohya.json").write_text(json.dumps(kohya), encoding="utf-8")
    own = (
        "preset: demo\nimages: {folder: pictures, resolution: 64}\noptimization: {steps: 7}\nvalidation: {fraction: 0}"
    )
    (folder / "mine.yaml").write_text(own, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("arguments", "code", "words"), ACTIONS, ids=[" ".join(action[0]) for action in ACTIONS])
def test_an_action_of_the_first_hour(
    arguments: tuple[str, ...], code: int, words: str, place: Path, cli: Callable[..., Any], monkeypatch: Any
) -> None:
    monkeypatch.chdir(place)
    result = cli(*arguments)
    said = f"{result.output}{result.errors}"
    print(f"$ sdlora {' '.join(arguments)}\n{said}")
    plain = " ".join(said.replace("│", " ").split())
    assert result.code == code, said
    assert words in plain
    assert "Traceback" not in said


def test_python_takes_what_a_person_writes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sdlora

    monkeypatch.chdir(place)
    assert "optimizer steps" in sdlora.summarise("mine.yaml").as_text()
    (image,) = sdlora.Generator("builtin:emoji").generate(
        {"prompt": "a cat", "steps": 1, "width_px": 64, "height_px": 64}
    )
    assert isinstance(image.image, Image.Image)
    made = sdlora.resize_adapter("ink.safetensors", "ink-1.safetensors", rank=1)
    assert "rank" in sdlora.inspect_adapter(made.export.path).as_text()
