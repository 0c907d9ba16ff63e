"""What the page does with uploaded files."""

from __future__ import annotations

import io
import os
import stat
import time
import zipfile
from pathlib import Path

import pytest

from sdlora.data.fix.changes import undo
from sdlora.data.sets import folders
from sdlora.data.sets.archives import Limits, RefusedArchiveError, safe_parts, unpack
from sdlora.data.sets.uploads import receive
from sdlora.errors import ConfigError, DataError
from tests.support.dataset_pictures import picture, save_captioned


def png(seed: int) -> bytes:
    content = io.BytesIO()
    picture(seed, (64, 64)).save(content, "PNG")
    return content.getvalue()


def upload(place: Path, **files: bytes) -> list[Path]:
    """Files as Gradio hands them over, each in a folder of its own; `_` in a name stands for the dot."""
    paths = []
    for number, (name, content) in enumerate(files.items()):
        path = place / f"upload-{number}-{len(list(place.glob('*')))}" / name.replace("_", ".")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "datasets" / "mine"
    folder.mkdir(parents=True)
    return folder


def visible(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_images_and_captions_are_moved_into_the_dataset(dataset: Path, tmp_path: Path) -> None:
    files = upload(tmp_path, a_png=png(1), a_txt=b"one", b_png=png(2))
    report = receive(dataset, files)
    assert (report.images, report.captions, report.refused) == (2, 1, {})
    assert visible(dataset) == ["a.png", "a.txt", "b.png"]
    assert not any(file.exists() for file in files)


def test_the_same_bytes_are_passed_over_and_other_ones_get_a_number_with_their_caption_and_mask(
    dataset: Path, tmp_path: Path
) -> None:
    receive(dataset, upload(tmp_path, a_png=png(1), a_txt=b"one"))
    again = receive(dataset, upload(tmp_path, a_png=png(1), a_txt=b"one"))
    assert (again.images, again.captions, again.same) == (0, 0, 2)
    other = receive(dataset, upload(tmp_path, **{"a_png": png(2), "a_txt": b"two", "a-masklabel_png": png(9)}))
    assert other.renamed == {"a.png": "a-2.png"}
    assert visible(dataset) == ["a-2-masklabel.png", "a-2.png", "a-2.txt", "a.png", "a.txt"]
    assert (dataset / "a.txt").read_text() == "one"
    assert (dataset / "a-2.txt").read_text() == "two"


def test_a_name_is_taken_by_an_image_of_another_format_too_since_both_would_share_the_caption(
    dataset: Path, tmp_path: Path
) -> None:
    receive(dataset, upload(tmp_path, a_png=png(1), a_txt=b"one"))
    content = io.BytesIO()
    picture(2, (64, 64)).save(content, "JPEG")
    report = receive(dataset, upload(tmp_path, a_jpg=content.getvalue()))
    assert report.renamed == {"a.jpg": "a-2.jpg"}


def test_a_caption_that_replaces_another_one_can_be_undone(dataset: Path, tmp_path: Path) -> None:
    receive(dataset, upload(tmp_path, a_png=png(1), a_txt=b"by hand"))
    report = receive(dataset, upload(tmp_path, a_txt=b"from elsewhere"))
    assert report.replaced == ["a.txt"]
    assert (dataset / "a.txt").read_text() == "from elsewhere"
    undo(dataset)
    assert (dataset / "a.txt").read_text() == "by hand"


def test_what_is_not_taken_is_listed_with_the_reason(dataset: Path, tmp_path: Path) -> None:
    report = receive(
        dataset, upload(tmp_path, a_heic=b"x", b_exe=b"x", c_png=b"no image", d_txt=b"x" * 2_000_000, e_txt=b"lonely")
    )
    assert "save it as PNG or JPEG" in report.refused["a.heic"]
    assert "neither an image nor a caption" in report.refused["b.exe"]
    assert "not a JPEG, PNG" in report.refused["c.png"]
    assert "too long for a caption" in report.refused["d.txt"]
    assert report.unclaimed == ["e.txt"]
    assert visible(dataset) == ["e.txt"]


def test_a_zip_file_is_unpacked_without_its_outer_folder_and_with_folders_that_mean_repeats(
    dataset: Path, tmp_path: Path
) -> None:
    archive = zipped(tmp_path / "set.zip", outer__10_cat__a_png=png(1), outer__b_png=png(2), outer__b_txt=b"two")
    report = receive(dataset, [archive])
    assert (report.images, report.captions) == (2, 1)
    assert visible(dataset) == ["10.cat/a.png", "b.png", "b.txt"]
    assert not archive.exists()
    repeats = tmp_path / "repeats.zip"
    with zipfile.ZipFile(repeats, "w") as opened:
        opened.writestr("5_dog/c.png", png(3))
    receive(dataset, [repeats])
    assert "5_dog/c.png" in visible(dataset)


def test_two_zip_files_with_equal_names_keep_their_captions_apart(dataset: Path, tmp_path: Path) -> None:
    first = zipped(tmp_path / "1.zip", a_png=png(1), a_txt=b"one")
    second = zipped(tmp_path / "2.zip", a_png=png(2), a_txt=b"two")
    receive(dataset, [first, second])
    assert {(dataset / name).read_text() for name in ("a.txt", "a-2.txt")} == {"one", "two"}
    for stem, caption in (("a", "one"), ("a-2", "two")):
        assert (dataset / f"{stem}.txt").read_text() == caption
        assert (dataset / f"{stem}.png").read_bytes() == png(1 if caption == "one" else 2)


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"])
def test_a_zip_entry_that_leads_elsewhere_is_left_out(dataset: Path, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(name, png(1))
        opened.writestr("good.png", png(2))
    report = receive(dataset, [archive])
    assert "leads out of the folder" in " ".join(report.refused.values())
    assert visible(dataset) == ["good.png"]
    assert not list(tmp_path.rglob("evil.png"))


def test_links_and_hidden_files_of_a_zip_file_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "links.zip"
    link = zipfile.ZipInfo("passwd.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(link, "/etc/passwd")
        opened.writestr("__MACOSX/._a.png", b"x")
        opened.writestr(".hidden/a.png", b"x")
        opened.writestr(".DS_Store", b"x")
        opened.writestr(".sdlora-trash/a.txt", b"x")
        opened.writestr("a.txt", b"words")
    files, refused = unpack(archive, tmp_path / "out")
    assert [file.name for file in files] == ["a.txt"]
    hidden = "it is hidden: a name in its path begins with a dot"
    assert refused == {"passwd.txt": "it is a link", ".hidden/a.png": hidden}


def test_a_decompression_bomb_is_refused_by_what_it_says_and_by_what_it_does(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "bomb.zip", zeros_txt=bytes(8 << 20))
    assert len(unpack(bomb, tmp_path / "text")[0]) == 1, "a text that repeats itself packs as well"
    with pytest.raises(RefusedArchiveError, match="decompression bomb"):
        unpack(bomb, tmp_path / "out", Limits(harmless_bytes=1 << 20))
    assert not (tmp_path / "out").exists()
    with pytest.raises(RefusedArchiveError, match="larger than 1 MiB"):
        unpack(bomb, tmp_path / "out", Limits(ratio=10**9, file_bytes=1 << 20))
    assert not (tmp_path / "out").exists()


def test_a_zip_file_beyond_the_limits_names_the_limit(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "many.zip", a_txt=b"1", b_txt=b"2", c_txt=b"3")
    with pytest.raises(RefusedArchiveError, match="holds 3 files, more than 2"):
        unpack(archive, tmp_path / "out", Limits(files=2))
    with pytest.raises(RefusedArchiveError, match="unpacks to"):
        unpack(archive, tmp_path / "out", Limits(all_bytes=2))
    with pytest.raises(RefusedArchiveError, match="to spare"):
        unpack(archive, tmp_path / "out", Limits(spare_bytes=2**60))


def test_damaged_and_locked_zip_files_are_named(dataset: Path, tmp_path: Path) -> None:
    locked = zipped(tmp_path / "locked.zip", a_txt=b"1")
    content = bytearray(locked.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted" in both headers
        content[content.find(mark) + offset] |= 1
    locked.write_bytes(bytes(content))
    report = receive(dataset, [locked, *upload(tmp_path, damaged_zip=b"PK no zip")])
    assert "password" in report.refused["locked.zip"]
    assert "no intact zip file" in report.refused["damaged.zip"]


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_file_in_a_zip_file_is_left_out_alone(dataset: Path, tmp_path: Path, packing: int) -> None:
    archive = tmp_path / "some.zip"
    text = " ".join(str(number) for number in range(3000)).encode()
    with zipfile.ZipFile(archive, "w", packing) as opened:
        opened.writestr("bad.txt", text)
        opened.writestr("good.png", png(2))
    content = bytearray(archive.read_bytes())
    content[60:120] = bytes(60)
    archive.write_bytes(bytes(content))
    report = receive(dataset, [archive, *upload(tmp_path, other_png=png(3))])
    assert visible(dataset) == ["good.png", "other.png"]
    assert any(name.endswith("bad.txt") for name in report.refused)


def test_names_are_made_safe_for_any_system() -> None:
    assert safe_parts("a/b?.png") == ("a", "b_.png")
    assert safe_parts("con.txt") == ("_con.txt",)
    assert safe_parts("./a//b.png") == ("a", "b.png")
    assert safe_parts("__MACOSX/x") == ()
    assert safe_parts("../x") is None
    assert len(safe_parts(f"{'x' * 300}.png")[0]) == folders.MAX_NAME  # type: ignore[index]


def test_datasets_are_made_renamed_and_listed(tmp_path: Path) -> None:
    folders.create(tmp_path, "cats")
    folders.create(tmp_path, "Birds")
    assert folders.names(tmp_path) == ["Birds", "cats"]
    with pytest.raises(ConfigError, match="'CATS' is there already"):
        folders.create(tmp_path, "CATS")
    for name in ("../out", "a/b", "", ".hidden", "x."):
        with pytest.raises(ConfigError, match="the dataset's name"):
            folders.create(tmp_path, name)
    assert folders.rename(tmp_path, "cats", "dogs").name == "dogs"
    with pytest.raises(DataError, match="no dataset called 'cats'"):
        folders.folder_of(tmp_path, "cats")
    with pytest.raises(DataError, match="No dataset is chosen"):
        folders.folder_of(tmp_path, None)


def test_the_sample_set_is_a_copy_with_a_name_of_its_own(tmp_path: Path) -> None:
    first, second = folders.add_sample(tmp_path), folders.add_sample(tmp_path)
    assert (first.name, second.name) == ("sample-mascot", "sample-mascot-2")
    assert folders.count_images(first) > 0


def test_an_image_beside_a_lonely_caption_claims_it(dataset: Path, tmp_path: Path) -> None:
    receive(dataset, upload(tmp_path, a_txt=b"waiting"))
    save_captioned(picture(1, (64, 64)), tmp_path / "x" / "a.png", None)
    report = receive(dataset, [tmp_path / "x" / "a.png"])
    assert (report.images, report.renamed) == (1, {})


def test_what_a_killed_server_left_of_an_upload_goes_after_a_day(dataset: Path, tmp_path: Path) -> None:
    for name, age in (("old", 2 * 86400), ("new", 0)):
        left = dataset / f".incoming-{name}" / "a.png"
        left.parent.mkdir()
        left.write_bytes(png(1))
        for path in (left, left.parent):
            os.utime(path, (time.time() - age, time.time() - age))
    receive(dataset, upload(tmp_path, b_png=png(2)))
    assert [path.name for path in dataset.glob(".incoming-*")] == [".incoming-new"]
