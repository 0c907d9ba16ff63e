"""Bakes adapters into a base model's own weights, tensor by tensor: folder in, folder out; file in, file out."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sdlora import atomic, disk
from sdlora.adapters.algebra.base_weights import (
    BaseWeights,
    TensorSlice,
    VectorPlace,
    layer_names,
    vector_names,
    weight_files,
)
from sdlora.adapters.algebra.derived import Provenance, operand_facts
from sdlora.adapters.algebra.mix import OnProgress
from sdlora.adapters.algebra.operands import Operand, layer_update, notes_of, summed_vectors, told
from sdlora.adapters.files.container import refuse_overwriting, refuse_target
from sdlora.adapters.files.metadata import prediction_note
from sdlora.adapters.files.tensor_files import TensorFile
from sdlora.adapters.files.weights import VectorUpdate
from sdlora.errors import AdapterError
from sdlora.models.recognition import EMA_PREFIX

WeightChange = Callable[[Tensor], Tensor]
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
"""Metadata that is no longer true of a changed file."""
_SHOWS = 0.1
"""Relative error of the updates from which on rounding is told."""
_PICKLED = {".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"}


@dataclass(frozen=True)
class Merged:
    """A written model. `changed` layers hold the adapters' updates, `unplaced` ones the model has not."""

    path: Path
    changed: tuple[str, ...]
    unplaced: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """How the adapters were taken, and what of them is not used."""


