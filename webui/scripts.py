"""Scripts of single components, for `js_on_load`: each hears its own component and changes nothing else."""

from __future__ import annotations

LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
"""What changes is read out by screen readers; the region must be there before what it says."""

PRESSES = "window.sdlora.presses(element, trigger);"
"""Hands the data of a pressed button to the component's select handler, as `event.pressed`.

`data-tab` opens a tab instead, and the act `upload` the file dialog.
"""


def goes_to(tab: str, datum: str) -> str:
    """Lets an address, such as #runs/mascot-2, choose what a tab shows, as a press with that datum would."""
    pending = "window.sdlora.run = name; " if datum == "run" else ""
    return f"window.sdlora.goes.{tab} = (name) => {{ {pending}trigger('select', {{pressed: {{{datum}: name}}}}); }};"


CLOCK = """const tab = element.closest('[id^=clock-]').id.slice(6), ticks = ['tick_0', 'tick_1', 'tick_2', 'tick_3'];
window.sdlora.clocks[tab] = () => ticks.slice(0, window.sdlora.ticks[tab]).forEach((name) => trigger(name));"""
"""Ticks for all that follows one tab's news, when page.js has heard that there are some."""

STATUS = """element.innerHTML = '<p aria-hidden="true"></p><span class="hidden-label" role="status"></span>';
const [shown, spoken] = element.children;
window.sdlora.status = (told) => {
  if (shown.textContent !== told.words) shown.textContent = told.words;
  if (spoken.textContent !== told.spoken) spoken.textContent = told.spoken;
};"""
"""The header's line, which page.js writes."""

NEWS_OF_A_RUN = """(text, selected) => {
  const nothing = {__type__: 'update'}, parts = %s, buttons = %s;
  const news = JSON.parse(text || '{}'), wanted = window.sdlora.run ?? selected ?? '';
  const outputs = parts.length + buttons.length + 3;
  if (!news.sent || news.asked !== wanted) return Array(outputs).fill(nothing);
  window.sdlora.run = null;
  if (news.gone) window.sdlora.say(news.gone);
  window.sdlora.note();
  document.querySelector('#runs-details')?.removeAttribute('aria-busy');
  return [
    ...parts.map((name) => name in news.parts ? news.parts[name] : nothing),
    ...buttons.map((name) => ({...nothing, ...news.buttons[name]})),
    {...nothing, visible: news.run !== ''}, news.sent, news.run,
  ];
}"""
"""Puts what is new of a run into the page, or drops it where the page has turned to another run meanwhile."""

ROWS = "window.sdlora.rows(element, trigger, watch, ['words', 'sweep']);"
"""For rows of adapters: hands on each change as row, name and value; keeps slider and number alike, sections open."""

SETTLED = "async (...values) => { await window.sdlora.settled(); return values; }"
"""For an event that uses what other fields write to the server: waits until the server has answered those."""

MARKS = """watch('value', () => {
  window.sdlora.mark(document.querySelector('#dataset-gallery'), element.querySelector('[data-shown]')?.dataset.shown);
  if (window.sdlora.reveal) document.querySelector(window.sdlora.reveal)?.scrollIntoView({block: 'nearest'});
  window.sdlora.reveal = null;
  window.sdlora.note();
});"""
"""For the words about the image in the editor: marks its tile, and shows the editor where a press asked for it."""

SAVED = PRESSES + "watch('value', () => window.sdlora.saved(element));"
"""For the words about a caption: where it was just saved, its image's tile says so, too."""

WRITTEN = """(text, editing) => {
  const nothing = {__type__: 'update'}, {of, tokens, summary} = JSON.parse(text || '{}');
  const datasetOf = (place) => (place ?? '').split('/')[0];
  if (!of || datasetOf(of) !== datasetOf(editing)) return [nothing, nothing];
  if (of === editing) return [tokens ?? nothing, summary ?? nothing];
  const told = document.createElement('div');
  told.innerHTML = tokens ?? '';
  window.sdlora.saved(told);
  return [nothing, summary ?? nothing];
}"""
"""Puts what is told of a caption that was written below its box, or at its tile alone where the page has turned to
another image meanwhile; nowhere where it shows another dataset."""

ASKED = "{asked: window.sdlora.%s(), pressed: window.sdlora.pressed}"
"""For `gradio_quirks.collect`: the number of the newest event that fills the form (`ask` begins one, `asked` tells it),
and the data of the button pressed last."""

NEXT_ASKED = "(...values) => [...values.slice(0, -1), window.sdlora.ask()]"
"""For an event that fills the form and whose last input takes that number."""

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

CHART = "window.sdlora.chart(element, trigger);"
"""Tells step and loss under the pointer; dragging over a stretch hands its first and last step to the select handler,
a double press all steps."""

TO_THE_END = """() => setTimeout(() => {
  const log = document.querySelector('#runs-log textarea');
  if (log) log.scrollTop = log.scrollHeight;
}, 200)"""
"""Shows the newest lines when the log is opened; from there on the log follows by itself."""

TO_THE_EVALUATION = """() => {
  if (window.sdlora.pressed.act !== 'evaluate') return;
  setTimeout(() => document.querySelector('#runs-views')?.scrollIntoView({block: 'start', behavior: 'smooth'}), 100);
}"""
"""Shows the Evaluate view where a press asked for it: on a phone it lies below."""

READY = """() => {
  const page = document.body.dataset;
  page.loading = (page.loading ?? %d) - 1;
  if (page.loading === '0') window.sdlora.arrive().then(() => { page.ready = 'yes'; });
  return [];
}"""
"""Says on the page that the remembered fields, the tab and what each tab begins with are in place."""


def focus(element_id: str) -> str:
    """JavaScript that puts the cursor into a field that is about to appear."""
    return (
        f"() => setTimeout(() => document.querySelector('#{element_id} textarea, #{element_id} input')?.focus(), 150)"
    )
