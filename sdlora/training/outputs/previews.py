"""Images generated while training: the configured prompts, always with the same seeds, and what a person asks for."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from sdlora import atomic
from sdlora.adapters.algebra.loaded_base import load_base
from sdlora.adapters.live.attach import Adapter
from sdlora.config.generate import UsedAdapter, sampler_problem
from sdlora.config.preview_prompts import PreviewPrompt, parse_preview
from sdlora.config.train import TrainConfig
from sdlora.errors import SdloraError
from sdlora.events import EventStream, PictureDrawn, PreviewReady
from sdlora.generation.sampling.adapted_base import AdaptedBase
from sdlora.generation.sampling.embeddings import choose_embeddings
from sdlora.generation.sampling.pool import AdapterPool
from sdlora.generation.sampling.sample import SampleRequest, sample
from sdlora.models.bundle import Bundle
from sdlora.models.frozen.engine import without_gradients
from sdlora.runs.folder import RunFolder

_AT_ONCE = 4

Value = TypeVar("Value")
Export = Callable[[Path], tuple[list[Path], tuple[str, ...]]]
"""Writes what is trained to a file of this name; returns the files, the one that stands for all first, and warnings."""


@dataclass(frozen=True)
class Preview:
    """One preview: what to generate, and the adapter's weight for it."""

    request: SampleRequest
    adapter_weight: float = 1.0


Drawn = Callable[[Sequence[Preview], Sequence[int]], dict[int, Image.Image]]
"""Generates the previews at these places as one batch; returns their images by place."""


