"""Checking a dataset: every defect is found and named, and a clean set gives no finding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from sdlora.config import files
from sdlora.config.captioning import CaptioningConfig
from sdlora.config.shipped import sample_images_folder
from sdlora.data.captioning.run import caption_folder
from sdlora.data.fix.changes import undo
from sdlora.data.fix.edit import plan_edit
from sdlora.data.fix.fixes import plan_fixes
from sdlora.data.lint import measures
from sdlora.data.lint.check import check
from sdlora.data.lint.duplicates import groups
from sdlora.data.lint.findings import FIXABLE, RULES, Report
from sdlora.data.lint.html import as_html
from sdlora.data.lint.tags import near_miss_spellings, rewrite_tags
from sdlora.data.masking import make_masks
from sdlora.errors import DataError
from tests.support.dataset_pictures import picture, save_captioned

SETTINGS = ["images.resolution=256", "images.cache=false", "images.bucket_step=64"]


def report(*folders: Path, settings: tuple[str, ...] = ()) -> Report:
    return check(files.load(None, [*SETTINGS, *settings]), folders)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Six pictures without a fault."""
    subjects = ("dog", "boat", "lamp", "tree", "cake", "wheel")
    for number, subject in enumerate(subjects):
        save_captioned(picture(number), tmp_path / "set" / f"{number}.png", f"zeta style, a {subject}, plain ground")
    return tmp_path / "set"


def rules(found: Report) -> set[str]:
    return {finding.rule for finding in found.findings}


def files_of(found: Report, rule: str) -> set[str]:
    return {path.name for finding in found.of_rule(rule) for path in finding.files}


@pytest.mark.parametrize("preset", ["demo.yaml"])
def test_the_sample_set_gives_no_finding(preset: str) -> None:
    found = check(files.load(preset, ["images.cache=false"]))
    assert found.images == 24
    assert found.findings == ()
    assert found.summary == "24 images: nothing to fix"


def test_a_tag_in_every_caption_is_the_only_thing_to_say_about_clean_pictures(clean: Path) -> None:
    found = report(clean)
    assert {finding.message.partition(" is in")[0] for finding in found.findings} == {"'plain ground'", "'zeta style'"}
    assert rules(found) == {"tag-everywhere"}


