"""What an adapter file is, from its header and the files beside it: milliseconds, no weights read, no torch.

Beside `NAME.safetensors` may lie `NAME.json` (AUTOMATIC1111's card: "activation text", "preferred weight", "notes") and
a preview picture, `NAME.png` and the like. Metadata: kohya's ss_* entries and ModelSpec.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.adapters.files.container import adapter_header
from sdlora.adapters.files.foreign import embedding_named, no_adapter, shared_encoders
from sdlora.adapters.files.key_names import ALGORITHM_NAMES, algorithm_of, by_layer
from sdlora.adapters.files.resolution import resolve
from sdlora.config.base_model import FamilyName
from sdlora.constants import MIB
from sdlora.errors import AdapterError

PREVIEW_SUFFIXES = (".png", ".preview.png", ".webp", ".jpg", ".jpeg")
"""What a preview picture beside an adapter may be called, the likeliest first."""
_LISTED_TAGS = 12
_LARGEST_CARD_BYTES = MIB
# Only these matrices tell it without knowing the layer: [r, ...] in every tool's layout.
_RANK_AXIS = {"lora_down": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0}
"""Factors whose first axis is the rank."""


@dataclass(frozen=True)
class Description:
    """An adapter as a library shows it. Everything is plain and can become JSON."""

    family: FamilyName | None
    kind: str
    """LoRA, LoHa, LoKr or several of them, "with DoRA" where it is."""
    rank: int
    """The rank that most layers have."""
    num_layers: int
    trains_text_encoder: bool
    title: str
    """The name its maker gave it, empty if none."""
    own_names: tuple[str, ...]
    """All names that stand in its metadata."""
    trigger: str
    """Words that belong into the prompt, as its card or its metadata tell them."""
    tags: tuple[str, ...]
    """Most frequent tags of its training images."""
    preferred_weight: float | None
    negative: str
    """Text that its card recommends for the negative prompt."""
    notes: str
    base_model: str
    """Name of the model that it was trained on, empty if untold."""


@dataclass(frozen=True)
class _Shaped:
    shape: tuple[int, ...]


def describe(path: Path, card: Path | None = None) -> Description | None:
    """What the file is, None when it holds no adapter for a Stable Diffusion model (it may be a base model).

    card: the JSON file beside it. Raises AdapterError when the file is damaged, a pickle or of an algorithm
    that isn't read.
    """
    header = adapter_header(path)
    shapes, metadata = header.shapes, header.metadata
    keys = by_layer(shapes)
    if not keys.layers:
        return None
    if what := keys.other_algorithm:
        raise AdapterError(f"{path.name} is of an algorithm that is not read: {what}")
    if what := keys.packed:
        raise AdapterError(f"{path.name} {what}")
    resolution = resolve(
        {name: {factor: _Shaped(shapes[key]) for factor, key in layer.items()} for name, layer in keys.layers.items()},
        metadata,
        keys.layout,
    )
    if not resolution.names:
        return None
    others = [key for name in resolution.strange for key in keys.layers[name].values()]
    if what := shared_encoders(resolution.names, [*keys.unused, *others]):
        raise AdapterError(f"{path.name} {what}")
    told = _read_card(card)
    factors = [factor for layer in keys.layers.values() for factor in layer]
    spec = {key.removeprefix("modelspec."): value for key, value in metadata.items() if key.startswith("modelspec.")}
    is_dora = "dora_scale" in factors or "magnitude" in factors
    algorithms = {algorithm_of(layer) for layer in keys.layers.values()} - {None}
    found = sorted(ALGORITHM_NAMES[algorithm] for algorithm in algorithms if algorithm is not None)
    ranks = Counter(
        next((shapes[layer[factor]][axis] for factor, axis in _RANK_AXIS.items() if factor in layer), 1)
        for layer in keys.layers.values()
        if all(len(shapes[key]) > 0 for factor, key in layer.items() if factor in _RANK_AXIS)
    )
    return Description(
        # A guess is not shown as a family: it would hide the adapter from the base models of the others.
        family=None if resolution.is_guess else resolution.family,
        kind=" and ".join(found or ["norms and biases"]) + (" with DoRA" if is_dora else ""),
        rank=ranks.most_common(1)[0][0] if ranks else 1,
        num_layers=len(resolution.names),
        trains_text_encoder=any(name.startswith("lora_te") for name in resolution.names),
        title=spec.get("title", "") or _text(metadata.get("ss_output_name")),
        own_names=own_names(metadata),
        # The card before the metadata: its owner wrote it, after training.
        trigger=_text(told.get("activation text")) or spec.get("trigger_phrase", ""),
        tags=_tags(metadata.get("ss_tag_frequency")),
        preferred_weight=_weight(told.get("preferred weight")),
        negative=_text(told.get("negative text")),
        notes=_text(told.get("notes")) or _text(told.get("description")) or spec.get("description", ""),
        base_model=_text(metadata.get("ss_sd_model_name")),
    )


def own_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names that stand in a file's metadata: its trainer's, by which AUTOMATIC1111 takes it too, and its title."""
    names = (_text(metadata.get(key)) for key in ("ss_output_name", "modelspec.title"))
    return tuple(name for name in names if name and name.lower() != "none")


def require_adapter(path: Path) -> Description:
    """The same for a file that must be an adapter. Raises AdapterError when it isn't one, saying what to do."""
    found = describe(path)
    if found is None:
        names = adapter_header(path).shapes
        if what := no_adapter(names) or embedding_named(names):
            raise AdapterError(f"{path.name} {what}")
        raise AdapterError(
            f"{path.name} holds no LoRA, LoHa or LoKr layers of a Stable Diffusion model: it is no adapter. "
            "A base model belongs into the models folder."
        )
    return found


def _read_card(card: Path | None) -> dict[str, Any]:
    """The card's values; a damaged or huge one tells nothing, which is no reason to hide the adapter."""
    if card is None:
        return {}
    try:
        if card.stat().st_size > _LARGEST_CARD_BYTES:
            return {}
        values = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _tags(frequency: str | None) -> tuple[str, ...]:
    """The most frequent of ss_tag_frequency, which is folder to tag to count."""
    try:
        folders = json.loads(frequency or "{}")
    except ValueError:
        return ()
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counts.update({tag.strip(): count for tag, count in tags.items() if isinstance(count, int)})
    return tuple(tag for tag, _ in counts.most_common(_LISTED_TAGS) if tag)


def _weight(value: Any) -> float | None:
    """A1111 writes 0 for "not set"."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value != 0 else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) and value.strip() != "None" else ""
