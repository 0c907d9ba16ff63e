"""Images generated while training: the configured prompts, always with the same seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from sdlora import atomic
from sdlora.adapters.live.attach import Adapter
from sdlora.config.generate import UsedAdapter
from sdlora.config.mix import MixedAdapter
from sdlora.config.preview_prompts import PreviewPrompt
from sdlora.config.train import TrainConfig
from sdlora.events import EventStream, PreviewReady
from sdlora.generation.sampling.adapted_base import AdaptedBase
from sdlora.generation.sampling.pool import AdapterPool
from sdlora.generation.sampling.sample import SampleRequest, sample
from sdlora.models.bundle import Bundle
from sdlora.models.frozen.engine import without_gradients
from sdlora.runs.folder import RunFolder

_AT_ONCE = 4

Value = TypeVar("Value")


@dataclass(frozen=True)
class Preview:
    """One preview: what to generate, and the adapter's weight for it."""

    request: SampleRequest
    adapter_weight: float = 1.0


class OtherAdapters:
    """The adapters of `previews.adapters`, read once: a file that goes while a run trains must not end it."""

    def __init__(self, adapters: Sequence[MixedAdapter], bundle: Bundle) -> None:
        """Raises AdapterError (unreadable, another family, other layer sizes) and ConfigError (unknown block weights).

        bundle: as it is trained, its layers exchanged and its adapter attached.
        """
        self._base = AdaptedBase(bundle)
        pool = AdapterPool(self._base, sys.maxsize, bundle.schedule.prediction)
        self._adapters = tuple(pool.get(UsedAdapter(**dict(adapter))) for adapter in adapters)

    @property
    def notes(self) -> list[str]:
        """What of the files can't be used, or was assumed."""
        return [note for adapter in self._adapters for note in adapter.loaded.warnings]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """On the model inside the block."""
        self._base.use_for_all(self._adapters)
        try:
            yield
        finally:
            self._base.clear()


def planned(config: TrainConfig) -> list[Preview]:
    """What to generate for each configured prompt: its own options, else the settings' of all previews."""
    edge = config.images.resolutions[0]
    previews = config.previews

    def of(index: int, own: PreviewPrompt) -> Preview:
        def either(value: Value | None, shared: Value) -> Value:
            return shared if value is None else value

        request = SampleRequest(
            prompt=own.prompt,
            negative=either(own.negative, previews.negative),
            width_px=either(own.width_px, previews.width_px or edge),
            height_px=either(own.height_px, previews.height_px or edge),
            # Each prompt keeps its seed over the whole run, so that
            # what differs between two steps is the adapter's doing.
            seed=either(own.seed, previews.seed + index),
            steps=either(own.steps, previews.steps),
            guidance=either(own.guidance, previews.guidance),
            sampler=either(own.sampler, previews.sampler),
        )
        return Preview(request, either(own.adapter_weight, 1.0))

    return [of(index, own) for index, own in enumerate(previews.parsed)]


def generate(
    config: TrainConfig,
    bundle: Bundle,
    adapter: Adapter,
    others: OtherAdapters,
    folder: RunFolder,
    step: int,
    events: EventStream,
    autocast: AbstractContextManager[Any],
    until: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Generate all previews with the model as it is now and save them as PNG files, in the order of the prompts.

    until: asked between the pictures; once it is true there are none at all.
    """
    wanted = planned(config)
    if not wanted:
        return []
    images: dict[int, Image.Image] = {}
    with autocast, without_gradients(bundle.unet, bundle.device), others.in_use():
        for batch in _batches(wanted):
            if until():
                return []
            adapter.set_scale(wanted[batch[0]].adapter_weight)
            try:
                images |= zip(batch, sample(bundle, [wanted[index].request for index in batch]), strict=True)
            finally:
                adapter.set_scale(1.0)
            events.progress("generating previews", len(images), len(wanted))
    target = folder.previews(step)
    target.mkdir(parents=True, exist_ok=True)
    paths = [target / f"{index:02d}.png" for index in range(len(wanted))]
    for index, path in enumerate(paths):
        with atomic.writing(path) as file:
            images[index].save(file, "PNG")
    prompts = [preview.request.prompt for preview in wanted]
    events.emit(PreviewReady(step=step, paths=[str(path) for path in paths], prompts=prompts))
    return paths


def _batches(previews: Sequence[Preview]) -> list[list[int]]:
    """Places of the previews that are generated together: same sizes, steps, sampler and adapter weight."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, preview in enumerate(previews):
        alike.setdefault((*preview.request.shares, preview.adapter_weight), []).append(index)
    return [group[start : start + _AT_ONCE] for group in alike.values() for start in range(0, len(group), _AT_ONCE)]
