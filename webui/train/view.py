"""What the Train tab says about a draft: summary, differences from the preset, search results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sdlora.config import presets
from sdlora.config.train import TrainConfig
from sdlora.launch.dry_runs import Finding
from sdlora.launch.pace import Pace
from sdlora.sinks.terminal import duration_in_words
from sdlora.training.preflight.step_count import StepCount
from webui.fields import Field
from webui.templating import count, macros

_HTML = macros("train.html")
_DETAILS_LEFT_OUT = ("steps", "memory")
"""Lines of the dry run that the summary's head tells already."""

stopping = _HTML.stopping
"""What stands beside Stop once it was pressed."""


def about_preset(name: str) -> str:
    """What a preset's header says of it: base model, memory, time."""
    return str(_HTML.preset_facts(presets.facts(name)))


def summary(config: TrainConfig | None, steps: StepCount | None, pace: Pace | None, finding: Finding) -> str:
    """Steps, time, memory and disk of the run to be, as far as they are known."""
    if config is None or steps is None:
        return str(_HTML.no_summary())
    found = finding.found.figures if finding.found else None
    total = found.total_steps if found else steps.steps
    facts = [("Steps", f"{total:,}", steps.in_words(), True), _time(total, pace)]
    if found:
        disk = (found.cache_bytes + found.run_bytes) / 2**20
        facts.append(("Memory", f"about {found.memory_gib:.1f} GiB for the training steps", "", True))
        facts.append(("Disk", f"at most {disk:,.0f} MiB; {found.free_disk_gib:,.1f} GiB free", "", True))
    else:
        is_coming = finding.stage in ("waiting", "running")
        facts.append(("Memory", "being worked out ..." if is_coming else "unknown", "", False))
    lines = finding.found.lines if finding.found else []
    return str(_HTML.summary(facts, [line for line in lines if line.label not in _DETAILS_LEFT_OUT]))


def in_short(steps: StepCount | None, pace: Pace | None, finding: Finding) -> str:
    """The summary in a few words: `300 steps · about 2 min`."""
    if steps is None:
        return ""
    figures = finding.found.figures if finding.found else None
    total = figures.total_steps if figures else steps.steps
    time = f" · about {duration_in_words(total * pace.seconds_per_step)}" if pace else ""
    return f"{total:,} steps{time}"


def status(problems: Sequence[str], busy: Sequence[str], in_short: str, finding: Finding) -> str:
    """One line: whether the run can start, and what it would be. busy: runs that train or wait."""
    if problems:
        return str(_HTML.to_fix(len(problems)))
    if busy:
        return str(_HTML.busy(busy[0], in_short))
    return str(_HTML.ready(in_short, finding.stage in ("waiting", "running")))


def differences(rows: Sequence[tuple[Field, Any, Any]]) -> str:
    """What differs from the preset, each setting with a way back."""
    return str(_HTML.differences([(field.name, _shown(before), _shown(after)) for field, before, after in rows]))


def matches(query: str, among: Sequence[Field]) -> list[Field]:
    """The settings whose name or description holds every word of the query."""
    words = query.lower().split()
    return [field for field in among if words and all(word in field.words for word in words)]


def only_these(found: Sequence[Field], among: Sequence[Field], query: str, element_id: Callable[[str], str]) -> str:
    """A style sheet that leaves only the found settings in view, and a line that counts them."""
    if not query.strip():
        return ""
    kept = {element_id(field.name) for field in found}
    hidden = ",".join(f"#{element_id(field.name)}" for field in among if element_id(field.name) not in kept)
    empty = {field.section for field in among} - {field.section for field in found}
    sections = ",".join(f"#{element_id('section-' + (section or 'general'))}" for section in sorted(empty))
    with_one = f":not(:has({','.join(f'#{name}' for name in sorted(kept))}))" if kept else ""
    rows = f"#{element_id('advanced')} .row{with_one}"
    words = f"{count(len(found), 'setting')} {'matches' if len(found) == 1 else 'match'}"
    return str(_HTML.found([each for each in (hidden, sections, rows) if each], words, query.strip()))


def _time(steps: int, pace: Pace | None) -> tuple[str, str, str, bool]:
    if pace is None:
        return "Time", "known after 30 steps; no run of this size has been timed here", "", False
    duration = duration_in_words(steps * pace.seconds_per_step)
    measured = f"{pace.seconds_per_step:.2g} s a step in {pace.run}"
    return "Time", f"about {duration} of training steps", measured, True


def _shown(value: Any) -> str | None:
    """A shown value in words, None for one that is left to its default."""
    if value in (None, ""):
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
