"""What a request may say, in the words of OpenAI's images API and some more, made into requests for single images.

Its adapters are named, never given by their place: a request reads no file but those in the folders that are served.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sdlora.config import files
from sdlora.config.generate import GenerateConfig, ImageFormat, Sampler, UsedAdapter
from sdlora.config.mix import parse_adapter
from sdlora.config.section import Section
from sdlora.config.serve import ServeConfig
from sdlora.constants import LATENT_FACTOR
from sdlora.errors import ConfigError
from sdlora.generation.request.prompt_schedule import schedule
from sdlora.generation.request.requests import resolve, single_images
from sdlora.library.names import FoundAdapter, list_adapters, unique_names
from sdlora.library.names import resolve as resolve_name
from sdlora.models.detection import Detection

SOURCE = "the request"
_LONGEST_PROMPT = 10_000
_MOST_JOINED = 8
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class ImageRequest(Section):
    """The body of POST /v1/images/generations. Names are OpenAI's where it has one, sdlora's own for the rest."""

    model: str | None = None
    """Name of the served model; it may be left out."""

    prompt: str = Field(min_length=1, max_length=_LONGEST_PROMPT)
    negative: str = Field(default="", max_length=_LONGEST_PROMPT)
    adapters: tuple[str | dict[str, Any], ...] = Field(default=(), max_length=32)
    """`"ink:0.8"`, or `{"name": "ink", "weight": 0.8}` with the settings that an adapter has in `sdlora generate`."""

    n: int = Field(default=1, ge=1)
    size: str = "auto"
    seed: int = Field(default=-1, ge=-1, lt=2**32)
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = Field(default=None, ge=0.0, le=50.0)
    sampler: Sampler | None = None
    output_format: ImageFormat = "png"
    output_compression: int | None = Field(default=None, ge=1, le=100)
    """Quality of JPEG and WebP."""

    response_format: Literal["b64_json"] = "b64_json"
    stream: Literal[False] = False
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto"] = "auto"
    moderation: Literal["auto"] = "auto"
    user: str | None = Field(default=None, max_length=256)
    """Whoever asks; it stands in the server's log."""


def read_request(body: Mapping[str, Any]) -> ImageRequest:
    """A request's body, checked; null is as left out, as OpenAI has it. Raises ConfigError listing every problem."""
    known = ImageRequest.model_fields
    given = {name: value for name, value in body.items() if value is not None or name not in known}
    return files.validate(given, SOURCE, ImageRequest)


def single_requests(request: ImageRequest, served: ServeConfig, detection: Detection) -> list[GenerateConfig]:
    """A request as one for each of its images, complete and checked: seeds, sizes and adapter files are filled in.

    Reads headers only. Raises ConfigError listing every problem: unknown adapters, adapters of another family, sizes,
    limits of this server.
    """
    problems: list[str] = []
    limits = served.limits
    if request.n > limits.images:
        problems.append(f"n: at most {limits.images} images a request here; got {request.n}")
    steps = GenerateConfig.model_fields["steps"].default if request.steps is None else request.steps
    if steps > limits.steps:
        by_default = " by default" if request.steps is None else ""
        problems.append(f"steps: at most {limits.steps} here; got {steps}{by_default}")
    if request.output_compression is not None and request.output_format == "png":
        problems.append("output_compression: no effect on png; ask for output_format jpeg or webp")
    width_px, height_px = _size(request.size, limits.side_px, problems)
    adapters = list(_adapters(request.adapters, served.adapter_folders, problems))
    given = {"guidance": request.guidance, "sampler": request.sampler}
    written = {"format": request.output_format, "quality": request.output_compression}
    values = {
        "base_model": served.base_model,
        "compute": served.compute,
        "adapter_folders": served.adapter_folders,
        "embedding_folders": served.embedding_folders,
        "wildcard_folders": served.wildcard_folders,
        "prompt": request.prompt,
        "negative": request.negative,
        "adapters": adapters,
        # What is over a limit is told already: the rest of the request is looked at without it.
        "num_images": min(request.n, limits.images),
        "seed": request.seed,
        "steps": min(steps, limits.steps),
        "width_px": width_px,
        "height_px": height_px,
        "batch_size": served.batch_size,
        "files": {} if problems else {name: value for name, value in written.items() if value is not None},
        **{name: value for name, value in given.items() if value is not None},
    }
    rows: list[GenerateConfig] = []
    try:
        rows = single_images(resolve(files.validate(values, SOURCE, GenerateConfig), detection))
    except ConfigError as error:
        problems += error.problems
    # Each of them is a pass of its own through the UNet, at every step.
    joined = max((schedule(row.prompt, row.steps).num_prompts for row in rows), default=0)
    if joined > _MOST_JOINED:
        problems.append(f"prompt: at most {_MOST_JOINED} prompts joined by AND here; got {joined}")
    if problems:
        raise ConfigError(SOURCE, list(dict.fromkeys(problems)))
    return rows


