"""OneTrainer's concepts JSON in our terms: which folders, with which captions. Facts from saved concept files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdlora.imports.translation import Translation, switch

_KNOWN = {"path", "type", "enabled", "name", "text", "image", "balancing", "balancing_strategy", "seed", "__version"}
_KNOWN |= {"include_subdirectories", "image_variations", "text_variations", "loss_weight", "concept_stats"}
_TEXT = {"prompt_source", "enable_tag_shuffling", "tag_delimiter", "keep_tags_count", "tag_dropout_enable", "__version"}
_TEXT |= {"tag_dropout_mode", "tag_dropout_probability", "caps_randomize_mode", "tag_dropout_special_tags_mode"}
_IMAGE = {"enable_random_flip", "enable_crop_jitter", "enable_resolution_override", "resolution_override", "__version"}
_SWITCHED = {
    "rotate": "random_rotate_max_angle",
    "brightness": "random_brightness_max_strength",
    "contrast": "random_contrast_max_strength",
    "saturation": "random_saturation_max_strength",
    "hue": "random_hue_max_strength",
}
"""Strengths that matter only when `enable_random_...` or `enable_fixed_...` is on."""


def from_concepts(concepts: Sequence[Mapping[str, Any]]) -> Translation:
    """A list of concepts; those of a kind share the settings of the first."""
    result = Translation()
    enabled = [concept for concept in concepts if concept.get("enabled", True)]
    trained = [concept for concept in enabled if concept.get("type", "STANDARD") == "STANDARD"]
    if not trained:
        raise ValueError("it has no enabled concept of type STANDARD")
    folders = [str(concept["path"]) for concept in trained if concept.get("path")]
    result.put("images.folder", folders[0] if len(folders) == 1 else folders or None)
    for concept in enabled:
        kind, path = concept.get("type", "STANDARD"), concept.get("path")
        if kind == "VALIDATION" and "validation.folder" not in result.values:
            result.put("validation.folder", path)
        elif kind != "STANDARD":
            result.lose(f"{path}: type", kind, "no counterpart, its images are left out")
    _settings(trained[0], result, first=True)
    for concept in trained[1:]:
        _settings(concept, result, first=False)
    return result


def _settings(concept: Mapping[str, Any], result: Translation, *, first: bool) -> None:
    translated = _translated(concept)
    prefix = "" if first else f"{concept.get('path')}: "
    result.lost += [prefix + sentence for sentence in translated.lost]
    for name, value in translated.values.items():
        if first:
            result.put(name, value)
        elif result.values.get(name) != value:
            result.lose(f"{prefix}{name}", value, "folders share the settings of the first")


def _translated(concept: Mapping[str, Any]) -> Translation:
    result = Translation()
    text, image = concept.get("text") or {}, concept.get("image") or {}
    repeats = float(concept.get("balancing", 1))
    if concept.get("balancing_strategy", "REPEATS") == "REPEATS" and repeats == int(repeats) >= 1:
        result.put("images.repeats", int(repeats) if repeats > 1 else None)
    else:
        result.lose("balancing", f"{repeats:g} {concept.get('balancing_strategy')}", "only whole repeats are possible")
    if float(concept.get("loss_weight", 1)) != 1:
        result.lose("loss_weight", concept["loss_weight"])
    source = text.get("prompt_source", "sample")
    if source != "sample":
        why = "put a .txt file beside each image, or one caption into captions.default"
        result.lose("text.prompt_source", f"{source} {text.get('prompt_path', '')}".strip(), why)
    _tags(text, result)
    result.put("images.horizontal_flip", switch(image.get("enable_random_flip")))
    result.put("images.random_crop", switch(image.get("enable_crop_jitter")))
    if switch(image.get("enable_resolution_override")):
        edges = [int(edge) for edge in str(image.get("resolution_override")).split(",") if edge.strip().isdigit()]
        result.put("images.resolution", edges[0] if len(edges) == 1 else edges or None)
    unused = {
        strength
        for name, strength in _SWITCHED.items()
        if not (image.get(f"enable_random_{name}") or image.get(f"enable_fixed_{name}"))
    }
    result.lose_rest(concept, _KNOWN)
    result.lose_rest(text, _TEXT | {"prompt_path"}, "text.")
    result.lose_rest(image, _IMAGE | unused, "image.")
    return result


def _tags(text: Mapping[str, Any], result: Translation) -> None:
    shuffled, dropped = switch(text.get("enable_tag_shuffling")), switch(text.get("tag_dropout_enable"))
    result.put("captions.shuffle_tags", shuffled)
    if text.get("tag_delimiter", ",") != ",":
        result.put("captions.separator", text["tag_delimiter"])
    if shuffled or dropped:
        result.put("captions.keep_tags", int(text.get("keep_tags_count", 1)) or None)
    if dropped and text.get("tag_dropout_mode") == "RANDOM":
        result.put("captions.tag_dropout", float(text.get("tag_dropout_probability", 0)) or None)
    elif dropped and text.get("tag_dropout_mode") == "FULL":
        result.lose("text.tag_dropout_mode", "FULL", "captions.dropout leaves out whole captions, kept tags too")
    elif dropped:
        result.lose("text.tag_dropout_mode", text.get("tag_dropout_mode"))
