"""Mixes as small files, and their export: one adapter file, or a model with the adapters baked in, as background jobs.

A saved mix is what `sdlora mix --config FILE` reads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sdlora.config import files
from sdlora.config.mix import MixConfig, MixedAdapter, spell_adapter
from sdlora.errors import ConfigError, SdloraError
from sdlora.launch.jobs import JobHandle, list_jobs, start_job
from webui.mixing.active_adapters import Rows, from_used, used
from webui.mixing.adapter_library import Scan

_SUFFIX = ".yaml"
_FORBIDDEN = re.compile(r'[\\/:*?"<>|=\x00-\x1f]')


def mixed(rows: Rows) -> list[MixedAdapter]:
    """The enabled rows as operands of a mix. Raises ConfigError for none, or for weights that change over the steps."""
    adapters = used(rows)
    problems = [
        f"{Path(adapter.file).stem}: sets in or ends during the steps, which a file can't hold; set start 0 and end 1"
        for adapter in adapters
        if (adapter.start, adapter.end) != (0.0, 1.0)
    ]
    if not adapters:
        problems.append("no adapter is switched on; add one from the library")
    if problems:
        raise ConfigError("the mix", problems)
    return [MixedAdapter(**adapter.model_dump(exclude={"start", "end"})) for adapter in adapters]


def mix_config(rows: Rows, settings: Mapping[str, Any]) -> MixConfig:
    """The checked mix of the enabled rows; settings: method, rank, ... Raises ConfigError with every problem."""
    values = {name: value for name, value in settings.items() if value is not None}
    return files.validate({"adapters": [one.model_dump() for one in mixed(rows)], **values}, "the mix", MixConfig)


# ---- saved mixes


def list_mixes(folder: Path) -> list[str]:
    """Names of the saved mixes, newest first."""
    found = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.stem for path in found]


def save_mix(rows: Rows, name: str, folder: Path) -> Path:
    """Write the enabled rows as a mix. Raises ConfigError: nothing to save, a bad name, a name that is taken."""
    path = new_file(name, folder, _SUFFIX)
    adapters = [one.model_dump(mode="json", exclude_defaults=True) for one in mixed(rows)]
    _write_yaml(path, {"adapters": adapters})
    return path


def load_mix(name: str, folder: Path, library: Scan) -> tuple[Rows, list[str]]:
    """The rows of a saved mix, and sentences on adapters that are gone. One that moved is found by its name."""
    path = folder / f"{name}{_SUFFIX}"
    config = files.validate(files.read_yaml(path), path.name, MixConfig)
    adapters, notes = [], []
    for adapter in config.adapters:
        entry = library.by_tag(Path(adapter.file).stem)
        if adapter.file.startswith("hf://") or Path(adapter.file).is_file():
            adapters.append(adapter)
        elif entry is not None:
            adapters.append(adapter.model_copy(update={"file": str(entry.path)}))
        else:
            notes.append(f"{adapter.file} is gone, and no adapter of that name is in the library")
    return from_used(adapters), notes


# ---- export


def new_file(name: str, folder: Path, suffix: str) -> Path:
    """The path of a file to write. Raises ConfigError for an empty name, one no file can have, or one that is taken."""
    plain = name.strip().removesuffix(suffix)
    if not plain or plain.startswith("."):
        raise ConfigError("the name", [f"'{name}': give a name that begins with a letter or a digit"])
    if (found := _FORBIDDEN.search(plain)) is not None:
        raise ConfigError("the name", [f"'{name}': a file name can't hold {found.group()!r}"])
    path = folder / f"{plain}{suffix}"
    if path.exists():
        raise ConfigError("the name", [f"{path.name} exists already; choose another name"])
    return path


def start_mix(config: MixConfig, target: Path, jobs: Path) -> JobHandle:
    """Write a mix into one adapter file, in the background."""
    settings = jobs / f"{time.strftime('%Y%m%d-%H%M%S')}-{target.stem}{_SUFFIX}"
    _write_yaml(settings, config.model_dump(mode="json", exclude_none=True))
    return start_job(["mix", "--config", str(settings), "--out", str(target)], jobs)


def start_merge(adapters: Sequence[MixedAdapter], base: str, target: Path, jobs: Path) -> JobHandle:
    """Bake adapters into a copy of a base model, in the background."""
    spelled = [spell_adapter(adapter) for adapter in adapters]
    return start_job(["merge", *spelled, "--base", base, "--out", str(target)], jobs)


def newest_export(jobs: Path) -> JobHandle | None:
    """The newest mix or merge, running or over."""
    return next((job for job in list_jobs(jobs) if job.arguments[:1] in (["mix"], ["merge"])), None)


def outcome(job: JobHandle) -> str:
    """What a finished export says of itself: size, hash and error of the result; empty while there is nothing."""
    try:
        return job.output().strip()
    except (OSError, SdloraError):
        return ""


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
