"""Class images for prior preservation: what the base model generates of the class that a subject belongs to."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora import atomic, disk
from sdlora.config.generate import GenerateConfig
from sdlora.config.images import CaptionsConfig
from sdlora.data.captions import render
from sdlora.data.decoding import IMAGE_SUFFIXES
from sdlora.data.scan_problems import refuse_unwritable
from sdlora.errors import ConfigError, DataError
from sdlora.generation.generate import Generator
from sdlora.generation.request.requests import resolve
from sdlora.generation.restore.image_files import SUFFIX_OF, save_image

_SEEDS = 2**32


@dataclass(frozen=True)
class ClassImages:
    """How many of the images asked for this call generated, and how many were there already."""

    generated: int
    there: int


def generate_class_images(
    request: GenerateConfig,
    prompts: Sequence[str],
    count: int,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ClassImages:
    """Fill a folder up to `count` images called class-000000.png and so on, each with its prompt as caption beside it.

    request: model, size, sampler and the first seed (-1 counts as 0); the seeds count up. prompts: taken in turn, one
    of each {red|green} picked by the image's seed. Interrupted, the same call generates only what is missing. Raises
    ConfigError for a wrong request or no prompt, DataError for a folder that can't be written, ModelError.
    """
    if not [prompt for prompt in prompts if prompt.strip()]:
        raise ConfigError("the request", ["prompt is missing: say what the subject is one of, as a photo of a dog"])
    folder = folder.expanduser()
    missing = [
        number
        for number in range(count)
        if not any((folder / f"{_stem(number)}{suffix}").is_file() for suffix in IMAGE_SUFFIXES)
    ]
    if not missing:
        return ClassImages(0, count)
    rows: dict[int, GenerateConfig] = {}
    for number in missing:
        # By its number, so that an interrupted call goes on with the very images it would have generated.
        seed = (max(request.seed, 0) + number) % _SEEDS
        prompt = render(prompts[number % len(prompts)], CaptionsConfig(wildcards=True), random.Random(seed))
        rows[number] = request.model_copy(update={"prompt": prompt, "seed": seed, "num_images": 1})
    resolve(next(iter(rows.values())))  # every problem is told before a model is loaded
    refuse_unwritable(folder)
    atomic.sweep(folder, shared=True)
    generator = Generator(request.base_model, request.compute)
    for start in range(0, len(missing), request.batch_size):
        numbers = missing[start : start + request.batch_size]
        for number, generated in zip(
            numbers, generator.generate_rows([rows[number] for number in numbers]), strict=True
        ):
            path = folder / f"{_stem(number)}{SUFFIX_OF[request.files.format]}"
            try:  # the caption first: an image on the disk is complete
                atomic.write_text(path.with_suffix(".txt"), generated.config.prompt, parents=True)
            except OSError as error:
                raise DataError(disk.explain(error, path.with_suffix(".txt"))) from error
            if not path.exists():  # unless another process with the same call was first
                save_image(generated, path)
        if on_progress:
            on_progress(count - len(missing) + start + len(numbers), count)
    return ClassImages(len(missing), count - len(missing))


def _stem(number: int) -> str:
    return f"class-{number:06d}"