@torch.no_grad()
def merge(
    base: BaseWeights,
    operands: Sequence[Operand],
    target: Path,
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Merged:
    """Write the base model with the weighted updates of all operands added to its weights, in the base's own form.

    Peak memory: the adapters and a few copies of one tensor. Number types and all other content stay as they are; the
    metadata tell where the file comes from.
    Raises AdapterError: `target` exists and not `force`, families or shapes don't fit, no layer fits, the disk.
    """
    refuse_place(base, target, force)
    check_fits(base, operands)
    names = list(dict.fromkeys(name for operand in operands for name in operand.file.layer_names))
    if not any(operand.weight_of(name) for operand in operands for name in operand.file.layer_names):
        raise AdapterError("every weight is 0: the model would stay as it is")
    vectors = summed_vectors(operands)
    wanted = [(name, kind) for name, vector in vectors.items() for kind in _kinds(vector)]
    lost = [f"{name} ({kind})" for name, kind in wanted if (name, kind) not in base.vectors]
    placed = [name for name in names if _has_place(base, operands, name)]
    # A layer whose weights are all 0 stays as it is.
    moved = {name for operand in operands for name in operand.file.layer_names if operand.weight_of(name)}
    provenance = Provenance("merge", [operand_facts(operand) for operand in operands], base=base.facts()).entries()
    write = _write_folder if base.is_folder else _write_file
    rounding = _Rounding()

    def advance(done: int, total: int) -> None:
        refuse_overwriting(target, force)  # another process may have made it meanwhile
        if on_progress is not None:
            on_progress(done, total)

    write(base, operands, vectors, target, provenance, rounding, advance)
    notes = [*notes_of([operand.file for operand in operands]), *rounding.notes()]
    notes += base_notes(base, operands)
    averaged = sum(name.startswith(EMA_PREFIX) for name in next(iter(base.places.values())).file.names())
    if averaged:
        notes.append(
            f"{averaged} tensors of a moving average (model_ema.*) stay as they are: a tool that takes those generates "
            "without the adapters"
        )
    if lost:
        notes.append(f"the model has not {len(lost)} biases and norms of the adapters: {', '.join(lost[:3])}")
    changed = tuple(name for name in placed if name in moved)
    return Merged(target, changed, tuple(name for name in names if name not in placed), tuple(notes))


def refuse_place(base: BaseWeights, target: Path, force: bool) -> None:
    """Raise AdapterError where the merged model can't go: named as what it isn't, taken, the base itself."""
    if not base.is_folder:
        refuse_target(target, force)
    elif target.suffix.lower() in (".safetensors", *_PICKLED):
        words = "a model that is a folder becomes a folder; leave the ending out of its name"
        raise AdapterError(f"{target.name}: {words}: {target.stem}")
    refuse_overwriting(target, force)
    # Writing over the very weights that are being read would spoil both.
    if target.resolve() == base.path.resolve():
        raise AdapterError(f"{target} is the base model itself; write to another place")
    if base.is_folder and (others := _not_of_a_model(target, base.path)):
        raise AdapterError(
            f"{target} holds other things than a model ({', '.join(others[:3])}), which would be lost; --force "
            "replaces models only: name another folder"
        )


def _not_of_a_model(target: Path, base: Path) -> list[str]:
    """What lies in a folder beside what a merge writes there: what the base has, and what the model there names."""
    if not target.is_dir():
        return []
    index = target / "model_index.json"
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        parts = set()
    known = {index.name, *parts, *(path.name for path in base.iterdir())} if parts else set()
    return sorted(path.name for path in target.iterdir() if path.name not in known)


def _has_place(base: BaseWeights, operands: Sequence[Operand], name: str) -> bool:
    """Whether the model has anything of a layer that the adapters change."""
    if any(name in operand.file.modules for operand in operands) and name in base.places:
        return True
    vectors = [operand.file.vectors[name] for operand in operands if name in operand.file.vectors]
    return any((name, kind) in base.vectors for vector in vectors for kind in _kinds(vector))


def _kinds(vector: VectorUpdate) -> Iterator[Literal["weight", "bias"]]:
    if vector.weight is not None:
        yield "weight"
    if vector.bias is not None:
        yield "bias"


def base_notes(base: BaseWeights, operands: Sequence[Operand]) -> list[str]:
    """What is to be said of adapters beside a base that they fit."""
    files = [operand.file for operand in operands]
    notes = (prediction_note(file.path.name, file.metadata, base.path.name, base.prediction) for file in files)
    return [note for note in notes if note]


def check_fits(base: BaseWeights, operands: Sequence[Operand]) -> None:
    """Raise AdapterError where adapters are of another family or shape than the base, or share no layer with it."""
    problems = []
    for operand in operands:
        if operand.file.family != base.family:
            raise AdapterError(
                f"{operand.file.path.name} is for {operand.file.family}, {base.path.name} is {base.family}: they don't "
                "fit each other"
            )
        for name, weights in operand.file.modules.items():
            place = base.places.get(name)
            if place is not None and not weights.fits(place.shape):
                source = operand.file.path.name
                problems.append(f"{source}: {name} is {told(weights)}, the model has {list(place.shape)}")
        for name, vector in operand.file.vectors.items():
            for kind in _kinds(vector):
                own = vector.weight if kind == "weight" else vector.bias
                place = base.vectors.get((name, kind))
                if place is not None and own is not None and own.shape != place.shape:
                    problems.append(
                        f"{operand.file.path.name}: {name}'s {kind} is {list(own.shape)}, the model has "
                        f"{list(place.shape)}"
                    )
    if problems:
        raise AdapterError(f"{len(problems)} layers don't fit the model: " + "; ".join(problems[:3]))
    names = [name for operand in operands for name in operand.file.layer_names]
    if not any(_has_place(base, operands, name) for name in names):
        raise AdapterError(f"no layer of the adapters stands in {base.path.name}; the first is {names[0]}")


def _write_file(
    base: BaseWeights,
    operands: Sequence[Operand],
    vectors: Mapping[str, VectorUpdate],
    target: Path,
    provenance: Mapping[str, str],
    rounding: _Rounding,
    on_progress: OnProgress,
) -> None:
    file = next(iter(base.places.values())).file
    count = _Counter(len(file.names()), on_progress)
    changes = _changes(base.places, base.vectors, operands, vectors, rounding)
    file.copy_changed(target, changes, _metadata(file, provenance), count.one)


def _write_folder(
    base: BaseWeights,
    operands: Sequence[Operand],
    vectors: Mapping[str, VectorUpdate],
    target: Path,
    provenance: Mapping[str, str],
    rounding: _Rounding,
    on_progress: OnProgress,
) -> None:
    """The whole folder, every variant of UNet and text encoders changed; built beside the target, then put in place."""
    files = [(part, TensorFile(path)) for part, path in weight_files(base.path)]
    count = _Counter(sum(len(file.names()) for _, file in files), on_progress)
    changed_files = {file.path for _, file in files}
    try:
        with atomic.making_folder(target) as building:
            shutil.copytree(
                base.path,
                building,
                ignore=lambda folder, names: _left_out(folder, names, changed_files),
                dirs_exist_ok=True,
            )
            for part, file in files:
                own = layer_names(file, part, base.family)
                places = {name: TensorSlice(file, tensor, slice(None)) for name, tensor in own.items()}
                of_vectors = {
                    place: TensorSlice(file, tensor, slice(None))
                    for place, tensor in vector_names(file, part, base.family).items()
                }
                inside = building / file.path.relative_to(base.path)
                changes = _changes(places, of_vectors, operands, vectors, rounding)
                file.copy_changed(inside, changes, _metadata(file, provenance), count.one)
    except OSError as error:
        raise AdapterError(disk.explain(error, target)) from error


def _left_out(folder: str, names: Sequence[str], changed_files: set[Path]) -> list[str]:
    """What isn't copied: files that are written anew, and pickled or exported twins of them, which would be stale."""
    is_changed = any(Path(folder, name) in changed_files for name in names)
    return [
        name
        for name in names
        if Path(folder, name) in changed_files or (is_changed and Path(name).suffix in _PICKLED) or name == ".git"
    ]


def _changes(
    places: Mapping[str, TensorSlice],
    of_vectors: Mapping[VectorPlace, TensorSlice],
    operands: Sequence[Operand],
    vectors: Mapping[str, VectorUpdate],
    rounding: _Rounding,
) -> dict[str, WeightChange]:
    by_tensor: dict[str, dict[str, TensorSlice]] = defaultdict(dict)
    for name in dict.fromkeys(name for operand in operands for name in operand.file.modules):
        if name in places:
            by_tensor[places[name].tensor][name] = places[name]
    changes = {tensor: _adding(layers, operands, rounding) for tensor, layers in by_tensor.items()}
    added: dict[str, list[tuple[TensorSlice, Tensor]]] = defaultdict(list)
    for name, vector in vectors.items():
        for kind in _kinds(vector):
            own = vector.weight if kind == "weight" else vector.bias
            if own is not None and (name, kind) in of_vectors:
                place = of_vectors[name, kind]
                added[place.tensor].append((place, own))
    return changes | {tensor: _adding_vectors(parts) for tensor, parts in added.items()}


def _adding_vectors(parts: Sequence[tuple[TensorSlice, Tensor]]) -> WeightChange:
    def change(vector: Tensor) -> Tensor:
        precise = vector.to(torch.float64, copy=True)
        for place, own in parts:
            place.of(precise).add_(own)
        return precise

    return change


def _adding(layers: Mapping[str, TensorSlice], operands: Sequence[Operand], rounding: _Rounding) -> WeightChange:
    def change(weight: Tensor) -> Tensor:
        # Added up one type above the file's: the update is often smaller than the spacing of half-precision weights.
        is_precise = weight.dtype in (torch.float32, torch.float64)
        precise = weight.to(torch.float64 if is_precise else torch.float32, copy=True)
        for name, place in layers.items():
            rows = place.of(precise)
            # From the weight as it was: DoRA and OFT must not see what another adapter has added already.
            original = place.of(weight)
            for operand in operands:
                if name in operand.file.modules and operand.weight_of(name) != 0:
                    update = layer_update(
                        name, operand.file.modules[name], partial(_same, original), operand.file.path.name
                    ).times(operand.weight_of(name))
                    rows.flatten(1).addmm_(update.up_oR.to(rows.dtype), update.down_Ri.to(rows.dtype))
        rounding.add(weight, precise)
        return precise

    return change


def _same(weight: Tensor, name: str) -> Tensor:
    return weight


def _metadata(file: TensorFile, provenance: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in file.metadata.items() if key not in _STALE}
    return {**kept, **provenance}


class _Rounding:
    """What of the updates is lost where the file's number type is too coarse for them."""

    def __init__(self) -> None:
        self._lost, self._whole = 0.0, 0.0
        self._dtypes: dict[str, None] = {}

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count a weight: in the file's number type before, precise after."""
        if before.dtype not in (torch.float32, torch.float64):
            self._whole += float((after - before.to(after.dtype)).norm()) ** 2
            self._lost += float((after - after.to(before.dtype).to(after.dtype)).norm()) ** 2
            self._dtypes[str(before.dtype).removeprefix("torch.")] = None

    def notes(self) -> list[str]:
        """A sentence if it is a part that shows."""
        error = (self._lost / self._whole) ** 0.5 if self._whole else 0.0
        if error < _SHOWS:
            return []
        return [
            f"the model's number type ({', '.join(self._dtypes)}) is too coarse for updates as small as these: their "
            f"relative error is {error:.2e}; merge into the model in a finer one"
        ]


class _Counter:
    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def one(self) -> None:
        self._done += 1
        self._on_progress(self._done, self._total)
