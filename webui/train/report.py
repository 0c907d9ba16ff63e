"""What the Train tab says about the form as it stands, put together from all that is known; no Gradio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.config import presets
from sdlora.launch.dry_runs import Finding
from sdlora.training.preflight.step_count import StepCount, count_steps
from webui import fields
from webui.fields import Field
from webui.problems import panel
from webui.services import Services
from webui.train import draft, view
from webui.train.draft import Draft

_FRESH_SECONDS = 5.0
"""How long what was found in the folders of a draft holds, while the draft stays as it is."""


@dataclass(frozen=True)
class Report:
    """HTML and text beside the form, and whether a run may be made of it."""

    problems: str
    summary: str
    differences: str
    command: str
    status: str
    can_start: bool
    can_enqueue: bool
    training: str
    """Name of the run that trains now, empty if none does."""


class Reporter:
    """Reads drafts and reports on them."""

    def __init__(
        self, services: Services, runs_folder: Path, among: Sequence[Field], place: Callable[[str], tuple[str, str]]
    ) -> None:
        """place: the element ids of a setting's input and of the section around it."""
        self._services = services
        self._runs_folder = runs_folder
        self._fields = among
        self._place = place
        self._newest: tuple[dict[str, Any], float, Draft, StepCount | None] | None = None

    def draft(self, shown: Mapping[str, Any]) -> Draft:
        """The draft behind the inputs, with what its dry run found wrong if that is known."""
        return self._with_dry_run(self._read(shown)[0])

    def report(self, shown: Mapping[str, Any], preset: str) -> Report:
        """Everything there is to say. Has the dry run begun once the draft is left alone."""
        found, steps = self._read(shown)
        self._services.dry_runs.ask(found.config if found.can_start else None)
        finding = self._services.dry_runs.find(found.config) if found.can_start else Finding("idle")
        found, config = self._with_dry_run(found), found.config
        seen = self._services.watch.snapshot()
        pace = self._services.paces.find(config, (run.handle for run in seen.runs)) if config is not None else None
        busy = [*(run.name for run in seen.active), *seen.waiting]
        changed = list(fields.differences(self._fields, self._preset_shown(preset), shown))
        return Report(
            problems=self.panel(found.problems),
            summary=view.summary(config, steps, pace, finding),
            differences=view.differences(changed),
            command=presets.command_line(config, preset) if config is not None else "",
            status=view.status(found.problems, busy, view.in_short(steps, pace, finding), finding),
            can_start=found.can_start and not busy,
            can_enqueue=found.can_start,
            training=seen.active[0].name if seen.active else "",
        )

    def panel(self, texts: Sequence[str]) -> str:
        """The problem panel, each problem with the way to its field."""
        return panel(texts, self._place_of)

    def _read(self, shown: Mapping[str, Any]) -> tuple[Draft, StepCount | None]:
        known, now = self._newest, time.monotonic()
        if known is not None and known[0] == shown and now - known[1] < _FRESH_SECONDS:
            return known[2], known[3]
        found = draft.read(shown, self._fields, self._runs_folder)
        steps = count_steps(found.config) if found.config is not None else None
        self._newest = (dict(shown), now, found, steps)
        return found, steps

    def _with_dry_run(self, found: Draft) -> Draft:
        if not found.can_start:
            return found
        finding = self._services.dry_runs.find(found.config)
        wrong = finding.found.problems if finding.found else []
        return Draft(found.config, tuple(problem.message for problem in wrong))

    def _place_of(self, problem: str) -> tuple[str, str] | None:
        field = fields.setting_of(problem, self._fields)
        return None if field is None else self._place(field.name)

    def _preset_shown(self, preset: str) -> dict[str, Any]:
        return fields.show_all(presets.load(preset), self._fields)
