"""A run's files for others: the curve as a table, its log, a zip for those who are asked for help."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import yaml

from sdlora import atomic
from sdlora.launch.runs import RunHandle
from sdlora.runs.curves import Curves

_EVENT_LINES = 2000
_LOG_LINES = 2000
_SECRET = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|sk-[\w-]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|AKIA[0-9A-Z]{12,})"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password in an address
    r"|(?i:(?<=bearer )[\w.~+/-]{8,})"
    r"|(?i:(?<=[?&]token=)[^&\s\"']+|(?<=[?&]key=)[^&\s\"']+|(?<=[?&]signature=)[^&\s\"']+)"
)
_NAMED_SECRET = re.compile(
    r"(?i)((?:[\w.-]*(?:password|passwd|secret|api_?key|access_?key|auth_?token|access_?token|webhook))[\"']?"
    r"\s*[:=]\s*|--(?:password|passwd|token|secret|key|api-key|user)[= ]\s*|(?<=\s)-u\s+)"
    r"(\"[^\"]*\"|'[^']*'|[^\s,}\"']+)"
)


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


def support_zip(
    handle: RunHandle, folder: Path, *, with_prompts: bool = False, more: Mapping[str, str] | None = None
) -> Path:
    """Configuration, environment, state, the ends of event log and log, for someone who is asked for help.

    Never images, keys or passwords. with_prompts: also captions and prompts where configuration and events hold them.
    more: further files, by name with their text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{handle.name}-support.zip"
    files = {
        "config.yaml": _config(handle.files.config, with_prompts),
        **{
            f"config.history/{former.name}": _config(former, with_prompts)
            for former in sorted(handle.files.history.glob("*.yaml"))
        },
        "environment.json": _text(handle.files.environment),
        "state.json": json.dumps(asdict(handle.state()), indent=2),
        "files.txt": "\n".join(_listing(handle.folder)),
        "events.jsonl": _events(handle, with_prompts),
        "log.txt": handle.log_tail(_LOG_LINES),
        **(more or {}),
    }
    with atomic.writing(path, large=True) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, redacted(text))
    return path


def redacted(text: str) -> str:
    """The text with keys, passwords and the user's home folder taken out."""
    text = _NAMED_SECRET.sub(r"\1[redacted]", _SECRET.sub("[redacted]", text))
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _listing(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{path.stat().st_size:>12} {path.relative_to(folder)}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _config(path: Path, with_prompts: bool) -> str:
    text = _text(path)
    if with_prompts:
        return text
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        return ""  # damaged: nobody can tell what it holds
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
