"""`python -m tests.faults.stand_in`: sdlora, but with a trainer that only holds the run's lock and tells its events.

For faults of what starts trainings: it begins in half a second, so hundreds of starts can be tried. And `Painter`, for
faults of the process that draws images: its pictures are noise, the same for the same seed.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from PIL import Image

from sdlora.__main__ import program
from sdlora.config.generate import GenerateConfig
from sdlora.events import RunFinished, RunStarted, Validated
from sdlora.generation.generated import GeneratedImage, GenerationFacts, StepPreview
from sdlora.launch import image_worker, jobs, runs
from sdlora.runs.folder import open_run
from sdlora.runs.lock import locked
from sdlora.sinks.jsonl import JsonlSink

TIMES = "times.txt"
"""In a run's folder: when each of its trainings began and ended, in seconds of the machine's monotonic clock."""

COMMAND = (sys.executable, "-m", "tests.faults.stand_in")


def take_the_place() -> None:
    """Have the trainings and jobs that this process starts be stand-ins."""
    runs.SDLORA = jobs.SDLORA = COMMAND


def train(path: Path, sinks: object, **options: object) -> Any:
    """Stands in for `training.loop.run.resume`."""
    folder, config = open_run(path)
    with locked(folder):
        _note(folder.path, "began")
        sink = JsonlSink(folder.events)
        sink.emit(
            RunStarted(
                name=config.name, folder=str(folder.path), process_id=os.getpid(), total_steps=1, first_step=0,
                trainable_parameters=1, total_parameters=1,
            )
        )  # fmt: skip
        time.sleep(random.uniform(0.0, 0.4))
        folder.result(config).write_bytes(b"an adapter")
        told = 1 - config.adapter.rank / 100
        sink.emit(Validated(step=1, loss=told, base_loss=1.0, relative_loss=told, is_best=True))
        _note(folder.path, "ended")
        sink.emit(RunFinished(step=1, reason="completed", adapter_path=str(folder.result(config)), seconds=1.0))
        sink.close()
    return SimpleNamespace(outcome="completed", interrupted=False, folder=folder.path)


class Painter:
    """Stands in for `generation.generate.Generator`."""

    def fits(self, config: GenerateConfig) -> bool:
        """It paints on anything."""
        return True

    def generate(self, config: GenerateConfig, **how: Any) -> Iterator[Any]:
        """One image after the other."""
        return self.generate_rows(
            [config.model_copy(update={"seed": config.seed + index}) for index in range(config.num_images)], **how
        )

    def generate_rows(
        self, rows: Sequence[GenerateConfig], on_step: Callable[[Any], None], is_cancelled: Callable[[], bool]
    ) -> Iterator[Any]:
        """The same for images that are asked for one by one."""
        for index, row in enumerate(rows):
            picture = Image.frombytes("RGB", (64, 64), random.Random(row.seed).randbytes(3 * 64 * 64))
            for step in range(1, 4):
                time.sleep(0.03)
                on_step(StepPreview(step, 3, index, len(rows), lambda picture=picture: [picture]))
            if is_cancelled():
                return
            facts = GenerationFacts("none", None, {}, "sd1", "epsilon", 0.0)
            yield GeneratedImage(picture, row.model_copy(update={"num_images": 1}), facts)


def paint() -> None:
    """The image worker with a painter in place of a model."""
    image_worker.main(lambda config: Painter)  # type: ignore[arg-type,return-value]


def _note(folder: Path, what: str) -> None:
    with (folder / TIMES).open("a") as file:
        file.write(f"{what} {time.monotonic()}\n")


if __name__ == "__main__":
    module = ModuleType("sdlora.training.loop.run")
    module.resume = train  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    take_the_place()  # the queue goes on when a training ends
    program()
