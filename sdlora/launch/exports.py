"""A mix into one adapter file, or adapters into a copy of a model, as background jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sdlora.adapters.files.container import refuse_pickle
from sdlora.config.mix import MixConfig, MixedAdapter, spell_adapter
from sdlora.errors import SdloraError
from sdlora.launch.jobs import JobHandle, list_jobs, start_job
from sdlora.library.mixes import write_yaml


def start_mix(config: MixConfig, target: Path, jobs: Path) -> JobHandle:
    """Write a mix into one adapter file, in the background."""
    settings = jobs / f"{time.strftime('%Y%m%d-%H%M%S')}-{target.stem}.yaml"
    write_yaml(settings, config.model_dump(mode="json", exclude_none=True))
    return start_job(["mix", "--config", str(settings), "--out", str(target)], jobs)


def start_merge(adapters: Sequence[MixedAdapter], base: str, target: Path, jobs: Path) -> JobHandle:
    """Bake adapters into a copy of a base model, in the background. Raises AdapterError for a base that is a pickle."""
    if Path(base).is_file():
        refuse_pickle(Path(base))
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
