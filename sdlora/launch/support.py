"""A run's files for others: the curve as a table, its log, a zip for those who are asked for help."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
    handle: RunHandle,
    folder: Path,
    *,
    with_prompts: bool = False,
    more: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Path:
    """Configuration, environment, state, the ends of event log and log, for someone who is asked for help.

    Never images, keys or passwords. with_prompts: also captions and prompts where configuration and events hold them.
    more: further files, by name with their text. replace: an earlier one of its name; else this one gets a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{name}.zip" for name in atomic.numbered(f"{handle.name}-support"))
    path = next(one for one in paths if replace or not one.exists())
    configs = {"config.yaml": handle.files.config}
    configs |= {f"config.history/{former.name}": former for former in sorted(handle.files.history.glob("*.yaml"))}
    hide = _hider(() if with_prompts else _written(handle, configs.values()))
    files = {
        **{name: _config(former, hide, with_prompts) for name, former in configs.items()},
        "environment.json": _text(handle.files.environment),
        "state.json": hide(json.dumps(asdict(handle.state()), indent=2)),
        "files.txt": "\n".join(_listing(handle.folder)),
        "events.jsonl": hide(_events(handle, with_prompts)),
        "log.txt": hide(handle.log_tail(_LOG_LINES)),
        **(more or {}),
    }
    with atomic.writing(path, large=True) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, redacted(text).encode("utf-8", "backslashreplace"))
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


def _written(handle: RunHandle, configs: Iterable[Path]) -> set[str]:
    """Every caption, prompt and trigger that the run's settings and events name.

    Advice, warnings and the log repeat them in sentences of their own, so that each must be known to be taken out.
    """
    texts: set[str] = set()
    for path in configs:
        values = _values(path) or {}
        texts |= {text for section in ("captions", "previews") for text in _texts(values.get(section), _WRITTEN)}
        texts |= set(_texts((values.get("images") or {}).get("folders"), _WRITTEN))
        tokens = (values.get("adapter") or {}).get("new_tokens") or {}
        texts |= {*tokens, *_texts(tokens, ("init",))}
    for line in _text(handle.files.events).splitlines():
        with suppress(ValueError):
            texts |= set(_texts(json.loads(line), ("prompts", "prompt")))
    return texts


_WRITTEN = ("default", "trigger", "prefix", "suffix", "protected_tags", "prompts", "negative")
"""Settings that hold what somebody wrote for a model to read."""


def _texts(value: object, names: Sequence[str], *, is_told: bool = False) -> Iterator[str]:
    """The texts at these names, however deep they lie."""
    if isinstance(value, Mapping):
        for name, held in value.items():
            yield from _texts(held, names, is_told=is_told or name in names)
    elif isinstance(value, list):
        for held in value:
            yield from _texts(held, names, is_told=is_told)
    elif is_told and isinstance(value, str):
        yield value


def _hider(texts: Collection[str]) -> Callable[[str], str]:
    """What takes these texts out of another, also as JSON spells them; those of a single sign would take too much."""
    spelled = {
        form for text in texts for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    }
    longest_first = sorted((form for form in spelled if len(form.strip()) > 1), key=len, reverse=True)
    if not longest_first:
        return lambda text: text
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")
    return lambda text: pattern.sub("(taken out)", text)


def _values(path: Path) -> dict[str, Any] | None:
    try:
        values = yaml.safe_load(_text(path)) or {}
    except yaml.YAMLError:
        return None
    return values if isinstance(values, dict) else None


def _config(path: Path, hide: Callable[[str], str], with_prompts: bool) -> str:
    if with_prompts:
        return _text(path)
    values = _values(path)
    if values is None:
        return ""  # damaged: nobody can tell what it holds
    values.get("previews", {}).update(prompts=[], negative="")
    values.get("captions", {}).update(default=None, trigger=None, prefix="", suffix="")
    return yaml.safe_dump(_hidden(values, hide), sort_keys=False, allow_unicode=True)


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {_hidden(name, hide): _hidden(held, hide) for name, held in value.items()}
    if isinstance(value, list):
        return [_hidden(held, hide) for held in value]
    return hide(value) if isinstance(value, str) else value


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
    if isinstance(values, dict):
        values |= {name: empty for name, empty in (("prompts", []), ("prompt", "")) if name in values}
    return json.dumps(values)
