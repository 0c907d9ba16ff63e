// What scripts of components share. Events that fill the Train form are counted here, in the page: their answers say
// which one they are, so that Start can tell a form that is about to change.
let asked = 0;
window.sdlora = {
  pressed: {}, // data of the button that was pressed last
  ask: () => String(++asked),
  asked: () => (asked ? String(asked) : ""),
  goes: {}, // by tab: turns to the run or dataset of this name
  run: null, // the run that was pressed, until its news are there
  inFlight: 0, // quick events that the server has not answered
  settled: async () => { // two frames, so that what was just typed is on its way; then until all is answered
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    await frame();
    await frame();
    for (let tries = 0; window.sdlora.inFlight > 0 && tries < 500; tries++) await new Promise((done) => setTimeout(done, 20));
  },
  clocks: {}, // by tab: has Gradio show what is new
  status: () => {},
  mark: (grid, id) => grid?.querySelectorAll("[data-tile]").forEach((tile) => {
    tile.setAttribute("aria-pressed", tile.dataset.tile === id);
    if (tile.dataset.tile === id) tile.scrollIntoView({ block: "nearest" });
  }),
};
