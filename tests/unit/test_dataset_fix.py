"""Mending a dataset: each fix does what it says, and undo gives every byte back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.data.fix import changes as changes_module
from sdlora.data.fix.changes import TRASH, Change, apply, undo
from sdlora.data.fix.edit import plan_edit
from sdlora.data.fix.fixes import plan_fixes
from sdlora.data.lint.check import check
from sdlora.data.lint.findings import FIXABLE
from sdlora.errors import ConfigError, DataError
from tests.support.dataset_pictures import fingerprint, picture, save_captioned

CONFIG = files.load(None, ["images.resolution=256", "images.cache=false", "captions.trigger=zeta"])


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """One picture with each fault that has a fix, and some without any."""
    folder = tmp_path / "set"
    for number in range(6):
        save_captioned(picture(number), folder / f"good{number}.png", f"zeta, subject {number}, wooden table")
    (folder / "unreadable.png").write_bytes(b"\x89PNG cut off")
    (folder / "the-copy.png").write_bytes((folder / "good0.png").read_bytes())
    (folder / "the-copy.txt").write_text("zeta, a copy", encoding="utf-8")
    frames = [picture(10), picture(11)]
    save_captioned(frames[0], folder / "moving.gif", "zeta, a wheel", save_all=True, append_images=frames[1:])
    save_captioned(frames[0], folder / "moving2.webp", "zeta, wheels", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6
    save_captioned(picture(12, (320, 280)), folder / "turned.jpg", "zeta, a tower", exif=turned, quality=90)
    save_captioned(picture(13), folder / "extension.png", None)
    (folder / "extension.caption").write_bytes(b"zeta, a kite\r\n")
    save_captioned(picture(14), folder / "capital.png", None)
    (folder / "capital.TXT").write_bytes("zeta, a café".encode("cp1252"))
    save_captioned(picture(15), folder / "encoding.png", None)
    (folder / "encoding.txt").write_bytes("zeta, a naïve drawing".encode("cp1252"))
    save_captioned(picture(16), folder / "twice.png", "zeta, a lamp, red, Lamp,red")
    save_captioned(picture(17), folder / "slip.png", "zeta, a hat, wooden tabel")
    save_captioned(picture(18), folder / "untriggered.png", "a cup")
    return folder


def caption(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_every_fix_removes_its_finding_and_undo_gives_every_byte_back(faulty: Path) -> None:
    before = fingerprint(faulty)
    found = {finding.rule for finding in check(CONFIG, [faulty]).findings}
    assert found >= set(FIXABLE)
    apply(faulty, plan_fixes(faulty, FIXABLE, CONFIG))
    after = check(CONFIG, [faulty])
    assert not {finding.rule for finding in after.findings} & set(FIXABLE)
    assert fingerprint(faulty) != before
    undo(faulty)
    assert fingerprint(faulty) == before


@pytest.mark.parametrize("rule", FIXABLE)
def test_each_fix_alone_is_undone_byte_for_byte(faulty: Path, rule: str) -> None:
    before, times = fingerprint(faulty), {path: path.stat().st_mtime_ns for path in faulty.iterdir()}
    planned = plan_fixes(faulty, [rule], CONFIG)
    assert planned
    assert fingerprint(faulty) == before, "planning touches nothing"
    assert {rule} == {name for change in planned for name in change.rules}
    apply(faulty, planned)
    assert fingerprint(faulty) != before
    undo(faulty)
    assert fingerprint(faulty) == before
    assert {path: path.stat().st_mtime_ns for path in faulty.iterdir()} == times
    assert not (faulty / TRASH).exists()


def test_fixes_give_the_expected_files(faulty: Path) -> None:
    apply(faulty, plan_fixes(faulty, FIXABLE, CONFIG))
    assert not any(
        (faulty / name).exists() for name in ("unreadable.png", "the-copy.png", "the-copy.txt", "moving.gif")
    )
    with Image.open(faulty / "moving.png") as image:
        assert image.size == (320, 320)
    with Image.open(faulty / "moving2.webp") as image:
        assert image.n_frames == 1
    with Image.open(faulty / "turned.jpg") as image:
        assert image.size == (280, 320)
        assert image.getexif().get(0x0112, 1) == 1
    assert (faulty / "extension.txt").read_bytes() == b"zeta, a kite\r\n"
    assert caption(faulty / "capital.txt") == "zeta, a café"
    assert caption(faulty / "encoding.txt") == "zeta, a naïve drawing"
    assert caption(faulty / "twice.txt") == "zeta, a lamp, red, Lamp"
    assert caption(faulty / "slip.txt") == "zeta, a hat, wooden table"
    assert caption(faulty / "untriggered.txt") == "zeta, a cup"


def test_a_renamed_caption_in_another_encoding_is_read_only_with_that_fix_too(faulty: Path) -> None:
    apply(faulty, plan_fixes(faulty, ["caption-extension"], CONFIG))
    assert (faulty / "capital.txt").read_bytes() == "zeta, a café".encode("cp1252")


def test_the_encoding_of_captions_can_be_told(faulty: Path) -> None:
    (faulty / "encoding.txt").write_bytes("zeta, 桜".encode("shift_jis"))
    apply(faulty, plan_fixes(faulty, ["caption-encoding"], CONFIG, encoding="shift_jis"))
    assert caption(faulty / "encoding.txt") == "zeta, 桜"


def test_captions_from_metadata_get_a_file_of_their_own(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cup"}\n', encoding="utf-8")
    apply(tmp_path, plan_fixes(tmp_path, ["trigger-missing"], CONFIG))
    assert caption(tmp_path / "a.txt") == "zeta, a cup"
    undo(tmp_path)
    assert not (tmp_path / "a.txt").exists()


def test_the_trigger_and_rewritten_tags_are_joined_by_the_separator(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "a cup;red;red")
    config = files.load(None, ["captions.trigger=zeta", "captions.separator=;", "images.cache=false"])
    apply(tmp_path, plan_fixes(tmp_path, ["trigger-missing", "duplicate-tags"], config))
    assert caption(tmp_path / "a.txt") == "zeta; a cup; red"


def test_every_line_gets_the_trigger_when_one_is_picked(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "a cup\na zeta mug\n\na glass")
    config = files.load(None, ["captions.trigger=zeta", "captions.wildcards=true", "images.cache=false"])
    apply(tmp_path, plan_fixes(tmp_path, ["trigger-missing"], config))
    assert caption(tmp_path / "a.txt") == "zeta, a cup\na zeta mug\n\nzeta, a glass"


def test_unknown_rules_encodings_and_a_missing_trigger_are_told_at_once(faulty: Path) -> None:
    with pytest.raises(ConfigError, match="3 problems") as raised:
        plan_fixes(faulty, ["blurred", "trigger-missing"], files.load(), encoding="klingon")
    assert "'blurred' has no fix; there are: unreadable" in str(raised.value)
    assert "trigger-missing needs the trigger: --set captions.trigger=WORD" in str(raised.value)
    assert "--encoding klingon is unknown" in str(raised.value)


def test_an_edit_changes_only_what_matches_and_is_undone(faulty: Path) -> None:
    before = fingerprint(faulty)
    planned = plan_edit(faulty, r"subject (\d)", r"thing no. \1")
    assert [change.path.name for change in planned] == [f"good{number}.txt" for number in range(6)]
    assert planned[0].summary == "caption: zeta, thing no. 0, wooden table"
    apply(faulty, planned)
    assert caption(faulty / "good3.txt") == "zeta, thing no. 3, wooden table"
    assert (faulty / "twice.txt").read_bytes() == b"zeta, a lamp, red, Lamp,red"
    undo(faulty)
    assert fingerprint(faulty) == before


def test_an_edit_ignores_capitals_when_asked_and_works_line_by_line(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "a.png", "A cup\nA mug")
    assert plan_edit(tmp_path, "^a ", "the ") == []
    apply(tmp_path, plan_edit(tmp_path, "^a ", "the ", ignore_case=True))
    assert caption(tmp_path / "a.txt") == "the cup\nthe mug"


@pytest.mark.parametrize(("pattern", "replacement"), [("(", ""), ("a", r"\1")])
def test_a_wrong_expression_is_refused(faulty: Path, pattern: str, replacement: str) -> None:
    with pytest.raises(ConfigError, match="not a regular expression with a fitting replacement"):
        plan_edit(faulty, pattern, replacement)


def test_undo_takes_the_newest_changes_first(faulty: Path) -> None:
    states = [fingerprint(faulty)]
    for word in ("mug", "jug"):
        apply(faulty, plan_edit(faulty, r"a (cup|mug)", f"a {word}"))
        states.append(fingerprint(faulty))
    undo(faulty)
    assert fingerprint(faulty) == states[1]
    undo(faulty)
    assert fingerprint(faulty) == states[0]
    with pytest.raises(DataError, match="has no changes to undo"):
        undo(faulty)


def test_undo_refuses_to_lose_what_was_written_since(faulty: Path) -> None:
    apply(faulty, plan_edit(faulty, "a cup", "a mug"))
    (faulty / "untriggered.txt").write_text("my own words", encoding="utf-8")
    with pytest.raises(DataError, match=r"1 of 1 files have been changed since.*untriggered\.txt\. Nothing was undone"):
        undo(faulty)
    assert caption(faulty / "untriggered.txt") == "my own words"


@pytest.mark.parametrize("fatal_call", range(1, 12))
def test_a_crash_at_any_write_loses_nothing(faulty: Path, monkeypatch: pytest.MonkeyPatch, fatal_call: int) -> None:
    before = fingerprint(faulty)
    planned = plan_fixes(faulty, ["caption-extension", "duplicate-tags"], CONFIG)
    calls = 0

    def settle(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal_call:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", settle)
    try:
        apply(faulty, planned)
    except KeyboardInterrupt:
        pass
    else:
        pytest.fail("the crash did not happen")
    monkeypatch.undo()
    if any((faulty / TRASH).glob("*/log.jsonl")):
        undo(faulty)
    after = fingerprint(faulty)
    assert {name: value for name, value in after.items() if not name.startswith(TRASH)} == before


@pytest.mark.parametrize("fatal_call", range(1, 5))
def test_an_interrupted_undo_can_be_repeated(faulty: Path, monkeypatch: pytest.MonkeyPatch, fatal_call: int) -> None:
    before = fingerprint(faulty)
    apply(faulty, plan_fixes(faulty, ["caption-extension", "duplicate-tags", "trigger-missing"], CONFIG))
    original = changes_module._restore
    calls = 0

    def restore(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == fatal_call:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(changes_module, "_restore", restore)
    with pytest.raises(KeyboardInterrupt):
        undo(faulty)
    monkeypatch.undo()
    undo(faulty)
    assert fingerprint(faulty) == before


def test_a_change_outside_the_folder_or_through_a_link_is_refused_before_any(faulty: Path, tmp_path: Path) -> None:
    inside = Change(("edit",), faulty / "good0.txt", lambda: b"new", "")
    with pytest.raises(DataError, match="lies outside"):
        apply(faulty, [inside, Change(("edit",), tmp_path / "far.txt", lambda: b"", "")])
    (faulty / "link.txt").symlink_to(faulty / "good0.txt")
    with pytest.raises(DataError, match="is a link"):
        apply(faulty, [inside, Change(("edit",), faulty / "link.txt", lambda: b"", "")])
    assert caption(faulty / "good0.txt") == "zeta, subject 0, wooden table"
    assert apply(faulty, []) is None


def test_a_file_that_cannot_be_written_says_how_far_it_came(faulty: Path) -> None:
    def fail() -> bytes:
        raise OSError(28, "No space left on device")

    planned = [
        Change(("edit",), faulty / "good0.txt", lambda: b"new", ""),
        Change(("edit",), faulty / "good1.txt", fail, ""),
    ]
    with pytest.raises(
        DataError, match=r"good1.txt can't be written: its disk is full, .* MiB are free.*\. 1 of 2 changes are"
    ):
        apply(faulty, planned)
    undo(faulty)
    assert caption(faulty / "good0.txt") == "zeta, subject 0, wooden table"


def test_a_copy_that_goes_leaves_the_caption_and_mask_that_it_shares_with_the_image_that_stays(tmp_path: Path) -> None:
    save_captioned(picture(1), tmp_path / "cat.png", "a cat")
    Image.new("L", (32, 32), 255).save(tmp_path / "cat-masklabel.png")
    for copy in ("cat.jpg", "other.png"):
        (tmp_path / copy).write_bytes((tmp_path / "cat.png").read_bytes())
    (tmp_path / "other.txt").write_text("another", encoding="utf-8")
    Image.new("L", (32, 32), 255).save(tmp_path / "other-masklabel.png")
    config = files.load(None, ["images.mask=file", "images.cache=false"])
    before = fingerprint(tmp_path)
    apply(tmp_path, plan_fixes(tmp_path, ["exact-duplicate"], config))
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left in ({"cat.txt", "cat-masklabel.png", name} for name in ("cat.png", "cat.jpg"))
    undo(tmp_path)
    assert fingerprint(tmp_path) == before


def test_a_copys_caption_goes_with_the_endings_that_are_asked_for_and_no_other_file_does(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_captioned(picture(1), tmp_path / f"{name}.png", None)
        for ending in (".caption", ".short", ".txt"):
            (tmp_path / f"{name}{ending}").write_text(f"{name}, {ending}", encoding="utf-8")
    settings = ["captions.extension=.caption", "captions.alternatives={.short: 0.5}", "images.cache=false"]
    apply(tmp_path, plan_fixes(tmp_path, ["exact-duplicate"], files.load(None, settings)))
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"a.png", "a.caption", "a.short", "a.txt", "b.txt"}
