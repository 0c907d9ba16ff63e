"""OneTrainer's concepts JSON in our terms: which folders, with which captions. Facts from saved concept files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlora.imports.folders import LOSS_WEIGHT, SourceFolder, put_folders
from sdlora.imports.translation import Translation, count, legible, number, put_edges, some, switch

_KNOWN = {"path", "type", "enabled", "name", "text", "image", "balancing", "balancing_strategy", "seed", "__version"}
_KNOWN |= {"include_subdirectories", "image_variations", "text_variations", "loss_weight", "concept_stats"}
_TEXT = {
    "prompt_source", "enable_tag_shuffling", "tag_delimiter", "keep_tags_count", "tag_dropout_enable", "__version",
    "tag_dropout_mode", "tag_dropout_probability", "tag_dropout_special_tags", "tag_dropout_special_tags_mode",
    "tag_dropout_special_tags_regex", "caps_randomize_mode", "caps_randomize_probability", "caps_randomize_lowercase",
    "prompt_path",
}  # fmt: skip
_IMAGE = {"enable_random_flip", "enable_crop_jitter", "enable_resolution_override", "resolution_override", "__version"}
_VARIED = {"rotate": "random_rotate_max_angle", "hue": "random_hue_max_strength"}
_VARIED |= {name: f"random_{name}_max_strength" for name in ("brightness", "contrast", "saturation")}
"""Strengths that matter only when `enable_random_...` or `enable_fixed_...` is on."""
_IMAGE_SWITCHES = (
    "enable_random_flip", "enable_crop_jitter", "enable_resolution_override",
    *(f"enable_{kind}_{name}" for name in _VARIED for kind in ("random", "fixed")),
)  # fmt: skip
_HALF_CIRCLE_DEGREES = 180.0


def from_concepts(concepts: Sequence[Mapping[str, Any]]) -> Translation:
    """A list of concepts, each with its settings. Raises ValueError when none is to be trained."""
    result = Translation()
    if not all(isinstance(concept, Mapping) for concept in concepts):
        raise ValueError("a list of concepts holds something else than concepts")
    concepts = [legible(concept, result, (), ("enabled",), f"{concept.get('path')}: ") for concept in concepts]
    enabled = [concept for concept in concepts if switch(concept.get("enabled", True))]
    trained = [concept for concept in enabled if concept.get("type", "STANDARD") == "STANDARD"]
    if not trained:
        raise ValueError("it has no enabled concept of type STANDARD")
    for concept in enabled:
        kind, path = concept.get("type", "STANDARD"), concept.get("path")
        if kind == "VALIDATION" and "validation.folder" not in result.values:
            result.put("validation.folder", path)
        elif kind == "PRIOR_PREDICTION":
            why = "its images are left out; objective.prior_preservation=base_prediction does so with the trained ones"
            result.lose(f"{path}: type", kind, why)
        elif kind != "STANDARD":
            result.lose(f"{path}: type", kind, "no counterpart, its images are left out")
    put_folders(result, [SourceFolder(str(one["path"]), _translated(one)) for one in trained if one.get("path")])
    return result


def _translated(concept: Mapping[str, Any]) -> Translation:
    result = Translation()
    concept = legible(concept, result, ("balancing", "loss_weight"), ("include_subdirectories",))
    text = legible(
        concept.get("text") or {},
        result,
        ("keep_tags_count", "tag_dropout_probability"),
        ("enable_tag_shuffling", "tag_dropout_enable", "tag_dropout_special_tags_regex"),
        "text.",
    )
    image = legible(concept.get("image") or {}, result, _VARIED.values(), _IMAGE_SWITCHES, "image.")
    repeats = number(concept.get("balancing", 1)) or 0.0
    if concept.get("balancing_strategy", "REPEATS") == "REPEATS" and repeats == int(repeats) >= 1:
        result.put("images.repeats", int(repeats))
    else:
        result.lose("balancing", f"{repeats:g} {concept.get('balancing_strategy')}", "only whole repeats are possible")
    if some(concept.get("loss_weight", 1)) != 1:
        result.put(LOSS_WEIGHT, some(concept["loss_weight"]))
    source = text.get("prompt_source", "sample")
    if source != "sample":
        why = "put a .txt file beside each image, or one caption into captions.default"
        result.lose("text.prompt_source", f"{source} {text.get('prompt_path', '')}".strip(), why)
    if not concept.get("include_subdirectories") and _has_subfolders(concept.get("path")):
        result.change(
            "include_subdirectories", False, "subfolders are read here too; move out what is not to be trained"
        )
    _tags(text, result)
    _image(image, result)
    result.lose_rest(concept, _KNOWN)
    unused = set() if switch(text.get("caps_randomize_enable")) else {"caps_randomize_enable"}
    result.lose_rest(text, _TEXT | unused, "text.")
    return result


def _has_subfolders(path: object) -> bool:
    folder = Path(str(path or "")).expanduser()
    try:
        return folder.is_dir() and any(inner.is_dir() and not inner.name.startswith(".") for inner in folder.iterdir())
    except OSError:  # not to be read, or no name that a folder can have
        return False


def _image(image: Mapping[str, Any], result: Translation) -> None:
    result.put("images.horizontal_flip", switch(image.get("enable_random_flip")))
    result.put("images.random_crop", switch(image.get("enable_crop_jitter")))
    if switch(image.get("enable_resolution_override")):
        parts = str(image.get("resolution_override")).split(",")
        edges = [int(edge) for edge in parts if edge.strip().isdigit()]
        if len(edges) != len(parts):
            result.lose("image.resolution_override", image.get("resolution_override"), "not understood")
        result.put("images.resolution", edges[0] if len(edges) == 1 else edges or None)
        put_edges(result, "image.resolution_override", image.get("resolution_override"), "images.resolution")
    known = set(_IMAGE)
    strengths = {name: some(image.get(amount)) for name, amount in _VARIED.items()}
    for name, amount in _VARIED.items():
        if not switch(image.get(f"enable_fixed_{name}")) or switch(image.get(f"enable_random_{name}")):
            known.add(amount)  # a fixed one that stands beside a random one has no amount of its own
        if not switch(image.get(f"enable_random_{name}")):
            strengths[name] = None
        known.add(f"enable_random_{name}")
    # Cut to the bounds of our settings, which would refuse more.
    for name, most in (("rotate", 45.0), ("hue", 1.0), ("brightness", 0.99), ("contrast", 0.99), ("saturation", 0.99)):
        if (strengths[name] or 0) > most:
            result.change(f"image.{_VARIED[name]}", strengths[name], f"{most:g} is the most here")
    result.put("images.rotation", strengths["rotate"] and min(strengths["rotate"], 45.0))
    result.put("images.hue_jitter", strengths["hue"] and min(1.0, strengths["hue"]) * _HALF_CIRCLE_DEGREES)
    colours = [strength for name in ("brightness", "contrast", "saturation") if (strength := strengths[name])]
    if colours:
        result.put("images.colour_jitter", min(max(colours), 0.99))
        if len(set(colours)) > 1 or len(colours) < 3:
            result.change("random brightness, contrast, saturation", colours, "one strength for the three of them")
    result.lose_rest(image, known, "image.")


def _tags(text: Mapping[str, Any], result: Translation) -> None:
    shuffled, dropped = switch(text.get("enable_tag_shuffling")), switch(text.get("tag_dropout_enable"))
    result.put("captions.shuffle_tags", shuffled)
    if text.get("tag_delimiter", ",") != ",":
        result.put("captions.separator", text["tag_delimiter"])
    if shuffled or dropped:
        result.put("captions.keep_tags", count(text.get("keep_tags_count", 1)))
    if not dropped:
        return
    if text.get("tag_dropout_mode", "FULL") == "RANDOM":
        result.put("captions.tag_dropout", some(text.get("tag_dropout_probability", 0)))
    elif text.get("tag_dropout_mode", "FULL") == "FULL":
        result.lose("text.tag_dropout_mode", "FULL", "captions.dropout leaves out whole captions, kept tags too")
    else:
        result.lose("text.tag_dropout_mode", text.get("tag_dropout_mode"))
    special, mode = str(text.get("tag_dropout_special_tags") or ""), text.get("tag_dropout_special_tags_mode", "NONE")
    if special and mode == "WHITELIST" and not switch(text.get("tag_dropout_special_tags_regex")):
        is_file = special.lower().endswith((".txt", ".csv"))
        parts = special.split(str(text.get("tag_delimiter") or ","))
        result.put("captions.protected_tags", special if is_file else [tag.strip() for tag in parts])
    elif special and mode != "NONE":
        result.lose("text.tag_dropout_special_tags", f"{mode} {special}", "captions.protected_tags takes plain tags")
