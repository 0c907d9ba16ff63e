"""What the Runs tab shows of the chosen run, made part by part and only where something has changed; no Gradio."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from sdlora.errors import ConfigError, RunError
from sdlora.evaluation import report
from sdlora.evaluation.report import Evaluation
from sdlora.launch.evaluations import Evaluations, report_stamp, result_label
from sdlora.launch.jobs import JobState, progress
from sdlora.launch.watch import RunWatch, Snapshot, WatchedRun
from sdlora.runs.results import PreviewImage
from webui.runs import chart, evaluation, previews, sentences, view
from webui.runs.chart import ChartOptions, Curve

LOG_LINES = 400
Made = TypeVar("Made")


@dataclass(frozen=True)
class Choice:
    """What a person chose to see of the runs; it stays with the page and comes with each request."""

    run: str | None = None
    """None: whatever trains now, else the newest run."""
    preview: tuple[int, int | None] = (0, None)
    """Number of the prompt, and step; no step is the newest one."""
    chart: ChartOptions = field(default_factory=ChartOptions)
    compared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One piece of the tab: `key` says whether it has changed, `make` makes it."""

    key: Hashable
    make: Callable[[], object]


_SHARED_SECONDS = 1.0
"""How long what was made for one page is given to others that ask for the same: each asks once a second."""


