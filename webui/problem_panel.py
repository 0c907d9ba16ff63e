"""The panel that lists all problems of a form at once, each with the way to its field; it stays until they are gone."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

SCRIPT = """element.setAttribute('role', 'alert');
element.addEventListener('click', async (event) => {
  const pressed = event.target.closest('[data-field]');
  if (!pressed) return;
  const find = () => document.getElementById(pressed.dataset.field);
  const box = document.getElementById(pressed.dataset.section);
  if (!find() && box) box.querySelector('button.label-wrap').click();
  for (let tries = 0; !find() && tries < 40; tries++) await new Promise((resolve) => setTimeout(resolve, 50));
  find()?.scrollIntoView({block: 'center', behavior: 'smooth'});
  find()?.querySelector('input, textarea, select')?.focus({preventScroll: true});
});"""
"""For `js_on_load`: announces what appears, and opens the closed section in which a problem's field lies."""


def panel(problems: Sequence[str], place_of: Callable[[str], tuple[str, str] | None] = lambda problem: None) -> str:
    """The problems as a list, empty without any. place_of: element ids of a problem's field and of its section."""
    if not problems:
        return ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    rows = "".join(f"<li>{_problem(problem, place_of(problem))}</li>" for problem in problems)
    return f'<div class="problems"><h3>{count} to fix first</h3><ul>{rows}</ul></div>'


def _problem(problem: str, place: tuple[str, str] | None) -> str:
    shown = html.escape(problem).replace("\n", "<br>")
    if place is None:
        return shown
    field, section = (html.escape(part, quote=True) for part in place)
    return f'{shown} <button type="button" data-field="{field}" data-section="{section}">Show the field</button>'
