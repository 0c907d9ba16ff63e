"""What the Runs tab shows of the chosen run, made part by part and only where something has changed; no Gradio."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdlora.errors import ConfigError
from sdlora.runs.results import PreviewImage
from webui.run_view import chart, comparison, files, previews, status
from webui.run_view.chart import ChartOptions, Curve
from webui.run_view.status import Buttons
from webui.run_view.watch import Look, RunWatch, SeenRun

LOG_LINES = 400
NO_LOG = "No log yet."
COMPARE_MORE = '<div class="empty-state"><p>Choose two or more runs to lay their curves over each other.</p></div>'


@dataclass(frozen=True)
class Choice:
    """What a person looks at."""

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


@dataclass
class RunPage:
    """Makes the parts; remembers since when runs have been asked to stop. One each a server."""

    watch: RunWatch
    thumbnails: Path
    _asked: dict[str, float] = field(default_factory=dict)

    def chosen(self, look: Look, name: str | None) -> SeenRun | None:
        """The run that is looked at: the named one, else one that trains, else the newest."""
        return look.find(name) or next(iter(look.active or look.runs), None)

    def parts(self, choice: Choice) -> dict[str, Part]:
        """All parts by name, for the runs as they are now."""
        look = self.watch.look()
        run = self.chosen(look, choice.run)
        name = run.name if run else None
        listed, queued = status.run_list(look, name), status.queue_list(look)
        compared = [seen for each in choice.compared if (seen := look.find(each)) is not None]
        return {
            "list": Part(listed, lambda: listed),
            "queue": Part(queued, lambda: queued),
            **self._of_run(run, choice),
            **self._compared(compared, choice),
        }

    def previews(self, run: SeenRun) -> Sequence[PreviewImage]:
        """The pictures that a run has drawn; none if its configuration is damaged."""
        try:
            return run.handle.previews()
        except ConfigError:
            return ()

    def _of_run(self, run: SeenRun | None, choice: Choice) -> dict[str, Part]:
        if run is None:
            nothing = Part(None, lambda: "")
            names = ("headline", "figures", "hint", "messages", "chart", "grid", "pair", "log", "files")
            return {**dict.fromkeys(names, nothing), "buttons": Part(None, lambda: status.buttons(None))}
        curves, state, name = self.watch.curves(run.handle), run.state, run.name
        headline, figures = status.headline(run), status.figures(state)
        pressable = status.buttons(state)
        hint = status.kill_hint(state, self._asked_to_stop(run))
        drawn = (name, curves.version, state.status)
        return {
            "headline": Part(headline, lambda: headline),
            "figures": Part(figures, lambda: figures),
            "hint": Part(hint, lambda: hint),
            "buttons": Part(pressable, lambda: pressable),
            "messages": Part((name, len(curves.messages)), lambda: _messages(curves.messages)),
            "chart": Part((*drawn, choice.chart), lambda: chart.draw([Curve.of(name, curves)], choice.chart)),
            "grid": Part(drawn, lambda: previews.grid(self.previews(run), self.thumbnails)),
            "pair": Part((name, len(curves.previews), choice.preview), lambda: self._pair(run, choice)),
            "log": Part((name, _stamp(run.handle.files.log)), lambda: run.handle.log_tail(LOG_LINES) or NO_LOG),
            "files": Part(
                (name, len(curves.checkpoints), state.status), lambda: files.adapter_list(run.handle.adapter_files())
            ),
        }

    def _pair(self, run: SeenRun, choice: Choice) -> str:
        images = self.previews(run)
        prompt, step = choice.preview
        if step is None and images:
            step = previews.steps_of(images)[-1]
        return previews.before_after(images, prompt, step or 0)

    def _compared(self, runs: Sequence[SeenRun], choice: Choice) -> dict[str, Part]:
        if len(runs) < 2:
            return {"compared": Part(None, lambda: COMPARE_MORE)}
        curves = {run.name: self.watch.curves(run.handle) for run in runs}
        options = replace(choice.chart, with_rate=False)

        def make() -> str:
            drawn = chart.draw([Curve.of(name, each) for name, each in curves.items()], options)
            pictures = previews.side_by_side([(run.name, self.previews(run)) for run in runs], self.thumbnails)
            table = comparison.differences_table(runs)
            return f"{drawn}<h3>Settings that differ</h3>{table}<h3>Newest previews</h3>{pictures}"

        key = (tuple((name, each.version) for name, each in curves.items()), options)
        return {"compared": Part(key, make)}

    def _asked_to_stop(self, run: SeenRun) -> float | None:
        if run.state.status != "stopping":
            self._asked.pop(run.name, None)
            return None
        return self._asked.setdefault(run.name, time.time())


def pressable(buttons: Buttons) -> dict[str, bool]:
    """The actions by name, and whether each can be pressed."""
    return {name: getattr(buttons, name) for name in ("stop", "kill", "resume", "save", "preview", "delete")}


def _messages(messages: Sequence[tuple[str, str]]) -> str:
    if not messages:
        return ""
    rows = "".join(f'<li class="{kind}">{html.escape(text)}</li>' for kind, text in messages[-20:])
    return f'<ul class="run-messages" aria-label="Warnings and remarks">{rows}</ul>'


def _stamp(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
