"""Class images: drawn by the base model, gone on with after an interruption, trained without the subject's trigger."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from sdlora.__main__ import main
from sdlora.config import files
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, DataError
from sdlora.events import EventStream
from sdlora.generation.class_images import draw_class_images
from sdlora.generation.image_files import read_image_settings
from sdlora.training.images import find_images
from sdlora.training.prepare import prepare
from sdlora.training.run import train
from sdlora.training.workers import Workers


def settings(tiny_sd1: Path, tiny_images: Path, classes: Path, *more: str) -> list[str]:
    return [
        f"base_model.model={tiny_sd1}",
        f"images.folder={tiny_images}",
        f"images.class_folder={classes}",
        "images.resolution=64",
        "images.bucket_step=32",
        "captions.trigger=zeta",
        "captions.prefix=photo of zeta,",
        "objective.prior_preservation=class_images",
        "optimization.steps=1",
        "optimization.precision=fp32",
        "outputs.self_test=false",
        *more,
    ]


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["sdlora", "dataset", "class-images", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    return int(exit_info.value.code or 0)


def test_class_images_are_drawn_gone_on_with_and_trained_without_the_trigger(
    tiny_sd1: Path,
    tiny_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classes = tmp_path / "classes"
    overrides = settings(tiny_sd1, tiny_images, classes, f"outputs.folder={tmp_path / 'runs'}")
    config = files.load(None, overrides)
    with pytest.raises(
        DataError, match=r"does not exist. Draw its images .* sdlora dataset class-images --out .*classes"
    ):
        train(config)

    options = [part for override in overrides for part in ("--set", override)]
    prompts = ["--prompt", "a {red|green|blue} dog", "--prompt", "a cat"]
    options += [*prompts, "--steps", "2", "--batch", "2", "--cfg", "1"]
    assert run(*options, "--count", "3", monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert "3 class images drawn" in output
    assert f"--set images.class_folder={classes}" in output
    drawn = {path.name: path.read_bytes() for path in classes.iterdir()}
    assert set(drawn) == {f"class-00000{number}.{ending}" for number in range(3) for ending in ("png", "txt")}
    assert drawn["class-000001.txt"] == b"a cat"
    assert drawn["class-000000.txt"].decode() in {"a red dog", "a green dog", "a blue dog"}
    with Image.open(classes / "class-000000.png") as image:
        assert image.size == (64, 64)
    assert read_image_settings(classes / "class-000002.png").values["seed"] == 2

    (classes / "class-000000.png").unlink()
    assert run(*options, "--count", "4", monkeypatch=monkeypatch) == 0
    assert "2 class images drawn, 2 were there" in capsys.readouterr().out
    again = {path.name: path.read_bytes() for path in classes.iterdir()}
    assert {name: again[name] for name in drawn if name != "class-000000.png"} == {
        name: content for name, content in drawn.items() if name != "class-000000.png"
    }
    assert len(again) == 8
    assert run(*options, "--count", "4", monkeypatch=monkeypatch) == 0
    assert "0 class images drawn, 4 were there" in capsys.readouterr().out

    assert _captions_of_an_epoch(config) >= {"a cat"}
    assert train(config).step == 1


def _captions_of_an_epoch(config: TrainConfig) -> set[str]:
    """The captions of the class images as a run would train them; those of the others have the trigger."""
    found = find_images(config)
    prepared = prepare(config, found, EventStream([]), Workers("cpu"))
    captions = set()
    for position in range(prepared.batches.batches_per_epoch):
        batch = prepared.batches.batch(position)
        for caption, is_class in zip(batch.captions, batch.is_class_B.tolist(), strict=True):
            assert ("zeta" in caption) is not is_class
            captions |= {caption} if is_class else set()
    return captions


def test_a_request_without_prompt_or_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt is missing: say what the subject is one of"):
        draw_class_images(GenerateConfig(), [" "], 2, tmp_path)
    request = GenerateConfig(base_model=BaseModelConfig(model=str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match="base_model"):
        draw_class_images(request, ["a dog"], 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--prompt", "a dog", monkeypatch=monkeypatch) == 2
    assert "--out is missing: name a folder, or set images.class_folder" in capsys.readouterr().err
