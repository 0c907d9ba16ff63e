"""A run's files for others: the curve as a table, its log, a zip for those who are asked for help."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import yaml

from sdlora import atomic
from sdlora.launch.runs import RunHandle
from sdlora.runs.curves import Curves

_EVENT_LINES = 2000
_LOG_LINES = 2000


def write_csv(curves: Curves, name: str, folder: Path) -> Path:
    """The run's curve as a CSV file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-loss.csv"
    path.write_text(curves.as_csv(), encoding="utf-8")
    return path


def copy_log(handle: RunHandle, folder: Path) -> Path:
    """The run's whole log, copied into a folder under a name of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{handle.name}-log.txt"
    path.write_bytes(handle.files.log.read_bytes() if handle.files.log.is_file() else b"")
    return path


def support_zip(handle: RunHandle, folder: Path, *, with_prompts: bool = False) -> Path:
    """Configuration, environment, state, the ends of event log and log, for someone who is asked for help.

    Never images. with_prompts: also captions and prompts where configuration and events hold them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{handle.name}-support.zip"
    with atomic.writing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.yaml", _config(handle, with_prompts))
        if handle.files.environment.is_file():
            archive.write(handle.files.environment, "environment.json")
        archive.writestr("state.json", json.dumps(asdict(handle.state()), indent=2))
        archive.writestr("events.jsonl", _events(handle, with_prompts))
        archive.writestr("log.txt", handle.log_tail(_LOG_LINES))
    return path


def _config(handle: RunHandle, with_prompts: bool) -> str:
    try:
        text = handle.files.config.read_text(encoding="utf-8")
    except OSError:
        return ""
    if with_prompts:
        return text
    values = yaml.safe_load(text) or {}
    values.get("previews", {}).update(prompts=[], negative="")
    values.get("captions", {}).update(default=None, trigger=None, prefix="", suffix="")
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _events(handle: RunHandle, with_prompts: bool) -> str:
    try:
        lines = handle.files.events.read_text(encoding="utf-8", errors="replace").splitlines()[-_EVENT_LINES:]
    except OSError:
        return ""
    return "\n".join(line if with_prompts else _without_prompts(line) for line in lines)


def _without_prompts(line: str) -> str:
    try:
        values = json.loads(line)
    except ValueError:
        return ""  # cut off by a crash: nobody can tell what it holds
    if isinstance(values, dict) and "prompts" in values:
        values["prompts"] = []
    return json.dumps(values)
