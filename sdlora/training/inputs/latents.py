"""Images to VAE latents: encoded once per crop and cached by content, or anew when crops are random or images vary.

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy
import torch
from torch import Tensor

from sdlora.config.images import ImagesConfig
from sdlora.constants import MIB
from sdlora.data.buckets import BucketedImage
from sdlora.data.cache import Cache
from sdlora.data.crops import fixed_crop, prepare_mask, prepare_pixels, sample_crop, size_conditions
from sdlora.data.focus import focus_of
from sdlora.data.inspection import hash_file
from sdlora.data.strokes import draw_mask
from sdlora.data.variation import PLAIN, Variation, draw_variation, zoomed
from sdlora.errors import DataError
from sdlora.events import EventStream
from sdlora.models.bundle import Bundle
from sdlora.models.inpainting import inpaint_conditions, is_inpainting
from sdlora.models.size_conditions import SizeConditions
from sdlora.models.vae import encode_moments
from sdlora.training.workers import Workers

_HELD_BYTES = 16 * MIB
"""Latents held in memory; of larger datasets the others are read from the cache each time."""
_DECODED_AHEAD = min(4, os.cpu_count() or 1)
"""Images read and resized by threads while the VAE, which on a card is faster than that, encodes."""
_Place = tuple[BucketedImage, bool]
"""An image in its bucket, and whether it is mirrored."""


@dataclass(frozen=True)
class Latents:
    """One encoded crop: mean and spread of the VAE's posterior, scaled to unit variance, and the crop's geometry."""

    mean_CHW: Tensor
    std_CHW: Tensor
    mask_HW: Tensor | None
    """Loss weights at latent size, 1 inside; None without masks."""
    size_conditions: SizeConditions
    inpaint_5HW: Tensor | None = None
    """Mask and masked picture, for an inpainting model."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """A sample of the posterior (latents_CHW)."""
        return self.mean_CHW + self.std_CHW * torch.randn(self.mean_CHW.shape, generator=generator)


class LatentSource:
    """Latents of placed images, on the CPU."""

    def __init__(self, bundle: Bundle, config: ImagesConfig, cache: Cache | None) -> None:
        self._bundle = bundle
        self._config = config
        # What is hardly ever the same twice would fill the disk and never be read.
        self._cache = None if config.is_live else cache
        self._memory: dict[_Place, Latents] = {}
        self._held_bytes = 0
        self._keys: dict[_Place, str] = {}
        self._decoded: dict[_Place, Future[Tensor]] = {}
        self._is_inpainting = is_inpainting(bundle)
        self._draws_masks = self._is_inpainting and config.inpaint_mask == "strokes"

    @property
    def is_live(self) -> bool:
        """Whether images are encoded while training goes on."""
        return self._config.is_live

    @property
    def needs_vae(self) -> bool:
        """Whether the VAE must stay: for images that differ each time, or what random masks leave of them."""
        return self.is_live or self._draws_masks

    def prepare(
        self,
        placed: Sequence[BucketedImage],
        events: EventStream,
        *,
        flips: bool = True,
        workers: Workers | None = None,
    ) -> None:
        """Encode every image (and with `flips` its mirror image, if asked for) that is not in the cache.

        Workers divide that between them, and then have what the others have put there.
        """
        if self.is_live:
            return
        todo = [
            (item, flip)
            for item in placed
            for flip in ((False, True) if flips and item.record.horizontal_flip else (False,))
        ]
        index, count = (0, 1) if self._cache is None or workers is None else (workers.index, workers.count)
        own = todo[index::count]
        coming = iter(own)
        with ThreadPoolExecutor(_DECODED_AHEAD, "decoding") as pool:
            for place in islice(coming, _DECODED_AHEAD):
                self._decode_ahead(pool, *place)
            for number, (item, flip) in enumerate(own):
                self.fixed(item, flip=flip)
                # Not taken where a copy of the image has been encoded meanwhile.
                self._decoded.pop((item, flip), None)
                for place in islice(coming, 1):
                    self._decode_ahead(pool, *place)
                events.progress("encoding images", min((number + 1) * count, len(todo)), len(todo))
        if workers is not None and count > 1:
            workers.meet()
            # What the others have encoded; what a cache of another machine lacks is encoded here.
            for item, flip in todo:
                self.fixed(item, flip=flip)

    def fixed(self, placed: BucketedImage, *, flip: bool = False) -> Latents:
        """Latents of the crop in the centre, or around the image's focus, with its own mask for inpainting if any."""
        if (placed, flip) not in self._memory:
            latents = self._latents(placed, flip, None)
            if self._is_inpainting and not self._draws_masks:
                latents = self._painted(latents, placed, flip, None)
            # Masks are not in the cache, and slow to make again.
            is_kept = self._cache is not None and latents.mask_HW is None and latents.inpaint_5HW is None
            size = latents.mean_CHW.nbytes + latents.std_CHW.nbytes
            if is_kept and self._held_bytes + size > _HELD_BYTES:
                return latents
            self._held_bytes += size
            self._memory[placed, flip] = latents
        return self._memory[placed, flip]

    def _decode_ahead(self, pool: ThreadPoolExecutor, placed: BucketedImage, flip: bool) -> None:
        """Have a thread decode an image that will be encoded; nothing that is encoded already is."""
        if (placed, flip) in self._memory or (self._cache is not None and self._key(placed, flip) in self._cache):
            return
        self._decoded[placed, flip] = pool.submit(self._decode, placed, flip, None, PLAIN)

    def measured(self, placed: BucketedImage, generator: random.Random) -> Latents:
        """`fixed`, with the mask for inpainting that the generator draws where masks are drawn."""
        latents = self.fixed(placed)
        return self._painted(latents, placed, False, None, masks=generator) if self._draws_masks else latents

    def sampled(self, placed: BucketedImage, generator: random.Random, masks: random.Random) -> Latents:
        """Latents of one image as seen this time: mirrored or not, cut and varied as the generator says.

        masks: draws what an inpainting model is to paint.
        """
        flip = placed.record.horizontal_flip and generator.random() < 0.5
        if not self.is_live:
            latents = self.fixed(placed, flip=flip)
            return self._painted(latents, placed, flip, None, masks=masks) if self._draws_masks else latents
        variation = draw_variation(self._config, generator)
        placed = dataclasses.replace(placed, placement=zoomed(placed.placement, variation.zoom))
        focus = focus_of(placed.record)
        moves = self._config.random_crop or self._config.crop_jitter
        crop_xy = sample_crop(placed.placement, generator, focus) if moves else fixed_crop(placed.placement, focus)
        latents = self._latents(placed, flip, crop_xy, variation)
        if not self._is_inpainting:
            return latents
        return self._painted(latents, placed, flip, crop_xy, variation, masks=masks)

    def _painted(
        self,
        latents: Latents,
        placed: BucketedImage,
        flip: bool,
        crop_xy: tuple[int, int] | None,
        variation: Variation = PLAIN,
        *,
        masks: random.Random | None = None,
    ) -> Latents:
        """With what an inpainting model sees of the same crop: around a mask that is drawn, or the image's own."""
        if self._draws_masks:
            assert masks is not None
            bucket = placed.placement.bucket
            drawn = numpy.array(draw_mask(bucket.width_px, bucket.height_px, masks))
            mask_HW = torch.from_numpy(drawn).float() / 255
        else:
            mask = prepare_mask(placed.record, placed.placement, flip=flip, crop_xy=crop_xy, variation=variation)
            mask_HW = mask.pixels_HW
        pixels_CHW = self._pixels(placed, flip, crop_xy, variation)
        conditions_15HW = inpaint_conditions(self._bundle, pixels_CHW[None], mask_HW[None, None])
        return dataclasses.replace(latents, inpaint_5HW=conditions_15HW[0].cpu())

    def _latents(
        self, placed: BucketedImage, flip: bool, crop_xy: tuple[int, int] | None, variation: Variation = PLAIN
    ) -> Latents:
        if self._cache is None or crop_xy is not None:
            moments = self._moments(placed, flip, crop_xy, variation)
        else:
            # The first key stays: a VAE that overflows goes on in fp32, and what it has encoded must be found again.
            key = self._keys.setdefault((placed, flip), self._key(placed, flip))
            moments = self._cache.get_or_encode(key, lambda: self._checked_moments(placed, flip))
        # Never from the cache, whose key knows the image's bytes only: a mask may change beside an unchanged image.
        mask_HW = None
        if placed.record.mask != "none":
            mask = prepare_mask(placed.record, placed.placement, flip=flip, crop_xy=crop_xy, variation=variation)
            mask_HW = mask.latents_HW
        conditions = size_conditions(placed.record, placed.placement, flip=flip, crop_xy=crop_xy)
        return Latents(moments["mean"], moments["std"], mask_HW, conditions)

    def _pixels(
        self, placed: BucketedImage, flip: bool, crop_xy: tuple[int, int] | None, variation: Variation
    ) -> Tensor:
        decoded = self._decoded.pop((placed, flip), None) if crop_xy is None else None
        return self._decode(placed, flip, crop_xy, variation) if decoded is None else decoded.result()

    def _decode(
        self, placed: BucketedImage, flip: bool, crop_xy: tuple[int, int] | None, variation: Variation
    ) -> Tensor:
        return prepare_pixels(
            placed.record,
            placed.placement,
            flip=flip,
            crop_xy=crop_xy,
            background=self._config.background,
            variation=variation,
        )

    def _checked_moments(self, placed: BucketedImage, flip: bool) -> dict[str, Tensor]:
        """For the cache: of the picture that the key names, which may be encoded long after its scan."""
        moments, record = self._moments(placed, flip, None), placed.record
        if hash_file(record.path) != record.content_hash:
            raise DataError(
                f"{record.path} is another picture than when the run looked at its images: put that one back, or begin "
                "again (sdlora resume --accept-changes goes on with the new one)"
            )
        return moments

    def _moments(
        self, placed: BucketedImage, flip: bool, crop_xy: tuple[int, int] | None, variation: Variation = PLAIN
    ) -> dict[str, Tensor]:
        pixels_CHW = self._pixels(placed, flip, crop_xy, variation)
        moments = encode_moments(self._bundle, pixels_CHW[None])
        mean_CHW, std_CHW = (moment_BCHW[0].float().cpu() for moment_BCHW in moments)
        if not (torch.isfinite(mean_CHW).all() and torch.isfinite(std_CHW).all()):
            precision = str(self._bundle.vae.dtype).removeprefix("torch.")
            raise DataError(
                f"the VAE gives numbers that are not finite for {placed.record.path} in {precision}: set "
                "base_model.precision=fp32, or base_model.vae to one made for half precision (for SDXL "
                "madebyollin/sdxl-vae-fp16-fix)"
            )
        return {"mean": mean_CHW, "std": std_CHW}

    def _key(self, placed: BucketedImage, flip: bool) -> str:
        assert self._cache is not None
        placement = placed.placement
        focus = focus_of(placed.record)
        # Only images with a focus have this entry, so that all others keep the key they always had.
        place = {} if focus is None else {"window": str(fixed_crop(placement, focus))}
        return self._cache.key(
            {
                **place,
                "kind": "latents",
                # By content, not by name: a renamed image is found again, a changed one is not.
                "image": placed.record.content_hash,
                # Opaque images don't show it, and are not encoded again for another colour.
                "background": self._config.background if placed.record.has_alpha else "",
                "resized": f"{placement.resized_width_px}x{placement.resized_height_px}",
                "bucket": f"{placement.bucket.width_px}x{placement.bucket.height_px}",
                "flip": flip,
                "vae": self._bundle.vae_identity,
                "precision": str(self._bundle.vae.dtype),
            }
        )
