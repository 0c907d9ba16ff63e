"""What the Train tab says about the form as it stands, put together from all that is known; no Gradio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora import TrainConfig
from sdlora.config import fields, files, presets
from sdlora.config.fields import Field
from sdlora.config.outputs import OutputsConfig
from webui.pieces import notes
from webui.problems import panel
from webui.services import Services
from webui.train import view
from webui.train.sheet import Sheet

OF_THE_PERSON = ("name", "images.folder", "captions.trigger")
"""Settings that another preset doesn't change once a person chose them."""
OTHER_YAML = "The YAML was changed, but is not applied: press Apply to form, or Show the form's settings to drop it."
YAML_PLACE = ("train-yaml", "train-yaml-box")
"""Element ids of the field that this problem is about, and of the section around it."""


@dataclass(frozen=True)
class Draft:
    """What the form holds: a configuration, or the reasons why there is none or none that can start."""

    config: TrainConfig | None
    problems: tuple[str, ...]


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
    yaml: str | None
    """The settings as a file; None leaves alone what the page shows."""


class Reporter:
    """Turns what a form shows into a draft (a configuration and its problems), and that into what stands beside it."""

    def __init__(
        self, services: Services, runs_folder: Path, among: Sequence[Field], place: Callable[[str], tuple[str, str]]
    ) -> None:
        """place: the element ids of a setting's input and of the section around it."""
        self._services = services
        self._runs_folder = runs_folder
        self._fields = among
        self._place = place

    def draft(self, sheet: Sheet) -> Draft:
        """The draft behind the inputs, with what is known to be wrong with it."""
        config, problems = self._read(sheet)
        return Draft(config, (*problems, *self._services.forecaster.forecast(config).problems))

    def report(self, sheet: Sheet) -> Report:
        """Problems, summary, differences and command for what the form shows, and whether a run may start or wait."""
        config, found = self._read(sheet)
        forecast, seen = self._services.forecaster.forecast(config), self._services.watch.snapshot()
        problems = (*found, *forecast.problems)
        busy = [*(run.name for run in seen.active), *seen.waiting]
        before = fields.show_all(presets.load(sheet.standing), self._fields)
        return Report(
            problems=self.panel(problems),
            summary=view.summary(forecast),
            differences=view.differences(list(fields.differences(self._fields, before, sheet.settings))),
            command=presets.command_line(config, sheet.standing) if config is not None else "",
            status=view.status(problems, busy, forecast),
            can_start=not problems and not busy,
            can_enqueue=not problems,
            training=seen.active[0].name if seen.active else "",
            yaml=None if config is None or sheet.has_other_yaml else to_yaml(config),
        )

    def panel(self, texts: Sequence[str]) -> str:
        """The problem panel, each problem with the way to its field."""
        return panel(texts, self._place_of)

    def _read(self, sheet: Sheet) -> tuple[TrainConfig | None, list[str]]:
        config, found = fields.check(
            TrainConfig, self._fields, sheet.settings, {"outputs.folder": str(self._runs_folder)}
        )
        return config, [OTHER_YAML, *found] if sheet.has_other_yaml else found

    def _place_of(self, problem: str) -> tuple[str, str] | None:
        if problem == OTHER_YAML:
            return YAML_PLACE
        field = fields.setting_of(problem, self._fields)
        return None if field is None else self._place(field.name)


def changed_settings(among: Sequence[Field], preset: Mapping[str, Any], shown: Mapping[str, Any]) -> list[Field]:
    """The settings that choosing another preset would take from a person."""
    return [field for field, _, _ in fields.differences(among, preset, shown) if field.name not in OF_THE_PERSON]


def with_preset(preset: Mapping[str, Any], before: Mapping[str, Any], shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the form shows after another preset was chosen.

    preset: what it shows of itself; before: what the last one showed; shown: what the form shows now. Name, dataset
    and trigger stay as a person chose them.
    """
    kept = {name: shown[name] for name in OF_THE_PERSON if name in shown and shown[name] != before.get(name)}
    return {**preset, **kept}


def to_yaml(config: TrainConfig) -> str:
    """The configuration as a file: what differs from the defaults."""
    return files.dump(presets.portable(config), only_changes=True)


def from_yaml(text: str) -> TrainConfig:
    """The configuration in a text. Raises ConfigError that lists every problem."""
    return files.validate(files.parse_yaml(text, "the YAML text"), "the YAML text")


def left_out(config: TrainConfig, runs_folder: Path) -> str:
    """What of a file's settings the form has no place for, in words; empty for nothing."""
    folder = config.outputs.folder
    if folder in (OutputsConfig().folder, runs_folder):
        return ""
    return notes([f"outputs.folder={folder}: runs of the page lie in {runs_folder}"], "Not taken over")
