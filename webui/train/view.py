"""What the Train tab says about a draft: summary, differences from the preset, search results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sdlora.config import presets
from sdlora.config.fields import Field
from sdlora.launch.forecast import Forecast
from sdlora.words import count, duration_in_words
from webui.templating import macros

_HTML = macros("train.html")
_DETAILS_LEFT_OUT = ("steps", "memory")
"""Lines of the dry run that the summary's head tells already."""

ask_for_preset = _HTML.ask_for_preset
"""Asks before a preset replaces settings; takes its title, its name, and the labels of what would be lost."""
suggestion = _HTML.suggestion
"""Suggested settings, each with its reason, and the button that takes them; takes it and the settings' labels."""
offer_undo = _HTML.offer_undo
"""Says which preset the form was filled from, with a way back."""
stopping = _HTML.stopping
"""What stands beside Stop once it was pressed."""


def about_preset(name: str) -> str:
    """What a preset's header says of it: base model, memory, time."""
    return str(_HTML.preset_facts(presets.facts(name)))


def summary(forecast: Forecast) -> str:
    """Steps, time, memory and disk of the run to be, as far as they are known."""
    steps, total, figures = forecast.steps, forecast.total_steps, forecast.figures
    if steps is None or total is None:
        return str(_HTML.no_summary())
    facts = [("Steps", f"{total:,}", forecast.steps_in_words, True), _time(forecast, total)]
    if figures:
        disk = (figures.cache_bytes + figures.run_bytes) / 2**20
        facts.append(("Memory", f"about {figures.memory_gib:.1f} GiB for the training steps", "", True))
        facts.append(("Disk", f"at most {disk:,.0f} MiB; {figures.free_disk_gib:,.1f} GiB free", "", True))
    else:
        facts.append(("Memory", "being worked out ..." if forecast.is_checking else "unknown", "", False))
    return str(_HTML.summary(facts, [line for line in forecast.lines if line.label not in _DETAILS_LEFT_OUT]))


def status(problems: Sequence[str], busy: Sequence[str], forecast: Forecast) -> str:
    """One line: whether the run can start, and what it would be. busy: runs that train or wait."""
    if problems:
        return str(_HTML.to_fix(len(problems)))
    if busy:
        return str(_HTML.busy(busy[0], forecast.in_short))
    return str(_HTML.ready(forecast.in_short, forecast.is_checking))


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
    # Hidden by a style sheet: an update for each setting would be sent at every key that is pressed.
    kept = {element_id(field.name) for field in found}
    hidden = ",".join(f"#{element_id(field.name)}" for field in among if element_id(field.name) not in kept)
    empty = {field.section for field in among} - {field.section for field in found}
    sections = ",".join(f"#{element_id('section-' + (section or 'general'))}" for section in sorted(empty))
    with_one = f":not(:has({','.join(f'#{name}' for name in sorted(kept))}))" if kept else ""
    rows = f"#{element_id('advanced')} .row{with_one}"
    words = f"{count(len(found), 'setting')} {'matches' if len(found) == 1 else 'match'}"
    return str(_HTML.found([each for each in (hidden, sections, rows) if each], words, query.strip()))


def _time(forecast: Forecast, steps: int) -> tuple[str, str, str, bool]:
    pace = forecast.pace
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