def test_pictures_that_cannot_be_read_are_errors_with_their_reason(clean: Path) -> None:
    whole = (clean / "0.png").read_bytes()
    (clean / "cut.png").write_bytes(whole[: len(whole) // 2])
    (clean / "empty.jpg").write_bytes(b"")
    (clean / "phone.heic").write_bytes(b"heic")
    found = report(clean)
    assert files_of(found, "unreadable") == {"cut.png", "empty.jpg"}
    assert files_of(found, "unread-format") == {"phone.heic"}
    assert found.of_rule("unread-format")[0].fix is None
    messages = " ".join(finding.message for finding in found.of("error"))
    assert "the file is empty" in messages
    assert ".heic files need the package pillow-heif (pip install it), or save it as PNG or JPEG" in messages


def test_sizes_that_spoil_training_are_found_with_their_figures(clean: Path) -> None:
    save_captioned(picture(20, (100, 100)), clean / "tiny.png", "a bird")
    save_captioned(picture(21, (1400, 300)), clean / "wide.png", "a bench")
    found = report(clean)
    (tiny,) = found.of_rule("upscaled")
    assert tiny.figures == {"scale": 2.56}
    assert "100x100 px would be enlarged 2.6 times for resolution 256" in tiny.message
    assert files_of(found, "extreme-aspect") == {"wide.png"}
    assert "(4.7 to 1) keeps" in found.of_rule("extreme-aspect")[0].message


def test_looks_that_spoil_training_are_found(clean: Path) -> None:
    save_captioned(Image.new("RGB", (320, 320), (4, 4, 4)), clean / "black.png", "night")
    save_captioned(Image.new("RGB", (320, 320), (252, 252, 252)), clean / "white.png", "snow")
    save_captioned(picture(30).convert("L"), clean / "grey.png", "a stone")
    save_captioned(picture(31).filter(ImageFilter.GaussianBlur(12)), clean / "soft.png", "a cloud")
    save_captioned(picture(32), clean / "blocky.jpg", "a road", quality=10)
    glass = picture(33).convert("RGBA")
    glass.putalpha(120)
    save_captioned(glass, clean / "glass.png", "a glass")
    turned = Image.Exif()
    turned[0x0112] = 6
    save_captioned(picture(34), clean / "turned.jpg", "a tower", exif=turned, quality=90)
    frames = [picture(35), picture(36)]
    save_captioned(frames[0], clean / "moving.gif", "a runner", save_all=True, append_images=frames[1:])
    found = report(clean)
    assert {rule: files_of(found, rule) for rule in rules(found) - {"tag-everywhere"}} == {
        "near-black": {"black.png"},
        "near-white": {"white.png"},
        "grey": {"grey.png"},
        "blurred": {"soft.png"},
        "jpeg-artefacts": {"blocky.jpg"},
        "alpha": {"glass.png"},
        "exif-rotated": {"turned.jpg"},
        "animated": {"moving.gif"},
    }


def test_blocks_of_an_earlier_jpeg_show_in_a_png(clean: Path, tmp_path: Path) -> None:
    soft = picture(40).filter(ImageFilter.GaussianBlur(3))
    soft.save(tmp_path / "bad.jpg", quality=5)
    with Image.open(tmp_path / "bad.jpg") as damaged:
        save_captioned(damaged, clean / "again.png", "a hill")
    found = report(clean, settings=("images.resolution=320",))
    assert files_of(found, "jpeg-artefacts") == {"again.png"}
    assert "8x8 blocks of an earlier JPEG show" in found.of_rule("jpeg-artefacts")[0].message


def test_a_16_bit_picture_is_as_bright_as_it_looks(clean: Path) -> None:
    levels = numpy.asarray(picture(45).convert("L")).astype(numpy.uint16) * 257
    save_captioned(Image.fromarray(levels), clean / "deep.png", "a moon")
    assert rules(report(clean)) == {"grey", "trigger-inconsistent"}


def test_a_set_without_any_colour_is_a_style(clean: Path) -> None:
    for path in clean.glob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    assert "grey" not in rules(report(clean))


def test_an_opaque_alpha_channel_and_a_used_one_are_no_finding(clean: Path) -> None:
    save_captioned(picture(50).convert("RGBA"), clean / "opaque.png", "a door")
    assert "alpha" not in rules(report(clean))
    glass = picture(51).convert("RGBA")
    glass.putalpha(120)
    save_captioned(glass, clean / "masked.png", "a window")
    assert "alpha" not in rules(report(clean, settings=("images.mask=alpha",)))


def test_copies_are_found_inside_a_set_and_across_sets(clean: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (clean / "copy.png").write_bytes((clean / "0.png").read_bytes())
    (clean / "copy.txt").write_text("another caption", encoding="utf-8")
    smaller = ImageEnhance.Brightness(picture(1)).enhance(1.1).resize((280, 280))
    save_captioned(smaller, other / "smaller.jpg", "a boat again", quality=80)
    found = report(clean, other)
    (exact,) = found.of_rule("exact-duplicate")
    assert exact.message == "2 files with the same bytes, with different captions"
    assert {path.name for path in exact.files} == {"0.png", "copy.png"}
    (near,) = found.of_rule("near-duplicate")
    assert [found.name(path) for path in near.files] == ["set/1.png", "other/smaller.jpg"]


def test_a_training_image_among_the_held_out_ones_is_a_leak(clean: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out"
    save_captioned(picture(2).resize((300, 300)), held_out / "seen.png", "a lamp")
    save_captioned(picture(60), held_out / "unseen.png", "a shoe")
    (held_out / "same.png").write_bytes((clean / "3.png").read_bytes())
    found = report(clean, settings=(f"validation.folder={held_out}",))
    (leak,) = found.of_rule("validation-leak")
    assert [path.name for path in leak.files] == ["seen.png", "2.png"]


def test_caption_files_that_are_not_read_are_errors(clean: Path) -> None:
    save_captioned(picture(70), clean / "none.png", None)
    save_captioned(picture(71), clean / "empty.png", " \n")
    save_captioned(picture(72), clean / "kohya.png", None)
    (clean / "kohya.caption").write_text("a kite", encoding="utf-8")
    save_captioned(picture(73), clean / "capital.png", None)
    (clean / "capital.TXT").write_text("a clock", encoding="utf-8")
    save_captioned(picture(74), clean / "latin.png", None)
    (clean / "latin.txt").write_bytes("café au lait".encode("cp1252"))
    (clean / "metadata.jsonl").write_text("not json\n", encoding="utf-8")
    found = report(clean)
    assert files_of(found, "caption-missing") == {"none.png", "empty.png"}
    assert files_of(found, "caption-extension") == {"kohya.caption", "capital.TXT"}
    assert files_of(found, "caption-encoding") == {"latin.txt"}
    assert "metadata.jsonl, line 1: expected an object" in found.of_rule("caption-unreadable")[0].message
    assert len(found.of("error")) == 4
    assert "caption-missing" not in rules(report(clean, settings=("captions.default=a thing",)))


def test_a_caption_without_an_image_is_a_finding_and_the_image_that_it_is_meant_for_is_named(clean: Path) -> None:
    save_captioned(picture(70), clean / "zibbo_pink.png", None)
    for name in ("Zibbo-pink.txt", "stray.txt"):
        (clean / name).write_text("zibbo", encoding="utf-8")
    misspelt, other = report(clean).of_rule("caption-orphan")
    assert [path.name for path in (*misspelt.files, *other.files)] == ["Zibbo-pink.txt", "stray.txt"]
    assert misspelt.message.endswith("did you mean zibbo_pink.txt?")
    assert "did you mean" not in other.message
    (clean / "inner").mkdir()
    save_captioned(picture(71), clean / "inner" / "a.png", "x")
    (clean / "inner" / "b.txt").write_text("zibbo", encoding="utf-8")
    both = report(clean, clean / "inner").of_rule("caption-orphan")
    assert [path.name for finding in both for path in finding.files].count("b.txt") == 1


def test_a_caption_longer_than_the_limit_says_which_limit_would_do(clean: Path) -> None:
    words = ["red", "green", "blue", "black", "white", "brown", "pink", "grey", "gold", "teal"] * 10
    save_captioned(picture(80), clean / "long.png", " ".join(words))
    (finding,) = report(clean).of_rule("caption-too-long")
    assert finding.figures["most_tokens"] == 100
    assert "set captions.max_tokens=150" in finding.message
    assert "caption-too-long" not in rules(report(clean, settings=("captions.max_tokens=150",)))
    save_captioned(picture(80), clean / "long.png", " ".join(words * 3))
    assert "shorten them: 225 is the most there is" in report(clean).of_rule("caption-too-long")[0].message


def test_tags_said_twice_and_misspelt_are_found(clean: Path) -> None:
    (clean / "0.txt").write_text("zeta style, a dog, Plain Ground, plain ground", encoding="utf-8")
    (clean / "1.txt").write_text("zeta style, a boat, plain gruond", encoding="utf-8")
    (clean / "2.txt").write_text("zeta style, a lamp, plain_ground", encoding="utf-8")
    save_captioned(picture(90), clean / "6.png", "zeta style, a star, plain ground")
    found = report(clean)
    (twice,) = found.of_rule("duplicate-tags")
    assert twice.message == "the same tag more than once: 'plain ground'"
    assert {finding.message for finding in found.of_rule("near-miss-spelling")} == {
        "'plain gruond' looks like a slip of 'plain ground'",
        "'plain_ground' looks like a slip of 'plain ground'",
    }


def test_a_trigger_in_some_captions_only_is_found_with_and_without_the_setting(clean: Path) -> None:
    (clean / "3.txt").write_text("a tree, plain ground", encoding="utf-8")
    found = report(clean)
    assert files_of(found, "trigger-inconsistent") == {"3.png"}
    assert "set captions.trigger=zeta style" in found.of_rule("trigger-inconsistent")[0].message
    found = report(clean, settings=("captions.trigger=zeta style",))
    assert files_of(found, "trigger-missing") == {"3.png"}
    assert "trigger-inconsistent" not in rules(found)


def test_a_bucket_with_one_image_matters_only_in_larger_batches(clean: Path) -> None:
    save_captioned(picture(95, (480, 300)), clean / "wide.png", "a train")
    assert "lonely-bucket" not in rules(report(clean))
    found = report(clean, settings=("optimization.batch_size=4",))
    assert files_of(found, "lonely-bucket") == {"wide.png"}
    assert "its batches hold 1 image, not 4" in found.of_rule("lonely-bucket")[0].message


def test_a_folder_called_0_name_is_an_error(clean: Path) -> None:
    save_captioned(picture(96), clean / "0_later" / "a.png", "a hat")
    assert files_of(report(clean), "zero-repeats") == {"a.png"}


def test_an_unreadable_mask_is_an_error(clean: Path) -> None:
    (clean / "0-masklabel.png").write_bytes(b"nothing")
    found = report(clean, settings=("images.mask=file",))
    assert "its mask 0-masklabel.png can't be read" in found.of_rule("unreadable")[0].message


def test_a_missing_or_empty_folder_is_refused_as_in_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="doesn't exist"):
        report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="hold no images"):
        report(tmp_path / "empty")


def test_findings_are_plain_values_and_a_page_that_needs_nothing_else(clean: Path) -> None:
    save_captioned(picture(97, (90, 90)), clean / "<b>small&.png", "<script>alert(1)</script>, <i>x, <i>x")
    for number in range(9):
        save_captioned(picture(200 + number), clean / f"bare{number}.png", None)
    found = report(clean)
    values = json.loads(json.dumps(found.as_dict()))
    assert values["counts"]["error"] == 1
    assert values["findings"][0]["severity"] == "error"
    page = as_html(found)
    assert page.count("data:image/jpeg;base64,") >= 9
    assert "and 1 more" in page
    assert "&lt;b&gt;small&amp;.png" in page
    assert "<script" not in page
    assert "<i>" not in page
    assert "http" not in page


@pytest.mark.parametrize("values", [[7], [0, 255], [3, 3, 3, 9], list(range(256)), [1, 2, 250, 250, 4, 4, 0]])
def test_percentiles_of_counted_levels_are_those_of_the_values(values: list[int]) -> None:
    shares = (0.0, 0.005, 0.02, 0.5, 0.98, 0.998, 1.0)
    found = measures.percentiles(numpy.bincount(values, minlength=256), shares)
    assert found == pytest.approx(numpy.percentile(values, [100 * share for share in shares]))


def test_every_fixable_rule_is_a_rule() -> None:
    assert set(FIXABLE) <= set(RULES)


def test_pairs_that_share_an_image_are_one_group() -> None:
    assert groups([(4, 7), (1, 2), (2, 4), (8, 9)]) == [[1, 2, 4, 7], [8, 9]]


def test_numbers_plurals_and_short_or_frequent_words_are_not_misspellings() -> None:
    config = files.load().captions
    common = ["two girls, a hat, a river"] * 10
    assert near_miss_spellings([*common, "one girl, two girl, a cat, a rivers"], config) == {}
    assert near_miss_spellings([*common, "a rivre"], config) == {"a rivre": "a river"}
    assert near_miss_spellings(["hair 1"] * 9 + ["hair 2"], config) == {}
    assert near_miss_spellings(["a brown bear"] * 4 + ["a brown pear"], config) == {}


def test_lines_whose_tags_stay_keep_every_character() -> None:
    config = files.load().captions
    text = "a ,b\r\nc,  c\n"
    assert rewrite_tags(text, config, lambda tags: list(dict.fromkeys(tags))) == "a ,b\r\nc\n"


def test_a_shipped_set_is_checked_by_its_name() -> None:
    assert check({}, ["builtin:mascot"]).images == check({}, [sample_images_folder() / "mascot"]).images


@pytest.mark.parametrize("name", ["builtin:mascot", "builtin:nosuch"])
def test_a_shipped_set_is_not_written_into_and_the_others_are_named(name: str) -> None:
    said = r"comes with sdlora and is not changed: copy .*mascot" if name == "builtin:mascot" else "no set .* there is"
    for change in (
        lambda folder: plan_fixes(folder, ["duplicate-tags"], files.load()),
        lambda folder: plan_edit(folder, "a", "b"),
        undo,
        lambda folder: caption_folder(folder, CaptioningConfig(model="a/b")),
        lambda folder: make_masks(folder, None),  # type: ignore[arg-type]
    ):
        with pytest.raises(DataError, match=said):
            change(Path(name))
    with pytest.raises(DataError, match=r"did you mean builtin:mascot, which comes with sdlora\?"):
        plan_edit(Path("mascot"), "a", "b")


def test_class_images_are_read_as_a_run_does_without_the_rules_for_triggers(clean: Path, tmp_path: Path) -> None:
    save_captioned(picture(90), tmp_path / "dogs" / "dog.png", None)
    prior = "objective.prior_preservation=class_images"
    settings = ["captions.trigger=zeta", f"images.class_folder={tmp_path / 'dogs'}", "captions.keep_tags=2"]
    found = report(clean, settings=(*settings, prior))
    assert files_of(found, "caption-missing") == {"dog.png"}
    assert "dog.png" not in files_of(found, "trigger-inconsistent") | files_of(found, "trigger-missing")
    (idle,) = found.of_rule("without-effect")
    assert idle.message.startswith("captions.keep_tags has no effect without")
    with pytest.raises(DataError, match="cats doesn't exist"):
        report(clean, settings=(f"images.class_folder={tmp_path / 'cats'}", prior))


def test_the_page_of_a_check_says_a_command_that_can_be_pasted(clean: Path) -> None:
    folder = clean.rename(clean.with_name("my pictures"))
    next(folder.glob("*.txt")).write_text("a cup, red, red", encoding="utf-8")
    assert f"sdlora dataset fix &#x27;{folder}&#x27; --rules duplicate-tags" in as_html(report(folder))
