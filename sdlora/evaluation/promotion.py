"""A checkpoint made the run's result, and what was the result before kept under `RUN/former/`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sdlora import atomic
from sdlora.adapters.files.container import content_hash
from sdlora.config.train import TrainConfig
from sdlora.errors import RunError
from sdlora.evaluation import report
from sdlora.evaluation.lock import PROMOTING, locked
from sdlora.evaluation.report import Evaluation, Scores
from sdlora.models.headers import read_header
from sdlora.models.identity import sha256_of
from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder, embedding_files, open_run
from sdlora.runs.results import adapter_files
from sdlora.runs.state import derive
from sdlora.training.outputs.former import FORMER, SIDE_CARS, keep_former
from sdlora.words import as_typed


def refuse_promotion(folder: RunFolder) -> None:
    """Raise RunError while the run trains: it would put its own result in place at its end."""
    state = derive(folder)
    if state.is_active:
        raise RunError(
            f"{folder.path} is {state.status}: its result can't be replaced now. Stop it first "
            f"({as_typed('sdlora', 'stop', folder.path)}), or evaluate without --promote"
        )


def promote(run: Path, label: str) -> Evaluation:
    """Make a checkpoint of the newest evaluation, by its label there, the run's result; the report notes it, too.

    Raises RunError while the run trains or is being evaluated, without an evaluation, and for a checkpoint whose file
    is gone or another.
    """
    folder, config = open_run(run)
    refuse_promotion(folder)
    if report.read(folder.path) is None:
        raise RunError(f"{folder.path} has not been evaluated: there is nothing to promote")
    with locked(folder):
        return _promote(folder, config, label)


def _promote(folder: RunFolder, config: TrainConfig, label: str) -> Evaluation:
    found = report.read(folder.path)
    assert found is not None
    chosen = next((one for one in found.checkpoints if one.label == label), None)
    if chosen is None:
        labels = ", ".join(one.label for one in found.checkpoints)
        raise RunError(f"{folder.path}: the evaluation has no checkpoint '{label}'; it has: {labels}")
    advice = found.weight_advice if label == found.recommendation.label else None
    done = _put_in_place(folder, config, _file_of(folder, config, chosen), advice.weight if advice else None)
    found = replace(found, promoted=done)
    found.write()
    return found


def _file_of(folder: RunFolder, config: TrainConfig, chosen: Scores) -> Path:
    """The file that was evaluated: a result may have been replaced since, by promoting another one."""

    def candidates() -> Iterator[Path]:
        for file in adapter_files(folder):
            if file.step == chosen.step and (file.step is not None or file.path == folder.adapter(config.name)):
                yield file.path
        yield from sorted((folder.path / FORMER).glob("*/*.safetensors"))

    for path in candidates():
        if content_hash(path) == chosen.content:
            return path
    words = f"the file of {chosen.label} is not there any more, or another one by now"
    raise RunError(f"{folder.path}: {words}; evaluate the run again")


def _put_in_place(folder: RunFolder, config: TrainConfig, chosen: Path, weight: float | None) -> str:
    """Make an adapter file the run's result; returns what was done in words.

    weight: is written into the side-car as the one that the adapter is best used at; None where none was advised.
    All is made ready in a folder of its own, then moved into place, the adapter last: killed at any moment the old
    result or the new one lies there, the old one besides under `former/`, and the same call does the rest.
    """
    result = folder.adapter(config.name)
    if chosen == result or (result.is_file() and content_hash(result) == content_hash(chosen)):
        _keep(folder, chosen, result)
        return f"{result.name} is that already{_with_weight(result, weight)}"
    former = keep_former(folder, config, result)
    making = folder.path / PROMOTING
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
    # What stands in the side-car was the former file's.
    return f"{result.name} is now {chosen.name}{kept}{_with_weight(result, 1.0 if weight is None else weight)}"


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
        if content.get("preferred weight") == weight:
            return "" if weight == 1 else f"; its preferred weight is {weight:g}"
        content["preferred weight"] = weight
    except (OSError, ValueError, AttributeError):
        return "" if weight == 1 else f"; there is no {side_car.name} to write the weight {weight:g} into"
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
