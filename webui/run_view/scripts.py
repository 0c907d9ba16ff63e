"""Scripts of the run views, for `js_on_load`: each hears its own component's presses and changes nothing else."""

from __future__ import annotations

LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
"""What changes is read out by screen readers; the region must be there before what it says."""

PRESSES = """element.addEventListener('click', (event) => {
  const tab = event.target.closest('[data-tab]');
  if (tab) { document.querySelector('#tab-' + tab.dataset.tab + '-button')?.click(); return; }
  const pressed = event.target.closest('[data-queue], [data-run], [data-step]');
  if (pressed) trigger('select', {...pressed.dataset});
});"""
"""Hands the data of a pressed button (`data-run`, `data-queue`, `data-step`) to the component's select handler."""

BEFORE_AFTER = """element.addEventListener('input', (event) => {
  const figure = event.target.closest('.before-after');
  if (figure) figure.style.setProperty('--cut', event.target.value + '%');
});"""
"""Moves the line between two pictures."""

READOUT = """element.addEventListener('pointermove', (event) => {
  const drawing = event.target.closest('svg[data-points]');
  if (!drawing) return;
  const box = drawing.getBoundingClientRect();
  const at = (event.clientX - box.left) / box.width * drawing.viewBox.baseVal.width;
  let nearest = null;
  for (const point of JSON.parse(drawing.dataset.points))
    if (!nearest || Math.abs(point[0] - at) < Math.abs(nearest[0] - at)) nearest = point;
  if (!nearest) return;
  const cursor = drawing.querySelector('.cursor');
  cursor.setAttribute('x1', nearest[0]);
  cursor.setAttribute('x2', nearest[0]);
  drawing.closest('figure').querySelector('.readout').textContent = nearest[1];
});"""
"""Tells step and loss under the pointer."""

TO_THE_END = """() => setTimeout(() => {
  const log = document.querySelector('#runs-log textarea');
  if (log) log.scrollTop = log.scrollHeight;
}, 200)"""
"""Shows the newest lines when the log is opened; from there on the log follows by itself."""
