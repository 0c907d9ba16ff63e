"""A set with one image of each defect: each is found by name; what can be fixed is, and undone byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.data.fix.changes import apply, undo
from sdlora.data.fix.fixes import plan_fixes
from sdlora.data.lint.check import check
from sdlora.data.lint.findings import FIXABLE, RULES, Report
from tests.support.dataset_pictures import fingerprint, picture, save_captioned

TRIGGER = "captions.trigger=zeta"

DEFECTS: dict[str, set[str]] = {
    "unreadable": {"unreadable.png"},
    "unread-format": {"unread-format.heic"},
    "zero-repeats": {"zero-repeats.png"},
    "caption-missing": {"caption-missing.png"},
    "caption-empty": {"caption-empty.txt"},
    "caption-unread": {"captions.csv"},
    "misnamed-mask": {"good3_mask.png"},
    "mask-shape": {"good4-masklabel.png"},
    "mask-empty": {"good5-masklabel.png"},
    "caption-orphan": {"Caption missing.txt"},
    "caption-unreadable": set(),  # a line of metadata.jsonl, told in the message
    "caption-encoding": {"caption-encoding.txt"},
    "caption-extension": {"caption-extension.caption"},
    "upscaled": {"upscaled.png"},
    "extreme-aspect": {"extreme-aspect.png"},
    "near-black": {"near-black.png"},
    "near-white": {"near-white.png"},
    "blurred": {"blurred.png"},
    "jpeg-artefacts": {"jpeg-artefacts.jpg"},
    "exact-duplicate": {"good0.png", "the-exact-copy.png"},
    "near-duplicate": {"good1.png", "the-near-copy.png"},
    "validation-leak": {"held-out.png", "good2.png"},
    "caption-too-long": {"caption-too-long.png"},
    "caption-brackets": {"caption-escapes.png"},
    "caption-escapes": {"caption-escapes.png"},
    "caption-metadata": set(),  # a row without its image, told in the message
    "keep-separator": {"keep-separator.png"},
    "duplicate-tags": {"duplicate-tags.png"},
    "trigger-inconsistent": {"trigger-missing.png"},
    "near-miss-spelling": {"near-miss-spelling.png"},
    "lonely-bucket": {"extreme-aspect.png"},
    "animated": {"animated.gif"},
    "read-otherwise": set(),  # masks that images.mask=none leaves unread, told in the message
    "huge": {"huge.jpg"},
    "exif-rotated": {"exif-rotated.jpg"},
    "alpha": {"alpha.png"},
    "grey": {"grey.png"},
    "trigger-missing": {"trigger-missing.png"},
    "tag-everywhere": set(),  # all captions
    "without-effect": set(),  # a setting, told in the message
}

UNSEEN = {"trigger-inconsistent", "caption-brackets", "mask-missing", "mask-shape", "mask-empty"}
"""Rules that other settings than a trigger alone bring out."""


def configured(root: Path, *settings: str) -> TrainConfig:
    always = ("images.resolution=256", "captions.keep_tags=1", "images.cache=false", "optimization.batch_size=4")
    return files.load(None, [*always, f"validation.folder={root / 'held-out'}", *settings])


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    folder = tmp_path / "set"

    def save(image: Image.Image, name: str, words: str | None = "", **options: object) -> Path:
        stem = name.rpartition("/")[2].partition(".")[0]
        caption = None if words is None else f"zeta, {words or f'thing {stem}'}, soft light"
        return save_captioned(image, folder / name, caption, **options)

    for number in range(30):
        save(picture(number), f"good{number}.png", f"thing {'abcdefghijklmnopqrstuvwxyzäöüß'[number]}, wooden table")
    (folder / "unreadable.png").write_bytes(b"\x89PNG cut off")
    (folder / "unread-format.heic").write_bytes(b"heic")
    save(picture(40), "0_later/zero-repeats.png")
    save(picture(41), "caption-missing.png", None)
    (folder / "Caption missing.txt").write_text("zeta, a caption", encoding="utf-8")
    rows = [
        '{"file_name": "gone.png", "text": "x"}',
        '{"file_name": "caption-empty.png", "text": "zeta, thing, soft light"}',
    ]
    (folder / "metadata.jsonl").write_text("\n".join(["not json", *rows]), encoding="utf-8")
    save(picture(60), "caption-empty.png").with_suffix(".txt").write_text("", encoding="utf-8")
    (folder / "captions.csv").write_text("file_name,text", encoding="utf-8")
    save(picture(61), "good3_mask.png")
    Image.new("L", (160, 320), 255).save(folder / "good4-masklabel.png")
    Image.new("L", (320, 320)).save(folder / "good5-masklabel.png")
    save(picture(42), "caption-encoding.png").with_suffix(".txt").write_bytes("zeta, café, soft light".encode("cp1252"))
    text = save(picture(43), "caption-extension.png").with_suffix(".txt")
    text.rename(text.with_suffix(".caption"))
    save(picture(44, (100, 100)), "upscaled.png")
    save(picture(45, (1400, 300)), "extreme-aspect.png")
    save(Image.new("RGB", (320, 320), (4, 4, 4)), "near-black.png")
    save(Image.new("RGB", (320, 320), (252, 252, 252)), "near-white.png")
    save(picture(46).filter(ImageFilter.GaussianBlur(12)), "blurred.png")
    save(picture(47), "jpeg-artefacts.jpg", quality=10)
    save(picture(0), "the-exact-copy.png")
    save(picture(1).resize((280, 280)), "the-near-copy.png")
    save(picture(48), "caption-too-long.png", " ".join(["tall", "grass", "wind"] * 40))
    save(picture(58), "caption-escapes.png", r"a jar, saber \(fate\), glass [x]")
    save(picture(59), "keep-separator.png", "a fork ||| spoon")
    save(picture(49), "duplicate-tags.png", "a lamp, red, Red")
    save(picture(50), "near-miss-spelling.png", "a hat, wooden tabel")
    frames = [picture(51), picture(52)]
    save(frames[0], "animated.gif", save_all=True, append_images=frames[1:])
    save(picture(53, (5100, 5000)), "huge.jpg", quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    save(picture(54), "exif-rotated.jpg", exif=turned, quality=90)
    glass = picture(55).convert("RGBA")
    glass.putalpha(120)
    save(glass, "alpha.png")
    save(picture(56).convert("L"), "grey.png")
    save_captioned(picture(57), folder / "trigger-missing.png", "a cup, soft light")
    save_captioned(picture(2).resize((300, 300)), tmp_path / "held-out" / "held-out.png", "a lamp")
    return tmp_path


def named(found: Report) -> dict[str, set[str]]:
    """Files by rule."""
    files_of: dict[str, set[str]] = {}
    for finding in found.findings:
        files_of.setdefault(finding.rule, set()).update(path.name for path in finding.files)
    return files_of


def test_each_defect_is_found_and_named_and_what_can_be_mended_is_undone(faulty: Path) -> None:
    folder = faulty / "set"
    before = fingerprint(faulty)
    plain, with_trigger = configured(faulty), configured(faulty, TRIGGER)
    found = named(check(plain, [folder]))
    with_weights = configured(faulty, "captions.weights=true")
    for other in (with_trigger, with_weights, configured(faulty, "images.mask=file")):
        found |= {rule: names for rule, names in named(check(other, [folder])).items() if rule not in found}
    assert {"good0.png", "good4.png"} & found.pop("mask-missing") == {"good0.png"}  # and every other one
    assert found == DEFECTS
    assert {*DEFECTS, "mask-missing"} == set(RULES)

    apply(folder, plan_fixes(folder, FIXABLE, with_trigger))
    left = named(check(with_trigger, [folder]))
    assert set(left) == set(RULES) - set(FIXABLE) - UNSEEN
    assert {rule: left[rule] for rule in left} == {rule: DEFECTS[rule] for rule in left}
    undo(folder)
    assert fingerprint(faulty) == before
