"""What tells runs apart: the settings in which they differ."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from sdlora.config.schema import flatten
from sdlora.errors import ConfigError
from webui.run_view.watch import SeenRun

_ABSENT = "–"


def settings_that_differ(runs: Sequence[SeenRun]) -> list[tuple[str, list[Any]]]:
    """Each setting that isn't the same in all runs, with its value in each."""
    configs = [_values(run) for run in runs]
    names = dict.fromkeys(name for values in configs for name in values)
    rows = [(name, [values.get(name, _ABSENT) for values in configs]) for name in names]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def differences_table(runs: Sequence[SeenRun]) -> str:
    """The differing settings as a table, a column a run."""
    rows = settings_that_differ(runs)
    if not rows:
        return "<p>Their settings are the same.</p>"
    head = "".join(f'<th scope="col">{html.escape(run.name)}</th>' for run in runs)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(_shown(value))}</td>" for value in values)
        + "</tr>"
        for name, values in rows
    )
    return (
        '<div class="wide-table" tabindex="0" role="region" aria-label="Settings that differ">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _values(run: SeenRun) -> dict[str, Any]:
    try:
        return flatten(run.handle.config())
    except ConfigError:
        return {}


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value) or "none"
    return str(value)
