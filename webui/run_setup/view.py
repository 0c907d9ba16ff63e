"""What the Train tab says about a draft: summary, differences from the preset, search results."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from sdlora.config.train import TrainConfig
from sdlora.sinks.terminal import duration_in_words
from webui.fields import Field
from webui.run_setup.dry_runs import Finding
from webui.run_setup.pace import Pace
from webui.run_setup.step_maths import StepMaths

_DETAILS_LEFT_OUT = ("steps", "memory")
"""Lines of the dry run that the summary's head tells already."""


def summary(config: TrainConfig | None, maths: StepMaths | None, pace: Pace | None, finding: Finding) -> str:
    """Steps, time, memory and disk of the run to be, as far as they are known."""
    if config is None or maths is None:
        return '<div class="summary"><p>Steps, time and memory are told once there is nothing left to fix.</p></div>'
    found = finding.found.figures if finding.found else None
    total = found.total_steps if found else maths.steps
    rows = [("Steps", f"<strong>{total:,}</strong> <span class='small'>{html.escape(maths.as_text())}</span>")]
    rows.append(("Time", _time(total, pace)))
    waiting = "being worked out ..." if finding.stage in ("waiting", "running") else "unknown"
    rows.append(("Memory", f"about {found.memory_gib:.1f} GiB for the training steps" if found else _unknown(waiting)))
    if found:
        disk = (found.cache_bytes + found.run_bytes) / 2**20
        rows.append(("Disk", f"at most {disk:,.0f} MiB; {found.free_disk_gib:,.1f} GiB free"))
    facts = "".join(f"<div><dt>{label}</dt><dd>{text}</dd></div>" for label, text in rows)
    return f'<div class="summary"><dl class="facts">{facts}</dl>{_details(finding)}</div>'


def in_short(maths: StepMaths | None, pace: Pace | None, finding: Finding) -> str:
    """The summary in a few words: `300 steps · about 2 min`."""
    if maths is None:
        return ""
    figures = finding.found.figures if finding.found else None
    total = figures.total_steps if figures else maths.steps
    time = f" · about {duration_in_words(total * pace.seconds_per_step)}" if pace else ""
    return f"{total:,} steps{time}"


def status(problems: Sequence[str], busy: Sequence[str], in_short: str, finding: Finding) -> str:
    """One line: whether the run can start, and what it would be. busy: runs that train or wait."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        return f"<p><strong>{count}</strong> to fix before it can start.</p>"
    if busy:
        return f"<p><strong>{html.escape(busy[0])}</strong> is at work: add this one to the queue. {in_short}</p>"
    checking = " · checking ..." if finding.stage in ("waiting", "running") else ""
    return f"<p><strong>Ready:</strong> {in_short}{checking}</p>"


def differences_list(rows: Sequence[tuple[Field, Any, Any]]) -> str:
    """What differs from the preset, each setting with a way back."""
    if not rows:
        return '<p class="hint">Nothing: the form shows the preset as it is.</p>'
    body = "".join(
        f'<tr><th scope="row">{html.escape(field.name)}</th><td><del>{_shown(before)}</del></td>'
        f'<td><ins>{_shown(after)}</ins></td><td><button type="button" data-reset="{html.escape(field.name)}" '
        f'aria-label="Reset {html.escape(field.name)}">Reset</button></td></tr>'
        for field, before, after in rows
    )
    head = '<th scope="col">setting</th><th scope="col">preset</th><th scope="col">now</th><td></td>'
    return (
        '<div class="wide-table" tabindex="0" role="region" aria-label="What differs from the preset">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def matches(query: str, among: Sequence[Field]) -> list[Field]:
    """The settings whose name or description holds every word of the query."""
    words = query.lower().split()
    return [field for field in among if words and all(word in field.words for word in words)]


def only_these(found: Sequence[Field], among: Sequence[Field], query: str, element_id: Any) -> str:
    """A style sheet that leaves only the found settings in view, and a line that counts them."""
    if not query.strip():
        return ""
    count = "1 setting matches" if len(found) == 1 else f"{len(found)} settings match"
    kept = {element_id(field.name) for field in found}
    hidden = ",".join(f"#{element_id(field.name)}" for field in among if element_id(field.name) not in kept)
    empty = {field.section for field in among} - {field.section for field in found}
    sections = ",".join(f"#{element_id('section-' + (section or 'general'))}" for section in sorted(empty))
    with_one = f":not(:has({','.join(f'#{name}' for name in sorted(kept))}))" if kept else ""
    rows = f"#{element_id('advanced')} .row{with_one}"
    rules = "".join(f"{selector}{{display:none!important}}" for selector in (hidden, sections, rows) if selector)
    return f'<style>{rules}</style><p class="hint" role="status">{count} “{html.escape(query.strip())}”.</p>'


def _time(steps: int, pace: Pace | None) -> str:
    if pace is None:
        return _unknown("known after 30 steps; no run of this size has been timed here")
    duration = duration_in_words(steps * pace.seconds_per_step)
    measured = f"{pace.seconds_per_step:.2g} s a step in {html.escape(pace.run)}"
    return f"about {duration} of training steps <span class='small'>{measured}</span>"


def _unknown(text: str) -> str:
    return f"<span class='unknown'>{text}</span>"


def _details(finding: Finding) -> str:
    if finding.found is None or not finding.found.lines:
        return ""
    lines = [line for line in finding.found.lines if line.label not in _DETAILS_LEFT_OUT]
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(line.label)}</th><td>{html.escape(line.text)}</td></tr>" for line in lines
    )
    return f"<details><summary>What was checked</summary><table>{rows}</table></details>"


def _shown(value: Any) -> str:
    if value in (None, ""):
        return "<em>default</em>"
    if isinstance(value, bool):
        return "on" if value else "off"
    return html.escape(str(value)).replace("\n", "<br>")
