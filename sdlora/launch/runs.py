"""Training runs as detached processes: start, follow, stop, resume, list; those of the command line too."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sdlora.config import files
from sdlora.config.preview_prompts import parse_preview
from sdlora.config.train import TrainConfig
from sdlora.disk import is_file
from sdlora.errors import ConfigError, RunError, SdloraError
from sdlora.events import Event
from sdlora.file_memory import Stamp, stamp_of, while_unchanged
from sdlora.launch import queue_file
from sdlora.launch.detached import SDLORA, end, spawn
from sdlora.processes import ProcessRecord
from sdlora.runs import changes
from sdlora.runs import folder as run_folder
from sdlora.runs.event_log import read_events, text_tail
from sdlora.runs.folder import REQUESTS, Request, RunFolder, open_run
from sdlora.runs.results import (
    PreviewImage,
    RunAdapterFile,
    RunEmbeddingFile,
    adapter_files,
    embedding_files,
    preview_images,
)
from sdlora.runs.state import RunState, derive
from sdlora.trash import move_to_trash

TRASH = ".trash"
KILL_GRACE_SECONDS = 5.0
_MOST_PICTURES = 16


@dataclass(frozen=True)
class RunHandle:
    """One run by its folder. Cheap to make; everything is read from disk and the process when asked for.

    Methods that need a run in a certain state raise RunError, with what to do, when it isn't.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name, which no other run of the same runs folder has."""
        return self.folder.name

    @property
    def files(self) -> RunFolder:
        """Where what lies in the folder."""
        return RunFolder(self.folder)

    @property
    def created_at(self) -> float:
        """Seconds since the epoch when the run was made; 0 if its folder is gone."""
        try:
            return self.files.config.stat().st_mtime
        except OSError:
            return 0.0

    def state(self) -> RunState:
        """How the run stands now, found out from its process, its events and the queue each time it is asked for."""
        return derive(self.files, is_queued=self.name in queue_file.names(self.folder.parent))

    def config(self) -> TrainConfig:
        """The run's complete configuration. Raises ConfigError when the file is gone or was damaged."""
        return _config(self.files.config)

    def command(self) -> str:
        """The command that trains the same on the command line, in a new folder beside this one."""
        return shlex.join(["sdlora", "train", "--preset", str(self.files.config)])

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Events from a byte offset on (0 is the beginning), and the offset for the next call."""
        return read_events(self.files.events, offset)

    def log_stamp(self) -> Stamp | None:
        """Changes when log.txt does."""
        return stamp_of(self.files.log)

    def log_tail(self, lines: int = 200) -> str:
        """The last lines of log.txt as a terminal would show them."""
        return text_tail(self.files.log, lines)

    def ask(self, request: Request) -> None:
        """Leave the running training a request, which it takes up between two steps."""
        self._must_hear(request)
        self.files.ask(request)

    def _must_hear(self, request: Request) -> None:
        state = self.state()
        if not state.is_active:
            raise RunError(f"{self.name} isn't running (it is {state.status}): nobody would hear '{request}'.")

    def stop(self) -> None:
        """Ask the run to save and stop after the current step."""
        self.ask("stop")

    def save_now(self) -> None:
        """Ask for a checkpoint after the current step."""
        self.ask("save")

    def draw(self, prompts: Sequence[str]) -> None:
        """Ask the running training to draw these prompts, written as in `previews.prompts`, after the current step.

        The pictures come into the run's folder `asked`. Raises ConfigError (a prompt that can't be read) and RunError
        (nobody is there to draw it).
        """
        problems = []
        for prompt in prompts:
            try:
                if not parse_preview(prompt).prompt:
                    problems.append(f"'{prompt}': there is nothing to draw in it")
            except ValueError as error:
                problems.append(f"'{prompt}': {error}")
        if len(prompts) > _MOST_PICTURES:
            problems.append(f"{len(prompts)} pictures at once: the training waits meanwhile; at most {_MOST_PICTURES}")
        if problems:
            raise ConfigError("the pictures", problems)
        self._must_hear("preview")
        self.files.ask_for_pictures(prompts)

    def preview_now(self) -> None:
        """Ask for previews after the current step. Raises RunError where its settings ask for none."""
        self._must_hear("preview")
        if not self.wants_previews():
            raise RunError(
                f"{self.name} has no preview prompts, so there is nothing to generate. Ask for any picture instead: "
                "with Draw now on the page, or sdlora preview RUN 'a fox'."
            )
        self.files.ask("preview")

    def kill(self, grace_seconds: float = KILL_GRACE_SECONDS) -> RunState:
        """End the run's process for good: asked by signal first, killed after `grace_seconds`. Takes up to twice that.

        For a run that doesn't answer to `stop`. What came after the newest checkpoint is lost.
        """
        path = self.files.process
        record = ProcessRecord.read(path)
        launcher = ProcessRecord.read(self.files.launcher)
        if launcher is not None and launcher.is_here() and launcher.is_alive(self.files.launcher):
            # With all that it looks after: a process that it loses it may start again.
            record, path = launcher, self.files.launcher
        if record is not None and not end(record, path, grace_seconds):
            where = f"process {record.process_id} on {record.place.split()[0]}"
            raise RunError(f"{self.name}: {where} can't be ended from here. End it there.")
        return self.state()

    def resume(self) -> None:
        """Begin the run, or go on from its newest checkpoint, in a detached process. It waits in no queue any more."""
        try:
            self._begin()
        except SdloraError:  # it won't begin the next time either
            self._leave_queue()
            raise
        # Last: until its process is on record a run waits, even if whoever starts it is gone meanwhile.
        self._leave_queue()

    def _leave_queue(self) -> None:
        queue_file.change(self.folder.parent, lambda queue: queue.without(self.name))

    def _begin(self) -> None:
        refuse_commands(self.config())
        # The run's own lock comes with its process, seconds later: until then two presses could start two.
        with FileLock(self.folder / ".launch.lock"):
            state = derive(self.files)
            if not self.can_begin(state):
                reason = "is complete" if state.status == "finished" else f"is {state.status} already"
                raise RunError(f"{self.name} {reason}: there is nothing to start.")
            # A stop that nobody heard was meant for the process before.
            for request in REQUESTS:
                (self.files.requests / request).unlink(missing_ok=True)
            command = [*SDLORA, "resume", str(self.folder), "--quiet"]
            # Taken before the process starts: it may write to its logs before we look again.
            before = ProcessRecord.of(0, events=self.files.events, log=self.files.log)
            spawn(
                command, record=lambda number: before.with_process(number).write(self.files.process), log=self.files.log
            )

    def can_begin(self, state: RunState) -> bool:
        """Whether a run in this state of it can be started: also a finished one that got other settings after its end,
        and so may have more to do."""
        if state.status != "finished":
            return state.can_start
        versions = changes.history(self.files)
        if not versions:
            return False
        written = versions[-1].events_bytes
        if written is None:
            return versions[-1].at > (state.updated_at or 0.0)
        # Not by the time, since clocks are set back.
        return not self.files.events.is_file() or self.files.events.stat().st_size <= written

    def delete(self, trash: Path | None = None) -> Path:
        """Move the run's folder to a trash folder (by default `.trash` beside it); returns where it lies now."""
        state = self.state()
        if state.is_active:
            raise RunError(f"{self.name} is {state.status}: stop it before you delete it.")
        self._leave_queue()
        deleted = move_to_trash([self.folder], trash or self.folder.parent / TRASH)
        if not deleted:  # elsewhere just now
            raise RunError(f"The run {self.name} is not there any more.")
        return deleted[0].trashed

    def adapter_files(self) -> list[RunAdapterFile]:
        """All adapter files of the run, those of checkpoints by step, the finished one last."""
        return adapter_files(self.files)

    def embedding_files(self) -> list[RunEmbeddingFile]:
        """The embeddings of the run's new tokens, in the same order."""
        return embedding_files(self.files)

    def wants_previews(self) -> bool:
        """Whether its settings ask for any. Raises ConfigError when they are damaged."""
        previews = self.config().previews
        return bool(previews.prompts or previews.file or previews.from_captions)

    def previews(self) -> list[PreviewImage]:
        """All previews generated so far, by step and prompt."""
        return preview_images(self.files, self.config().previews.prompts)


