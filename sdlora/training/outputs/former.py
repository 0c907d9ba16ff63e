"""What was a run's result before another took its place, kept under `RUN/former/`."""

from __future__ import annotations

import shutil
from pathlib import Path

from sdlora import atomic
from sdlora.adapters.files.container import content_hash
from sdlora.config.train import TrainConfig
from sdlora.models.headers import read_header
from sdlora.runs.folder import RunFolder, embedding_files

FORMER = "former"
"""Folder of a run with the results that were replaced, one folder each."""
SIDE_CARS = (".json", ".civitai.info", ".png")


def keep_former(folder: RunFolder, config: TrainConfig, result: Path) -> Path | None:
    """Copy the present result with all beside it into a folder called after its step; None when there is none."""
    if not result.is_file():
        return None
    step = read_header(result).metadata.get("ss_steps", "")
    name = f"step_{int(step):06d}" if step.isdecimal() else "result"
    place = folder.path / FORMER
    content = content_hash(result)
    # Promoted to and fro, the same file is kept once.
    for kept in place.glob(f"{name}*/{result.stem}-*.safetensors"):
        if content_hash(kept) == content:
            return kept.parent
    place.mkdir(exist_ok=True)
    target = next(place / each for each in atomic.numbered(name) if not (place / each).exists())
    files = [result, *(result.with_suffix(suffix) for suffix in SIDE_CARS)]
    files += embedding_files(result, config.adapter.new_tokens).values()
    with atomic.making_folder(target) as filled:
        for file in files:
            if file.is_file():
                # Under another name: two files of one name would be one too many for whoever asks by name.
                shutil.copy2(file, filled / f"{result.stem}-{target.name}{file.name.removeprefix(result.stem)}")
    return target
