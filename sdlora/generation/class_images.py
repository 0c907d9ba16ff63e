"""Class images for prior preservation: what the base model generates of the class that a subject belongs to."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora import atomic, disk
from sdlora.config.files import validate
from sdlora.config.generate import GenerateConfig
from sdlora.config.images import CaptionsConfig
from sdlora.config.section import NO_TEXT, is_text
from sdlora.data.captions import render
from sdlora.data.decoding import IMAGE_SUFFIXES
from sdlora.data.scan_problems import refuse_unwritable
from sdlora.errors import ConfigError, DataError, SdloraError
from sdlora.generation.generate import Generator
from sdlora.generation.request.prompt_choices import has_choices
from sdlora.generation.request.requests import resolve
from sdlora.generation.restore.image_files import SUFFIX_OF, read_image_settings, save_image
from sdlora.library.prompt_tags import holds_tag

_SEEDS = 2**32


@dataclass(frozen=True)
class ClassImages:
    """How many of the images asked for this call generated, and how many were there already."""

    generated: int
    there: int
    """Also those beyond the number asked for: all in the folder are trained."""
    others: tuple[str, ...] = ()
    """Names of those there that this call would have generated with other settings, and in which ones they differ."""


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
    if not all(is_text(prompt) for prompt in prompts):
        raise ConfigError("the request", [f"prompt {NO_TEXT}"])
    folder = folder.expanduser()
    places = {number: [folder / f"{_stem(number)}{suffix}" for suffix in IMAGE_SUFFIXES] for number in range(count)}
    there = {number: path for number, paths in places.items() for path in paths if path.is_file()}
    missing = [number for number in places if number not in there]
    rows: dict[int, GenerateConfig] = {}
    for number in places:
        # By its number, so that an interrupted call goes on with the very images it would have generated.
        seed = (max(request.seed, 0) + number) % _SEEDS
        prompt = render(prompts[number % len(prompts)], CaptionsConfig(wildcards=True), random.Random(seed))
        rows[number] = request.model_copy(update={"prompt": prompt, "seed": seed, "num_images": 1})
    others = tuple(_others(there, rows))
    num_there = len(there) + _num_beyond(folder, count)
    if not missing:
        return ClassImages(0, num_there, others)
    resolve(rows[missing[0]])  # every problem is told before a model is loaded
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
    return ClassImages(len(missing), num_there, others)


def _num_beyond(folder: Path, count: int) -> int:
    """How many images of an earlier call there are beyond those that are asked for."""
    names = {path.stem for path in folder.glob("class-*") if path.suffix.lower() in IMAGE_SUFFIXES}
    return sum(int(match[1]) >= count for name in names if (match := re.fullmatch(r"class-(\d{6,})", name)))


_COMPARED = ("base_model", "prompt", "negative", "seed", "steps", "guidance", "width_px", "height_px")


def _others(there: Mapping[int, Path], rows: Mapping[int, GenerateConfig]) -> Iterator[str]:
    """Those of the images there that tell other settings than they would be generated with now."""
    for number, path in sorted(there.items()):
        try:
            told = read_image_settings(path)
            found = validate(told.values, path.name, GenerateConfig) if told.by_sdlora else None
        except SdloraError:
            continue  # somebody's own picture
        if found is None:
            continue
        row = rows[number]
        # A request as it came out has no tags and wildcards left, and sizes where none were given.
        left = {name for name in ("width_px", "height_px") if getattr(row, name) is None}
        left |= {"prompt"} if holds_tag(row.prompt) or has_choices(row.prompt) else set()
        differing = [name for name in _COMPARED if name not in left and getattr(found, name) != getattr(row, name)]
        if differing:
            yield f"{path.name} ({', '.join(differing)})"


def _stem(number: int) -> str:
    return f"class-{number:06d}"
