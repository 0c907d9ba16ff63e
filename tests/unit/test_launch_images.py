"""The resident process that generates, from the side of who asks. What it generates with is a stand-in here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sdlora import atomic
from sdlora.config.generate import GenerateConfig, ImageFilesConfig
from sdlora.errors import RunError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid
from sdlora.launch import images
from sdlora.launch.images import ImageQueue, ImageRequest
from sdlora.processes import ProcessRecord, here, start_mark
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow  # starts processes

COMMAND = (sys.executable, str(Path(__file__).parents[1] / "support" / "image_process.py"))


@pytest.fixture
def training() -> list[str]:
    """The names of the trainings that run."""
    return []


@pytest.fixture
def queue(tmp_path: Path, training: list[str]) -> Iterator[ImageQueue]:
    queue = ImageQueue(tmp_path / "worker", command=COMMAND, training=lambda: training[0] if training else None)
    yield queue
    queue.close()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def asked(prompt: str, outputs: Path, num_images: int = 2) -> GenerateConfig:
    return GenerateConfig(prompt=prompt, num_images=num_images, files=ImageFilesConfig(folder=outputs))


def over(queue: ImageQueue, number: int) -> ImageRequest:
    wait_for(lambda: queue.get(number).is_over, "the images", 60)
    return queue.get(number)


def test_images_are_saved_and_listed_as_they_come(queue: ImageQueue, outputs: Path) -> None:
    assert queue.current() is None
    number = queue.submit(asked("a fox", outputs))
    assert queue.is_busy
    done = over(queue, number)
    assert (done.status, done.seeds, done.warnings) == ("finished", (0, 1), ("paint is wet",))
    assert list(done.images) == sorted(outputs.iterdir())
    assert (done.title, done.preview, done.share_done) == ("a fox", None, 1.0)
    assert 0 < done.seconds < 60
    assert not queue.is_busy
    assert queue.current() == done
    assert "libraries print this" in queue.log_tail()
    memory = queue.memory()
    assert memory is not None
    assert memory.process_gib > 0


def test_requests_wait_for_each_other_and_can_be_taken_back(queue: ImageQueue, outputs: Path) -> None:
    slow, second, third = (queue.submit(asked(prompt, outputs)) for prompt in ("slow", "a", "b"))
    assert [request.status for request in queue.requests()][1:] == ["queued", "queued"]
    queue.cancel(third)
    wait_for(lambda: queue.get(slow).images, "the first image", 60)
    request = queue.get(slow)
    assert queue.current() == request
    assert (request.status, request.images_at_work, request.share_done) == ("generating", 1, 1.0)
    assert request.preview is not None
    with Image.open(request.preview) as image:
        assert image.size == (16, 8)
    queue.cancel(slow)
    asked_to_end = queue.get(slow)
    assert asked_to_end.is_ending or asked_to_end.is_over
    cancelled = over(queue, slow)
    assert (cancelled.status, len(cancelled.images)) == ("cancelled", 1)
    assert cancelled.images[0].is_file()
    assert not request.preview.exists()
    assert over(queue, second).status == "finished"
    assert queue.get(third).status == "cancelled"
    queue.cancel(third)  # once more does nothing


def test_images_of_a_batch_advance_together() -> None:
    request = ImageRequest(1, "a fox", "generating", 4, batch_size=4, step=1, total_steps=4)
    assert (request.images_at_work, request.share_done) == (4, 0.25)


def test_errors_are_told_and_the_next_request_is_generated(queue: ImageQueue, outputs: Path) -> None:
    wrong, broken, fine = (queue.submit(asked(prompt, outputs)) for prompt in ("wrong", "broken", "fine"))
    assert over(queue, wrong).error == "this brush doesn't fit"
    assert over(queue, broken).error == "ZeroDivisionError: no canvas"
    assert over(queue, fine).status == "finished"
    assert "Traceback" in queue.log_tail()


def test_a_process_that_dies_fails_its_request_only(queue: ImageQueue, outputs: Path) -> None:
    crash, fine = (queue.submit(asked(prompt, outputs)) for prompt in ("crash", "fine"))
    failed = over(queue, crash)
    assert failed.status == "failed"
    assert failed.error == "the process that generates died (exit code 3). Fatal Python error: out of paint"
    assert over(queue, fine).status == "finished"


def test_what_a_process_that_dies_had_half_written_goes(queue: ImageQueue, outputs: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    grid = outputs / "grid"
    grid.mkdir(parents=True)
    half = grid / f".1.png.{gone.pid}-0123abcd{atomic.TEMPORARY_SUFFIX}"
    half.write_bytes(b"half")
    assert over(queue, queue.submit(asked("crash", outputs))).status == "failed"
    assert not half.exists()


def test_a_request_can_wait_for_a_training(
    queue: ImageQueue, training: list[str], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "TRAINING_SECONDS", 0.05)
    training.append("portrait")
    waiting, withdrawn = (queue.submit(asked(prompt, outputs), wait=True) for prompt in ("later", "never"))
    sooner = queue.submit(asked("sooner", outputs))
    queue.cancel(withdrawn)
    assert over(queue, sooner).status == "finished"
    assert (queue.get(waiting).status, queue.get(withdrawn).status) == ("waiting", "cancelled")
    training.clear()
    assert over(queue, waiting).status == "finished"
    at_once = queue.submit(asked("none trains", outputs), wait=True)
    assert over(queue, at_once).status == "finished"


def test_memory_is_given_back_when_nothing_is_generated(tmp_path: Path, outputs: Path) -> None:
    queue = ImageQueue(tmp_path / "worker", command=COMMAND, idle_seconds=0.05)
    over(queue, queue.submit(asked("a", outputs)))
    wait_for(lambda: queue.memory() is None, "the process to end", 30)
    slow = queue.submit(asked("slow", outputs))
    assert not queue.release()
    assert queue.release(cancel=True)
    assert queue.memory() is None
    assert queue.get(slow).status == "cancelled"
    queue.close()
    with pytest.raises(RunError, match="the image worker is closed"):
        queue.submit(asked("a", outputs))


def test_memory_is_given_back_to_a_training_that_begins(queue: ImageQueue, training: list[str], outputs: Path) -> None:
    assert not queue.yield_to_training()
    over(queue, queue.submit(asked("a", outputs)))
    assert not queue.yield_to_training()
    slow = queue.submit(asked("slow", outputs))
    training.append("portrait")
    assert not queue.yield_to_training()
    queue.cancel(slow)
    over(queue, slow)
    assert queue.yield_to_training()
    assert queue.memory() is None


def test_two_servers_with_one_folder_keep_their_previews_apart(tmp_path: Path, outputs: Path) -> None:
    pair = [ImageQueue(tmp_path / "worker", command=COMMAND) for _ in range(2)]
    left = tmp_path / "worker" / "999999999"
    left.mkdir(parents=True, exist_ok=True)
    ProcessRecord(999_999_999, "1", here()).write(left / "server.json")  # of one that was killed
    numbers = [queue.submit(asked("slow", outputs)) for queue in pair]
    previews = [
        wait_for(lambda queue=queue, number=number: queue.get(number).preview, "a preview")
        for queue, number in zip(pair, numbers, strict=True)
    ]
    assert previews[0] != previews[1]
    pair[0].cancel(numbers[0])
    assert over(pair[0], numbers[0]).status == "cancelled"
    assert previews[1].is_file()
    for queue in pair:
        queue.close()
    third = ImageQueue(tmp_path / "worker", command=COMMAND)
    assert not left.exists()
    third.close()


def test_an_unknown_request_is_named(queue: ImageQueue) -> None:
    with pytest.raises(RunError, match="there is no request 7: it was over long ago"):
        queue.get(7)


def test_a_grid_is_one_request_with_its_axes(queue: ImageQueue, outputs: Path) -> None:
    config = asked("slow", outputs, 1).model_copy(update={"seed": 3})
    specs = ["seed=1:3:1", "replace=slow, dog"]
    number = queue.submit_grid(Grid(config, parse_axes(specs, config)))
    request = queue.get(number)
    assert (request.title, request.is_grid, request.num_images) == ("Grid: seed x in place of slow", True, 6)
    queue.cancel(number)
    over(queue, number)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_process_ends_with_the_one_that_asked(tmp_path: Path, outputs: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from sdlora.config.generate import GenerateConfig\n"
        "from sdlora.launch.images import ImageQueue\n"
        f"queue = ImageQueue(Path({str(tmp_path / 'worker')!r}), command={COMMAND!r})\n"
        f"config = GenerateConfig.model_validate({asked('slow', outputs).model_dump(mode='json')!r})\n"
        "queue.submit(config)\n"
        "print(queue._worker.process_id, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(lambda: outputs.is_dir() and list(outputs.glob("0*")), "the first image", 60)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: start_mark(child) is None, "the process that generates to end", 30)
