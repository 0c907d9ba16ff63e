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

from sdlora.config.generate import GenerateConfig, ImageFilesConfig
from sdlora.errors import ConfigError, RunError
from sdlora.launch.images import ImageProgress, ImageWorker
from sdlora.processes import start_mark
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow  # starts processes

COMMAND = (sys.executable, str(Path(__file__).parents[1] / "support" / "drawing_process.py"))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[ImageWorker]:
    worker = ImageWorker(tmp_path / "worker", command=COMMAND)
    yield worker
    worker.close()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def asked(prompt: str, outputs: Path, num_images: int = 2) -> GenerateConfig:
    return GenerateConfig(prompt=prompt, num_images=num_images, files=ImageFilesConfig(folder=outputs))


def over(worker: ImageWorker, request: str) -> ImageProgress:
    wait_for(lambda: worker.poll(request).is_over, "the images", 60)
    return worker.poll(request)


def test_images_are_saved_and_listed_as_they_come(worker: ImageWorker, outputs: Path) -> None:
    done = over(worker, worker.submit(asked("a fox", outputs)))
    assert (done.status, done.seeds, done.warnings) == ("finished", (0, 1), ("paint is wet",))
    assert list(done.images) == sorted(outputs.iterdir())
    assert done.preview is None
    assert "libraries print this" in worker.log_tail()
    memory = worker.memory()
    assert memory is not None
    assert memory.process_gib > 0


def test_requests_wait_for_each_other_and_can_be_taken_back(worker: ImageWorker, outputs: Path) -> None:
    slow, second, third = (worker.submit(asked(prompt, outputs)) for prompt in ("slow", "a", "b"))
    assert (worker.poll(second).status, worker.poll(third).waits_for) == ("queued", 2)
    worker.cancel(third)
    wait_for(lambda: worker.poll(slow).images, "the first image", 60)
    preview = worker.poll(slow).preview
    assert preview is not None
    with Image.open(preview) as image:
        assert image.size == (16, 8)
    worker.cancel(slow)
    cancelled = over(worker, slow)
    assert (cancelled.status, len(cancelled.images)) == ("cancelled", 1)
    assert cancelled.images[0].is_file()
    assert not preview.exists()
    assert over(worker, second).status == "finished"
    assert worker.poll(third).status == "cancelled"


def test_errors_are_told_and_the_next_request_is_drawn(worker: ImageWorker, outputs: Path) -> None:
    wrong, broken, fine = (worker.submit(asked(prompt, outputs)) for prompt in ("wrong", "broken", "fine"))
    assert over(worker, wrong).error == "this brush doesn't fit"
    assert over(worker, broken).error == "ZeroDivisionError: no canvas"
    assert over(worker, fine).status == "finished"
    assert "Traceback" in worker.log_tail()


def test_a_process_that_dies_fails_its_request_only(worker: ImageWorker, outputs: Path) -> None:
    crash, fine = (worker.submit(asked(prompt, outputs)) for prompt in ("crash", "fine"))
    failed = over(worker, crash)
    assert failed.status == "failed"
    assert failed.error == "the process that generates died (exit code 3). Fatal Python error: out of paint"
    assert over(worker, fine).status == "finished"


def test_memory_is_given_back_when_nothing_is_drawn(tmp_path: Path, outputs: Path) -> None:
    worker = ImageWorker(tmp_path / "worker", command=COMMAND, idle_seconds=0.05)
    over(worker, worker.submit(asked("a", outputs)))
    wait_for(lambda: worker.memory() is None, "the process to end", 30)
    slow = worker.submit(asked("slow", outputs))
    assert not worker.release()
    assert worker.release(cancel=True)
    assert worker.memory() is None
    assert worker.poll(slow).status == "cancelled"
    worker.close()
    with pytest.raises(RunError, match="the image worker is closed"):
        worker.submit(asked("a", outputs))


def test_an_unknown_request_is_named(worker: ImageWorker) -> None:
    with pytest.raises(RunError, match="there is no request 'abc'"):
        worker.poll("abc")


def test_a_grid_that_cannot_be_is_refused_at_once(worker: ImageWorker, outputs: Path) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        worker.submit_grid(asked("a", outputs, 1), ["nosuch=1,2"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_process_ends_with_the_one_that_asked(tmp_path: Path, outputs: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from sdlora.config.generate import GenerateConfig\n"
        "from sdlora.launch.images import ImageWorker\n"
        f"worker = ImageWorker(Path({str(tmp_path / 'worker')!r}), command={COMMAND!r})\n"
        f"config = GenerateConfig.model_validate({asked('slow', outputs).model_dump(mode='json')!r})\n"
        "worker.submit(config)\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(lambda: outputs.is_dir() and list(outputs.glob("0*")), "the first image", 60)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: start_mark(child) is None, "the process that generates to end", 30)
