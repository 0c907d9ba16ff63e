"""One batch of images through its passes: text, noise or start image, denoising, second pass, latents to images.

Shapes: B images, C channels, H and W height and width (of pixels, or of latents, 8 pixels a cell).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor

from sdlora.config.generate import GenerateConfig, Sampler
from sdlora.constants import LATENT_FACTOR
from sdlora.generation.request.requests import second_size
from sdlora.generation.request.start_images import StartImage
from sdlora.generation.sampling.denoising import Hooks, Step, denoise
from sdlora.generation.sampling.sample import seeded, to_images, unit_noise
from sdlora.generation.sampling.samplers import make_scheduler
from sdlora.generation.sampling.text_conditions import ConditionsAt
from sdlora.models.bundle import Bundle
from sdlora.models.inpainting import blank_conditions, inpaint_conditions, is_inpainting
from sdlora.models.vae import decode_latents, encode_images

_TILED_FROM_PX = 1.5e6


@dataclass(frozen=True)
class Pass:
    """A scheduler, and the number of its timestep that generation begins at."""

    scheduler: Any
    first: int = 0

    @property
    def num_steps(self) -> int:
        """UNet calls of the pass, for each image."""
        return len(self.scheduler.timesteps) - self.first

    def noisy(self, latents_BCHW: Tensor, noise_BCHW: Tensor, index: int) -> Tensor:
        """Latents with as much noise as timestep number `index` has; clean ones after the last."""
        timesteps = self.scheduler.timesteps
        if index >= len(timesteps):
            return latents_BCHW
        noisy_BCHW: Tensor = self.scheduler.add_noise(
            latents_BCHW, noise_BCHW, timesteps[index].expand(len(latents_BCHW))
        )
        return noisy_BCHW


@dataclass(frozen=True)
class Watch:
    """What looks on and intervenes: called with (step, total, clean latents), asked whether to stop."""

    on_step: Callable[[int, int, Callable[[], Tensor]], None] | None
    is_cancelled: Callable[[], bool]
    use_adapters: Callable[[float], None]


def plan_pass(bundle: Bundle, sampler: Sampler, steps: int, strength: float | None, device: torch.device) -> Pass:
    """A pass from pure noise, or (with a strength) over a picture: the last `strength` of the steps."""
    scheduler = make_scheduler(sampler, bundle.schedule, steps, device)
    if strength is None:
        return Pass(scheduler)
    # At least one step, as a strength near 0 would otherwise give the start image back unchanged without a word.
    generated = max(1, min(int(steps * strength), steps))
    # In Heun's list each step has two timesteps, which is what `order` counts.
    first = (steps - generated) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return Pass(scheduler, first)


class Passes:
    """Images that are generated together: resolved requests that `check_rows` found to agree."""

    def __init__(
        self,
        bundle: Bundle,
        rows: Sequence[GenerateConfig],
        starts: Sequence[StartImage | None],
        watch: Watch,
    ) -> None:
        self._bundle = bundle
        self._rows = rows
        self._starts = starts
        self._watch = watch
        config = rows[0]
        assert config.width_px is not None
        assert config.height_px is not None
        self._size = (config.width_px, config.height_px)
        self._generators = [seeded(row.seed) for row in rows]
        strength = config.start.strength if config.start.image is not None else None
        device = bundle.device
        self._passes = [plan_pass(bundle, config.sampler, config.steps, strength, device)]
        second = config.second_pass
        if second.scale > 1:
            self._passes.append(
                plan_pass(bundle, config.sampler, second.steps or config.steps, second.strength, device)
            )
        self._done = 0
        _set_tiling(bundle, config, *(second_size(config) if second.scale > 1 else self._size))

    def latents(self, conditions: Callable[[int, int], ConditionsAt]) -> Tensor:
        """The generated images' latents. conditions: for an image size in pixels. Raises CancelledError."""
        first = self._passes[0]
        masks = [start.latent_mask() for start in self._starts if start is not None]
        if self._rows[0].start.image is None:
            noise_BCHW = self._noise(*self._size)
            start_BCHW, latents_BCHW = None, noise_BCHW * first.scheduler.init_noise_sigma
        else:
            start_BCHW = torch.cat([self._encoded(index) for index in range(len(self._rows))])
            noise_BCHW = self._noise(*self._size)
            latents_BCHW = first.noisy(start_BCHW, noise_BCHW, first.first)
        keep = None
        if start_BCHW is not None and masks and masks[0] is not None:
            mask_B1HW = torch.cat([mask for mask in masks if mask is not None]).to(start_BCHW)
            keep = _keeper(first, start_BCHW, noise_BCHW, mask_B1HW)
        latents_BCHW = self._run(first, latents_BCHW, conditions(*self._size), keep, self._inpaint())
        for second in self._passes[1:]:
            width_px, height_px = second_size(self._rows[0])
            larger_BCHW = self._enlarged(latents_BCHW, width_px, height_px)
            noisy_BCHW = second.noisy(larger_BCHW, self._noise(width_px, height_px), second.first)
            # All of it is painted over: what stays of the start image is put back into the finished picture.
            inpaint_B5HW = self._blank(width_px, height_px)
            latents_BCHW = self._run(second, noisy_BCHW, conditions(width_px, height_px), None, inpaint_B5HW)
        return latents_BCHW

    def picture(self, latents_BCHW: Tensor, index: int) -> Image.Image:
        """One image; decoded alone, so that memory and result don't depend on the batch."""
        pixels_1CHW = decode_latents(self._bundle, latents_BCHW[index : index + 1])
        generated = to_images(pixels_1CHW.nan_to_num(-1.0))[0]
        start = self._starts[index]
        return generated if start is None else start.outside_kept(generated)

    def _inpaint(self) -> Tensor | None:
        """What an inpainting model sees of start images and masks; None for others."""
        if not is_inpainting(self._bundle) or any(start is None or start.hard_mask is None for start in self._starts):
            return self._blank(*self._size)
        starts = [start for start in self._starts if start is not None]
        conditions = [inpaint_conditions(self._bundle, start.pixels(), start.hard_pixels()) for start in starts]
        return torch.cat(conditions).to(self._bundle.device)

    def _blank(self, width_px: int, height_px: int) -> Tensor | None:
        if not is_inpainting(self._bundle):
            return None
        return blank_conditions(self._bundle, len(self._rows), width_px, height_px).to(self._bundle.device)

    def _run(
        self, one: Pass, latents_BCHW: Tensor, conditions: ConditionsAt, keep: Any, inpaint_B5HW: Tensor | None
    ) -> Tensor:
        total, before = sum(each.num_steps for each in self._passes), self._done

        def after_step(step: Step) -> None:
            self._done = before + step.number
            if self._watch.on_step is not None:
                self._watch.on_step(self._done, total, step.clean)

        hooks = Hooks(self._watch.use_adapters, after_step, keep, self._watch.is_cancelled)
        return denoise(
            self._bundle,
            one.scheduler,
            latents_BCHW,
            conditions,
            self._generators,
            first=one.first,
            hooks=hooks,
            inpaint_B5HW=inpaint_B5HW,
        )

    def _noise(self, width_px: int, height_px: int) -> Tensor:
        return unit_noise(self._generators, width_px, height_px).to(self._bundle.device)

    def _encoded(self, index: int) -> Tensor:
        start = self._starts[index]
        assert start is not None
        return encode_images(self._bundle, start.pixels(), self._generators[index]).to(self._bundle.device)

    def _enlarged(self, latents_BCHW: Tensor, width_px: int, height_px: int) -> Tensor:
        # Stretched latents come out blurred; the other way, through pixels, costs a decoding and an encoding an image.
        if self._rows[0].second_pass.upscaler == "latent":
            size = (height_px // LATENT_FACTOR, width_px // LATENT_FACTOR)
            return functional.interpolate(latents_BCHW, size=size, mode="bilinear")
        enlarged = []
        for index, generator in enumerate(self._generators):
            generated = self.picture(latents_BCHW, index)
            larger = StartImage(generated.resize((width_px, height_px), Image.Resampling.LANCZOS), None, None)
            enlarged.append(encode_images(self._bundle, larger.pixels(), generator))
        return torch.cat(enlarged).to(self._bundle.device)


def _keeper(one: Pass, start_BCHW: Tensor, noise_BCHW: Tensor, mask_B1HW: Tensor) -> Callable[[Tensor, int], Tensor]:
    """Puts the start image, as noisy as the next step wants it, back outside the mask (Lugmayr et al. 2022, eq. 8)."""

    def keep(latents_BCHW: Tensor, index: int) -> Tensor:
        kept_BCHW = one.noisy(start_BCHW, noise_BCHW, index + 1)
        return mask_B1HW * latents_BCHW + (1 - mask_B1HW) * kept_BCHW

    return keep


def _set_tiling(bundle: Bundle, config: GenerateConfig, width_px: int, height_px: int) -> None:
    tiling = config.compute.vae_tiling
    tiled = width_px * height_px > _TILED_FROM_PX if tiling == "auto" else tiling
    if tiled:
        bundle.vae.enable_tiling()
    else:
        bundle.vae.disable_tiling()
