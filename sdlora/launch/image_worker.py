"""The process that generates: reads requests as lines, answers as lines (see image_messages), keeps its model loaded.

python -m sdlora.launch.image_worker; started by `images.ImageQueue`. It ends when its standard input does, that is
with the process that started it, however that ends.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image
from pydantic import ValidationError

from sdlora import atomic
from sdlora.config.generate import GenerateConfig
from sdlora.constants import GIB
from sdlora.disk import explain
from sdlora.errors import SdloraError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid, save_grid
from sdlora.generation.restore.image_files import save_image
from sdlora.launch.image_messages import Answer, Cancel, Ended, Generate, Loading, Saved, Stepped, parse_request
from sdlora.processes import seldom_collected
from sdlora.text_files import model_as_json

if TYPE_CHECKING:
    from sdlora.generation.generate import Generator
    from sdlora.generation.generated import GeneratedImage, StepPreview

    Loader = Callable[[], Generator]

_PREVIEW_SECONDS = 0.5
"""Shortest time between two previews, which cost a little each."""
_PREVIEW_QUALITY = 80


class ImageServer:
    """Answers requests one after the other."""

    def __init__(
        self,
        answer: Callable[[Answer], None],
        find: Callable[[GenerateConfig], Loader],
    ) -> None:
        self._answer = answer
        self._find = find
        self._generator: Generator | None = None
        self._cancelled: set[str] = set()
        self._queue: queue.SimpleQueue[Generate | None] = queue.SimpleQueue()

    def receive(self, lines: Iterable[bytes]) -> None:
        """Take requests until the lines end; for a thread of its own."""
        for line in lines:
            try:
                request = parse_request(line)
            except ValidationError as error:
                print(f"not a request: {error}", file=sys.stderr)  # noqa: T201
                continue
            if isinstance(request, Cancel):
                self._cancelled.add(request.id)
            else:
                self._queue.put(request)
        self._queue.put(None)

    def serve(self) -> None:
        """Answer requests until no more will come."""
        while (request := self._queue.get()) is not None:
            self._answer(self._try(request).model_copy(update={"accelerator_gib": _accelerator_gib()}))

    def _try(self, request: Generate) -> Ended:
        try:
            sheet = self._generate(request)
        except SdloraError as error:
            return Ended(id=request.id, outcome="failed", error=str(error))
        except Exception as error:
            traceback.print_exc()
            self._unload()  # a model that met an error is not trusted again, and its memory may be what was missing
            return Ended(id=request.id, outcome="failed", error=_words_for(error))
        outcome: Literal["cancelled", "finished"] = "cancelled" if request.id in self._cancelled else "finished"
        return Ended(id=request.id, outcome=outcome, sheet=None if sheet is None else str(sheet))

    def _generate(self, request: Generate) -> Path | None:
        """Generate and save what is asked for; returns a grid's contact sheet."""
        self._answer(Loading(id=request.id))
        generator = self._generator_for(request.config)
        on_step = self._teller_of_steps(request)

        def is_cancelled() -> bool:
            return request.id in self._cancelled

        if not request.axes:
            for image in generator.generate(request.config, on_step=on_step, is_cancelled=is_cancelled):
                self._tell_saved(request, image, save_image(image, request.config.files.folder))
            return None
        axes = parse_axes(request.axes, request.config, Path(request.run) if request.run else None)
        return save_grid(
            Grid(request.config, axes, most_cells=request.most_cells),
            request.config.files.folder,
            generator,
            on_cell=lambda generated, path: self._tell_saved(request, generated.image, path, generated.cell.labels),
            on_step=on_step,
            is_cancelled=is_cancelled,
        )

    def _teller_of_steps(self, request: Generate) -> Callable[[StepPreview], None]:
        previews = _Previews(Path(request.preview_path))

        def tell(step: StepPreview) -> None:
            self._answer(
                Stepped(
                    id=request.id,
                    step=step.step,
                    total_steps=step.total_steps,
                    image_index=step.image_index,
                    num_images=step.num_images,
                    has_preview=previews.make(step.images),
                )
            )

        return tell

    def _tell_saved(self, request: Generate, image: GeneratedImage, path: Path, labels: Sequence[str] = ()) -> None:
        warnings = [str(each) for each in image.warnings]
        self._answer(
            Saved(id=request.id, path=str(path), seed=image.config.seed, labels=list(labels), warnings=warnings)
        )

    def _generator_for(self, config: GenerateConfig) -> Generator:
        if self._generator is None or not self._generator.fits(config):
            # Before the old one goes: a request that can't be met must not cost the model that is loaded.
            load = self._find(config)
            self._unload()
            self._generator = load()
        return self._generator

    def _unload(self) -> None:
        """Let go of the model before another is loaded: two at once may not fit."""
        self._generator = None
        gc.collect()
        # Never imported for this alone: a worker that has generated nothing has no torch.
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Previews:
    """Small pictures of what is being generated, in one file that is replaced each time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = 0.0

    def make(self, images: Callable[[], list[Image.Image]]) -> bool:
        """Make a new one if the last is old enough; returns whether there is a new one."""
        if time.monotonic() - self._made < _PREVIEW_SECONDS:
            return False
        parts = images()
        if not parts:
            return False
        sheet = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)))
        left_px = 0
        for part in parts:
            sheet.paste(part, (left_px, 0))
            left_px += part.width
        with atomic.writing(self._path, durable=False) as file:
            sheet.save(file, "JPEG", quality=_PREVIEW_QUALITY)
        self._made = time.monotonic()
        return True


def _words_for(error: Exception) -> str:
    """What to tell of an error: of the disk in full, as of a full one or a folder that is gone."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return explain(error)
    return f"{type(error).__name__}: {error}"


def _accelerator_gib() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return float(torch.cuda.memory_reserved()) / GIB


def find_model(config: GenerateConfig) -> Loader:
    """What loads a request's model. Raises ConfigError when the request can't be generated."""
    from sdlora.generation.generate import Generator
    from sdlora.generation.request.requests import resolve

    resolve(config)
    return lambda: Generator(config.base_model, config.compute)


def main(find: Callable[[GenerateConfig], Loader] = find_model) -> None:
    """Serve standard input; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def answer(message: Answer) -> None:
        answers.write(model_as_json(message) + "\n")

    server = ImageServer(answer, find)

    def receive() -> None:
        server.receive(sys.stdin.buffer)
        os._exit(0)  # whoever asked is gone: nobody waits for what is being generated

    threading.Thread(target=receive, name="requests", daemon=True).start()
    server.serve()


if __name__ == "__main__":
    with seldom_collected():
        main()
