"""Generates one batch with a loaded model: puts the adapters on, encodes texts, runs the passes, fixes what overflowed.

Shapes: B images, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sdlora.config.generate import GenerateConfig
from sdlora.data.decoding import UnreadableImageError
from sdlora.errors import DataError
from sdlora.generation.request.prompt_schedule import PromptSchedule, SubPrompt, schedule
from sdlora.generation.request.start_images import StartImage, load_start
from sdlora.generation.sampling.adapted_base import AdaptedBase, AdapterSet
from sdlora.generation.sampling.denoising import Conditions
from sdlora.generation.sampling.passes import Batch, ConditionsAt, Watch, rescale_of
from sdlora.generation.sampling.texts import Texts
from sdlora.models.family import Bundle, TextStates

OnStep = Callable[[int, int, Callable[[], Tensor]], None]
"""Called with (step, total steps, clean latents_BCHW)."""

MERGED_FROM_STEPS = 4
"""Steps of an image from which merging adapters costs less than carrying them along (see tests/benchmarks)."""
_BRIGHTEST_BLACK = 2
"""Brightest value of a picture that counts as black."""


@dataclass(frozen=True)
class SampledImage:
    """A picture and what had to be done for it."""

    image: Image.Image
    is_finite: bool
    warning: str | None = None


class BatchGenerator:
    """A loaded base model that generates batches."""

    def __init__(self, bundle: Bundle, adapted: AdaptedBase) -> None:
        self._bundle = bundle
        self._adapted = adapted
        self._texts = Texts(bundle, adapted)

    def shape_of_texts(self, row: GenerateConfig) -> tuple[int, int]:
        """Chunks of 75 tokens that a request's longest prompt takes, and how many prompts AND joins.

        What is generated together must have the same.
        """
        prompts, negatives = _schedules(row)
        return self._texts.num_chunks(*_texts_in(prompts), *_texts_in(negatives)), prompts.num_prompts

    def merges(self, config: GenerateConfig, sets: Sequence[AdapterSet]) -> bool:
        """Whether a batch's adapters are merged into the weights: told by its settings alone, never by its size."""
        is_shared = len({_signature(own) for own in sets}) == 1
        if config.compute.merge_adapters is False or not is_shared or not sets[0] or not self._adapted.can_merge:
            return False
        is_constant = all(adapter.start == 0 and adapter.end == 1 for adapter in sets[0])
        return config.compute.merge_adapters is True or (is_constant and config.steps >= MERGED_FROM_STEPS)

    def images(
        self,
        rows: Sequence[GenerateConfig],
        sets: Sequence[AdapterSet],
        merge: bool,
        on_step: OnStep | None,
        is_cancelled: Callable[[], bool],
    ) -> list[SampledImage]:
        """Generate a batch; what came out black or not finite is generated again in fp32. Raises CancelledError."""
        starts = [_start(row) for row in rows]
        images = self._generated(rows, sets, starts, merge, on_step, is_cancelled)
        for index, picture in enumerate(images):
            fault = _fault(picture)
            if fault is None:
                continue
            if self._bundle.dtype == torch.float32:
                images[index] = SampledImage(picture.image, True, f"the picture came out {fault}")
                continue
            precision = str(self._bundle.dtype).removeprefix("torch.")
            with self._in_fp32():
                again = self._generated(
                    rows[index : index + 1],
                    sets[index : index + 1],
                    starts[index : index + 1],
                    merge,
                    None,
                    is_cancelled,
                )[0]
            still = _fault(again)
            result = "and so it did in fp32" if still else "so it was generated again in fp32"
            images[index] = SampledImage(again.image, True, f"the picture came out {fault} in {precision}, {result}")
        return images

    def _generated(
        self,
        rows: Sequence[GenerateConfig],
        sets: Sequence[AdapterSet],
        starts: Sequence[StartImage | None],
        merge: bool,
        on_step: OnStep | None,
        is_cancelled: Callable[[], bool],
    ) -> list[SampledImage]:
        schedules = [_schedules(row) for row in rows]
        num_prompts = schedules[0][0].num_prompts
        guides = num_prompts > 1 or any(row.guidance != 1 for row in rows)
        states = self._encoded(schedules, sets, guides)
        guidance_B = torch.tensor([row.guidance for row in rows], device=self._bundle.device)
        rescale_B = torch.tensor([rescale_of(row, self._bundle) for row in rows], device=self._bundle.device)

        def conditions(width_px: int, height_px: int) -> ConditionsAt:
            size = self._bundle.family.full_size_conditions(width_px, height_px)

            @cache  # by the texts of the step: most prompts never change
            def of_texts(prompts: tuple[tuple[SubPrompt, ...], ...], negatives: tuple[SubPrompt, ...]) -> Conditions:
                parts = tuple(states.batch([own[index].text for own in prompts]) for index in range(num_prompts))
                weights = [[own[index].weight for own in prompts] for index in range(num_prompts)]
                unconditional = states.batch([each.text for each in negatives], negative=True) if guides else None
                return Conditions(
                    parts,
                    torch.tensor(weights, device=self._bundle.device),
                    unconditional,
                    guidance_B,
                    rescale_B,
                    size,
                    self._one_by_one(sets, guides),
                )

            def at(index: int, total: int) -> Conditions:
                return of_texts(
                    tuple(prompts.at(index, total) for prompts, _ in schedules),
                    tuple(negatives.at(index, total)[0] for _, negatives in schedules),
                )

            return at

        put_on = self._putting_on(sets, merge, num_prompts + (1 if guides else 0))
        batch = Batch(self._bundle, rows, starts, Watch(on_step, is_cancelled, put_on))
        latents_BCHW = batch.latents(conditions)
        return [
            SampledImage(batch.picture(latents_BCHW, index), bool(torch.isfinite(latents_BCHW[index]).all()))
            for index in range(len(rows))
        ]

    def _one_by_one(self, sets: Sequence[AdapterSet], guides: bool) -> bool:
        """Whether images pass the UNet one by one, so that none's last bits depend on how many are generated together.

        A processor's fp32 kernels sum in another order for other batch sizes, its bf16 kernels only for a single row.
        Rows with adapters of their own stay together all the same.
        """
        is_mixed = len({_signature(own) for own in sets}) > 1
        depends = self._bundle.dtype == torch.float32 or not guides
        return self._bundle.device.type == "cpu" and depends and not is_mixed

    def _encoded(
        self, schedules: Sequence[tuple[PromptSchedule, PromptSchedule]], sets: Sequence[AdapterSet], guides: bool
    ) -> _States:
        """Every text of the batch, whenever it comes, encoded before the first step."""
        known: dict[tuple[int, str, bool], TextStates] = {}
        for row, ((prompts, negatives), own) in enumerate(zip(schedules, sets, strict=True)):
            for text in _texts_in(prompts):
                (known[row, text, False],) = self._texts.conditional([text], [own])
            for text in _texts_in(negatives) if guides else ():
                (known[row, text, True],) = self._texts.unconditional([text], [own])
        return _States(known, self._texts)

    def _putting_on(self, sets: Sequence[AdapterSet], merge: bool, copies: int) -> Callable[[float], None]:
        """Called before each step with the share that is done: changes the adapters where one sets in or ends."""
        present: list[tuple[object, ...]] | None = None

        def put_on(share: float) -> None:
            nonlocal present
            active = [tuple(one for one in own if one.start <= share < one.end) for own in sets]
            signatures = [_signature(own) for own in active]
            if signatures == present:
                return
            present = signatures
            if merge:
                self._adapted.merge(active[0])
            else:
                self._adapted.use(active, copies)

        return put_on

    @contextmanager
    def _in_fp32(self) -> Iterator[None]:
        """UNet and text encoders in fp32 inside the block: half precision to fp32 and back is exact."""
        bundle, dtype = self._bundle, self._bundle.dtype
        modules = (bundle.unet, *bundle.text_encoders)
        self._adapted.clear()
        try:
            for module in modules:
                nn.Module.to(module, torch.float32)  # diffusers' own `to` warns of what is meant here
            bundle.dtype = torch.float32
            yield
        finally:
            self._adapted.clear()
            for module in modules:
                nn.Module.to(module, dtype)
            bundle.dtype = dtype


