"""Captioning by a tagger and by plug-ins: what is written, and that nothing is lost or repeated when it is killed."""

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

import numpy
import pytest
from dataset_pictures import fingerprint, picture, save_captioned
from PIL import Image
from tiny_captioners import build_tagger

from sdlora.__main__ import main
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.captioning.journal import Journal
from sdlora.data.captioning.run import STAGE, caption_folder
from sdlora.data.captioning.tagger import spelled, square_pixels
from sdlora.data.captioning.wording import combine
from sdlora.data.repair.changes import TRASH, apply, undo
from sdlora.data.repair.edit import plan_edit
from sdlora.errors import DataError, MissingPackageError, ModelError
from sdlora.events import Event, EventStream, Progress, WarningRaised
from sdlora.processes import ProcessRecord

COLOURS = {"sky": (0, 0, 255), "rose": (255, 0, 0), "hill": (0, 255, 0), "night": (0, 0, 0), "snow": (255, 255, 255)}
DEADLINE_SECONDS = 60


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tagger(tmp_path_factory.mktemp("models") / "tagger")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Five pictures of one colour each, one of them in a subfolder, one captioned."""
    for name, colour in COLOURS.items():
        folder = tmp_path / "set" / ("deep" if name == "night" else ".")
        save_captioned(Image.new("RGB", (96, 96), colour), folder / f"{name}.png", "cold" if name == "snow" else None)
    return tmp_path / "set"


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}


class Recorder:
    """An event sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


def numbered(images: Sequence[Image.Image]) -> list[str]:
    """A captioner whose words depend on the picture."""
    return [f"colour {'-'.join(map(str, image.resize((1, 1)).getpixel((0, 0))))}" for image in images]


# The tagger


def test_a_tagger_writes_its_tags_and_undo_gives_every_byte_back(colours: Path, tagger: Path) -> None:
    before = fingerprint(colours)
    recorder = Recorder()
    result = caption_folder(colours, CaptioningConfig(model=str(tagger), batch_size=2), events=EventStream([recorder]))
    assert captions(colours) == {
        "sky": "blue sky",
        "rose": "red rose",
        "hill": r"green hill \(place\)",
        "night": r"hero \(game\)",
        "snow": "cold",
    }
    assert (result.written, result.skipped, result.silent, result.unreadable) == (4, 1, [], {})
    assert [(event.done, event.total) for event in recorder.events if isinstance(event, Progress)] == [(2, 4), (4, 4)]
    assert {event.stage for event in recorder.events if isinstance(event, Progress)} == {STAGE}
    assert undo(colours).files
    assert fingerprint(colours) == before


def test_thresholds_exclusions_and_brackets_decide_which_tags_are_written(colours: Path, tagger: Path) -> None:
    config = CaptioningConfig(model=str(tagger), threshold=1.0, character_threshold=1.0)
    assert load_captioner(config)([Image.new("RGB", (8, 8), "blue")]) == [""]
    plain = CaptioningConfig(model=str(tagger), escape_brackets=False)
    assert load_captioner(plain)([Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")]) == [
        "hero (game)",
        "blue sky, green hill (place), red rose, ^_^",
    ]
    excluding = CaptioningConfig(model=str(tagger), exclude=("Blue_Sky", "hero (game)"))
    result = caption_folder(colours, excluding)
    assert {path.name for path in result.silent} == {"sky.png", "night.png"}
    assert set(captions(colours)) == {"rose", "hill", "snow"}


def test_pixels_reach_the_tagger_as_blue_green_red_on_a_white_square() -> None:
    pixels_HWC = square_pixels(Image.new("RGB", (20, 10), (10, 20, 30)), 40)
    assert (pixels_HWC.shape, pixels_HWC.dtype) == ((40, 40, 3), numpy.float32)
    assert pixels_HWC[20, 20].tolist() == [30, 20, 10]
    assert pixels_HWC[2, 20].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("name", "words"), [("long_hair", "long hair"), ("^_^", "^_^"), (">_<", ">_<")])
def test_underscores_become_spaces_except_in_faces(name: str, words: str) -> None:
    assert spelled(name) == words