@dataclass
class RunParts:
    """Makes the parts; remembers since when runs have been asked to stop. One each a server."""

    watch: RunWatch
    evaluations: Evaluations
    thumbnails: Path
    datasets: Path
    """The folder of the page's datasets: images in it can be edited."""
    _asked: dict[str, float] = field(default_factory=dict)
    _made: dict[Hashable, tuple[float, object]] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once a second for all pages that ask with this key."""
        now = time.monotonic()
        moment, made = self._made.get(key, (-_SHARED_SECONDS, None))
        if now - moment < _SHARED_SECONDS:
            return cast(Made, made)
        result = make()
        others = [(each, kept) for each, kept in list(self._made.items()) if now - kept[0] < _SHARED_SECONDS]
        self._made = {**dict(others), key: (now, result)}
        return result

    def chosen(self, seen: Snapshot, name: str | None) -> WatchedRun | None:
        """The run that is looked at: the named one, else one that trains, else the newest."""
        return seen.find(name) or next(iter(seen.active or seen.runs), None)

    def parts(self, choice: Choice) -> dict[str, Part]:
        """All parts by name, for the runs as they are now."""
        seen = self.watch.snapshot()
        run = self.chosen(seen, choice.run)
        shown = run.name if run else None
        listed, queued = self.once((seen, shown), lambda: view.run_list(seen, shown)), view.queue(seen)
        compared = [found for each in choice.compared if (found := seen.find(each)) is not None]
        return {
            "list": Part(listed, lambda: listed),
            "queue": Part(queued, lambda: queued),
            **self._of_run(run, choice),
            **self._compared(compared, choice),
        }

    def previews(self, run: WatchedRun) -> Sequence[PreviewImage]:
        """The pictures that a run has generated; none if its configuration is damaged."""
        try:
            return run.handle.previews()
        except ConfigError:
            return ()

    def _of_run(self, run: WatchedRun | None, choice: Choice) -> dict[str, Part]:
        if run is None:
            nothing = Part(None, lambda: "")
            told = ("headline", "figures", "hint", "outcome", "messages", "log", "files")
            pictured = ("chart", "grid", "pair", "asked", "evaluate", "evaluation")
            return {**dict.fromkeys((*told, *pictured), nothing), "buttons": Part(None, frozenset)}
        curves, state, name = self.watch.curves(run.handle), run.state, run.name
        headline, figures = view.headline(run), view.figures(state)
        hint = view.kill_hint(state, self._asked_to_stop(run))
        evaluating = self.evaluations.state(run.handle)
        actions = state.actions | self._evaluation_actions(run, evaluating)
        if "preview" in actions:
            actions |= {"draw", "draw_prompts"}
        reported = report_stamp(run.handle)
        generated = (name, curves.version, state.status)
        # Until the first picture is there, its place tells how far the first previews are.
        awaited = None if curves.previews else (state.stage, state.stage_done)
        options = choice.chart
        return {
            "headline": Part(headline, lambda: headline),
            "figures": Part(figures, lambda: figures),
            "hint": Part(hint, lambda: hint),
            "buttons": Part((name, actions), lambda: actions),
            "messages": Part((name, len(curves.messages)), lambda: view.messages(curves.messages)),
            "chart": Part(
                (*generated, options, curves.unread),
                lambda: chart.chart(
                    [Curve.of(name, curves)], options, sentences.no_loss(state), sentences.still_read([curves])
                ),
            ),
            "grid": Part((*generated, awaited), lambda: self._grid(run)),
            "pair": Part((name, len(curves.previews), choice.preview), lambda: self._pair(run, choice)),
            "asked": Part((name, len(curves.drawn)), lambda: previews.asked(curves.drawn, self.thumbnails)),
            "log": Part(
                (name, run.handle.log_stamp(), state.is_active),
                lambda: run.handle.log_tail(LOG_LINES) or sentences.no_log(state),
            ),
            "files": Part(
                (name, len(curves.checkpoints), state.status, reported),
                lambda: view.adapter_files(run.handle.adapter_files(), state, run.handle.embedding_files()),
            ),
            "outcome": Part((name, state.status, len(curves.previews)), lambda: self._outcome(run)),
            "evaluate": Part(
                (
                    name,
                    state.status,
                    len(curves.checkpoints),
                    evaluating,
                    reported,
                    self._others(run),
                    tuple(self.evaluations.ahead(run.handle)),
                ),
                lambda: self._standing(run, evaluating),
            ),
            "evaluation": Part((name, reported), lambda: self._evaluation(run)),
        }

    def _evaluation_actions(self, run: WatchedRun, evaluating: JobState | None) -> frozenset[str]:
        """What can be done about the run's evaluation now."""
        if evaluating is not None and evaluating.is_active:
            return frozenset({"cancel_evaluation"})
        state = run.state
        trained = not state.is_active and state.status != "queued" and run.handle.adapter_files()
        return frozenset({"evaluate"} if trained else ())

    def _others(self, run: WatchedRun) -> tuple[str, ...]:
        """The runs that train now, besides this one."""
        return tuple(other.name for other in self.watch.snapshot().active if other.name != run.name)

    def _standing(self, run: WatchedRun, evaluating: JobState | None) -> str:
        found, broken = self._reported(run)
        files = run.handle.adapter_files()
        remarks = []
        if evaluating is not None and evaluating.is_active:
            words = (evaluating.stage or "evaluating").capitalize()
            remarks += [f"{name} is evaluated first." for name in self.evaluations.ahead(run.handle)]
            remarks += [f"{name} trains at the same time, which makes both slower." for name in self._others(run)]
            return evaluation.standing("", progress(words, evaluating), remarks)
        sentence = broken or (sentences.evaluation(run.state, len(files)) if found is None else evaluation.when(found))
        ended = None
        if evaluating is not None and evaluating.status != "finished":
            moment = evaluating.ended_at or evaluating.started_at
            # The command line may have evaluated it since, and that counts for more.
            ended = None if found is not None and moment <= found.finished_at else progress("Evaluation", evaluating)
        if found is not None:
            looked_at = {one.step for one in found.checkpoints}
            missing = [f"step {file.step:,}" for file in files if file.step is not None and file.step not in looked_at]
            remarks += [f"Not among them: {', '.join(missing)}."] if missing else []
        return evaluation.standing(sentence, ended, remarks)

    def _reported(self, run: WatchedRun) -> tuple[Evaluation | None, str]:
        """The newest evaluation, or what is wrong with its report."""
        try:
            return report.read(run.handle.folder), ""
        except RunError as error:
            return None, str(error)

    def _evaluation(self, run: WatchedRun) -> str:
        found, _ = self._reported(run)
        if found is None:
            return ""
        try:
            label = result_label(run.handle, found)
        except ConfigError:  # the run's configuration is damaged, which says nothing about what was found
            label = None
        return evaluation.result(found, label, self.thumbnails, self.datasets)

    def _grid(self, run: WatchedRun) -> str:
        images = self.previews(run)
        try:
            wanted = run.handle.wants_previews()
        except ConfigError:
            wanted = False
        return previews.grid(images, self.thumbnails, sentences.no_previews(run.state, wanted))

    def _outcome(self, run: WatchedRun) -> str:
        if run.state.is_active:
            return ""
        handle = run.handle
        return view.outcome(run, handle.adapter_files(), self._pair(run, Choice()), handle.embedding_files())

    def _pair(self, run: WatchedRun, choice: Choice) -> str:
        images = self.previews(run)
        # Without a step the newest is meant, also when a newer one comes.
        prompt, step = choice.preview
        if step is None and images:
            step = previews.steps_of(images)[-1]
        return previews.before_after(images, prompt, step or 0)

    def _compared(self, runs: Sequence[WatchedRun], choice: Choice) -> dict[str, Part]:
        if len(runs) < 2:
            return {"compared": Part(None, view.compare_more)}
        curves = {run.name: self.watch.curves(run.handle) for run in runs}
        # A stretch chosen for one run says nothing about others, and one axis can't show several learning rates.
        options = replace(choice.chart, with_rate=False, first_step=0, last_step=None)

        def make() -> str:
            shown = [Curve.of(name, each) for name, each in curves.items()]
            drawn = chart.chart(shown, options, note=sentences.still_read(curves.values()))
            pictures = previews.side_by_side([(run.name, self.previews(run)) for run in runs], self.thumbnails)
            return view.compared(runs, drawn, pictures)

        key = (tuple((name, each.version, each.unread) for name, each in curves.items()), options)
        return {"compared": Part(key, make)}

    def _asked_to_stop(self, run: WatchedRun) -> float | None:
        if run.state.status != "stopping":
            self._asked.pop(run.name, None)
            return None
        return self._asked.setdefault(run.name, time.time())