def _size(text: str, side_px: int, problems: list[str]) -> tuple[int | None, int | None]:
    if text == "auto":
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        problems.append(f"size: write it as 512x512, width first, or auto; got '{text}'")
        return None, None
    width_px, height_px = int(match[1]), int(match[2])
    for name, value in (("width", width_px), ("height", height_px)):
        if not 64 <= value <= side_px or value % LATENT_FACTOR:
            problems.append(f"size: the {name} must be a multiple of {LATENT_FACTOR} from 64 to {side_px}; got {value}")
    return (None, None) if any(problem.startswith("size:") for problem in problems) else (width_px, height_px)


def _adapters(
    asked: Sequence[str | Mapping[str, Any]], folders: Sequence[Path], problems: list[str]
) -> Iterator[UsedAdapter]:
    if not asked:
        return
    if not folders:
        problems.append("adapters: this server has none; it is started with --adapter-folder")
        return
    known = list_adapters(folders)
    for number, one in enumerate(asked):
        try:
            used = _from_text(one, known) if isinstance(one, str) else _from_settings(one)
            yield used.model_copy(update={"file": str(named(used.file, known).path)})
        except ConfigError as error:
            problems += [f"adapters.{number}: {problem}" for problem in error.problems]


def _from_text(text: str, known: Sequence[FoundAdapter]) -> UsedAdapter:
    """`ink:0.8`; a name that is listed with a colon in it is the name, unless what stands before it is one, too."""
    names = set(unique_names(known).values())
    spelled = [name for name in names if ":" in name and f"{text}:".startswith(f"{name}:")]
    if not spelled or text.partition(":")[0] in names:
        return parse_adapter(text, UsedAdapter)
    name = max(spelled, key=len)
    return parse_adapter(f"named{text.removeprefix(name)}", UsedAdapter).model_copy(update={"file": name})


def _from_settings(settings: Mapping[str, Any]) -> UsedAdapter:
    values = dict(settings)
    if "file" in values:
        raise ConfigError(SOURCE, ["file: adapters are given by their name here, as GET /v1/adapters lists them"])
    if not isinstance(name := values.pop("name", None), str):
        raise ConfigError(SOURCE, ['name: is missing, as in {"name": "ink", "weight": 0.8}'])
    return files.validate({**values, "file": name}, SOURCE, UsedAdapter)


def named(name: str, known: Sequence[FoundAdapter]) -> FoundAdapter:
    """The served adapter of that name. Raises ConfigError with the nearest names, telling no place on the disk."""
    names = unique_names(known)
    try:
        found = resolve_name(name, known, "the folders that are served")
    except ConfigError:
        near = difflib.get_close_matches(name, list(names.values()), n=5, cutoff=0.5)
        hint = f"near it: {', '.join(near)}" if near else "GET /v1/adapters lists them"
        raise ConfigError(SOURCE, [f"no single adapter here is called '{name}'; {hint}"]) from None
    return found
