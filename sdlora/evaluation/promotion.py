"""A checkpoint made the run's result, and what was the result before kept under `RUN/former/`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sdlora import atomic
from sdlora.adapters.files.container import content_hash
from sdlora.config.train import TrainConfig
from sdlora.errors import RunError
from sdlora.models.headers import read_header
from sdlora.models.identity import sha256_of
from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder, embedding_files
from sdlora.runs.state import derive
from sdlora.training.outputs.former import SIDE_CARS, keep_former

_MAKING = ".promoting"


def refuse_promotion(folder: RunFolder) -> None:
    """Raise RunError while the run trains: it would put its own result in place at its end."""
    state = derive(folder)
    if state.is_active:
        raise RunError(
            f"{folder.path} is {state.status}: its result can't be replaced now. Stop it first "
            f"(sdlora stop {folder.path}), or evaluate without --promote"
        )


def promote(folder: RunFolder, config: TrainConfig, chosen: Path, weight: float | None = None) -> str:
    """Make an adapter file of the run its result; returns what was done in words.

    weight: is written into the side-car as the one that the adapter is best used at.
    All is made ready in a folder of its own, then moved into place, the adapter last: killed at any moment the old
    result or the new one lies there, the old one besides under `former/`, and the same call does the rest.
    """
    result = folder.adapter(config.name)
    if chosen == result or (result.is_file() and content_hash(result) == content_hash(chosen)):
        _keep(folder, chosen, result)
        return f"{result.name} is that already{_with_weight(result, weight)}"
    former = keep_former(folder, config, result)
    making = folder.path / _MAKING
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    new = making / result.name
    shutil.copyfile(chosen, new)
    ready = [*_side_cars(result, new), *_embeddings(config, chosen, new), new]
    atomic.settle(making)
    for file in ready:
        atomic.move(file, result.with_name(file.name))
    shutil.rmtree(making)
    _keep(folder, chosen, result)
    kept = f"; what it was before lies in {former.relative_to(folder.path)}" if former else ""
    return f"{result.name} is now {chosen.name}{kept}{_with_weight(result, weight)}"


def _keep(folder: RunFolder, chosen: Path, result: Path) -> None:
    """Have the promoted checkpoint stay when a run that goes on tidies its checkpoints."""
    if chosen != result and chosen.parent.parent == folder.checkpoints:
        checkpoints.name_promoted(folder, chosen.parent.name)


def _side_cars(result: Path, new: Path) -> list[Path]:
    """The present side-cars with the new file's hashes and size."""
    made = []
    for suffix in SIDE_CARS:
        present, copy = result.with_suffix(suffix), new.with_suffix(suffix)
        if not present.is_file():
            continue
        shutil.copyfile(present, copy)
        if suffix == ".civitai.info":
            _tell_hashes(copy, new)
        made.append(copy)
    return made


def _with_weight(result: Path, weight: float | None) -> str:
    """Write the weight to use the result at into its side-car; what was done, as the end of a sentence."""
    if weight is None:
        return ""
    side_car = result.with_suffix(".json")
    try:
        content = json.loads(side_car.read_text(encoding="utf-8"))
        content["preferred weight"] = weight
    except (OSError, ValueError, TypeError):
        return f"; there is no {side_car.name} to write the weight {weight:g} into"
    atomic.write_json(side_car, content, indent=2)
    return f"; its preferred weight is {weight:g}"


def _tell_hashes(side_car: Path, adapter: Path) -> None:
    """Replace what a .civitai.info says of its file; one that can't be read is left as it is."""
    try:
        content = json.loads(side_car.read_text(encoding="utf-8"))
        (told,) = content["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    file_hash, model_hash = sha256_of(adapter), read_header(adapter).metadata.get("sshs_model_hash", "")
    hashes = {"SHA256": file_hash, "AutoV2": file_hash[:10], "AutoV3": model_hash[:12]}
    told["hashes"] = {name: value.upper() for name, value in hashes.items() if value}
    told["sizeKB"] = adapter.stat().st_size / 1024
    side_car.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _embeddings(config: TrainConfig, chosen: Path, new: Path) -> list[Path]:
    """The new tokens' embeddings beside the checkpoint, under the result's names."""
    tokens = config.adapter.new_tokens
    pairs = zip(embedding_files(chosen, tokens).values(), embedding_files(new, tokens).values(), strict=True)
    made = []
    for source, target in pairs:
        if source.is_file():
            shutil.copyfile(source, target)
            made.append(target)
    return made
