"""Images of a dataset as the page lists, filters, edits and measures them."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from sdlora.config import files
from sdlora.config.captioning import CaptioningConfig
from sdlora.data.fix.changes import undo
from sdlora.data.sets import history, listing, shapes
from sdlora.data.sets.edits import Edit, make_edit, plan_edit
from sdlora.data.sets.listing import Filter, Item
from sdlora.data.sets.suggestions import Suggestion, suggest
from sdlora.data.thumbnails import large_picture, thumbnail
from sdlora.errors import ConfigError
from sdlora.launch.dataset_jobs import caption_options, check_options, checked_resolutions
from sdlora.launch.jobs import JobHandle
from tests.support.dataset_pictures import fingerprint, picture, save_captioned
from webui.datasets import view
from webui.datasets.view import line, received, summary, tokens
from webui.paging import page_of
from webui.state import PageState
from webui.train.remembered import default_caption, resolutions


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    captions = ["red, cat, sits", "Red, dog", None, "blue, cat, " + "very long words, " * 30]
    for number, caption in enumerate(captions):
        save_captioned(picture(number, (64, 48)), folder / f"{number}.png", caption)
    Image.new("L", (64, 48), 255).save(folder / "1-masklabel.png")
    return folder


def names(folder: Path, wanted: Filter) -> list[str]:
    return [item.name for item in listing.read(folder) if wanted.passes(item)]


def test_after_a_kill_within_a_line_of_the_log_undo_still_says_what_it_takes_back(dataset: Path) -> None:
    for word in ("older", "newer"):
        make_edit(dataset, plan_edit(listing.read(dataset)[:2], Edit("front", word)))
    newest = max((dataset / ".sdlora-trash").iterdir()) / "log.jsonl"
    newest.write_text(newest.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    told = history.last_change(dataset)
    assert told is not None
    assert told.files == history.undo_last(dataset) == 1


def test_images_are_listed_by_name_with_caption_and_mask(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = listing.read(dataset)
    assert [(item.name, item.mask is not None) for item in items] == [
        ("0.png", False),
        ("1.png", True),
        ("2.png", False),
        ("3.png", False),
    ]
    assert items[2].caption == ""
    (dataset / "empty").mkdir()
    assert listing.read(dataset / "empty") == ()
    (dataset / "below").mkdir()
    (dataset / "0.png").rename(dataset / "below" / "0.png")
    monkeypatch.chdir(dataset)
    assert [item.name for item in listing.read(Path())] == ["1.png", "2.png", "3.png", "below/0.png"]


def test_filters_find_words_missing_and_long_captions_and_tags(dataset: Path) -> None:
    assert names(dataset, Filter("RED")) == ["0.png", "1.png"]
    assert names(dataset, Filter("cat blue")) == ["3.png"]
    assert names(dataset, Filter(kind="no caption")) == ["2.png"]
    assert names(dataset, Filter(kind="too long")) == ["3.png"]
    assert names(dataset, Filter(kind="with mask")) == ["1.png"]
    assert names(dataset, Filter(tags=("red", "cat"))) == ["0.png"]
    assert Filter().is_empty


def test_tags_are_counted_once_a_caption_whatever_their_case(dataset: Path) -> None:
    counts = dict(listing.tag_counts(listing.read(dataset)))
    assert counts["red"] == 2
    assert counts["very long words"] == 1


def test_pages_have_ends_and_neighbours(dataset: Path) -> None:
    items = listing.read(dataset)
    assert [item.name for item in page_of(items, 9, 3).items] == ["3.png"]
    assert page_of(items, -4, 3).number == 1
    assert page_of([], 1, 3).num_pages == 1
    assert page_of(items, None, 3, listing.position(items, "3.png")).number == 2
    assert [listing.neighbour(items, "1.png", step) for step in (-1, 1)] == [0, 2]
    assert [listing.neighbour(items, name, step) for name, step in (("0.png", -1), ("3.png", 1))] == [0, 3]
    without = [items[0], items[2], items[3]]  # 1.png has left the list
    assert [without[listing.neighbour(without, "1.png", step)].name for step in (-1, 1)] == ["0.png", "2.png"]


def test_a_caption_is_written_as_typed_and_none_is_made_for_nothing(dataset: Path) -> None:
    listing.write_caption(dataset / "2.png", "")
    assert not (dataset / "2.txt").exists()
    listing.write_caption(dataset / "2.png", "typed, ")
    assert (dataset / "2.txt").read_text(encoding="utf-8") == "typed, "
    listing.write_caption(dataset / "2.png", "")
    assert (dataset / "2.txt").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (Edit("front", "zwx"), "a, b", "zwx, a, b"),
        (Edit("front", "zwx"), "zwx, a", "zwx, a"),
        (Edit("front", "zwx"), "", "zwx"),
        (Edit("end", "masterpiece"), "a, b", "a, b, masterpiece"),
        (Edit("remove", "Cat, dog"), "a cat, cat, b, DOG", "a cat, b"),
        (Edit("replace", "(a)", "\\1"), "x (A) y", "x \\1 y"),
        (Edit("replace", "a", "o", match_case=True), "aA", "oA"),
        (Edit("replace", r"(\w+) cat", r"cat \1", is_regex=True), "red cat, blue cat", "cat red, cat blue"),
        (Edit("dedupe"), "a, b, A", "a, b"),
    ],
)
def test_each_edit_does_what_it_says(edit: Edit, before: str, after: str) -> None:
    assert edit.rewrite()(before) == after


def test_an_edit_that_cannot_be_made_says_why() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        Edit("replace", "(", is_regex=True).rewrite()
    with pytest.raises(ConfigError, match="not a regular expression with a fitting replacement"):
        Edit("replace", "a", r"\2", is_regex=True).rewrite()
    with pytest.raises(ConfigError, match="say which text"):
        Edit("front", "  ").rewrite()
    with pytest.raises(ConfigError, match="'nothing' is none of front"):
        Edit("nothing", "a").rewrite()


def test_an_edit_is_previewed_made_and_undone_as_one(dataset: Path) -> None:
    before = fingerprint(dataset)
    planned = plan_edit(listing.read(dataset), Edit("front", "zwx"))
    shown = view.edit_preview(planned, 4)
    assert "4 of 4 captions would change" in shown
    assert "<ins>zwx, </ins>" in shown
    assert fingerprint(dataset) == before
    assert make_edit(dataset, planned) == 4
    assert all(item.caption.startswith("zwx") for item in listing.read(dataset))
    change = history.last_change(dataset)
    assert change is not None
    assert change.words == "Undo the edit of 4 files"
    undo(dataset)
    assert fingerprint(dataset) == before
    assert history.last_change(dataset) is None


def test_an_edit_is_refused_when_a_caption_has_changed_since_its_preview(dataset: Path) -> None:
    planned = plan_edit(listing.read(dataset), Edit("front", "zwx"))
    (dataset / "0.txt").write_text("by hand", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"1 captions have changed since the preview \(0.png\)"):
        make_edit(dataset, planned)
    assert (dataset / "1.txt").read_text(encoding="utf-8") == "Red, dog"


def test_the_preview_shows_twenty_and_escapes_what_captions_hold(tmp_path: Path) -> None:
    for number in range(23):
        save_captioned(picture(0, (64, 64)), tmp_path / f"{number:02d}.png", "<script>, a")
    shown = view.edit_preview(plan_edit(listing.read(tmp_path), Edit("remove", "a")), 23)
    assert shown.count("<tr>") == 21
    assert "and 3 more" in shown
    assert "<script>" not in shown


def test_a_deleted_image_goes_with_captions_and_mask_and_comes_back(dataset: Path) -> None:
    (dataset / "1.caption").write_text("for another tool")
    before = fingerprint(dataset)
    history.delete_image(dataset, listing.read(dataset)[1])
    assert not list(dataset.glob("1*"))
    undo(dataset)
    assert fingerprint(dataset) == before


def test_a_deleted_image_leaves_the_caption_and_mask_of_another_one_of_its_name(dataset: Path) -> None:
    picture(7).save(dataset / "1.jpg")
    history.delete_image(dataset, listing.read(dataset)[1])
    assert {path.name for path in dataset.glob("1*")} == {"1.png", "1.txt", "1-masklabel.png"}
    history.delete_image(dataset, listing.read(dataset)[1])
    assert not list(dataset.glob("1*"))


def test_thumbnails_are_upright_small_and_made_once(tmp_path: Path) -> None:
    lying = picture(1, (800, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.jpg", exif=exif)
    made = thumbnail(tmp_path / "a.jpg", tmp_path / "thumbs")
    with Image.open(made) as small:
        assert small.size == (128, 256)
    assert shapes.size_of(tmp_path / "a.jpg") == (400, 800)
    stamp = made.stat().st_mtime_ns
    assert thumbnail(tmp_path / "a.jpg", tmp_path / "thumbs").stat().st_mtime_ns == stamp


def test_many_threads_may_make_the_same_thumbnail(tmp_path: Path) -> None:
    picture(1, (400, 400)).save(tmp_path / "a.png")
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(lambda _: thumbnail(tmp_path / "a.png", tmp_path / "thumbs"), range(16)))
    assert [path.name for path in (tmp_path / "thumbs").iterdir()] == [path.name for path in made]


def test_a_mask_is_tinted_on_the_large_picture(dataset: Path, tmp_path: Path) -> None:
    items = listing.read(dataset)
    Image.new("L", (64, 48), 0).save(dataset / "1-masklabel.png")
    with (
        Image.open(large_picture(items[1].path, items[1].mask, tmp_path / "t")) as tinted,
        Image.open(dataset / "1.png") as plain,
    ):
        red_added = tinted.convert("RGB").resize((1, 1)).getpixel((0, 0))[0] - plain.resize((1, 1)).getpixel((0, 0))[0]
    assert red_added > 0
    assert (
        large_picture(items[0].path, items[0].mask, tmp_path / "t").name
        == thumbnail(items[0].path, tmp_path / "t", 1024).name
    )


def test_what_training_cuts_off_is_said_in_words(dataset: Path) -> None:
    assert shapes.crop_in_words(shapes.placement((512, 512), 512), (512, 512)).endswith("512 × 512: nothing cut off.")
    cut = shapes.crop_in_words(shapes.placement((1200, 1000), 512), (1200, 1000))
    assert cut == "1200 × 1000 px, trained as 576 × 448: 7 % cut off top and bottom."
    assert "enlarged 4 times" in shapes.crop_in_words(shapes.placement((128, 128), 512), (128, 128))


def test_the_crop_figure_names_the_image_and_marks_the_window(dataset: Path, tmp_path: Path) -> None:
    item = listing.read(dataset)[0]
    figure = view.crop(item, tmp_path / "a b.webp", 512)
    assert 'alt="0.png: red, cat, sits"' in figure
    assert "a%20b.webp" in figure
    assert "<rect" in figure
    (dataset / "9.png").write_bytes(b"no image")
    broken = next(item for item in listing.read(dataset) if item.name == "9.png")
    assert "can't be read" in view.crop(broken, tmp_path / "x", 512)


def test_the_bucket_chart_counts_repeats_and_has_a_table(tmp_path: Path) -> None:
    save_captioned(picture(1, (64, 64)), tmp_path / "3_cat" / "a.png", None)
    save_captioned(picture(2, (96, 48)), tmp_path / "b.png", None)
    counts = shapes.count_buckets(tmp_path, 512)
    assert sorted(counts.values()) == [1, 3]
    chart = view.buckets(counts)
    assert 'aria-label="4 images an epoch in 2 buckets, 3 in the largest"' in chart
    assert "<table>" in chart


def test_the_report_has_a_button_for_each_fix_and_shows_names_below_the_folder(tmp_path: Path) -> None:
    finding = {
        "severity": "warning", "rule": "duplicate-tags", "message": "the same tag <twice>", "fix": "duplicate-tags",
        "files": [str(tmp_path / "sub" / "a.png")], "figures": {},
    }  # fmt: skip
    shown = view.report({"images": 3, "counts": {"error": 0, "warning": 1}, "findings": [finding]}, tmp_path)
    assert 'data-fix="duplicate-tags"' in shown
    assert 'data-image="sub/a.png"' in shown
    assert "&lt;twice&gt;" in shown
    assert "nothing to fix" in view.report({"images": 3, "counts": {}, "findings": []}, tmp_path)


def test_captioning_options_give_the_settings_back() -> None:
    config = CaptioningConfig(
        model="-odd", existing="append", exclude=("a", "b c"), threshold=0.5, escape_brackets=True
    )
    options = caption_options(config)
    assert options == [
        "--model=-odd", "--existing=append", "--exclude", "a", "--exclude", "b c",
        "--threshold=0.5", "--escape-brackets",
    ]  # fmt: skip
    assert caption_options(CaptioningConfig()) == []


def test_check_options_are_read_back_as_they_were_meant() -> None:
    options = check_options((768,), " it's: [odd] ")
    config = files.load(None, [options[1], options[3]])
    assert (config.images.resolutions, config.captions.trigger) == ((768,), "it's: [odd]")


def test_a_check_judges_for_what_train_is_set_to_and_says_for_what(tmp_path: Path) -> None:
    state = PageState(tmp_path / "state.json")
    assert resolutions(state) is None
    assert default_caption(state) is None
    state.set("train.form", {"images.resolution": "512, 768", "captions.default": '""'})
    assert resolutions(state) == (512, 768)
    assert default_caption(state) == ""
    state.set("train.form", {"images.resolution": "nonsense"})
    assert resolutions(state) is None
    options = ["dataset", "check", str(tmp_path), "--json", *check_options((512, 768), "")]
    assert files.load(None, [options[-1]]).images.resolutions == (512, 768)
    job = tmp_path / "job"
    job.mkdir()
    (job / "job.json").write_text(json.dumps({"arguments": options, "created_at": 1.0}), encoding="utf-8")
    assert checked_resolutions(JobHandle(job)) == (512, 768)
    assert view.judged("9:00", (512, 768), (768, 512)) == "Checked at 9:00, judged for 512 and 768 px."
    assert view.judged("9:00", (512,), None) == "Checked at 9:00, judged for 512 px."
    assert "Train is set to 1024 px now: check again" in view.judged("9:00", (512,), (1024,))


def test_the_words_below_a_picture_say_what_is_wrong(dataset: Path) -> None:
    items = listing.read(dataset)
    assert [line(item)[1] for item in items] == [False, False, True, True]
    assert line(items[0]) == (items[0].caption, False)
    assert line(items[2]) == ("no caption", True)
    assert line(items[3])[0].endswith(" tokens")
    assert "4 images and 3 captions" in summary(items, 5)
    assert "cut off" in tokens(items[3], None, saved=True)


def test_without_a_caption_the_page_says_so_and_what_is_trained(tmp_path: Path) -> None:
    for name in ("10_sks dog/a", "10_sks dog/b", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "10_sks dog" / "b.txt").write_text("a dog on a lawn", encoding="utf-8")
    named, written, bare = items = listing.read(tmp_path)
    assert [item.caption for item in items] == ["", "a dog on a lawn", ""]
    assert listing.caption_of(named.path, tmp_path) == ""
    assert line(named) == ("no caption; trains as “sks dog”", True)
    assert line(bare) == ("no caption", True)
    assert names(tmp_path, Filter(kind="no caption")) == ["10_sks dog/a.png", "c.png"]
    assert dict(listing.tag_counts(items)) == {"a dog on a lawn": 1}
    assert "3 images and 1 caption" in summary(items, 1)
    assert "the folder's name: “sks dog”" in tokens(named, "a default", saved=False)
    assert "as the Train tab has it: “a default”" in tokens(bare, "a default", saved=False)
    assert "refuses an image without one" in tokens(bare, None, saved=False)
    assert "with the trigger alone" in tokens(bare, "", saved=False)
    assert "of 75 tokens" in tokens(written, None, saved=False)
    # what is put in front of nothing would take the place of the folder's name
    planned = plan_edit(items, Edit("front", "zwx"))
    assert [each.after for each in planned] == ["zwx, sks dog", "zwx, a dog on a lawn", "zwx"]
    assert make_edit(tmp_path, planned) == 3


def test_an_upload_is_summed_up() -> None:
    from sdlora.data.sets.uploads import Received

    shown = received(Received(images=2, captions=1, same=1, renamed={"a.png": "a-2.png"}, refused={"b.exe": "<no>"}))
    assert "Added 2 images, 1 caption" in shown
    assert "a.png is a-2.png" in shown
    assert "b.exe: &lt;no&gt;" in shown
    assert "Nothing new" in received(Received())


def test_a_caption_that_somebody_else_changed_is_not_overwritten(dataset: Path) -> None:
    image = listing.read(dataset)[0].path
    before = listing.caption_of(image, dataset)
    assert listing.save_caption(image, dataset, "mine", {before}) is None
    assert listing.save_caption(image, dataset, "other", {before}) == "mine"
    assert listing.caption_of(image, dataset) == "mine"
    assert listing.save_caption(image, dataset, "mine", set()) is None  # it is what is there already
    assert listing.save_caption(image, dataset, "mine again", {before, "mine"}) is None
    assert listing.caption_of(image, dataset) == "mine again"


def test_a_dataset_suggests_name_trigger_and_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "my cats"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zwx, a cat number {number}", encoding="utf-8")
    assert suggest(folder) == Suggestion(
        "my-cats", "zwx", ("zwx, a cat number 0", "zwx, a cat number 2", "zwx, a cat number 4")
    )
    (folder / "0.txt").write_text("something else", encoding="utf-8")
    assert suggest(folder).trigger == ""


def test_a_listing_is_remembered_only_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a fox", encoding="utf-8")
    read: list[Path] = []
    original = listing.list_folder
    monkeypatch.setattr(listing, "list_folder", lambda folder: read.append(folder) or original(folder))
    listing.read(tmp_path)
    listing.read(tmp_path)
    assert len(read) == 2  # just written: a second change might not show in the file's time
    request.getfixturevalue("settled")
    assert [item.caption for item in listing.read(tmp_path)] == ["a fox"]
    listing.read(tmp_path)
    assert len(read) == 3
    before = (tmp_path / "a.txt").stat()
    (tmp_path / "a.txt").write_text("a dog", encoding="utf-8")
    os.utime(tmp_path / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [item.caption for item in listing.read(tmp_path)] == ["a dog"]
    (tmp_path / "a.txt").unlink()
    assert [item.caption for item in listing.read(tmp_path)] == [""]


@pytest.mark.parametrize("letters", ["a", "ab ", "é", "狐", "🦊", "?!", "a, "])
def test_what_is_too_long_agrees_with_the_count_of_tokens(letters: str) -> None:
    for number in (1, 18, 24, 37, 38, 75, 76, 151, 300):
        item = Item(Path("a.png"), "a.png", letters * number)
        assert item.is_too_long == (item.tokens > listing.TOKEN_LIMIT)
