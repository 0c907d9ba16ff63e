"""What is known of a run before it begins: what is in its way, its steps, its time by runs like it, its dry run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from sdlora.config.train import TrainConfig
from sdlora.data.folder_listing import stamp_of_folders
from sdlora.launch.dry_runs import DryRuns, Finding
from sdlora.launch.pace import Pace, Paces
from sdlora.launch.watch import RunWatch
from sdlora.training.preflight.dry_run import Figures, SummaryLine
from sdlora.training.preflight.paths import missing_paths
from sdlora.training.preflight.step_count import StepCount, count_steps
from sdlora.words import count, duration_in_words

_FRESH_SECONDS = 5.0
"""How long what was found in a configuration's folders holds, while it stays as it is."""


_InFolders = tuple[tuple[str, ...], StepCount | None, int]
"""Problems with a configuration's folders, its steps, and a stamp of the files there."""


@dataclass(frozen=True)
class Forecast:
    """Everything that can be said of a run now; what is not known yet is None, empty, or `is_checking`."""

    problems: tuple[str, ...] = ()
    steps: StepCount | None = None
    """None when its image folders can't be listed."""
    pace: Pace | None = None
    """None when no run like it was timed on this machine."""
    dry_run: Finding = field(default_factory=lambda: Finding("idle"))

    @property
    def figures(self) -> Figures | None:
        """What the dry run worked out."""
        return self.dry_run.found.figures if self.dry_run.found else None

    @property
    def lines(self) -> list[SummaryLine]:
        """What the dry run says line by line."""
        return self.dry_run.found.lines if self.dry_run.found else []

    @property
    def is_checking(self) -> bool:
        """Whether the dry run has still to say."""
        return self.dry_run.stage in ("waiting", "running")

    @property
    def total_steps(self) -> int | None:
        """The run's length, as exactly as it is known."""
        counted = self.steps.steps if self.steps else None
        return self.figures.total_steps if self.figures else counted

    @property
    def steps_in_words(self) -> str:
        """How the steps come about: as the dry run found it, else as the file names tell, else empty."""
        if (figures := self.figures) is None:
            return self.steps.in_words() if self.steps else ""
        batches = f"{figures.batches} batch{'' if figures.batches == 1 else 'es'}"
        return f"{count(figures.samples, 'sample')} an epoch in {batches}; {figures.epochs:.3g} epochs"

    @property
    def in_short(self) -> str:
        """`300 steps · about 2 min`, empty when its length is not known."""
        total = self.total_steps
        if total is None:
            return ""
        duration = f" · about {duration_in_words(total * self.pace.seconds_per_step)}" if self.pace else ""
        return f"{total:,} steps{duration}"


class Forecaster:
    """Forecasts one draft after another; a dry run is begun once a draft is left alone. Safe from several threads."""

    def __init__(self, watch: RunWatch, jobs_folder: Path) -> None:
        """watch: the runs whose pace is known. jobs_folder: takes the dry runs."""
        self._watch = watch
        self._dry_runs = DryRuns(jobs_folder)
        self._paces = Paces()
        self._newest: tuple[TrainConfig, float, _InFolders] | None = None

    def forecast(self, config: TrainConfig | None) -> Forecast:
        """What is known of a configuration now; None for a draft that is none yet. Call it again and again."""
        if config is None:
            self._dry_runs.ask(None)
            return Forecast()
        problems, steps, stamp = self._folders_of(config)
        pace = self._paces.find(config, (run.handle for run in self._watch.snapshot().runs))
        # A dry run of a draft whose folders are missing would tell the same, seconds later.
        self._dry_runs.ask(None if problems else config, stamp)
        if problems:
            return Forecast(problems, steps, pace)
        finding = self._dry_runs.find(config, stamp)
        wrong = finding.found.problems if finding.found else []
        return Forecast(tuple(problem.message for problem in wrong), steps, pace, finding)

    @property
    def is_checking(self) -> bool:
        """Whether a dry run that was asked for has still to say: then forecasts change by themselves."""
        return self._dry_runs.is_busy

    def _folders_of(self, config: TrainConfig) -> _InFolders:
        known, now = self._newest, time.monotonic()
        if known is not None and known[0] == config and now - known[1] < _FRESH_SECONDS:
            return known[2]
        others = (config.images.class_folder, config.validation.folder)
        stamp = stamp_of_folders([*config.images.all_folders, *(folder for folder in others if folder is not None)])
        found = (tuple(missing_paths(config)), count_steps(config), stamp)
        self._newest = (config, now, found)
        return found