def test_a_tagger_with_a_fixed_batch_gets_batches_of_that_size(tmp_path: Path) -> None:
    captioner = load_captioner(CaptioningConfig(model=str(build_tagger(tmp_path / "fixed", edge_px=64, batch=2))))
    assert captioner([Image.new("RGB", (9, 9), colour) for colour in ("blue", "red", "green")])[:2] == [
        "blue sky",
        "red rose",
    ]


def test_files_that_are_no_tagger_are_refused(tmp_path: Path, tagger: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tagger, broken)
    (broken / "selected_tags.csv").write_text("tag_id,name,category,count\n1,one,0,5\n", "utf-8")
    with pytest.raises(ModelError, match=r"gives 7 values, but selected_tags.csv lists 1 tags"):
        load_captioner(CaptioningConfig(model=str(broken)))
    (broken / "selected_tags.csv").write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(ModelError, match="not a list of tags with the columns"):
        load_captioner(CaptioningConfig(model=str(broken)))
    shutil.copy(tagger / "selected_tags.csv", broken)
    (broken / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="can't be loaded by onnxruntime"):
        load_captioner(CaptioningConfig(model=str(broken)))
    with pytest.raises(ModelError, match=r"device=cuda: this onnxruntime has no CUDAExecutionProvider"):
        load_captioner(CaptioningConfig(model=str(tagger), device="cuda"))


def test_a_tagger_without_onnxruntime_says_what_to_install(tagger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"needs the package 'onnxruntime'.*sdlora\[caption\]"):
        load_captioner(CaptioningConfig(model=str(tagger)))


def test_a_model_that_is_not_there_says_what_there_could_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'nowhere' was not found: .*wd-vit-tagger-v3; no plug-in is installed"):
        load_captioner(CaptioningConfig(model="nowhere"))
    with pytest.raises(ModelError, match=r"needed is a config.json of blip, blip-2, git, or model.onnx .* lacks both"):
        load_captioner(CaptioningConfig(model=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    with pytest.raises(ModelError, match="it holds a model of type 'llama'"):
        load_captioner(CaptioningConfig(model=str(tmp_path)))


# Words


@pytest.mark.parametrize(
    ("existing", "words", "settings", "expected"),
    [
        (None, "a cat", {}, "a cat"),
        (None, "", {"prefix": "photo of", "trigger": "zeta"}, ""),
        (None, "a cat\n,  red ", {"prefix": "photo of", "suffix": "in oil"}, "photo of a cat, red in oil"),
        (None, "a zeta cat", {"trigger": "zeta"}, "a zeta cat"),
        (None, "a cat", {"trigger": "zeta"}, "zeta, a cat"),
        ("old", "red, cat", {"existing": "overwrite"}, "red, cat"),
        ("old, Red", "red, cat", {"existing": "append"}, "old, Red, cat"),
        ("old", "red, cat", {"existing": "prepend", "trigger": "zeta"}, "zeta, red, cat, old"),
        ("old", "old", {"existing": "append"}, "old"),
        (None, r"long hair, hill \(place\), cat", {"exclude": ("long_hair", "hill (place)")}, "cat"),
    ],
)
def test_words_and_the_caption_there_become_one(
    existing: str | None, words: str, settings: dict[str, object], expected: str
) -> None:
    assert combine(existing, words, CaptioningConfig.model_validate(settings)) == expected


# Folders


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("skip", "cold"), ("overwrite", "new"), ("append", "cold, new"), ("prepend", "new, cold")],
)
def test_what_happens_to_captions_there_is_chosen(colours: Path, existing: str, expected: str) -> None:
    config = CaptioningConfig.model_validate({"existing": existing})
    caption_folder(colours, config, captioner=lambda images: ["new"] * len(images))
    assert captions(colours)["snow"] == expected
    assert captions(colours)["sky"] == "new"


def test_captions_of_metadata_count_and_folder_names_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save_captioned(picture(1), folder / "10_cat" / "a.png", None)
    save_captioned(picture(2), folder / "b.png", None)
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a boat"}\n', "utf-8")
    caption_folder(folder, CaptioningConfig(), captioner=lambda images: ["new"] * len(images))
    assert captions(folder) == {"a": "new"}
    caption_folder(folder, CaptioningConfig(existing="append"), captioner=lambda images: ["more"] * len(images))
    assert captions(folder) == {"a": "new, more", "b": "a boat, more"}


