"""Captioning that is killed and run again loses and repeats nothing; on the command line, and by plug-ins."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.captioning.run import caption_folder
from sdlora.data.fix.changes import TRASH, apply, undo
from sdlora.data.fix.edit import plan_edit
from tests.support.dataset_pictures import fingerprint, save_captioned
from tests.support.tiny_captioners import COLOURS, build_tagger, captions, numbered

pytestmark = pytest.mark.slow  # starts processes

DEADLINE_SECONDS = 60


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tagger(tmp_path_factory.mktemp("models") / "tagger")


KILLED = """
import os, signal, sys
from pathlib import Path
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning import journal, run
from sdlora.data.captioning.captioner import load_captioner
from sdlora import atomic

folder, model, seen, where = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
config = CaptioningConfig(model=model, existing="append", batch_size=2)
tagger, calls = load_captioner(config), {"model": 0, "write": 0, "replace": 0, "journal": 0}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(name, function, after=False):
    def call(*arguments, **options):
        calls[name] += 1
        if calls[name] == 3 and where == name and not after:
            die()
        result = function(*arguments, **options)
        if calls[name] == 3 and where == f"{name} done":
            die()
        return result
    return call

def captioner(images):
    with seen.open("a") as file:
        file.write(f"{len(images)}\\n")
    return tagger(images)

write = atomic.write_bytes
counted_write = counted("write", write)

def counted_caption(path, content, **how):
    (counted_write if path.suffix == ".txt" else write)(path, content, **how)

atomic.write_bytes = counted_caption
journal.Journal._write = counted("journal", journal.Journal._write)
run.caption_folder(folder, config, captioner=counted("model", captioner))
"""


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Seven captioned pictures, so that a caption added twice would show."""
    for number, colour in enumerate([*COLOURS.values(), (0, 128, 255), (255, 128, 0)]):
        save_captioned(Image.new("RGB", (64, 64), colour), tmp_path / "set" / f"{number}.png", f"old {number}")
    return tmp_path / "set"


@pytest.mark.parametrize("where", ["model", "journal", "write", "write done"])
def test_killed_at_any_moment_it_goes_on_and_loses_and_repeats_nothing(
    captioned: Path, tagger: Path, tmp_path: Path, where: str
) -> None:
    config = CaptioningConfig(model=str(tagger), existing="append", batch_size=2)
    before, whole = fingerprint(captioned), tmp_path / "whole"
    shutil.copytree(captioned, whole)
    caption_folder(whole, config)
    seen = tmp_path / "seen.txt"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(captioned), str(tagger), str(seen), where])
    assert killed.returncode == -signal.SIGKILL
    assert captions(captioned) != captions(whole)
    assert not any(path.suffix == ".txt" and not path.read_bytes() for path in captioned.iterdir())

    model = load_captioner(config)
    again: list[int] = []

    def counting(images: Sequence[Image.Image]) -> list[str]:
        again.append(len(images))
        return model(images)

    result = caption_folder(captioned, config, captioner=counting)
    assert captions(captioned) == captions(whole)
    assert sum(map(int, seen.read_text().split())) + sum(again) == 7
    assert result.before + result.written == 7
    assert len(undo(captioned).files) >= 7
    assert fingerprint(captioned) == before


def test_a_torn_journal_line_is_a_group_that_was_never_done(captioned: Path) -> None:
    config = CaptioningConfig(existing="append", batch_size=3)
    before = fingerprint(captioned)

    def failing(images: Sequence[Image.Image]) -> list[str]:
        if (captioned / "3.txt").read_text() != "old 3":
            raise KeyboardInterrupt
        return numbered(images)

    with pytest.raises(KeyboardInterrupt):
        caption_folder(captioned, config, captioner=failing)
    (journal,) = (captioned / TRASH).glob("*/captions.jsonl")
    with journal.open("a") as file:
        file.write('{"captions": [{"image": "6.')
    assert caption_folder(captioned, config, captioner=numbered).written == 1
    assert all(text.count("colour") == 1 for text in captions(captioned).values())
    assert [json.loads(line) for line in journal.read_text().splitlines()][-1] == {"finished": True}
    undo(captioned)
    assert fingerprint(captioned) == before


def test_an_edit_between_two_halves_is_kept_and_undone_in_its_turn(captioned: Path) -> None:
    config = CaptioningConfig(existing="append", batch_size=2)
    before = fingerprint(captioned)

    def failing(images: Sequence[Image.Image]) -> list[str]:
        if (captioned / "0.txt").read_text() != "old 0":
            raise KeyboardInterrupt
        return numbered(images)

    with pytest.raises(KeyboardInterrupt):
        caption_folder(captioned, config, captioner=failing)
    apply(captioned, plan_edit(captioned, "old", "aged"))
    result = caption_folder(captioned, config, captioner=numbered)
    assert (result.before, result.written) == (2, 5)
    assert captions(captioned)["0"] == "aged 0, colour 0-0-255"
    assert captions(captioned)["6"] == "aged 6, colour 255-128-0"
    for _ in range(3):
        undo(captioned)
    assert fingerprint(captioned) == before


def test_other_settings_begin_afresh(captioned: Path) -> None:
    def failing(images: Sequence[Image.Image]) -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caption_folder(captioned, CaptioningConfig(existing="append"), captioner=failing)
    assert caption_folder(captioned, CaptioningConfig(existing="prepend"), captioner=numbered).written == 7


# The command line and plug-ins

PLUGIN = """
import os, time
from pathlib import Path

def colours(config):
    def describe(images):
        described = [f"colour {image.resize((1, 1)).getpixel((0, 0))[0]}" for image in images]
        stop = os.environ.get("STOP_AT")
        if stop and Path(stop).exists() is False and COUNT.append(1) is None and len(COUNT) == 3:
            Path(stop).touch()
            while True:
                time.sleep(1)
        return described
    return describe

COUNT = []
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A package with a captioner, as pip would install it."""
    site = tmp_path / "site"
    (site / "colour_plugin-1.0.dist-info").mkdir(parents=True)
    (site / "colour_plugin.py").write_text(PLUGIN, "utf-8")
    (site / "colour_plugin-1.0.dist-info" / "METADATA").write_text("Name: colour-plugin\nVersion: 1.0\n", "utf-8")
    (site / "colour_plugin-1.0.dist-info" / "entry_points.txt").write_text(
        "[sdlora.captioners]\ncolours = colour_plugin:colours\n", "utf-8"
    )
    return site


def test_the_command_killed_from_outside_and_run_again_loses_and_repeats_nothing(
    captioned: Path, plugin: Path, tmp_path: Path
) -> None:
    before, stop = fingerprint(captioned), tmp_path / "stop"
    command = [sys.executable, "-m", "sdlora", "dataset", "caption", str(captioned), "--model", "colours"]
    command += ["--existing", "append", "--batch-size", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{plugin}{os.pathsep}{Path.cwd()}", "STOP_AT": str(stop)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as first:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not stop.exists():
            assert time.monotonic() < deadline
            with suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended by itself: {first.communicate(timeout=0.1)}")
        first.kill()
    assert sum("colour" in text for text in captions(captioned).values()) == 4
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "3 captions written, 4 written before the interruption" in second.stdout
    assert "captioning 7/7" in second.stderr
    assert all(text.count("colour") == 1 for text in captions(captioned).values())
    undo(captioned)
    assert fingerprint(captioned) == before
