"""sd-scripts' data: dataset.toml with its subsets, and metadata JSON, in our terms. Facts from its documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sdlora.constants import LATENT_FACTOR
from sdlora.imports.folders import SourceFolder, put_folders
from sdlora.imports.translation import (
    Convert,
    Translation,
    caption_ending,
    count,
    legible,
    number,
    opposite,
    same,
    some,
    switch,
    switched_off,
)


def _edges(value: Any) -> list[int]:
    """Width and height, or one edge, from 512, "512", "512,768" or [512, 768]; none from an empty value."""
    if value in ("", None, []):
        return []
    return [int(edge) for edge in (value if isinstance(value, list) else str(value).split(","))]


def _edge(edges: list[int]) -> int:
    """The edge of a square, a multiple of the latents' factor; of a rectangle that of the square with its area."""
    return round(math.sqrt(edges[0] * edges[-1]) / LATENT_FACTOR) * LATENT_FACTOR


SUBSET: dict[str, tuple[str, Convert]] = {
    "shuffle_caption": ("captions.shuffle_tags", switch),
    "keep_tokens": ("captions.keep_tags", count),
    "keep_tokens_separator": ("captions.keep_separator", same),
    "secondary_separator": ("captions.group_separator", same),
    "caption_dropout_rate": ("captions.dropout", some),
    "caption_tag_dropout_rate": ("captions.tag_dropout", some),
    "caption_prefix": ("captions.prefix", same),
    "caption_suffix": ("captions.suffix", same),
    "caption_separator": ("captions.separator", same),
    "enable_wildcard": ("captions.wildcards", switch),
    "caption_extension": ("captions.extension", caption_ending),
    "flip_aug": ("images.horizontal_flip", switch),
    "random_crop": ("images.random_crop", switch),
    "enable_bucket": ("images.buckets", switched_off),
    "min_bucket_reso": ("images.bucket_min", count),
    "max_bucket_reso": ("images.bucket_max", count),
    "bucket_no_upscale": ("images.upscale", opposite),
    "validation_split": ("validation.fraction", some),
    "alpha_mask": ("images.mask", lambda value: "alpha" if switch(value) else None),
}


def sizes(settings: Mapping[str, Any], resolution: str, result: Translation) -> set[str]:
    """The edge and the buckets, in our terms; returns the names dealt with. SUBSET has to be entered before.

    resolution: what the edge is called.
    """
    given = settings.get(resolution)
    try:
        if (edges := _edges(given)) and _edge(edges) < _SHORTEST_SIDE:
            result.lose(resolution, given, f"no picture is below {_SHORTEST_SIDE} px here; set images.resolution")
        elif edges:
            result.put("images.resolution", _edge(edges))
            _tell_edge(resolution, given, edges, result)
    except (ValueError, TypeError, OverflowError):
        result.lose(resolution, given, "not understood")
    step = count(settings.get("bucket_reso_steps"))
    if step:
        nearest = max(LATENT_FACTOR, round(step / LATENT_FACTOR) * LATENT_FACTOR)
        result.put("images.bucket_step", nearest)
        if nearest != step:
            result.change("bucket_reso_steps", step, f"a multiple of {LATENT_FACTOR} is needed: {nearest}")
    for name, theirs in (("bucket_min", "min_bucket_reso"), ("bucket_max", "max_bucket_reso")):
        limit = result.values.get(f"images.{name}")
        if limit and limit < _SHORTEST_EDGE:
            result.change(theirs, limit, f"at least {_SHORTEST_EDGE}")
            result.put(f"images.{name}", _SHORTEST_EDGE)
    return {resolution, "bucket_reso_steps"}


def _tell_edge(name: str, given: Any, edges: list[int], result: Translation) -> None:
    edge, is_square = _edge(edges), edges[0] == edges[-1]
    if is_square and edges[0] != edge:
        result.change(name, given, f"a multiple of {LATENT_FACTOR} is needed: {edge}")
    elif not is_square and result.values.get("images.buckets") is False:
        why = f"a rectangle without buckets can't be held; images are cropped to squares of {edge} px"
        result.change(name, given, why)
    elif not is_square:
        result.change(name, given, f"buckets of the area of {edge}x{edge} px")


def augmentation(settings: Mapping[str, Any], result: Translation) -> set[str]:
    """Changed colours and crops around faces, in our terms; returns the names dealt with."""
    if switch(settings.get("color_aug")):
        # There a hue shift of up to 8 of 180 steps, or a gamma of 0.95 to 1.05
        result.put("images.hue_jitter", 16)
        result.put("images.colour_jitter", 0.05)
        result.change("color_aug", True, "as hue_jitter and colour_jitter of about its size, both for every image")
    if settings.get("face_crop_aug_range"):
        result.put("images.crop_focus", "face")
        result.put("images.random_crop", True)
        result.change(
            "face_crop_aug_range", settings["face_crop_aug_range"], "random crops around the face, at one size"
        )
    return {"color_aug", "face_crop_aug_range"}