@dataclass(frozen=True)
class _States:
    """Text states of a batch by row, text and whether it is a negative prompt."""

    known: Mapping[tuple[int, str, bool], TextStates]
    texts: Texts

    def batch(self, texts: Sequence[str], *, negative: bool = False) -> TextStates:
        """One text a row, filled up to the longest text of all steps."""
        longest = max(states.states_BTD.shape[1] for states in self.known.values())
        return self.texts.joined([self.known[row, text, negative] for row, text in enumerate(texts)], longest)


def _schedules(row: GenerateConfig) -> tuple[PromptSchedule, PromptSchedule]:
    return schedule(row.prompt, row.steps), schedule(row.negative, row.steps, combine=False)


def _texts_in(prompts: PromptSchedule) -> list[str]:
    return list(dict.fromkeys(part.text for parts in prompts.distinct for part in parts))


def _signature(adapters: AdapterSet) -> tuple[object, ...]:
    return tuple(adapter.signature for adapter in adapters)


def _start(row: GenerateConfig) -> StartImage | None:
    assert row.width_px is not None
    assert row.height_px is not None
    try:
        return load_start(row.start, row.width_px, row.height_px)
    except UnreadableImageError as error:
        raise DataError(f"start image {row.start.image} can't be used: {error}") from error


def _fault(picture: SampledImage) -> str | None:
    if not picture.is_finite:
        return "without finite numbers"
    brightest = int(np.asarray(picture.image).max())
    return "black" if brightest <= _BRIGHTEST_BLACK else None
