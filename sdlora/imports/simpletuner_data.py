"""SimpleTuner's data backends (multidatabackend.json) in our terms. Facts from its documentation of the data loader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdlora.constants import LATENT_FACTOR
from sdlora.imports.folders import SourceFolder, put_folders
from sdlora.imports.translation import Translation, legible, number, switch

WITHOUT_EFFECT = {
    "id", "type", "dataset_type", "disabled", "disable", "cache_dir", "cache_dir_vae", "metadata_backend",
    "metadata_update_interval", "vae_cache_clear_each_epoch", "skip_file_discovery", "preserve_data_backend_cache",
    "hash_filenames", "text_embeds", "image_embeds", "write_batch_size", "default",
    "text_encoder_batch_size", "text_cache_ondemand", "text_cache_disable",
    "vae_cache_ondemand", "vae_cache_disable", "shorten_filenames",
    "cache_file_suffix", "compress_cache", "config",
}  # fmt: skip
"""About caches, speed and the order of resizing and cropping, which comes to the same here."""
TAKEN = {
    "instance_data_dir", "repeats", "resolution", "resolution_type", "crop", "crop_style", "crop_aspect",
    "caption_strategy", "instance_prompt", "prepend_instance_prompt", "only_instance_prompt",
    "disable_multiline_split", "caption_shuffle", "is_regularisation_data", "is_regularization_data",
}  # fmt: skip


_SHORTEST_EDGE = 64
_SWITCHES = (
    "crop", "only_instance_prompt", "disable_multiline_split", "prepend_instance_prompt", "is_regularisation_data",
    "is_regularization_data",
)  # fmt: skip


def edge_of(resolution: Any, kind: str) -> int | None:
    """An edge in pixels from a resolution in pixels, of an area in megapixels or as the edge of an area."""
    value = number(resolution)
    if not value:
        return None
    # Megapixels, unless the number is too large to be any: then it is an edge in pixels.
    edge = math.sqrt(value * 1e6) if kind == "area" and value < 64 else value
    return round(edge / LATENT_FACTOR) * LATENT_FACTOR


def put_resolution(result: Translation, settings: Mapping[str, Any], kind: str) -> None:
    """Enter the edge; what was rounded is noted, and what no picture can have, by the name and value of the file."""
    given = settings.get("resolution")
    edge = edge_of(given, kind)
    if edge is None:
        return
    if edge < _SHORTEST_EDGE:
        unit = "pixels" if kind != "area" else "megapixels"
        result.lose("resolution", given, f"in {unit}, as resolution_type={kind}, no edge here; set images.resolution")
        return
    result.put("images.resolution", edge)
    if kind != "area" and edge != number(given):
        result.change("resolution", given, f"a multiple of {LATENT_FACTOR} is needed: {edge}")


def from_backends(backends: Sequence[Mapping[str, Any]]) -> Translation:
    """The data backends of a run: folders of images, with settings of their own. Raises ValueError without any."""
    result = Translation()
    sources = []
    if not all(isinstance(backend, Mapping) for backend in backends):
        raise ValueError("a list of data backends holds something else than backends")
    for backend in backends:
        kind = str(backend.get("dataset_type", "image"))
        if switch(backend.get("disabled")) or switch(backend.get("disable")) or kind.endswith("embeds"):
            continue
        source = _source(backend, kind, result)
        if source is not None:
            sources.append(source)
    if not sources:
        raise ValueError(f"it names no folder of images on this machine ({'; '.join(result.lost) or 'none at all'})")
    put_folders(result, sources)
    return result


def _source(backend: Mapping[str, Any], kind: str, result: Translation) -> SourceFolder | None:
    name, place = str(backend.get("id", "")), backend.get("instance_data_dir")
    if kind == "conditioning":
        why = "put masks beside the images as NAME-masklabel.png and set images.mask=file"
        result.lose(name, backend.get("conditioning_type", kind), why)
        return None
    if kind not in ("image", "eval"):
        result.lose(name, kind, "only images are trained")
        return None
    if backend.get("type", "local") != "local" or not place:
        where = backend.get("dataset_name") or backend.get("type", "local")
        result.lose(name, where, "only folders on this machine are read; `sdlora dataset import` unpacks shards")
        return None
    if kind == "eval":
        result.put("validation.folder", str(place))
        return None
    own = Translation()
    backend = legible(backend, own, ("repeats", "resolution"), _SWITCHES)
    _sizes(backend, own)
    _captions(backend, own)
    repeats = int(number(backend.get("repeats")) or 0)
    own.put("images.repeats", repeats + 1)  # there the number of times more
    is_class = any(switch(backend.get(f"is_regulari{letter}ation_data")) for letter in "sz")
    if is_class:
        own.change("is_regularisation_data", True, "trained as class images, on their pixels and not the base's answer")
    own.lose_rest(backend, TAKEN | WITHOUT_EFFECT)
    return SourceFolder(str(place), own, is_class)


def _sizes(backend: Mapping[str, Any], own: Translation) -> None:
    kind = str(backend.get("resolution_type", "pixel_area"))
    if kind not in ("area", "pixel", "pixel_area"):
        own.lose("resolution_type", kind, "area, pixel and pixel_area are possible; pixels are taken")
    put_resolution(own, backend, kind)
    if not switch(backend.get("crop")):
        return
    aspect = backend.get("crop_aspect", "square")
    if aspect == "square":
        own.put("images.buckets", False)
    elif aspect != "preserve":
        own.lose("crop_aspect", aspect, "images keep their own shapes, in buckets")
    style = backend.get("crop_style", "random")
    if style == "random":
        own.put("images.random_crop", True)
    elif style not in ("center", "centre"):
        why = "images.crop_focus=face wants each face's place in the file's name" if style == "face" else "cut centred"
        own.lose("crop_style", style, why)


def _captions(backend: Mapping[str, Any], own: Translation) -> None:
    strategy, prompt = backend.get("caption_strategy", "filename"), backend.get("instance_prompt")
    if strategy == "instanceprompt" or switch(backend.get("only_instance_prompt")):
        own.put("captions.default", prompt)
        own.change("caption_strategy", strategy, "captions.default; an image with a text file beside it takes that one")
    elif strategy == "textfile":
        if not switch(backend.get("disable_multiline_split")):
            own.put("captions.wildcards", True)
            own.change(
                "caption_strategy",
                strategy,
                "one line of a caption at random, as there; here {a|b} is a choice as well",
            )
        if switch(backend.get("prepend_instance_prompt")) and prompt:
            own.put("captions.prefix", f"{prompt} ")
    else:
        own.lose("caption_strategy", strategy, "put a text file beside each image; `sdlora dataset import` does so")
    shuffle = backend.get("caption_shuffle") or {}
    if isinstance(shuffle, Mapping) and switch(shuffle.get("enable")):
        own.put("captions.shuffle_tags", True)
        own.put("captions.keep_tags", int(shuffle.get("position_start") or 0) or None)
        if shuffle.get("split_on", "comma") != "comma":
            own.put("captions.separator", {"space": " ", "period": "."}.get(str(shuffle["split_on"])))
