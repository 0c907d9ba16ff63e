"""Latents of a run's images: decoded ahead, kept in the cache, and held in memory only as far as there is room."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sdlora.config import files
from sdlora.data.cache import Cache
from sdlora.errors import DataError
from sdlora.events import EventStream
from sdlora.models.bundle import Bundle
from sdlora.training.inputs import latents
from sdlora.training.inputs.images import RunImages, find_images
from sdlora.training.inputs.latents import LatentSource

EVENTS = EventStream([])


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What a VAE that only makes images smaller was given."""
    given: list[Tensor] = []

    def encode(bundle: Bundle, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        given.append(pixels_BCHW[0])
        small_BCHW = functional.avg_pool2d(pixels_BCHW, 8)
        return small_BCHW, small_BCHW.abs()

    monkeypatch.setattr(latents, "encode_moments", encode)
    return given


def source(folder: Path, cache: Cache | None, **settings: Any) -> tuple[LatentSource, RunImages]:
    overrides = [f"images.folder={folder}", "images.resolution=64", "validation.fraction=0"]
    config = files.load(None, [*overrides, *(f"images.{name}={value}" for name, value in settings.items())])
    bundle = SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(in_channels=4)),
        vae=SimpleNamespace(dtype=torch.float32),
        vae_identity="",
    )
    return LatentSource(cast("Bundle", bundle), config.images, cache), find_images(config)


def test_images_are_decoded_once_by_other_threads_and_encoded_in_their_order(
    tiny_images: Path, tmp_path: Path, encoded: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    prepare_pixels = latents.prepare_pixels

    def noted(*arguments: Any, **options: Any) -> Tensor:
        threads.append(threading.current_thread().name)
        return prepare_pixels(*arguments, **options)

    monkeypatch.setattr(latents, "prepare_pixels", noted)
    cache = Cache(tmp_path)
    ahead, images = source(tiny_images, cache, horizontal_flip="true")
    ahead.prepare(images.placed, EVENTS)
    assert len(threads) == len(encoded) == 2 * len(images.placed)
    assert all(name.startswith("decoding") for name in threads)
    by_one, _ = source(tiny_images, None, horizontal_flip="true")
    for number, item in enumerate(images.placed):
        for flip in (False, True):
            expected = by_one.fixed(item, flip=flip)
            assert torch.equal(ahead.fixed(item, flip=flip).mean_CHW, expected.mean_CHW)
            assert torch.equal(encoded[2 * number + flip], encoded[-1])
    threads.clear()
    warm, _ = source(tiny_images, cache, horizontal_flip="true")
    warm.prepare(images.placed, EVENTS)
    assert not threads, "what is in the cache is not decoded"


def test_latents_there_is_no_room_for_come_from_the_cache_each_time(
    tiny_images: Path, tmp_path: Path, encoded: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy, images = source(tiny_images, Cache(tmp_path / "roomy"))
    roomy.prepare(images.placed, EVENTS)
    monkeypatch.setattr(latents, "_HELD_BYTES", roomy.fixed(images.placed[0]).mean_CHW.nbytes * 5)
    small, _ = source(tiny_images, Cache(tmp_path / "small"))
    small.prepare(images.placed, EVENTS)
    uncached, _ = source(tiny_images, None)
    uncached.prepare(images.placed, EVENTS)
    encoded.clear()
    again = [small.fixed(item) is small.fixed(item) for item in images.placed]
    assert 1 <= sum(again) <= 3
    assert all(uncached.fixed(item) is uncached.fixed(item) for item in images.placed), "nowhere else to get them"
    for item in images.placed:
        assert torch.equal(small.fixed(item).mean_CHW, roomy.fixed(item).mean_CHW)
        assert torch.equal(small.fixed(item).std_CHW, roomy.fixed(item).std_CHW)
    assert not encoded


def test_an_image_that_has_gone_bad_is_named(tiny_images: Path, encoded: list[Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for file in tiny_images.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    broken, images = source(folder, None)
    images.placed[2].record.path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{images.placed[2].record.path.name} or its mask was readable"):
        broken.prepare(images.placed, EVENTS)
    assert len(encoded) == 2


def test_a_picture_that_was_replaced_is_not_kept_under_the_name_of_the_one_before(
    tiny_images: Path, tmp_path: Path, encoded: list[Tensor]
) -> None:
    folder, cache = Path(shutil.copytree(tiny_images, tmp_path / "images")), Cache(tmp_path / "cache")
    found, images = source(folder, cache)
    first, second = (item for item in images.placed[:2])
    before = found.fixed(first)
    shutil.copyfile(second.record.path, first.record.path)
    assert torch.equal(source(folder, cache)[0].fixed(first).mean_CHW, before.mean_CHW)  # kept: nothing is read
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match="is another picture than when the run looked"):
        source(folder, cache)[0].fixed(first)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