@while_unchanged(most=64)  # a page asks each second, and the file is long
def _config(path: Path) -> TrainConfig:
    return open_run(path.parent)[1]


def prepare(config: TrainConfig | Path | str, runs_folder: Path | None = None) -> RunHandle:
    """Make a run's folder without starting it; `config` is a configuration, a YAML file or a preset's name.

    `runs_folder` takes the place of outputs.folder.
    """
    if not isinstance(config, TrainConfig):
        config = files.load(config)
    if runs_folder is not None:
        config = config.model_copy(
            update={"outputs": config.outputs.model_copy(update={"folder": Path(runs_folder).resolve()})}
        )
    refuse_commands(config)
    return RunHandle(run_folder.create(config).path)


def refuse_commands(config: TrainConfig) -> None:
    """Raise ConfigError for a run that would start a program when it ends.

    Runs of a page are begun by whoever reaches it, with settings files from anywhere: they may train, and nothing else.
    """
    if config.outputs.on_finish is not None:
        raise ConfigError(
            "outputs.on_finish",
            [
                f"the command '{config.outputs.on_finish}' runs only where sdlora train or resume is called by hand; "
                "leave it out here. outputs.webhook works everywhere"
            ],
        )


def start(config: TrainConfig | Path | str, runs_folder: Path | None = None) -> RunHandle:
    """Start a new run in a detached process, beside whatever else runs. For one at a time see `queue.submit`."""
    handle = prepare(config, runs_folder)
    handle.resume()
    return handle


def resume(folder: Path) -> RunHandle:
    """Go on with the run in a folder. Raises ConfigError when it holds no run, RunError when it runs or is complete."""
    handle = find(folder)
    handle.resume()
    return handle


def find(folder: Path) -> RunHandle:
    """The run in a folder. Raises ConfigError when there is none."""
    return RunHandle(run_folder.find(Path(folder)).path)


def list_runs(runs_folder: Path) -> list[RunHandle]:
    """All runs in a folder, newest first, whoever started them."""
    if not runs_folder.is_dir():
        return []
    folders = [path for path in runs_folder.resolve().iterdir() if not path.name.startswith(".")]
    handles = [RunHandle(path) for path in folders if is_file(RunFolder(path).config)]
    return sorted(handles, key=lambda handle: (handle.created_at, handle.name), reverse=True)


def clone(handle: RunHandle, name: str | None = None) -> TrainConfig:
    """A run's configuration to start again, under another name if given (a number is added to a name that is taken)."""
    config = handle.config()
    return config.model_copy(update={"name": name or re.sub(r"-\d+$", "", config.name)})
