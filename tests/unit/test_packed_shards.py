"""What of a webdataset shard finds its image, and what is told of the rest."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from sdlora.data.packed.unpack import unpack
from tests.support.packed_files import captions, image_bytes, write_tar


def test_dates_and_late_captions_are_matched_and_what_is_left_of_a_shard_is_told(tmp_path: Path) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {
        "a.jpg": image_bytes(1),
        "a.png": image_bytes(2, "PNG"),
        "a.txt": b"a cat",
        "IMG 2024.01.05.jpg": image_bytes(3),
        "IMG 2024.01.05.txt": b"a dog",
        "IMG 2024.01.06.jpg": image_bytes(4),
        "c.tif": b"II*",
        "empty.jpg": image_bytes(5),
        "empty.txt": b" ",
        "empty.json": json.dumps({"caption": "a boat"}).encode(),
        "late.jpg": image_bytes(6),
        "later.jpg": image_bytes(7),
        "late.txt": b"a kite",
        "later.json": json.dumps({"text": "a lamp"}).encode(),
    }
    result = unpack(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert captions(tmp_path / "out") == {
        "a": "a cat",
        "IMG_2024_01_05": "a dog",
        "empty": "a boat",
        "late": "a kite",
        "later": "a lamp",
    }
    assert (result.images, result.uncaptioned, result.num_unusable) == (6, 1, 0)
    assert {why: str(names) for why, names in result.unused.items()} == {
        ".tif files are not read; save them as PNG or JPEG": "c.tif",
        "a second image of its sample": "a.png",
    }


def test_archives_that_were_joined_keep_each_images_own_caption(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for seed, text in ((1, "one"), (2, "two"), (3, None)):
            for name, content in (("a.jpg", image_bytes(seed)), ("a.txt", text.encode() if text else b"")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if name.endswith("jpg") or text:
                    archive.addfile(info, io.BytesIO(content))
            archive.addfile(tarfile.TarInfo(f"between{seed}.jpg"))
    result = unpack(tmp_path / "x.tar", tmp_path / "out")
    assert captions(tmp_path / "out") == {"a": "one", "a-2": "two"}
    assert (result.images, result.uncaptioned, result.num_unusable) == (3, 1, 3)


def test_a_caption_that_no_single_image_can_have_is_told(tmp_path: Path) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {
        "a.jpg": image_bytes(1),
        "a.txt": b"a cat",
        "b.jpg": image_bytes(2),
        "A/../a.txt": b"another name",
        "long.jpg": image_bytes(3),
        "long.txt": b"x" * (17 << 20),
    }
    result = unpack(write_tar(tmp_path / "x.tar", members), tmp_path / "out")
    assert captions(tmp_path / "out") == {"a": "a cat"}
    assert {why: str(names) for why, names in result.unused.items()} == {
        "too large for a caption": "long.txt",
        "a caption without an image of its name": "A/../a.txt",
    }


def test_thousands_of_files_of_one_name_take_no_time_and_are_told(tmp_path: Path) -> None:
    content = image_bytes(1)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for number in range(3000):
            for name, data in (("a.jpg", content), (f"{number}.txt", b"a cat")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    result = unpack(tmp_path / "x.tar", tmp_path / "out")
    assert result.images == 50
    assert {why: names.number for why, names in result.unused.items()} == {
        "a second image of its sample": 2950,
        "a caption without an image of its name": 3000,
    }


def test_a_shard_that_was_cut_off_between_two_files_is_told(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {"a.jpg": image_bytes(1), "b.jpg": image_bytes(2)})
    assert unpack(whole, tmp_path / "sound").num_unusable == 0
    with tarfile.open(whole) as archive:
        start = archive.getmember("b.jpg").offset
    for name, length in (("at", start), ("within", start + 100)):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(whole.read_bytes()[:length])
        result = unpack(path, tmp_path / name)
        assert result.images == 1
        assert [one.reason for one in result.unusable] == [
            "the archive ends behind 'a' without its end mark: it may be cut off"
        ]
