"""Scripts of single components, for `js_on_load`: each hears its own component and changes nothing else."""

from __future__ import annotations

LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
"""What changes is read out by screen readers; the region must be there before what it says."""

PRESSES = """element.addEventListener('click', (event) => {
  const tab = event.target.closest('[data-tab]');
  if (tab) { document.querySelector('#tab-' + tab.dataset.tab + '-button')?.click(); return; }
  const pressed = event.target.closest(
    '[data-act], [data-fix], [data-image], [data-queue], [data-run], [data-step], [data-reset]');
  if (!pressed) return;
  if (pressed.dataset.act === 'upload') { document.querySelector('#dataset-upload button')?.click(); return; }
  trigger('select', {pressed: {...pressed.dataset}});
});"""
"""Hands the data of a pressed button to the component's select handler, as `event.pressed`.

`data-tab` opens a tab instead, and the act `upload` the file dialog.
"""

PROBLEMS = """element.setAttribute('role', 'alert');
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
"""For the panel of problems: announces what appears, and opens the closed section in which a problem's field lies."""

BEFORE_AFTER = """element.addEventListener('input', (event) => {
  const figure = event.target.closest('.before-after');
  if (figure) figure.style.setProperty('--cut', event.target.value + '%');
});"""
"""Moves the line between two pictures."""

CHART = """const place = (chart, event) => {
  const box = chart.getBoundingClientRect();
  return (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
};
const stepAt = (chart, x) => {
  const [first, last] = chart.dataset.steps.split(' ').map(Number), left = +chart.dataset.left;
  const share = (x - left) / (chart.dataset.right - left);
  return Math.round(first + Math.min(1, Math.max(0, share)) * (last - first));
};
let from = null;
element.addEventListener('pointerdown', (event) => {
  const chart = event.target.closest('svg[data-points]');
  from = chart ? place(chart, event) : null;
});
element.addEventListener('pointermove', (event) => {
  const chart = event.target.closest('svg[data-points]');
  if (!chart) return;
  const at = place(chart, event), marked = chart.querySelector('.zoomed');
  if (from !== null && event.buttons) {
    marked.setAttribute('x', Math.min(from, at));
    marked.setAttribute('width', Math.abs(at - from));
  }
  let nearest = null;
  for (const point of JSON.parse(chart.dataset.points))
    if (!nearest || Math.abs(point[0] - at) < Math.abs(nearest[0] - at)) nearest = point;
  if (!nearest) return;
  const cursor = chart.querySelector('.cursor');
  cursor.setAttribute('x1', nearest[0]);
  cursor.setAttribute('x2', nearest[0]);
  chart.closest('figure').querySelector('.readout').textContent = nearest[1];
});
element.addEventListener('pointerup', (event) => {
  const chart = event.target.closest('svg[data-points]');
  if (chart && from !== null && Math.abs(place(chart, event) - from) > 8) {
    const ends = [stepAt(chart, from), stepAt(chart, place(chart, event))].sort((one, other) => one - other);
    trigger('select', {pressed: {first: ends[0], last: ends[1]}});
  }
  from = null;
});
element.addEventListener('dblclick', (event) => {
  if (event.target.closest('svg[data-points]')) trigger('select', {pressed: {first: 0, last: null}});
});"""
"""Tells step and loss under the pointer; dragging over a stretch hands its first and last step to the select handler,
a double press all steps."""

TO_THE_END = """() => setTimeout(() => {
  const log = document.querySelector('#runs-log textarea');
  if (log) log.scrollTop = log.scrollHeight;
}, 200)"""
"""Shows the newest lines when the log is opened; from there on the log follows by itself."""

READY = """() => {
  const page = document.body.dataset;
  page.loading = (page.loading ?? %d) - 1;
  if (page.loading === '0') page.ready = 'yes';
  return [];
}"""
"""Says on the page that the remembered fields, the tab and what each tab begins with are in place."""


def focus(element_id: str) -> str:
    """JavaScript that puts the cursor into a field that is about to appear."""
    return (
        f"() => setTimeout(() => document.querySelector('#{element_id} textarea, #{element_id} input')?.focus(), 150)"
    )
