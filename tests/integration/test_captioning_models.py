"""Captioning with small models of the kinds that transformers holds, in the layouts in which real ones are saved."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning import describer
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.captioning.run import caption_folder
from sdlora.data.fix.changes import undo
from sdlora.errors import ModelError
from tests.support.tiny_captioners import build_blip, build_florence, build_git

KILLED = """
import os, signal, sys
from pathlib import Path
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.captioning.run import caption_folder

config = CaptioningConfig(model=sys.argv[2], batch_size=2, max_tokens=12)
model, seen = load_captioner(config), []

def captioner(images):
    seen.extend(images)
    if len(seen) > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return model(images)

caption_folder(Path(sys.argv[1]), config, captioner=captioner)
"""


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        image = Image.new("RGB", (80 + 10 * number, 80), (40 * number, 90, 255 - 40 * number))
        ImageDraw.Draw(image).ellipse((10, 10, 30 + 8 * number, 60), fill=(255, 40 * number, 0))
        (tmp_path / "set").mkdir(exist_ok=True)
        image.save(tmp_path / "set" / f"{number}.png")
    return tmp_path / "set"


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}


def test_blip_killed_midway_and_run_again_captions_each_image_once(folder: Path, blip: Path, tmp_path: Path) -> None:
    config = CaptioningConfig(model=str(blip), batch_size=2, max_tokens=12)
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    caption_folder(whole, config)
    assert len(captions(whole)) == 6
    assert len(set(captions(whole).values())) > 1
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(blip)], env={**os.environ})
    assert killed.returncode == -signal.SIGKILL
    assert len(captions(folder)) == 4
    result = caption_folder(folder, config)
    assert (result.before, result.written) == (4, 2)
    assert captions(folder) == captions(whole)
    undo(folder)
    assert not captions(folder)


def test_git_describes_and_the_number_of_words_is_limited(tmp_path: Path) -> None:
    model = str(build_git(tmp_path / "git"))
    images = [Image.new("RGB", (50, 40), "red"), Image.new("RGB", (50, 40), "blue")]
    short = load_captioner(CaptioningConfig(model=model, max_tokens=2))(images)
    assert len(short) == 2
    assert all(1 <= len(text.split()) <= 2 for text in short)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(
    blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describer, "_count_parameters", lambda place: 10**13)
    with pytest.raises(ModelError, match=r"needs about 42840\.8 GiB, and .* GiB are free on cpu: take a smaller"):
        load_captioner(CaptioningConfig(model=str(blip)))


def test_a_damaged_model_is_named(blip: Path, tmp_path: Path) -> None:
    shutil.copytree(blip, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="damaged can't be loaded"):
        load_captioner(CaptioningConfig(model=str(tmp_path / "damaged")))


def test_florence_describes_at_the_length_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    model = build_florence(tmp_path / "florence")
    told = {}
    for detail in ("short", "paragraph"):
        config = CaptioningConfig(model=str(model), detail=detail, max_tokens=8, beams=1, existing="overwrite")
        caption_folder(folder, config)
        told[detail] = captions(folder)
    assert len(told["short"]) == 6
    assert all(told["short"].values())
    assert told["short"] != told["paragraph"], "the question it is asked differs"


def test_florence_with_code_of_its_own_is_refused_with_what_to_take(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "florence2", "auto_map": {"AutoConfig": "x.y"}}', "utf-8")
    with pytest.raises(ModelError, match="florence-community/Florence-2-base"):
        load_captioner(CaptioningConfig(model=str(tmp_path)))
