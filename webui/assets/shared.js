// What scripts of components share. Events that fill the Train form are counted here, in the page: their answers say
// which one they are, so that Start can tell a form that is about to change.
let asked = 0;
window.sdlora = {
  pressed: {}, // data of the button that was pressed last
  ask: () => String(++asked),
  asked: () => (asked ? String(asked) : ""),
  goes: {}, // by tab: turns to the run or dataset of this name
  window: Math.random().toString(36).slice(2), // tells this window from others
  number: 0, // of the newest value that was typed into a row
  run: null, // the run that was pressed, until its news are there
  runsPressed: 0, // how often one was
  inFlight: 0, // quick events that the server has not answered
  newsInFlight: 0, // the same of those that fetch news
  settled: async () => { // two frames, so that what was just typed is on its way; then until all is answered
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    await frame();
    await frame();
    for (let tries = 0; window.sdlora.inFlight > 0 && tries < 500; tries++) await new Promise((done) => setTimeout(done, 20));
  },
  note: () => {}, // writes where one is into the address
  say: () => {}, // has words pop up
  clocks: {}, // by tab: has Gradio show what is new
  status: () => {},
  mark: (grid, id) => grid?.querySelectorAll("[data-tile]").forEach((tile) => {
    tile.setAttribute("aria-pressed", tile.dataset.tile === id);
    if (tile.dataset.tile === id) tile.scrollIntoView({ block: "nearest" });
  }),
};

// Has an image's tile say what the words about its caption do, where that was just saved.
window.sdlora.saved = (words) => {
  const saved = words.querySelector('[data-of]');
  if (!saved) return;
  for (const tile of document.querySelectorAll('#dataset-gallery [data-tile]')) {
    if (tile.dataset.tile !== saved.dataset.of) continue;
    const line = tile.querySelector('.small') ?? tile.appendChild(document.createElement('span'));
    line.className = saved.dataset.wrong === 'true' ? 'small bad' : 'small';
    line.textContent = saved.dataset.line;
  }
};

// Hands the data of a pressed button to its component's select handler, as event.pressed.
window.sdlora.presses = (element, trigger) => {
  element.addEventListener('click', (event) => {
    const tab = event.target.closest('[data-tab]');
    if (tab) { window.sdlora.open(tab.dataset.tab); return; }
    const pressed = event.target.closest(['act', 'fix', 'image', 'queue', 'run', 'step', 'reset', 'tile']
      .map((name) => `[data-${name}]`).join());
    if (!pressed) return;
    if (pressed.dataset.act === 'upload') { document.querySelector('#dataset-upload button')?.click(); return; }
    window.sdlora.pressed = {...pressed.dataset};
    const {run, queue} = pressed.dataset;
    if (run && !queue) {
      window.sdlora.run = run;
      document.querySelector('#runs-details')?.setAttribute('aria-busy', 'true');
      element.querySelectorAll('[data-run]').forEach((one) => one.setAttribute('aria-pressed', one === pressed));
      // Should the answer be lost, the page goes on with the run that it shows.
      const press = ++window.sdlora.runsPressed;
      window.sdlora.settled().then(() => setTimeout(() => {
        if (window.sdlora.runsPressed !== press || window.sdlora.run !== run) return;
        window.sdlora.run = null;
        document.querySelector('#runs-details')?.removeAttribute('aria-busy');
      }, 10000));
    }
    if (pressed.dataset.tile) window.sdlora.mark(element, pressed.dataset.tile);
    if (pressed.dataset.image) window.sdlora.reveal = '#dataset-editor';
    trigger('select', {pressed: {...pressed.dataset}});
  });
};

// A chart's pointer: tells step and loss; a drag gives a stretch of steps, a double press all of them.
window.sdlora.chart = (element, trigger) => {
  const place = (chart, event) => {
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
  });
};

// Rows of adapters.
window.sdlora.rows = (element, trigger, watch) => {
  const open = new Set();
  const typed = new Map(); // what was typed and not handed on: rows that are drawn anew would lose it
  const keyOf = (field) => `${field.closest('[id]').id} ${field.dataset.set ?? ''} ${field.type}`;
  // Numbers of rows are given anew to others, so the file says which of them was pressed.
  const fileOf = (pressed) => pressed.closest('.adapter-row')?.dataset.file;
  const pair = (field) => field.closest('.adapter-line').querySelectorAll(`[data-set="${field.dataset.set}"]`);
  element.addEventListener('input', (event) => {
    if (event.target.type !== 'checkbox') typed.set(keyOf(event.target), event.target.value);
    if (event.target.dataset.set) pair(event.target).forEach((field) => {
      if (field !== event.target && field.type !== 'checkbox') field.value = event.target.value;
    });
  });
  element.addEventListener('change', (event) => {
    const {row, set} = event.target.dataset;
    if (!set) return;
    typed.delete(keyOf(event.target));
    // What was said of the value before is over; a row isn't drawn anew for a value that is taken.
    document.querySelectorAll(`.adapter-row[id$="-row-${row}"] .bad[data-of="${set}"]`).forEach((said) => said.remove());
    const value = event.target.type === 'checkbox' ? event.target.checked : event.target.value;
    // Requests may overtake each other on their way: of one window's values the newest is the one that counts.
    trigger('select', {pressed: {row, file: fileOf(event.target), set, value, window: window.sdlora.window, number: ++window.sdlora.number}});
  });
  element.addEventListener('click', (event) => {
    const pressed = event.target.closest('button');
    if (!pressed) return;
    const {words, sweep, row, act} = pressed.dataset;
    if (words) trigger('words', {pressed: {words}});
    else if (sweep) trigger('sweep', {pressed: {row: sweep, file: fileOf(pressed), span: pressed.parentElement.querySelector('input').value}});
    else if (row) trigger('select', {pressed: {row, file: fileOf(pressed), act}});
  });
  element.addEventListener('toggle', (event) => open[event.target.open ? 'add' : 'delete'](event.target.id), true);
  watch('value', () => {
    element.querySelectorAll('details').forEach((one) => { one.open = open.has(one.id); });
    element.querySelectorAll('input, select').forEach((field) => {
      if (typed.has(keyOf(field))) field.value = typed.get(keyOf(field));
    });
  });
};
