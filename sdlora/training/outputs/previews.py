"""Images generated while training: the configured prompts, always with the same seeds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sdlora import atomic
from sdlora.config.train import TrainConfig
from sdlora.events import EventStream, PreviewReady
from sdlora.generation.sampling.sample import SampleRequest, sample
from sdlora.models.bundle import Bundle
from sdlora.runs.folder import RunFolder

_AT_ONCE = 4


def requests(config: TrainConfig) -> list[SampleRequest]:
    """What to generate for each configured prompt."""
    edge = config.images.resolutions[0]
    previews = config.previews
    return [
        SampleRequest(
            prompt=prompt,
            negative=previews.negative,
            width_px=previews.width_px or edge,
            height_px=previews.height_px or edge,
            seed=previews.seed + index,
            steps=previews.steps,
            guidance=previews.guidance,
        )
        for index, prompt in enumerate(previews.prompts)
    ]


def generate(
    config: TrainConfig,
    bundle: Bundle,
    folder: RunFolder,
    step: int,
    events: EventStream,
    autocast: AbstractContextManager[Any],
) -> list[Path]:
    """Generate all preview prompts with the model as it is now and save them as PNG files."""
    wanted = requests(config)
    if not wanted:
        return []
    images = []
    with autocast:
        for start in range(0, len(wanted), _AT_ONCE):
            images += sample(bundle, wanted[start : start + _AT_ONCE])
            events.progress("generating previews", len(images), len(wanted))
    target = folder.previews(step)
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / f"{index:02d}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        with atomic.writing(path) as file:
            image.save(file, "PNG")
    events.emit(PreviewReady(step=step, paths=[str(path) for path in paths], prompts=[item.prompt for item in wanted]))
    return paths
