"""Captioning by a tagger: what is written, what is left alone, what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from sdlora.__main__ import main
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.captioning.captioner import load_captioner
from sdlora.data.captioning.journal import Journal
from sdlora.data.captioning.run import STAGE, caption_folder
from sdlora.data.captioning.tagger import spelled, square_pixels
from sdlora.data.captioning.wording import combine
from sdlora.data.fix.changes import TRASH, undo
from sdlora.errors import DataError, MissingPackageError, ModelError
from sdlora.events import Event, EventStream, Progress, WarningRaised
from sdlora.processes import ProcessRecord
from tests.support.dataset_pictures import fingerprint, picture, save_captioned
from tests.support.tiny_captioners import COLOURS, build_tagger, captions, numbered


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


class Recorder:
    """An event sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass


# The tagger


def test_a_tagger_writes_its_tags_and_undo_gives_every_byte_back(colours: Path, tagger: Path) -> None:
    before = fingerprint(colours)
    recorder = Recorder()
    result = caption_folder(colours, CaptioningConfig(model=str(tagger), batch_size=2), events=EventStream([recorder]))
    assert captions(colours) == {
        "sky": "blue sky",
        "rose": "red rose",
        "hill": "green hill (place)",
        "night": "hero (game)",
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
    escaped = CaptioningConfig(model=str(tagger), escape_brackets=True)
    assert load_captioner(escaped)([Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")]) == [
        r"hero \(game\)",
        r"blue sky, green hill \(place\), red rose, ^_^",
    ]
    rated = CaptioningConfig(model=str(tagger), rating_threshold=0.5)
    assert load_captioner(rated)([Image.new("RGB", (8, 8), "black")]) == ["hero (game), general, explicit"]
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
    with pytest.raises(MissingPackageError, match=r"needs the package 'onnxruntime'.*\[caption\]"):
        load_captioner(CaptioningConfig(model=str(tagger)))


def test_a_model_that_is_not_there_says_what_there_could_be(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'nowhere' was not found: .*wd-vit-tagger-v3; no plug-in is installed"):
        load_captioner(CaptioningConfig(model="nowhere"))
    with pytest.raises(
        ModelError, match=r"needed is a config.json of blip, blip-2, git, florence2, or model.onnx .* lacks both"
    ):
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
    assert warnings[0].startswith("1 caption is not read, as captions.extension is .txt: other.caption")
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


@pytest.mark.slow
def test_a_second_captioning_of_the_same_folder_is_refused(colours: Path) -> None:
    journal = Journal.open(colours, CaptioningConfig())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        ProcessRecord.of(other.pid).write(journal.process_file)
        with pytest.raises(DataError, match=f"is being captioned already, by process {other.pid}"):
            caption_folder(colours, CaptioningConfig(), captioner=numbered)
        other.communicate(b"\n")
    assert caption_folder(colours, CaptioningConfig(), captioner=numbered).written == 4


# The command line


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
    assert captions(colours)["hill"] == "zeta, green hill (place)"


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


@pytest.mark.slow
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
