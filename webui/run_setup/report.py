"""What the Train tab says about the form as it stands, put together from all that is known; no Gradio."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webui import fields
from webui.fields import Field
from webui.run_setup import draft, presets, view
from webui.run_setup.draft import Draft
from webui.run_setup.dry_runs import DryRuns, Finding
from webui.run_setup.pace import Paces
from webui.run_setup.starting import Starter
from webui.run_setup.step_maths import StepMaths, count_steps
from webui.run_view.watch import RunWatch
from webui.views.problems import panel
from webui.workspace import Workspace

_FRESH_SECONDS = 5.0
"""How long a look into the folders of a draft holds, while the draft stays as it is."""


@dataclass
class Services:
    """What the Train and Runs tabs and the API share, one each a server."""

    watch: RunWatch
    starter: Starter
    dry_runs: DryRuns
    paces: Paces

    @classmethod
    def of(cls, workspace: Workspace) -> Services:
        """New ones for a workspace."""
        return cls(RunWatch(workspace.runs), Starter(workspace.runs), DryRuns(workspace.jobs), Paces())


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
        self._newest: tuple[dict[str, Any], float, Draft, StepMaths | None] | None = None

    def draft(self, shown: Mapping[str, Any]) -> Draft:
        """The draft behind the inputs, with what its dry run found wrong if that is known."""
        return self._with_dry_run(self._read(shown)[0])

    def report(self, shown: Mapping[str, Any], preset: str) -> Report:
        """Everything there is to say. Has the dry run begun once the draft is left alone."""
        found, maths = self._read(shown)
        self._services.dry_runs.ask(found.config if found.can_start else None)
        finding = self._services.dry_runs.look(found.config) if found.can_start else Finding("idle")
        found, config = self._with_dry_run(found), found.config
        look = self._services.watch.look()
        pace = self._services.paces.find(config, (run.handle for run in look.runs)) if config is not None else None
        busy = [*(run.name for run in look.active), *look.waiting]
        changed = list(fields.differences(self._fields, self._preset_shown(preset), shown))
        return Report(
            problems=self.panel(found.problems),
            summary=view.summary(config, maths, pace, finding),
            differences=view.differences_list(changed),
            command=draft.command(config, preset) if config is not None else "",
            status=view.status(found.problems, busy, view.in_short(maths, pace, finding), finding),
            can_start=found.can_start and not busy,
            can_enqueue=found.can_start,
            training=look.active[0].name if look.active else "",
        )

    def panel(self, texts: Sequence[str]) -> str:
        """The problem panel, each problem with the way to its field."""
        return panel(texts, self._place_of)

    def _read(self, shown: Mapping[str, Any]) -> tuple[Draft, StepMaths | None]:
        known, now = self._newest, time.monotonic()
        if known is not None and known[0] == shown and now - known[1] < _FRESH_SECONDS:
            return known[2], known[3]
        found = draft.read(shown, self._fields, self._runs_folder)
        maths = count_steps(found.config) if found.config is not None else None
        self._newest = (dict(shown), now, found, maths)
        return found, maths

    def _with_dry_run(self, found: Draft) -> Draft:
        if not found.can_start:
            return found
        finding = self._services.dry_runs.look(found.config)
        wrong = finding.found.problems if finding.found else []
        return Draft(found.config, tuple(problem.message for problem in wrong))

    def _place_of(self, problem: str) -> tuple[str, str] | None:
        field = fields.setting_of(problem, self._fields)
        return None if field is None else self._place(field.name)

    def _preset_shown(self, preset: str) -> dict[str, Any]:
        return fields.show_all(presets.load(preset), self._fields)
