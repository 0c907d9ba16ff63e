"""Background work on datasets: captioning, checking, fixing. Found again after a restart by what it works on."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sdlora.config.captioning import CaptioningConfig
from sdlora.errors import ConfigError
from sdlora.launch.jobs import JobHandle, JobState, list_jobs, start_job
from sdlora.launch.runs import RunHandle, list_runs

Kind = Literal["caption", "mask", "check", "fix"]
WORDS: dict[Kind, str] = {"caption": "Captioning", "mask": "Masking", "check": "Checking", "fix": "Fixing"}
_RESOLUTION = "images.resolution"
_SWITCHES = {"escape_brackets": ("--escape-brackets", "--plain-brackets")}


class DatasetJobs:
    """The newest job of each kind for each dataset. Safe from several threads."""

    def __init__(self, jobs: Path) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self._newest: dict[tuple[str, str], JobHandle] | None = None

    def newest(self, kind: Kind, folder: Path) -> JobHandle | None:
        """The dataset's newest job of this kind, if its folder is still there."""
        with self._lock:
            handle = self._known().get((kind, str(folder)))
        return handle if handle is not None and handle.folder.is_dir() else None

    def active(self, folder: Path) -> dict[Kind, JobState]:
        """The jobs that work on a dataset now."""
        states = {kind: handle.state() for kind in WORDS if (handle := self.newest(kind, folder)) is not None}
        return {kind: state for kind, state in states.items() if state.is_active}

    def stamp(self) -> tuple[object, ...]:
        """Changes when a job does, of whatever dataset."""
        known = sorted(self._known().items())
        states = ((name, handle.name, handle.state()) for name, handle in known)
        return tuple((name, job, state.status, state.stage, state.done) for name, job, state in states)

    def start(self, kind: Kind, folder: Path, options: Sequence[str] = ()) -> JobHandle:
        """Begin a job. Raises ConfigError while another one works on the dataset."""
        if busy := self.active(folder):
            words = " and ".join(WORDS[kind] for kind in busy)
            raise ConfigError(folder.name, [f"{words} is still at work: wait for it, or cancel it"])
        handle = start_job(["dataset", kind, str(folder), *options], self._jobs)
        with self._lock:
            self._known()[kind, str(folder)] = handle
        return handle

    def _known(self) -> dict[tuple[str, str], JobHandle]:
        if self._newest is None:
            self._newest = {}
            # From the oldest on, so that the newest of each kind is what stays.
            for handle in reversed(list_jobs(self._jobs)):
                arguments = handle.arguments
                if len(arguments) >= 3 and arguments[0] == "dataset":
                    self._newest[arguments[1], arguments[2]] = handle
        return self._newest


def caption_options(config: CaptioningConfig) -> list[str]:
    """The options of `sdlora dataset caption` that give these settings."""
    options: list[str] = []
    for name, value in config:
        if value == CaptioningConfig.model_fields[name].default:
            continue
        spelling = f"--{name.replace('_', '-')}"
        if name in _SWITCHES:
            options.append(_SWITCHES[name][0 if value else 1])
        elif isinstance(value, tuple):
            options += [part for each in value for part in (spelling, str(each))]
        else:
            # In one word: a value that begins with a dash would be taken for an option.
            options.append(f"{spelling}={value}")
    return options


def mask_options(model: str, *, overwrite: bool) -> list[str]:
    """The options of `sdlora dataset mask`."""
    return ["--json", f"--model={model}", *(["--overwrite"] if overwrite else [])]


def check_options(resolutions: Sequence[int], trigger: str) -> list[str]:
    """The options that make `check` and `fix` see a dataset as training at these resolutions does."""
    options = ["--set", f"{_RESOLUTION}=[{', '.join(str(edge) for edge in resolutions)}]"]
    return [*options, "--set", f"captions.trigger={_quoted(trigger)}"] if trigger.strip() else options


def checked_resolutions(handle: JobHandle) -> tuple[int, ...]:
    """For which resolutions a check judged; empty where its arguments don't say."""
    told = [word.partition("=")[2] for word in handle.arguments if word.startswith(f"{_RESOLUTION}=")]
    return tuple(int(edge) for edge in re.findall(r"\d+", told[-1])) if told else ()


def _quoted(text: str) -> str:
    """A text as YAML reads it back, whatever is in it."""
    return "'" + text.strip().replace("'", "''") + "'"


def runs_on(folder: Path, runs: Path) -> list[str]:
    """Names of the runs that train on a dataset now."""
    active = [handle for handle in list_runs(runs) if handle.state().is_active]
    return [handle.name for handle in active if folder.resolve() in _trained(handle)]


def _trained(handle: RunHandle) -> list[Path]:
    return [path.expanduser().resolve() for path in handle.config().images.all_folders]
