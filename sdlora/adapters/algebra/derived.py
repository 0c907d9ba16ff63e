"""Writes adapters that were made out of others, with where they come from in their metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sdlora.adapters.algebra.operands import Operand
from sdlora.adapters.files.container import refuse_target, write_atomically
from sdlora.adapters.files.metadata import (
    NetworkFacts,
    TrainingFacts,
    derived_metadata,
    told_prediction,
)
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights, VectorUpdate
from sdlora.adapters.files.writing import Export, named_tensors, travel_warnings, vector_tensors, with_hashes
from sdlora.config.base_model import FamilyName, Precision, Prediction
from sdlora.errors import AdapterError
from sdlora.models.dtypes import DTYPES
from sdlora.models.families import FAMILIES

PROVENANCE = "sdlora.provenance"
"""Metadata entry (JSON) that says what a file was made of, and how."""
MERGED_FROM = "modelspec.merged_from"
_STAYS_TRUE = ("author", "description", "license", "date", "usage_hint", "tags", "thumbnail", "encoder_layer")


@dataclass(frozen=True)
class Provenance:
    """How a file was made: the command, its inputs (name, hash, weights) and settings, the error it has, its base."""

    command: str
    inputs: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    relative_error: float | None = None
    base: Mapping[str, Any] | None = None

    def entries(self) -> dict[str, str]:
        """The metadata entries that a file keeps it in: all of it as JSON, and the names for ModelSpec."""
        told: dict[str, Any] = {"command": self.command, "inputs": list(self.inputs), "settings": dict(self.settings)}
        if self.relative_error is not None:
            told["relative_error"] = self.relative_error
        if self.base is not None:
            told["base"] = dict(self.base)
        names = ", ".join(str(one["file"]) for one in self.inputs)
        return {PROVENANCE: json.dumps(told, ensure_ascii=False), MERGED_FROM: names}


class NewLayers(Protocol):
    """What is written: updates of weights, and of biases and norms, by kohya name."""

    @property
    def modules(self) -> dict[str, ModuleWeights]: ...
    @property
    def vectors(self) -> dict[str, VectorUpdate]: ...


def input_facts(file: AdapterFile) -> dict[str, Any]:
    """One input for `Provenance`: file name, hash of its tensors and, if it was made of others itself, of which."""
    facts: dict[str, Any] = {"file": file.path.name, "hash": file.model_hash}
    try:
        made = json.loads(file.metadata.get(PROVENANCE, "null"))
    except ValueError:
        made = None
    return facts if made is None else {**facts, "made": made}


def operand_facts(operand: Operand) -> dict[str, Any]:
    """The same with the operand's weights."""
    weights: dict[str, Any] = {"unet": operand.unet, "text_encoder": operand.text_encoder}
    if operand.text_encoder_2 != operand.text_encoder:
        weights["text_encoder_2"] = operand.text_encoder_2
    if operand.blocks:
        weights["blocks"] = dict(operand.blocks)
    return {**input_facts(operand.file), "weights": weights}


def derived_facts(path: Path, files: Sequence[AdapterFile], family: FamilyName) -> TrainingFacts:
    """Name, family, prediction, resolution and trigger words of an adapter made of these files."""
    native = FAMILIES[family].native_resolution
    told = [re.fullmatch(r"(\d+)x(\d+)", file.metadata.get("modelspec.resolution", "")) for file in files]
    resolution = next(((int(match[1]), int(match[2])) for match in told if match), (native, native))
    triggers = dict.fromkeys(file.metadata.get("modelspec.trigger_phrase", "") for file in files)
    return TrainingFacts(
        # A1111 takes the name from here into <lora:name:weight>, whose syntax these characters would break.
        name=re.sub(r"[:,<>]", "_", path.stem),
        family=family,
        prediction=_prediction(files),
        trigger=", ".join(trigger for trigger in triggers if trigger),
        resolution=resolution,
    )


def write_made(
    path: Path,
    made: NewLayers,
    facts: TrainingFacts,
    provenance: Provenance,
    *,
    precision: Precision = "fp16",
    force: bool = False,
    kept: AdapterFile | None = None,
) -> Export:
    """Write an adapter in kohya's layout, whole or not at all. kept: a file whose training settings stay true.

    Raises AdapterError: the file exists and not `force`, a value is too large for fp16, the disk.
    """
    refuse_target(path, force)
    tensors, network = named_tensors(made.modules, DTYPES[precision])
    tensors |= vector_tensors(made.vectors, facts.family, DTYPES[precision])
    entries = derived_metadata(facts, network) if kept is None else kept_metadata(kept, facts, network)
    spec = {} if kept is None else kept_spec(kept)
    data, model_hash = with_hashes(tensors, facts, entries, {**spec, **provenance.entries()})
    write_atomically(path, data)
    return Export(path, len(data), model_hash, travel_warnings(made.modules, tensors, "kohya"))


def kept_metadata(file: AdapterFile, facts: TrainingFacts, network: NetworkFacts) -> dict[str, str]:
    """What stays true of a file's ss_* entries when only its layout or ranks change."""
    # What is true of the new layers goes over what the file said of its own.
    kept = {key: value for key, value in file.metadata.items() if key.startswith("ss_")}
    return {**kept, **derived_metadata(facts, network)}


def kept_spec(file: AdapterFile) -> dict[str, str]:
    """The same of its ModelSpec entries."""
    names = [f"modelspec.{name}" for name in _STAYS_TRUE]
    return {name: file.metadata[name] for name in names if name in file.metadata}


def _prediction(files: Sequence[AdapterFile]) -> Prediction:
    """Of all files that tell; epsilon when none does. Raises AdapterError when they differ."""
    told: dict[Prediction, AdapterFile] = {}
    for file in files:
        kind = told_prediction(file.metadata)
        version = file.metadata.get("ss_base_model_version", "")
        if kind is not None or version:
            told[kind or ("v_prediction" if version.endswith("_v") else "epsilon")] = file
    if len(told) > 1:
        named = " and ".join(f"{file.path.name} for {prediction}" for prediction, file in told.items())
        raise AdapterError(f"adapters for models of different prediction can't be put together: {named}")
    return next(iter(told), "epsilon")
