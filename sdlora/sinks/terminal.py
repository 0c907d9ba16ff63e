"""Shows a run in the terminal: remarks as lines, one progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sdlora import events
from sdlora.events import Event
from sdlora.words import duration_in_words, speed_in_words

# The newest step counts 5 %, so that about the last twenty make up what is shown.
_SMOOTHING = 0.95
_PLAIN_LINES_PER_STAGE = 10


class _LastingConsole(Console):
    """A console whose reader may go away (`| head`): a run must not end with it, as rich would have it."""

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True


class TerminalSink:
    """A rich progress bar with loss, learning rate, speed and memory; plain lines when output is not a terminal.

    tells_failure: False where somebody else says on the same terminal how the run failed.
    """

    def __init__(self, console: Console | None = None, *, tells_failure: bool = True) -> None:
        self._tells_failure = tells_failure
        self.console = console or _LastingConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[str, int] = {}
        self._total_steps = 0
        self._loss: float | None = None
        self._seconds: float | None = None
        self._progress.start()

    def emit(self, event: Event) -> None:
        """Show one event: a line, or a step of the progress bar."""
        match event:
            case events.RunStarted():
                self._total_steps = event.total_steps
                share = 100 * event.trainable_parameters / max(event.total_parameters, 1)
                self._say(
                    f"{_plain(event.name)}: {event.total_steps} steps"
                    + (f", going on from step {event.first_step}" if event.first_step else "")
                )
                self._say(
                    f"trainable parameters: {event.trainable_parameters:,} of {event.total_parameters:,} ({share:.2f}%)"
                )
                self._say(f"run folder: {_plain(event.folder)}")
            case events.Progress():
                self._advance(event.stage, event.done, event.total, "")
                if event.done >= event.total:
                    self._finish(event.stage)
            case events.StepFinished():
                self._loss = _smooth(self._loss, event.loss)
                self._seconds = _smooth(self._seconds, event.seconds)
                learning_rate = next(iter(event.learning_rates.values()), 0.0)
                speed = speed_in_words(self._seconds)
                figures = f"loss {self._loss:.4f}  lr {learning_rate:.2e}  {speed}  {event.memory_gib:.1f} GiB"
                self._advance("training", event.step, self._total_steps, figures)
            case events.Validated():
                best = ", best so far" if event.is_best else ""
                self._say(
                    f"step {event.step}: validation loss {event.loss:.4f}, "
                    f"{100 * (event.relative_loss - 1):+.1f}% against the base model{best}"
                )
            case events.CheckpointSaved():
                self._say(f"step {event.step}: saved {_plain(event.path)}")
            case events.PreviewReady():
                self._say(f"step {event.step}: previews " + _plain(", ".join(event.paths)))
            case events.PictureDrawn():
                self._say(f"step {event.step}: drew '{_plain(event.prompt)}': {_plain(event.path)}")
            case events.WarningRaised():
                self._say(f"[yellow]warning:[/] {_plain(event.message)}")
            case events.Notice():
                self._say(_plain(event.message))
            case events.Stopping():
                hint = "; Ctrl-C again ends it without" if self.console.is_terminal else ""
                self._say(f"step {event.step}: asked to stop, saving{hint}")
            case events.RunFinished():
                self._finish("training")
                self._say(f"[green]{event.reason}[/] at step {event.step} after {duration_in_words(event.seconds)}")
                if event.adapter_path:
                    self._say(f"adapter: {_plain(event.adapter_path)}")
            case events.RunFailed() if self._tells_failure:
                self._say(f"[red]failed[/] at step {event.step}: {_plain(event.message)}")

    def close(self) -> None:
        """Take the progress bar away."""
        self._progress.stop()

    def _say(self, text: str) -> None:
        self.console.print(text)

    def _advance(self, stage: str, done: int, total: int, figures: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, figures=figures)
        self._progress.update(self._tasks[stage], completed=done, total=total, figures=figures)  # type: ignore[arg-type]
        every = max(1, total // _PLAIN_LINES_PER_STAGE)
        if not self.console.is_terminal and (done % every == 0 or done == total):
            self._say(f"{stage} {done}/{total}  {figures}".rstrip())

    def _finish(self, stage: str) -> None:
        task = self._tasks.pop(stage, None)
        if task is not None:
            self._progress.remove_task(task)  # type: ignore[arg-type]


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else _SMOOTHING * old + (1 - _SMOOTHING) * new


def _plain(text: str) -> str:
    """Text whose square brackets are no markup."""
    return text.replace("[", r"\[")
