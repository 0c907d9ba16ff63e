"""The cache: content-addressed, atomic, safe for several processes, self-healing, prunable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from sdlora.atomic import TEMPORARY_SUFFIX
from sdlora.data.cache import Cache, default_cache_folder
from sdlora.errors import DataError


def entry(value: float, size: int = 4) -> dict[str, torch.Tensor]:
    return {"latents": torch.full((size,), value), "ids": torch.arange(3)}


def refuse() -> dict[str, torch.Tensor]:
    raise AssertionError("encoded again")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_what_was_encoded_once_is_read_by_the_next_run(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "cache")
    key = cache.key({"image": "abc", "width": 512})
    assert cache.get(key) is None
    fresh = cache.get_or_encode(key, lambda: entry(1.5))
    assert same(fresh, Cache(cache.folder).get_or_encode(key, refuse))
    assert (cache.folder / key[:2] / f"{key}.safetensors").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_any_tensor_comes_back_to_the_last_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).mul(100).to(dtype)
    tensors = {"transposed": whole.T, "part": whole[2:4], "same storage": whole[2:4], "scalar": whole[0, 0]}
    cache = Cache(tmp_path)
    fresh = cache.put("ab" * 32, tensors)
    kept = cache.get("ab" * 32)
    assert kept is not None
    assert same(fresh, kept)
    assert same(kept, tensors)


def test_keys_depend_on_every_part_and_not_on_their_order(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    parts = {"image": "abc", "width": 512, "scale": 0.5}
    key = cache.key(parts)
    assert key == cache.key(dict(reversed(parts.items())))
    assert len({key, *(cache.key({**parts, name: "other"}) for name in parts), cache.key({"image": "abc"})}) == 5
    assert cache.key({"width": "512"}) != cache.key({"width": 512})


@pytest.mark.parametrize("damage", ["truncated", "empty", "nonsense"])
def test_a_damaged_entry_is_encoded_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    key = cache.key({"image": "abc"})
    cache.put(key, entry(1))
    path = tmp_path / key[:2] / f"{key}.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-5], "empty": b"", "nonsense": b"\xff" * 50}[damage])
    assert cache.get(key) is None
    assert same(cache.get_or_encode(key, lambda: entry(2)), entry(2))
    assert path.read_bytes() != whole
    assert same(cache.get_or_encode(key, refuse), entry(2))


@pytest.mark.slow
def test_two_processes_that_write_the_same_keys_harm_nothing(tmp_path: Path) -> None:
    """Each process checks every entry it reads; the sizes make half-written files likely if writes weren't atomic."""
    code = """
import sys, torch
from pathlib import Path
from sdlora.atomic import TEMPORARY_SUFFIX
from sdlora.data.cache import Cache
cache = Cache(Path(sys.argv[1]))
for turn in range(6):
    for number in range(8):
        key = cache.key({"number": number})
        encode = lambda: {"values": torch.full((60_000,), float(number))}
        read = cache.put(key, encode()) if turn % 2 else cache.get_or_encode(key, encode)
        read = cache.get(key)
        assert read is not None and (read["values"] == number).all() and len(read["values"]) == 60_000
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert Cache(tmp_path).summary().entries == 8
    assert not list(tmp_path.rglob(f"*{TEMPORARY_SUFFIX}"))


def test_a_failed_encode_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(AssertionError, match="encoded again"):
        cache.get_or_encode(cache.key({}), refuse)
    assert cache.summary().entries == 0


def test_a_cache_that_can_not_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache")
    message = (
        r"can't write to the cache folder .*cache: .*set images\.cache_folder to another place, or "
        r"images\.cache=false"
    )
    with pytest.raises(DataError, match=message):
        cache.put("ab" * 32, entry(1))


def filled(folder: Path) -> tuple[Cache, list[str]]:
    """Four entries, last used 4, 3, 2 and 1 days ago."""
    cache = Cache(folder)
    keys = [cache.key({"number": number}) for number in range(4)]
    for age, key in zip((4, 3, 2, 1), keys, strict=True):
        cache.put(key, entry(age, size=1000))
        path = folder / key[:2] / f"{key}.safetensors"
        used = time.time() - timedelta(days=age).total_seconds()
        os.utime(path, (used, used))
    return cache, keys


def test_pruning_by_age_removes_what_was_not_used_lately(tmp_path: Path) -> None:
    cache, keys = filled(tmp_path)
    before = cache.summary()
    removed = cache.prune(older_than=timedelta(days=2.5))
    assert removed.entries == 2
    assert removed.size_bytes + cache.summary().size_bytes == before.size_bytes
    assert [cache.get(key) is None for key in keys] == [True, True, False, False]


def test_pruning_by_size_removes_the_least_recently_used_first(tmp_path: Path) -> None:
    cache, keys = filled(tmp_path)
    assert cache.get(keys[0]) is not None  # a use makes the oldest the newest
    limit = cache.summary().size_bytes // 2
    cache.prune(max_bytes=limit)
    assert cache.summary().size_bytes <= limit
    assert [cache.get(key) is None for key in keys] == [False, True, True, False]


def test_pruning_nothing_and_pruning_everything(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path)
    assert cache.prune().entries == 0
    assert cache.prune(max_bytes=0).entries == 4
    assert cache.summary().entries == Cache(tmp_path / "absent").summary().entries == 0


def test_pruning_clears_up_after_an_interrupted_write_but_not_a_running_one(tmp_path: Path) -> None:
    cache, keys = filled(tmp_path)
    shard = tmp_path / keys[0][:2]
    (shard / f".old{TEMPORARY_SUFFIX}").touch()
    (shard / f".new{TEMPORARY_SUFFIX}").touch()
    os.utime(shard / f".old{TEMPORARY_SUFFIX}", (1e9, 1e9))
    cache.prune()
    assert [path.name for path in shard.glob(".*")] == [f".new{TEMPORARY_SUFFIX}"]


def test_a_folder_that_is_deleted_while_it_is_used_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    key = cache.key({"image": 1})
    cache.put(key, {"latents": torch.ones(2)})
    listed, move, deletions = Path.iterdir, Path.replace, iter([True, True])

    def delete(path: Path) -> Iterator[Path]:
        shutil.rmtree(path)
        return listed(path)

    def delete_and_move(source: Path, target: Path) -> Path:
        if next(deletions, False):
            shutil.rmtree(tmp_path / "cache")
        return move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", delete)
        assert (cache.summary().entries, cache.prune(max_bytes=0).entries) == (0, 0)
    monkeypatch.setattr(Path, "replace", delete_and_move)
    cache.put(key, {"latents": torch.ones(2)})
    assert cache.summary().entries == 1


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "mine.safetensors").touch()
    cache.prune(max_bytes=0)
    assert (tmp_path / "scans" / "mine.safetensors").exists()


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "{home}/.cache/sdlora"),
        ("linux", {"XDG_CACHE_HOME": "{home}/x"}, "{home}/x/sdlora"),
        ("darwin", {}, "{home}/Library/Caches/sdlora"),
        ("win32", {"LOCALAPPDATA": "{home}/local"}, "{home}/local/sdlora/Cache"),
        ("win32", {}, "{home}/AppData/Local/sdlora/Cache"),
        ("linux", {"SDLORA_CACHE": "{home}/mine"}, "{home}/mine"),
    ],
)
def test_the_default_folder_is_the_users_on_every_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("SDLORA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    assert default_cache_folder() == Path(expected.format(home=tmp_path))


def _flip(content: bytearray) -> None:
    content[-3] ^= 1


def _zero(content: bytearray) -> None:
    content[-12:] = bytes(12)


def _nan(content: bytearray) -> None:
    content[-4:] = b"\x00\x00\xc0\x7f"


def _cut(content: bytearray) -> None:
    del content[-5:]


def _header(content: bytearray) -> None:
    at = content.index(b'"shape":[4]')
    content[at : at + 11] = b'"shape":[2]'


@pytest.mark.parametrize("damage", [_flip, _zero, _nan, _cut, _header])
def test_a_damaged_entry_is_made_anew_with_a_notice(tmp_path: Path, damage) -> None:
    said: list[str] = []
    cache = Cache(tmp_path, said.append)
    key = cache.key({"image": "abc"})
    cache.put(key, entry(1.5))
    path = cache.folder / key[:2] / f"{key}.safetensors"
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    assert same(cache.get_or_encode(key, lambda: entry(2.5)), entry(2.5))
    assert len(said) == 1
    assert key in said[0]
    assert "is damaged, so it is made anew" in said[0]
    assert same(cache.get_or_encode(key, refuse), entry(2.5))


def test_an_entry_under_anothers_name_is_not_taken_for_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("ab" * 32, entry(1.0))
    (tmp_path / "ab" / f"{'ab' * 32}.safetensors").rename(tmp_path / "ab" / f"{'ab' * 31}ac.safetensors")
    assert cache.get("ab" * 31 + "ac") is None