def test_images_that_cannot_be_read_are_named_and_the_others_captioned(colours: Path) -> None:
    (colours / "cut.png").write_bytes(b"\x89PNG")
    (colours / "phone.heic").write_bytes(b"heic")
    save_captioned(picture(3), colours / "latin.png", None)
    (colours / "latin.txt").write_bytes(b"caf\xe9")
    save_captioned(picture(4), colours / "other.png", None)
    (colours / "other.caption").write_text("a kite", "utf-8")
    recorder = Recorder()
    config = CaptioningConfig(existing="append")
    result = caption_folder(colours, config, captioner=numbered, events=EventStream([recorder]))
    assert {path.name for path in result.unreadable} == {"cut.png", "phone.heic", "latin.png"}
    assert "fix --rules caption-encoding" in result.unreadable[colours / "latin.png"]
    warnings = [event.message for event in recorder.events if isinstance(event, WarningRaised)]
    assert warnings[0].startswith("1 images have captions in .caption files, which are not read")
    assert len(warnings) == 4
    assert result.written == 6


def test_two_images_with_one_caption_file_get_one_caption(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", None)
    save_captioned(picture(2), tmp_path / "a.jpg", None)
    result = caption_folder(tmp_path, CaptioningConfig(existing="append"), captioner=numbered)
    assert (result.written, result.skipped) == (1, 1)


def test_a_captioner_with_too_few_captions_is_refused(colours: Path) -> None:
    with pytest.raises(ModelError, match="gave 1 captions for 4 images"):
        caption_folder(colours, CaptioningConfig(), captioner=lambda images: ["one"])


def test_nothing_to_do_loads_no_model_and_leaves_no_trace(colours: Path) -> None:
    caption_folder(colours, CaptioningConfig(), captioner=numbered)
    undo(colours)
    silent = caption_folder(colours, CaptioningConfig(), captioner=lambda images: [""] * len(images))
    assert (silent.written, silent.originals) == (0, None)
    assert not (colours / TRASH).exists()
    caption_folder(colours, CaptioningConfig(), captioner=numbered)
    assert caption_folder(colours, CaptioningConfig(model="nowhere")).skipped == 5


def test_a_second_captioning_of_the_same_folder_is_refused(colours: Path) -> None:
    journal = Journal.open(colours, CaptioningConfig())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        ProcessRecord.of(other.pid).write(journal.process_file)
        with pytest.raises(DataError, match=f"is being captioned already, by process {other.pid}"):
            caption_folder(colours, CaptioningConfig(), captioner=numbered)
        other.communicate(b"\n")
    assert caption_folder(colours, CaptioningConfig(), captioner=numbered).written == 4


# Killed and resumed

KILLED = """
import os, signal, sys
from pathlib import Path
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning import journal, run
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.repair import changes

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

changes._write = counted("write", changes._write)
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


def test_the_command_says_what_it_did(
    colours: Path, tagger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sdlora", "dataset", "caption", str(colours), "-m", str(tagger)])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--exclude", "blue sky,red_rose", "--trigger", "zeta"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    output = capsys.readouterr().out
    assert not exit_info.value.code
    assert "2 captions written, 1 images left alone, captioned already, 2 of which the model said nothing" in output
    assert "no caption: rose.png" in output
    assert "dataset undo" in output
    assert captions(colours)["hill"] == r"zeta, green hill \(place\)"


def test_wrong_settings_are_told_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["sdlora", "dataset", "caption", "nowhere", "--threshold", "3", "--batch-size", "0"]
    )
    with pytest.raises(SystemExit) as exit_info:
        main()
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "threshold: must be less than or equal to 1; got 3" in errors
    assert "batch_size: must be greater than or equal to 1; got 0" in errors


def test_describing_a_captioning_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from sdlora.cli import app\n"
        "result = CliRunner().invoke(app, ['dataset', 'caption', '--help'])\n"
        "assert 'Taggers: least probability of a tag.' in result.output, result.output\n"
        "import sdlora.data.captioning.run, sdlora.data.captioning.tagger\n"
        "heavy = {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "COLUMNS": "250"})