OPTIONS = {*SUBSET, "bucket_reso_steps", "color_aug", "face_crop_aug_range"}
"""What a dataset file can say, and the arguments say for what it leaves out."""
_SHORTEST_EDGE = 32
_SHORTEST_SIDE = 64
_DEFAULTS = {"enable_bucket": False, "caption_extension": ".caption"}


def from_dataset_config(settings: Mapping[str, Any], otherwise: Mapping[str, Any] | None = None) -> Translation:
    """sd-scripts' dataset.toml: [general], [[datasets]] and their [[datasets.subsets]], the nearest one winning.

    otherwise: options that hold where the file is silent; by default sd-scripts' own.
    """
    result = Translation()
    if otherwise is None:
        otherwise = _DEFAULTS
        result.assume(_DEFAULTS, always_given(settings))
    subsets = [{**otherwise, **subset} for subset in _subsets(settings)]
    if not subsets:
        raise ValueError("it has no [[datasets.subsets]]")
    with_folder = [subset for subset in subsets if subset.get("image_dir") is not None]
    for subset in subsets:
        if subset.get("image_dir") is None:
            result.lose("subset", subset.get("metadata_file", "without image_dir"), "it names no folder of images")
    if not with_folder:
        raise ValueError("no subset of it names a folder: image_dir is missing")
    trained = [subset for subset in with_folder if not _is_left_out(subset, result)]
    if not trained:
        raise ValueError("num_repeats is below 1 for every subset of it, so that none is trained there")
    put_folders(result, [_subset(subset) for subset in trained])
    return result


def _subsets(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each subset with what the file says for its dataset, and for all of them."""
    return [
        {
            **settings.get("general", {}),
            **{name: value for name, value in dataset.items() if name != "subsets"},
            **subset,
        }
        for dataset in settings.get("datasets", [])
        for subset in dataset.get("subsets", [])
    ]


def always_given(settings: Mapping[str, Any]) -> set[str]:
    """The options that a dataset file says for every subset, so that no argument stands in for them."""
    subsets = _subsets(settings)
    return set(subsets[0]).intersection(*subsets) if subsets else set()


def masks_of(settings: Mapping[str, Any], otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """`alpha_mask`, if any subset has it: then `masked_loss` finds its masks."""
    used = [subset.get("alpha_mask", otherwise.get("alpha_mask")) for subset in _subsets(settings)]
    return {"alpha_mask": True} if any(str(each).lower() in ("true", "1") for each in used) else {}


def _is_left_out(subset: Mapping[str, Any], result: Translation) -> bool:
    try:
        repeats = number(subset.get("num_repeats"))
    except ValueError:  # told with the subset's other settings
        return False
    if repeats is None or repeats >= 1:
        return False
    why = "below 1, so that the subset is left out, as there"
    result.lose(f"{subset['image_dir']}: num_repeats", subset["num_repeats"], why)
    return True


_TABLE: dict[str, tuple[str, Convert]] = {
    **SUBSET,
    "batch_size": ("optimization.batch_size", count),
    "num_repeats": ("images.repeats", count),
    "class_tokens": ("captions.default", same),
}


def _subset(subset: Mapping[str, Any]) -> SourceFolder:
    own = Translation()
    subset = legible(subset, own, ("bucket_reso_steps",), ("is_reg", "color_aug"))
    known = own.take(subset, _TABLE) | {"image_dir", "is_reg"}
    known |= augmentation(subset, own) | sizes(subset, "resolution", own)
    own.lose_rest(subset, known)
    return SourceFolder(str(subset["image_dir"]), own, bool(switch(subset.get("is_reg"))))


def from_metadata(entries: Mapping[str, Any]) -> Translation:
    """sd-scripts' metadata JSON: image to {caption, tags}; both are joined, as in training there."""
    result = Translation()
    for image, entry in entries.items():
        captions, tags = (one if isinstance(one, list) else [one] for one in (entry.get("caption"), entry.get("tags")))
        if len(captions) > 1:
            result.lose(f"{image}: caption", captions[1:], "of a list of captions the first is taken")
        parts = [str(part).strip() for part in (*captions[:1], *tags) if part]
        result.captions[image] = ", ".join(part for part in parts if part)
        result.lose_rest(entry, {"caption", "tags", "train_resolution"}, f"{image}: ")
    return result
