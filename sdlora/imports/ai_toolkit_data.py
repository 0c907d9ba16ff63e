"""The datasets of an ai-toolkit job in our terms. Facts from its example settings and its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdlora.constants import LATENT_FACTOR
from sdlora.imports.folders import LOSS_WEIGHT, SourceFolder, put_folders
from sdlora.imports.translation import (
    Convert,
    Translation,
    caption_ending,
    count,
    edges,
    legible,
    put_edges,
    same,
    some,
    switch,
    switched_off,
)


def _bucket_step(value: Any) -> int | None:
    step = count(value)
    if step is not None and step % LATENT_FACTOR:
        raise ValueError(f"bucket edges are multiples of {LATENT_FACTOR}: set images.bucket_step")
    return step


DATASET: dict[str, tuple[str, Convert]] = {
    "resolution": ("images.resolution", edges),
    "num_repeats": ("images.repeats", count),
    "flip_x": ("images.horizontal_flip", switch),
    "random_crop": ("images.random_crop", switch),
    "buckets": ("images.buckets", switched_off),
    "bucket_tolerance": ("images.bucket_step", _bucket_step),
    "caption_ext": ("captions.extension", caption_ending),
    "caption_dropout_rate": ("captions.dropout", some),
    "shuffle_tokens": ("captions.shuffle_tags", switch),
    "keep_tokens": ("captions.keep_tags", count),
    "token_dropout_rate": ("captions.tag_dropout", some),
    "default_caption": ("captions.default", same),
    "trigger_word": ("captions.trigger", same),
    "loss_multiplier": (LOSS_WEIGHT, lambda value: some(value) if value != 1 else None),
    "alpha_mask": ("images.mask", lambda value: "alpha" if switch(value) else None),
}
_WITHOUT_EFFECT = {
    "cache_latents", "cache_latents_to_disk", "cache_text_embeddings", "cache_clip_vision_to_disk", "num_workers",
    "prefetch_factor", "type", "num_frames", "shrink_video_to_frames", "do_i2v", "do_audio", "fps", "is_reg",
    "folder_path", "dataset_path", "debug", "fast_image_size", "extra_values",
    "auto_frame_count", "persistent_workers",
}  # fmt: skip
"""About caches, speed, or films."""
_USUAL = {"scale": 1, "network_weight": 1, "loss_type": "mse"}
"""What a setting that we don't have is by default there, and always is here."""


def put_datasets(datasets: list[Mapping[str, Any]], result: Translation) -> None:
    """The folders of images, each with settings of its own."""
    put_folders(result, [_folder(each) for each in datasets if each.get("folder_path") or each.get("dataset_path")])


def _folder(dataset: Mapping[str, Any]) -> SourceFolder:
    own = Translation()
    dataset = legible(dataset, own, ("mask_min_value",), ("is_reg",), "datasets.")
    known = own.take(dataset, DATASET, "datasets.")
    put_edges(own, "datasets.resolution", dataset.get("resolution"), "images.resolution")
    known |= _WITHOUT_EFFECT
    if same(dataset.get("mask_path")):
        why = "put the masks beside the images as NAME-masklabel.png and set images.mask=file"
        own.lose("datasets.mask_path", dataset["mask_path"], why)
        known |= {"mask_path", "mask_min_value"}
    elif own.values.get("images.mask"):
        own.put("images.unmasked_weight", some(dataset.get("mask_min_value")))
        known |= {"mask_min_value"}
    own.lose_rest(dataset, known | as_always(dataset, _USUAL), "datasets.")
    path = str(dataset.get("folder_path") or dataset.get("dataset_path"))
    return SourceFolder(path, own, bool(switch(dataset.get("is_reg"))))


def as_always(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> set[str]:
    """The settings that are as they always are here."""
    return {name for name, value in usual.items() if name in settings and str(settings[name]) in _spellings(value)}


def _spellings(value: Any) -> set[str]:
    return {str(value), *([f"{value:.1f}"] if isinstance(value, int) else [])}
