"""The image worker with a real model: images with their settings, a grid, and what remains when it is killed."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig, ImageFilesConfig
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid
from sdlora.generation.restore.image_files import read_image_settings
from sdlora.launch import image_worker
from sdlora.launch.images import ImageQueue, ImageRequest
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageQueue]:
    worker = ImageQueue(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.close()


@pytest.fixture
def request_for_two(tmp_path: Path) -> GenerateConfig:
    return GenerateConfig(
        prompt="a red circle",
        seed=7,
        steps=3,
        num_images=2,
        batch_size=1,
        width_px=64,
        height_px=64,
        files=ImageFilesConfig(folder=tmp_path / "outputs"),
    )


def over(worker: ImageQueue, request: int) -> ImageRequest:
    wait_for(lambda: worker.get(request).is_over, "the images")
    return worker.get(request)


def test_a_resident_process_draws_with_a_real_model(worker: ImageQueue, request_for_two: GenerateConfig) -> None:
    done = over(worker, worker.submit(request_for_two))
    assert (done.status, done.error, done.seeds) == ("finished", None, (7, 8))
    assert (done.step, done.total_steps) == (3, 3)
    second = read_image_settings(done.images[1])
    assert (second.values["prompt"], second.values["seed"], second.by_sdlora) == ("a red circle", 8, True)


def test_a_grid_becomes_one_sheet(worker: ImageQueue, request_for_two: GenerateConfig) -> None:
    config = request_for_two.model_copy(update={"num_images": 1})
    done = over(worker, worker.submit_grid(Grid(config, parse_axes(["seed=1,2", "guidance=1,5"], config))))
    assert (done.status, done.error, len(done.images)) == ("finished", None, 4)
    assert set(done.labels) == {("1", "1"), ("2", "1"), ("1", "5"), ("2", "5")}
    assert done.sheet is not None
    assert done.sheet.is_file()


def test_a_wrong_request_is_told_without_a_model(worker: ImageQueue, request_for_two: GenerateConfig) -> None:
    base = BaseModelConfig(model="nowhere.safetensors")
    done = over(worker, worker.submit(request_for_two.model_copy(update={"base_model": base})))
    assert done.status == "failed"
    assert "nowhere.safetensors" in str(done.error)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_process_keeps_what_it_finished(worker: ImageQueue, request_for_two: GenerateConfig) -> None:
    request = worker.submit(request_for_two.model_copy(update={"num_images": 1000}))
    wait_for(lambda: worker.get(request).images, "the first image")
    process = worker._worker
    assert process is not None
    os.kill(process.process_id, signal.SIGKILL)
    done = over(worker, request)
    assert done.status == "failed"
    assert "killed, often because the system ran out of memory" in str(done.error)
    assert done.images[0].is_file()


def test_a_folder_that_is_gone_is_told_in_words() -> None:
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "/studio/outputs/1.png")
    assert image_worker._words_for(gone) == "there is no /studio/outputs/1.png"
    assert image_worker._words_for(ConnectionRefusedError(errno.ECONNREFUSED, "refused")).startswith(
        "ConnectionRefused"
    )
    assert image_worker._words_for(ValueError("x")) == "ValueError: x"
