"""Generates one batch with a loaded model: puts the adapters on, encodes texts, runs the passes, fixes what overflowed.

Shapes: B images, C channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sdlora.config.generate import GenerateConfig
from sdlora.data.decoding import UnreadableImageError
from sdlora.errors import DataError
from sdlora.generation.request.start_images import StartImage, load_start
from sdlora.generation.sampling.adapted_base import AdaptedBase, AdapterSet
from sdlora.generation.sampling.interruption import interruptible
from sdlora.generation.sampling.passes import Passes, Watch
from sdlora.generation.sampling.samplers import rescale_of
from sdlora.generation.sampling.text_conditions import ConditionsAt, RowTexts, TextConditions
from sdlora.generation.sampling.texts import Texts
from sdlora.models.bundle import Bundle

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
        texts = _texts_of(row, self._bundle)
        return self._texts.num_chunks(*texts.texts), texts.num_prompts

    def merges(self, config: GenerateConfig, sets: Sequence[AdapterSet]) -> bool:
        """Whether a batch's adapters are merged into the weights: told by its settings alone, never by its size."""
        is_shared = len({_signature(own) for own in sets}) == 1
        if config.compute.merge_adapters is False or not is_shared or not sets[0] or not self._adapted.can_merge:
            return False
        # One that comes or goes on the way would be merged and taken out again in the middle of each image.
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
            # bf16 and fp16 overflow in a few models' UNets; the same weights in fp32 don't, and only this image pays
            # for it.
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
        texts = [_texts_of(row, self._bundle) for row in rows]
        encoded = TextConditions(self._texts, texts, sets)
        one_by_one = self._one_by_one(sets, encoded.is_guided)

        def conditions(width_px: int, height_px: int) -> ConditionsAt:
            size = self._bundle.family.full_size_conditions(width_px, height_px)
            return encoded.at_size(size, self._bundle.device, one_by_one=one_by_one)

        put_on = self._putting_on(sets, merge, encoded.copies)
        passes = Passes(self._bundle, rows, starts, Watch(on_step, is_cancelled, put_on))
        models = (self._bundle.unet, self._bundle.vae)
        # Compiled blocks would be compiled anew for the question; where they are worth it a pass is short.
        is_compiled = rows[0].compute.compile
        with nullcontext() if is_compiled else interruptible(models, is_cancelled):
            latents_BCHW = passes.latents(conditions)
            return [
                SampledImage(passes.picture(latents_BCHW, index), bool(torch.isfinite(latents_BCHW[index]).all()))
                for index in range(len(rows))
            ]

    def _one_by_one(self, sets: Sequence[AdapterSet], is_guided: bool) -> bool:
        """Whether images pass the UNet one by one, so that none's last bits depend on how many are generated together.

        A processor's fp32 kernels sum in another order for other batch sizes, its bf16 kernels only for a single row.
        Rows with adapters of their own stay together all the same.
        """
        is_mixed = len({_signature(own) for own in sets}) > 1
        depends = self._bundle.dtype == torch.float32 or not is_guided
        return self._bundle.device.type == "cpu" and depends and not is_mixed

    def _putting_on(self, sets: Sequence[AdapterSet], merge: bool, copies: int) -> Callable[[float], None]:
        """Called before each step with the share that is done: changes the adapters where one sets in or ends."""
        present: list[tuple[object, ...]] | None = None

        def put_on(share: float) -> None:
            nonlocal present
            # Adapters of a share of the steps come and go here; most requests change nothing after the first call.
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


def _texts_of(row: GenerateConfig, bundle: Bundle) -> RowTexts:
    return RowTexts.of(row.prompt, row.negative, row.steps, row.guidance, rescale_of(row.guidance_rescale, bundle))


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
    # NaN from the VAE becomes black in 8 bits, however finite the latents were.
    brightest = int(np.asarray(picture.image).max())
    return "black" if brightest <= _BRIGHTEST_BLACK else None
