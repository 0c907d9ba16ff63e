"""Scanning a folder: what is found, what is skipped and why, and every message a user can meet."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image

from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data import inspection
from sdlora.data.images import ScanResult, load_mask, scan
from sdlora.errors import DataError

CAPTIONS = CaptionsConfig(default="a picture")


def save(path: Path, size: tuple[int, int] = (64, 48), colour: str = "red", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def scan_folder(folder: Path, captions: CaptionsConfig = CAPTIONS, **settings: object) -> ScanResult:
    return scan(ImagesConfig(folder=folder, cache=False, **settings), captions)


def found(result: ScanResult) -> dict[str, str | None]:
    return {record.path.name: record.caption for record in result.records}


def test_all_common_formats_are_found_whatever_the_case_of_their_ending(tmp_path: Path) -> None:
    for ending in ("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "JPG"):
        save(tmp_path / f"{ending}-file.{ending}")
    result = scan_folder(tmp_path)
    assert len(result.records) == result.files_seen == 8
    assert all((record.width_px, record.height_px) == (64, 48) for record in result.records)


def test_hidden_files_captions_and_masks_are_not_images(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".thumbnails" / "b.png")
    save(tmp_path / "__MACOSX" / "c.png")
    save(tmp_path / "a-masklabel.png")
    (tmp_path / "a.txt").write_text("a red wall")
    (tmp_path / "notes.md").write_text("x")
    result = scan_folder(tmp_path)
    assert found(result) == {"a.png": "a red wall"}
    assert result.files_seen == 1


def test_subfolders_are_read_and_their_names_give_repeats_and_captions(tmp_path: Path) -> None:
    save(tmp_path / "10_sks dog" / "a.png")
    save(tmp_path / "10_sks dog" / "deeper" / "b.png")
    save(tmp_path / "2024_holiday" / "c.png")
    save(tmp_path / "plain" / "d.png")
    records = {record.path.name: record for record in scan_folder(tmp_path, repeats=3).records}
    assert [(records[name].repeats, records[name].caption) for name in ("a.png", "b.png", "c.png", "d.png")] == [
        (10, "sks dog"),
        (10, "sks dog"),
        (3, "a picture"),
        (3, "a picture"),
    ]


def test_repeats_also_come_from_the_name_of_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "7_cat" / "a.png")
    monkeypatch.chdir(tmp_path / "7_cat")
    (record,) = scan_folder(Path()).records
    assert (record.repeats, record.caption) == (7, "cat")
    assert record.path.is_absolute()


def test_zero_repeats_are_refused_as_the_images_would_never_be_trained(tmp_path: Path) -> None:
    save(tmp_path / "0_unused" / "a.png")
    with pytest.raises(DataError, match=r"0_unused asks for 0 repeats, so its images would never be trained"):
        scan_folder(tmp_path)


def test_overlapping_folders_give_each_image_once(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "more" / "b.png")
    result = scan(ImagesConfig(folder=(tmp_path, tmp_path / "more"), cache=False), CAPTIONS)
    assert sorted(found(result)) == ["a.png", "b.png"]
    assert result.files_seen == 2


def test_a_link_that_goes_in_circles_is_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    try:
        (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    assert len(scan_folder(tmp_path).records) == 1


def test_class_folders_mark_their_records(tmp_path: Path) -> None:
    save(tmp_path / "class" / "a.png")
    result = scan(ImagesConfig(cache=False), CAPTIONS, folders=[tmp_path / "class"], is_class=True)
    assert [record.is_class for record in result.records] == [True]


def test_width_and_height_are_those_after_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", (64, 32), exif=exif)
    (record,) = scan_folder(tmp_path).records
    assert (record.width_px, record.height_px) == (32, 64)


def test_bad_files_are_listed_with_their_reasons_and_the_others_are_used(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / f"good{number}.png")
    whole = save(tmp_path / "truncated.jpg", (256, 256)).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.webp").touch()
    save(tmp_path / "huge.png", (2000, 1000))
    (tmp_path / "phone.heic").write_bytes(b"...")
    result = scan_folder(tmp_path, max_unreadable=0.5, max_megapixels=1)
    reasons = {item.path.name: item.reason for item in result.skipped}
    assert (len(result.records), result.files_seen) == (8, 13)
    assert "damaged" in reasons.pop("truncated.jpg")
    assert reasons == {
        "text.png": "not a JPEG, PNG, WebP, AVIF, BMP or GIF image",
        "empty.webp": "the file is empty",
        "huge.png": "2 megapixels, more than images.max_megapixels=1",
        "phone.heic": ".heic files need the package pillow-heif (pip install it), or save it as PNG or JPEG",
    }


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "webp", "avif"])
def test_truncated_files_of_every_format_are_found(tmp_path: Path, ending: str) -> None:
    save(tmp_path / "good.png")
    noise = numpy.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=numpy.uint8)
    path = tmp_path / f"bad.{ending}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    result = scan_folder(tmp_path, max_unreadable=0.5)
    assert [item.path.name for item in result.skipped] == [path.name]


def test_too_many_unreadable_files_name_each_file_its_reason_and_the_setting(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad.png").write_text("no")
    message = (
        r"1 of 2 image files can't be used, more than images\.max_unreadable=0\.2 allows:\n"
        r"  sub/bad\.png: not a JPEG, .* image\nRepair or remove them, or raise images\.max_unreadable"
    )
    with pytest.raises(DataError, match=message):
        scan_folder(tmp_path)
    assert len(scan_folder(tmp_path, max_unreadable=0.5).records) == 1


def test_a_folder_of_unreadable_files_only_is_refused_at_any_threshold(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no")
    with pytest.raises(DataError, match=r"none of the 1 image files can be used:\n  bad\.png: not a JPEG"):
        scan_folder(tmp_path, max_unreadable=1)


def test_no_folder_at_all_is_said() -> None:
    with pytest.raises(DataError, match=r"images\.folder is not set"):
        scan(ImagesConfig(), CAPTIONS)


def test_a_missing_folder_is_named_with_the_one_that_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "portraits").mkdir()
    with pytest.raises(DataError, match=r"the image folder .*portrait doesn't exist; did you mean .*portraits\?"):
        scan_folder(tmp_path / "portrait")
    with pytest.raises(DataError, match=r"the image folder .*none doesn't exist \(nor does .*nowhere\)"):
        scan_folder(tmp_path / "nowhere" / "none")


def test_all_missing_folders_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)folder .*xyz doesn't exist.*\n.*folder .*123 doesn't exist"):
        scan(ImagesConfig(folder=(tmp_path / "xyz", tmp_path / "123")), CAPTIONS)


def test_a_file_in_place_of_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png is a file: give the folder that holds the images"):
        scan_folder(save(tmp_path / "a.png"))


def test_a_folder_without_images_says_what_it_holds_and_where_images_are(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "clip.mp4").touch()
    with pytest.raises(
        DataError, match=r"hold no images \(looked for jpg, .*gif\), only 1 \.mp4\. Its parent .* 1 image:"
    ):
        scan_folder(empty)
    save(empty / ".images" / "b.png")
    with pytest.raises(DataError, match=r"The hidden folder \.images has 1 image, but hidden ones are not read"):
        scan_folder(empty)


def test_missing_captions_are_all_named_in_one_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        save(tmp_path / name)
    (tmp_path / "d.txt").write_text("a door")
    message = (
        r"3 of 4 images have no caption: a\.png, b\.png, c\.png\. Add a\.txt beside each, or set captions\.default\.$"
    )
    with pytest.raises(DataError, match=message):
        scan_folder(tmp_path, CaptionsConfig())


def test_a_caption_that_is_almost_named_like_an_image_is_pointed_out(tmp_path: Path) -> None:
    save(tmp_path / "zibbo_pink.png")
    save(tmp_path / "b.png")
    for name in ("Zibbo-pink.txt", "other.txt"):
        (tmp_path / name).write_text("zibbo")
    with pytest.raises(
        DataError, match=r"default\. 1 caption .* Zibbo-pink\.txt \(did you mean zibbo_pink\.txt\?\)\.$"
    ):
        scan_folder(tmp_path, CaptionsConfig())
    for path in sorted(tmp_path.glob("*.txt")):
        path.rename(path.with_suffix(".tags"))
    with pytest.raises(DataError, match=r"Zibbo-pink\.tags \(did you mean zibbo_pink\.tags\?\)\.$"):
        scan_folder(tmp_path, CaptionsConfig(extension=".tags"))


def test_one_missing_caption_names_the_file_and_the_trigger_as_a_way_out(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    message = r'1 of 1 images has no caption: a\.png\. Add a\.txt beside it, .*captions\.default="" takes the trigger'
    with pytest.raises(DataError, match=message):
        scan_folder(tmp_path, CaptionsConfig(trigger="sks"))
    assert found(scan_folder(tmp_path, CaptionsConfig(trigger="sks", default=""))) == {"a.png": ""}


def test_caption_files_of_another_ending_and_empty_ones_are_pointed_out(tmp_path: Path) -> None:
    for name, caption in (("a.png", "a.caption"), ("b.png", "b.TXT")):
        save(tmp_path / name)
        (tmp_path / caption).write_text("text")
    save(tmp_path / "c.png")
    (tmp_path / "c.txt").write_text(" \n")
    with pytest.raises(DataError) as caught:
        scan_folder(tmp_path, CaptionsConfig())
    both = not (tmp_path / "b.txt").exists()  # file systems that ignore case read b.TXT as b.txt
    names = "a.caption, b.TXT (`sdlora" if both else "a.caption (`sdlora"
    assert f"not read, as captions.extension is .txt: {names} dataset fix" in str(caught.value)
    assert "1 caption file is empty: c.txt." in str(caught.value)


def test_a_caption_of_the_wrong_encoding_is_named_with_the_byte(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(
        DataError,
        match=r"^a\.txt is not UTF-8 text \(byte 0xe9 at position 3; it may be Windows-1252\): save it as UTF-8$",
    ):
        scan_folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_are_tolerated(tmp_path: Path, encoding: str) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("un café\n".encode(encoding))
    assert found(scan_folder(tmp_path)) == {"a.png": "un café"}


def test_metadata_gives_captions_and_a_text_file_beside_the_image_wins(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "5_dog/c.png", "5_dog/d.png"):
        save(tmp_path / name)
    lines = [
        {"file_name": "a.png", "text": "first"},
        {"file_name": "./b.png", "caption": "second"},
        {"file_name": "5_dog\\c.png", "text": "third"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    (tmp_path / "b.txt").write_text("from the text file")
    assert found(scan_folder(tmp_path, CaptionsConfig())) == {
        "a.png": "first",
        "b.png": "from the text file",
        "c.png": "third",
        "d.png": "dog",
    }


def test_a_row_with_a_wrong_loss_weight_still_gives_its_caption(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x", "loss_weight": 0}\n')
    with pytest.raises(DataError, match="loss_weight must be a number above 0, up to 100; got 0") as caught:
        scan_folder(tmp_path, CaptionsConfig())
    assert "no caption" not in str(caught.value)


def test_a_broken_metadata_line_is_named_by_its_number(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": oops}\n')
    with pytest.raises(
        DataError, match=r"metadata\.jsonl, line 2: expected an object with 'file_name' and 'text' .*oops"
    ):
        scan_folder(tmp_path)


def test_masks_are_found_beside_the_image_and_hashed(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    Image.new("L", (32, 24), 128).save(tmp_path / "a-masklabel.png")
    first, second = scan_folder(tmp_path, mask="file").records
    assert first.mask_path is not None
    assert second.mask_path is None
    assert load_mask(first, (64, 48)).getextrema() == (128, 128)
    assert load_mask(second, (64, 48)).getextrema() == (255, 255)
    assert scan_folder(tmp_path).records[0].mask_path is None


def test_the_alpha_channel_can_be_the_mask(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 32, 48))
    picture.save(tmp_path / "a.png")
    (record,) = scan_folder(tmp_path, mask="alpha").records
    mask = load_mask(record, (64, 48))
    assert (mask.getpixel((5, 5)), mask.getpixel((60, 5))) == (255, 0)
    assert load_mask(replace(record, mask="none"), (64, 48)).getextrema() == (255, 255)


def test_an_image_with_an_unreadable_mask_is_skipped(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    save(tmp_path / "b-masklabel.png")
    (tmp_path / "a-masklabel.png").write_text("no")
    (skipped,) = scan_folder(tmp_path, mask="file", max_unreadable=0.5).skipped
    assert skipped.path.name == "a.png"
    assert skipped.reason.startswith("its mask a-masklabel.png can't be read: not a JPEG")


@pytest.mark.parametrize(
    ("source", "missing"), [("file", "a NAME-masklabel.png beside it"), ("alpha", "a transparent part")]
)
def test_asking_for_masks_where_there_are_none_is_refused(tmp_path: Path, source: str, missing: str) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"images\.mask={source} is set, but none of the 1 images has {missing}"):
        scan_folder(tmp_path, mask=source)


def test_an_unchanged_file_is_decoded_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    settings = ImagesConfig(folder=tmp_path / "images", cache_folder=tmp_path / "cache")
    for name in ("a.png", "b.png"):
        save(tmp_path / "images" / name)
    first = scan(settings, CAPTIONS)
    looked: list[str] = []
    really_inspect = inspection.inspect_image

    def watch(path: Path, max_megapixels: float) -> inspection.ImageFacts:
        looked.append(path.name)
        return really_inspect(path, max_megapixels)

    monkeypatch.setattr(inspection, "inspect_image", watch)
    assert scan(settings, CAPTIONS) == first
    assert sorted(looked) == ["a.png", "b.png"], "a file changed within the clock's grain must not be trusted"
    request.getfixturevalue("settled")
    scan(settings, CAPTIONS)
    looked.clear()
    assert scan(settings, CAPTIONS) == first
    assert looked == []

    save(tmp_path / "images" / "a.png", colour="blue")
    changed = scan(settings, CAPTIONS)
    assert looked == ["a.png"]
    assert changed.records[0].content_hash != first.records[0].content_hash


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time of change that nobody can set")
def test_pictures_that_exchanged_their_names_are_told_apart(tmp_path: Path, settled: None) -> None:
    settings = ImagesConfig(folder=tmp_path / "images", cache_folder=tmp_path / "cache")
    a, b = (save(tmp_path / "images" / f"{name}.bmp", colour=colour) for name, colour in (("a", "red"), ("b", "blue")))
    for path in (a, b):
        os.utime(path, (1e9, 1e9))
    assert a.stat().st_size == b.stat().st_size
    before = [record.content_hash for record in scan(settings, CAPTIONS).records]
    a.rename(tmp_path / "c")
    b.rename(a)
    (tmp_path / "c").rename(b)
    assert [record.content_hash for record in scan(settings, CAPTIONS).records] == before[::-1]


def test_a_remembered_image_is_still_held_against_the_size_limit(tmp_path: Path, settled: None) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "images" / name, (2000 if name == "a.png" else 100, 1000))
    settings = {"folder": tmp_path / "images", "cache_folder": tmp_path / "cache", "max_unreadable": 0.5}
    assert len(scan(ImagesConfig(**settings), CAPTIONS).records) == 2
    assert len(scan(ImagesConfig(**settings, max_megapixels=1), CAPTIONS).records) == 1


def test_a_damaged_memory_of_scans_is_ignored(tmp_path: Path, settled: None) -> None:
    save(tmp_path / "images" / "a.png")
    settings = ImagesConfig(folder=tmp_path / "images", cache_folder=tmp_path / "cache")
    first = scan(settings, CAPTIONS)
    (memory,) = (tmp_path / "cache" / "scans").iterdir()
    for content in ("{", "[]", '{"version": 2, "files": {"a.png": {"stamp": [1, 2]}}}', '{"version": 0}'):
        memory.write_text(content)
        assert scan(settings, CAPTIONS) == first