class Previews:
    """Generates with the model as it is between two steps: the run's previews, and pictures that a person asks for."""

    def __init__(self, config: TrainConfig, bundle: Bundle, adapter: Adapter) -> None:
        """Reads `previews.adapters`, here and once: a file that goes while the run trains must not end it.

        bundle: its layers exchanged, the adapter attached. Raises AdapterError (a file that is unreadable, for another
        family or of other layer sizes) and ConfigError (unknown block weights).
        """
        self._config = config
        self._bundle = bundle
        self._adapter = adapter
        self._base = AdaptedBase(bundle)
        pool = AdapterPool(self._base, sys.maxsize, bundle.schedule.prediction)
        others = config.previews.adapters if config.previews.prompts else ()
        self._others = tuple(pool.get(UsedAdapter(**dict(other))) for other in others)

    @property
    def notes(self) -> list[str]:
        """What of the other adapters can't be used, or was assumed."""
        return [note for other in self._others for note in other.loaded.warnings]

    def generate(
        self,
        folder: RunFolder,
        step: int,
        events: EventStream,
        autocast: AbstractContextManager[Any],
        export: Export,
        until: Callable[[], bool] = lambda: False,
    ) -> None:
        """Generate all previews and save them as PNG files, in the order of the prompts.

        until: asked between the pictures; once it is true there are none at all. Of a `previews.base_model` that can't
        be read any more is told instead.
        """
        wanted = planned(self._config)
        if not wanted:
            return
        images: dict[int, Image.Image] = {}
        is_other = self._config.previews.base_model is not None
        try:
            with self._elsewhere(export, wanted, autocast) if is_other else self._ready(autocast) as drawn:
                for batch in _batches(wanted):
                    if until():
                        return
                    images |= drawn(wanted, batch)
                    events.progress("generating previews", len(images), len(wanted))
        except (SdloraError, OSError) as error:  # a training of hours must not end because another model's file went
            if not is_other:
                raise
            events.warn(f"step {step}: no previews on previews.base_model: {error}")
            return
        target = folder.previews(step)
        target.mkdir(parents=True, exist_ok=True)
        paths = [target / f"{index:02d}.png" for index in range(len(wanted))]
        for index, path in enumerate(paths):
            _save(images[index], path)
        prompts = [preview.request.prompt for preview in wanted]
        events.emit(PreviewReady(step=step, paths=[str(path) for path in paths], prompts=prompts))

    def draw(
        self,
        prompts: Sequence[str],
        folder: RunFolder,
        step: int,
        events: EventStream,
        autocast: AbstractContextManager[Any],
    ) -> None:
        """Draw what a person asked for, one after another, each told as soon as it lies in the run's folder.

        What can't be drawn is told, too, and the next one tried. Raises RuntimeError as torch does.
        """
        parts = (self._bundle.vae, *self._bundle.text_encoders)
        if any(part.device.type != self._bundle.device.type for part in parts):
            events.warn("no picture is drawn: without previews.prompts, what only pictures need has left the card")
            return
        with self._ready(autocast):
            for index, prompt in enumerate(prompts):
                events.progress("drawing what was asked for", index, len(prompts))
                try:
                    path = self._draw_one(prompt, index, folder, step)
                except (SdloraError, ValueError, OSError) as error:
                    events.warn(f"'{prompt}' isn't drawn: {error}")
                else:
                    events.emit(PictureDrawn(step=step, path=str(path), prompt=prompt))
        events.progress("drawing what was asked for", len(prompts), len(prompts))

    def _draw_one(self, prompt: str, index: int, folder: RunFolder, step: int) -> Path:
        # With the others before it left out: its place in the list decides over its seed.
        wanted = planned(self._config, [PreviewPrompt("")] * index + [parse_preview(prompt)])
        if problem := sampler_problem(wanted[index].request.sampler, self._bundle.schedule.prediction):
            raise ValueError(problem)
        folder.asked_pictures.mkdir(exist_ok=True)
        path = folder.next_asked_picture(step)
        _save(self._drawn(wanted, [index])[index], path)
        return path

    @contextmanager
    def _ready(self, autocast: AbstractContextManager[Any]) -> Iterator[Drawn]:
        """With the model that is trained, as it is."""
        with autocast, without_gradients(self._bundle.unet, self._bundle.device):
            self._base.use_for_all(self._others)
            try:
                yield self._drawn
            finally:
                self._base.clear()

    @contextmanager
    def _elsewhere(
        self, export: Export, wanted: Sequence[Preview], autocast: AbstractContextManager[Any]
    ) -> Iterator[Drawn]:
        """With `previews.base_model`, and the adapter in the file that others would get of it now."""
        device, others = self._bundle.device, self._config.previews.adapters
        with tempfile.TemporaryDirectory() as scratch:
            (file, *_), _ = export(Path(scratch) / f"{self._config.name}.safetensors")
            bundle = load_base(self._config.preview_base_model, device=device)
            base = AdaptedBase(bundle)
            pool = AdapterPool(base, sys.maxsize, bundle.schedule.prediction)
            beside = tuple(pool.get(UsedAdapter(**dict(other))) for other in others)
            widths = [encoder.get_input_embeddings().weight.shape[1] for encoder in bundle.text_encoders]
            texts = [text for one in wanted for text in (one.request.prompt, one.request.negative)]
            bundle.new_tokens = choose_embeddings(texts, [Path(scratch)], {}, widths).tokens

            def drawn(wanted: Sequence[Preview], places: Sequence[int]) -> dict[int, Image.Image]:
                weight = wanted[places[0]].adapter_weight
                own = (pool.get(UsedAdapter(file=str(file), weight=weight)),) if self._config.adapter.rank else ()
                base.use_for_all((*own, *beside))
                return dict(zip(places, sample(bundle, [wanted[place].request for place in places]), strict=True))

            with autocast, without_gradients(bundle.unet, device):
                yield drawn

    def _drawn(self, wanted: Sequence[Preview], places: Sequence[int]) -> dict[int, Image.Image]:
        """The pictures at these places, which are generated as one batch."""
        self._adapter.set_scale(wanted[places[0]].adapter_weight)
        try:
            images = sample(self._bundle, [wanted[place].request for place in places])
        finally:
            self._adapter.set_scale(1.0)
        return dict(zip(places, images, strict=True))


def planned(config: TrainConfig, prompts: Sequence[PreviewPrompt] | None = None) -> list[Preview]:
    """What to generate for each prompt: its own options, else the settings' of all previews.

    prompts: by default the configured ones.
    """
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
            seed=either(own.seed, (previews.seed + index) % 2**32),
            steps=either(own.steps, previews.steps),
            guidance=either(own.guidance, previews.guidance),
            sampler=either(own.sampler, previews.sampler),
        )
        return Preview(request, either(own.adapter_weight, 1.0))

    return [of(index, own) for index, own in enumerate(previews.parsed if prompts is None else prompts)]


def _save(image: Image.Image, path: Path) -> None:
    with atomic.writing(path) as file:
        image.save(file, "PNG")


def _batches(previews: Sequence[Preview]) -> list[list[int]]:
    """Places of the previews that are generated together: same sizes, steps, sampler and adapter weight."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, preview in enumerate(previews):
        alike.setdefault((*preview.request.shares, preview.adapter_weight), []).append(index)
    return [group[start : start + _AT_ONCE] for group in alike.values() for start in range(0, len(group), _AT_ONCE)]
