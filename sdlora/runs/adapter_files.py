"""A run's adapter files by training step, read from its folder alone. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError

_STEP = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True)
class RunAdapters:
    """What a run has written so far; `final` is the finished adapter."""

    folder: Path
    config: TrainConfig
    by_step: dict[int, Path]
    final: Path | None


def read_run(folder: Path) -> RunAdapters:
    """The adapter files of a run, `<run>/checkpoints/step_000100/*.safetensors` and `<run>/<name>.safetensors`.

    Raises ConfigError when there is no run at `folder`.
    """
    folder = folder.expanduser()
    if not (folder / "config.yaml").is_file():
        raise ConfigError(str(folder), ["not a run folder: it has no config.yaml"])
    config = files.load(folder / "config.yaml")
    by_step: dict[int, Path] = {}
    checkpoints = folder / "checkpoints"
    for path in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else ():
        adapters = sorted(path.glob("*.safetensors"))
        if (match := _STEP.fullmatch(path.name)) and adapters:
            by_step[int(match[1])] = adapters[0]
    final = folder / f"{config.name}.safetensors"
    return RunAdapters(folder, config, dict(sorted(by_step.items())), final if final.is_file() else None)
