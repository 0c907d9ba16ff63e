() => {
  // ---- Gradio's quirks: what gradio_quirks.py can't mend from the server. tests/browser/test_gradio_quirks.py shows
  // each of them on a bare page and fails once a newer Gradio behaves; then the piece below can go.

  // Quirk 1. Gradio 6.31 shows the errors of queued handlers only; of one with queue=False nothing is seen at all.
  // So each answer that says 500 is read here as well, and its message shown as Gradio would.
  const problems = document.createElement("div");
  problems.id = "toasts";
  problems.setAttribute("role", "alert");
  document.body.append(problems);
  const asText = (markup) => new DOMParser().parseFromString(markup.replace(/<br>/g, "\n"), "text/html").body.textContent;
  const showProblem = (markup) => window.sdlora.say(asText(markup || "That did not work. Details are in the server's log."));
  window.sdlora.say = (words) => {
    [...problems.children].find((shown) => shown.dataset.words === words)?.remove();
    const toast = document.createElement("div");
    toast.className = "toast-body";
    toast.dataset.words = words;
    toast.innerHTML = '<p></p><button type="button" aria-label="Close">×</button>';
    toast.firstChild.textContent = words;
    toast.lastChild.addEventListener("click", () => toast.remove());
    problems.append(toast);
    setTimeout(() => toast.remove(), 12000);
  };
  const fetchPlainly = window.fetch;
  const ofClocks = new RegExp(`"trigger_id":(${window.sdlora["clocks.ids"].join("|")})\\b`);
  // Quirk 5. Once a request could not be sent, Gradio 6.31 sends nothing more and loads the page anew when the server is
  // back: what was typed meanwhile is gone. So what is typed is held until then, and of a press Gradio hears that it failed.
  const ofTyping = new RegExp(`"fn_index":(${window.sdlora["typed.ids"].join("|")})\\b`);
  const AWAY = [502, 503, 504]; // a proxy's words for it
  const GONE = "The server can't be reached. What you type stays here and is saved once it is back: leave this page open.";
  const LOST = "The server can't be reached: what you pressed was not done. Press again once it is back.";
  const OTHER = "The server came back changed, or asks for a login: what you typed since is not saved. Copy it, then load the page anew.";
  let held = 0, returning = null;
  const back = () => returning ??= (async () => {
    for (;; await new Promise((done) => setTimeout(done, 1000))) {
      const answer = await fetchPlainly("news/home").catch(() => null);
      if (!answer || AWAY.includes(answer.status)) continue;
      if (answer.ok && (await answer.json().catch(() => ({}))).page === window.sdlora.build) break;
      window.sdlora.say(OTHER);
      await new Promise(() => {}); // the handlers have other numbers now: what is held must not reach them
    }
    returning = null;
  })();
  const hold = async (request) => {
    held++;
    window.sdlora.say(GONE);
    try {
      for (;;) {
        await back();
        const answer = await fetchPlainly(...request).catch(() => null);
        if (answer && !AWAY.includes(answer.status)) return answer;
      }
    } finally { held--; }
  };
  const send = async (request, body) => {
    const answer = await fetchPlainly(...request).catch(() => null);
    if (answer && !AWAY.includes(answer.status)) return answer;
    if (ofTyping.test(body)) return hold(request);
    const error = /"event_data":\{"value"/.test(body) ? GONE : LOST; // the former is a tab that was opened: it is open
    return new Response(JSON.stringify({ error }), { status: 500, headers: { "Content-Type": "application/json" } });
  };
  window.fetch = async (...request) => {
    const address = String(request[0]?.url ?? request[0]), body = String(request[1]?.body ?? "");
    const isQuick = address.includes("/gradio_api/run/");
    if (!isQuick) return address.includes("/gradio_api/queue/join") ? send(request, body) : fetchPlainly(...request);
    // What is asked for every second is counted apart: on a slow connection some of it is always under way.
    const isNews = ofClocks.test(body), kind = isNews ? "newsInFlight" : "inFlight";
    window.sdlora[kind]++;
    try {
      const answer = await send(request, body);
      if (answer.status === 500 && !(isNews && !answer.url))
        answer.clone().json().then((content) => showProblem(content.error), () => showProblem());
      return answer;
    } finally { window.sdlora[kind]--; }
  };

  // Quirk 2. Gradio 6.31 sends a Textbox's `input` event at key presses alone: what is deleted, pasted, dropped,
  // dictated or typed on a phone would not be saved. So those changes are announced as the key press it waits for.
  const isText = (event) => event.target.matches?.('[data-testid="textbox"]');
  let pressed = false;
  document.addEventListener("keydown", () => { pressed = false; }, true);
  document.addEventListener("keypress", (event) => { if (isText(event)) pressed = event.isTrusted; }, true);
  document.addEventListener("input", (event) => {
    if (!isText(event)) return;
    if (!pressed) event.target.dispatchEvent(new KeyboardEvent("keypress", { key: "Unidentified", bubbles: true }));
    pressed = false;
  });

  // Quirk 4. Gradio 6.31 opens a Dropdown's list at every key, and at Tab only once the field has been left: it stays open.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Tab" && event.target.getAttribute?.("role") === "combobox") event.stopPropagation();
  }, true);

  // Quirk 3. Gradio 6.31 labels an empty Gallery with aria-label on a plain <div>, which may not carry one: screen
  // readers skip it and axe complains. So such boxes get a role that may, whenever they appear.
  const nameEmpty = () => document.querySelectorAll("div.empty[aria-label]:not([role])").forEach((box) => box.setAttribute("role", "img"));
  let planned = false;
  new MutationObserver(() => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => { planned = false; nameEmpty(); });
  }).observe(document.body, { childList: true, subtree: true });

  // ---- End of Gradio's quirks

  // What is typed is kept by the server. Until that has it, which takes a while on a slow machine, leaving asks first.
  let unsaved = 0;
  document.addEventListener("input", async () => {
    unsaved++;
    try { await window.sdlora.settled(); } finally { unsaved--; }
  }, true);
  // Neither does it have what counts only once it is entered or applied.
  let atFirst = "";
  document.addEventListener("focusin", (event) => { atFirst = event.target.value; }, true);
  document.addEventListener("change", (event) => { if (event.target === document.activeElement) atFirst = event.target.value; }, true);
  const isEntered = () => !document.activeElement.matches?.("[data-row], #mix-tags textarea") || document.activeElement.value === atFirst;
  const textOf = (place) => document.querySelector(`${place} textarea, ${place} input`)?.value.trim();
  const APPLIED = {
    "#train-yaml": (text) => text === textOf("#train-yaml-base"),
    "#runs-go-on-settings": (text) => !text,
  };
  const drafts = new Set(); // what is written there stays while its tab or section is closed, but is not to be seen then
  const isApplied = () => {
    for (const [place, holds] of Object.entries(APPLIED)) {
      const text = textOf(place);
      if (text !== undefined) drafts[holds(text) ? "delete" : "add"](place);
    }
    return !drafts.size;
  };
  setInterval(isApplied, 1000);
  // A caption of which is asked whose it is to be is nowhere else, either.
  const isAsked = () => document.querySelector("[data-unsaved]") !== null;
  // Nor is paint over an image, until it is saved by its button or when another image comes.
  let paintedOver = "", isSent = false;
  document.addEventListener("pointerdown", (event) => {
    if (event.target.closest?.("#dataset-mask-canvas canvas")) [paintedOver, isSent] = [textOf("#dataset-painted"), false];
  }, true);
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#dataset-mask-save, #dataset-mask-remove")) isSent = true;
  }, true);
  const isPainted = () => {
    const isTaken = isSent && !window.sdlora.inFlight && !document.querySelector("#dataset-mask-problems")?.textContent.trim();
    return paintedOver && textOf("#dataset-painted") === paintedOver && !isTaken;
  };
  window.addEventListener("beforeunload", (event) => {
    if (unsaved || held || !isEntered() || !isApplied() || isAsked() || isPainted()) event.preventDefault();
  });

  const KEYS = [
    ["Ctrl + Enter", "press the main button of the open tab"],
    ["Alt + → or ↓", "next image of the dataset"],
    ["Alt + ← or ↑", "previous image of the dataset"],
    ["Ctrl + S", "save the caption at once (it is saved as you type)"],
    ["← →", "on the tabs: the tab beside; in a gallery: the image beside"],
    ["Esc", "leave a field, close what is open"],
    ["?", "this list"],
  ];

  // Light or dark: kept in this browser, unless the address says otherwise (?__theme=dark).
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const forced = new URLSearchParams(location.search).has("__theme");
  const showTheme = () => {
    const choice = localStorage.getItem("sdlora.theme") || "system";
    if (!forced) document.body.classList.toggle("dark", choice === "dark" || (choice === "system" && dark.matches));
  };
  window.sdloraTheme = (choice) => { localStorage.setItem("sdlora.theme", choice); showTheme(); };
  dark.addEventListener("change", () => setTimeout(showTheme));
  showTheme();

  // Files dropped anywhere on the Dataset tab go where its drop zone is.
  const dropField = () => [...document.querySelectorAll("#dataset-upload input[type=file]")].find((field) => field.parentElement.getClientRects().length);
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files") && !event.target.closest?.(".upload-container, .image-container");
  document.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // or the browser would leave the page and show the file
    const field = dropField();
    if (!field) return;
    field.files = event.dataTransfer.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });

  // Where one is: the tab and what it shows, such as #runs/mascot-2. It is this browser's own: in its address, so that Back
  // works, and in its storage for the next visit.
  const NAMES = { runs: "#runs-selected textarea", dataset: "#dataset-chosen input" };
  const TABS = window.sdlora["names.tabs"]; // with their labels
  const openTab = () => openPanel()?.id.slice(4);
  // Where the window is narrow, or the text large, Gradio moves tabs into a menu, in which they have no ids.
  const tabButton = (tab) => document.getElementById(`tab-${tab}-button`)
    ?? [...document.querySelectorAll("#tabs > .tab-wrapper .overflow-dropdown button")].find((button) => button.textContent.trim() === TABS[tab]);
  window.sdlora.open = (tab) => tabButton(tab)?.click();
  // Addresses are typed by people, and the storage is shared with whatever else this machine serves: neither may be trusted.
  const otherwise = (instead, read) => { try { return read() ?? instead; } catch { return instead; } };
  const kept = otherwise({}, () => JSON.parse(localStorage.getItem("sdlora.places")));
  const inAddress = () => {
    const [tab, ...rest] = location.hash.slice(1).split("/"), name = rest.join("/");
    return { tab: tab in TABS ? tab : "", name: otherwise(name, () => decodeURIComponent(name)) };
  };
  window.sdlora.place = (tab) => (inAddress().tab === tab && inAddress().name) || kept[tab] || "";
  const addressOf = (tab) => `#${tab}${NAMES[tab] && kept[tab] ? `/${encodeURIComponent(kept[tab])}` : ""}`;
  let turning = 0; // while the page turns to an address, it doesn't show it yet, and must not be taken for another
  const noteThePlace = () => {
    const tab = openTab();
    if (!document.body.dataset.ready || !tab || turning) return;
    const name = document.querySelector(NAMES[tab])?.value;
    if (NAMES[tab] && name !== undefined) kept[tab] = name;
    kept.tab = tab;
    localStorage.setItem("sdlora.places", JSON.stringify(kept));
    const address = addressOf(tab);
    if (location.hash === address) return;
    const isFirst = !location.hash || address.startsWith(`${location.hash}/`);
    // In full: a bare #name is taken to be below the document's base, which knows no ?__theme=dark.
    history[isFirst ? "replaceState" : "pushState"](null, "", location.pathname + location.search + address);
  };
  const until = async (holds, tries = 200) => {
    for (; !holds() && tries > 0; tries--) await new Promise((done) => setTimeout(done, 50));
  };
  // For news of another run or data set, whose name Gradio writes into its field some time later. Without it, two choices
  // within a second, between two looks, would be one step of Back.
  window.sdlora.note = () => {
    const before = location.hash;
    until(() => { noteThePlace(); return location.hash !== before; }, 20);
  };
  window.sdlora.arrive = async () => {
    const tab = inAddress().tab || (kept.tab && "home");
    if (!tab || openTab() === tab) return;
    await until(() => tabButton(tab));
    window.sdlora.open(tab);
    await until(() => openTab() === tab);
  };
  window.addEventListener("popstate", async () => {
    const { tab, name } = inAddress();
    const isThere = () => document.querySelector(NAMES[tab])?.value === name;
    turning++;
    if (name) kept[tab] = name;
    try {
      await window.sdlora.arrive();
      if (!name || isThere()) return;
      await until(() => window.sdlora.goes[tab]);
      window.sdlora.goes[tab]?.(name);
      await until(isThere);
    } finally { turning--; }
  });
  new MutationObserver(noteThePlace).observe(document.body, { subtree: true, attributeFilter: ["aria-selected"] });

  // What is new: asked for once a second, for the tab in view, while the page is. Gradio is told only of news, and now
  // and then without any, should an answer have been lost.
  const EACH_MS = 1000, ANYWAY = 20, QUIET_LOOKS = 5; // after so many looks without news only every third
  const heard = {};
  let looks = 0, quiet = 0, isLooking = false, isAway = false;
  // Another process knows nothing of this window: once all is saved the page is loaded anew, which asks about drafts.
  const meetAgain = async () => {
    const { app_id } = await (await fetchPlainly("gradio_api/app_id")).json();
    const isNew = app_id !== window.gradio_config.app_id;
    if (isNew && (held || unsaved || window.sdlora.inFlight)) return;
    isAway = false;
    if (isNew) location.reload();
  };
  const look = async () => {
    noteThePlace();
    const tab = openTab();
    if (document.hidden || isLooking || !document.body.dataset.ready || !tab) return;
    isLooking = true;
    try {
      const answer = await fetchPlainly(`news/${tab}`).catch(() => null);
      if (!answer || AWAY.includes(answer.status)) {
        isAway = true;
        window.sdlora.status({ words: GONE, spoken: GONE });
        return;
      }
      if (!answer.ok) return;
      const { status, stamp } = await answer.json();
      window.sdlora.status(status);
      if (isAway) await meetAgain();
      quiet = heard[tab] === stamp ? quiet + 1 : 0;
      if (quiet === 0 || ++looks % ANYWAY === 0) window.sdlora.clocks[tab]?.();
      heard[tab] = stamp;
    } catch { /* an answer that was cut off: the next look may have more luck */ } finally { isLooking = false; }
  };
  let beats = 0;
  setInterval(() => { if (quiet < QUIET_LOOKS || ++beats % 3 === 0) look(); }, EACH_MS);
  document.addEventListener("visibilitychange", look);
  document.addEventListener("pointerdown", () => { quiet = 0; }, true);

  // A number field can show what is no number ("30-"), and sends nothing then. When it is left, or something is pressed, it
  // is emptied, and that is said; the press has to be made again, as it would have meant something else.
  let emptiedAt = -Infinity;
  const emptyNoNumbers = () => {
    const wrong = [...document.querySelectorAll("input[type=number]")].filter((field) => field.validity.badInput);
    for (const field of wrong) {
      field.value = "";
      field.dispatchEvent(new Event("input", { bubbles: true }));
      const label = field.closest(".block")?.querySelector("[data-testid=block-info]")?.textContent.trim() || "A field";
      window.sdlora.say(`${label}: what was typed is no number, so the field was emptied.`);
      emptiedAt = performance.now();
    }
  };
  document.addEventListener("focusout", emptyNoNumbers, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#tabs button:not([role=tab])")) return;
    emptyNoNumbers();
    if (performance.now() - emptiedAt > 1000) return;
    event.stopImmediatePropagation();
    event.preventDefault();
  }, true);

  // Each press is answered at once, by the browser: the button waits visibly until the server has answered.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("#tabs button:not([role=tab])");
    if (!button || button.disabled) return;
    button.setAttribute("aria-busy", "true");
    await Promise.all([window.sdlora.settled(), new Promise((done) => setTimeout(done, 400))]);
    button.removeAttribute("aria-busy");
  }, true);

  // With the lock on, one side of a picture follows the other: in the ratio that both had when the person came to it.
  const SIDES = ["#generate-width_px input", "#generate-height_px input"];
  const SIDE_STEP_PX = 8;
  let ratio = 0;
  document.addEventListener("focusin", (event) => {
    if (!event.target.matches(SIDES.join())) return;
    const [width, height] = SIDES.map((side) => Number(document.querySelector(side).value));
    ratio = width && height ? width / height : 0;
  });
  document.addEventListener("input", (event) => {
    const side = Number(event.target.value);
    if (!event.isTrusted || !event.target.matches(SIDES.join()) || !ratio || !(side > 0)) return;
    if (!document.querySelector("#generate-lock input").checked) return;
    const isWidth = event.target.matches(SIDES[0]);
    const other = document.querySelector(SIDES[isWidth ? 1 : 0]);
    const follows = Math.round((isWidth ? side / ratio : side * ratio) / SIDE_STEP_PX) * SIDE_STEP_PX;
    other.value = Math.max(SIDE_STEP_PX, follows);
    other.dispatchEvent(new Event("input", { bubbles: true }));
  });

  // A text to be had elsewhere: a button with data-copy says when it has been copied.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const words = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch { button.textContent = button.dataset.copy; return; }
    setTimeout(() => { button.textContent = words; }, 1500);
  });

  const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
  const dialog = document.createElement("dialog");
  dialog.id = "keys";
  dialog.setAttribute("aria-labelledby", "keys-title");
  dialog.innerHTML = '<h2 id="keys-title">Keyboard</h2><dl>'
    + KEYS.map(([keys, what]) => `<dt><kbd>${isMac ? keys.replace("Ctrl", "⌘").replace("Alt", "⌥") : keys}</kbd></dt><dd>${what}</dd>`).join("")
    + '</dl><form method="dialog"><button autofocus>Close</button></form>';
  document.body.append(dialog);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.addEventListener("click", (event) => { if (event.target.closest("#show-keys")) dialog.showModal(); });

  const isShown = (element) => element.getClientRects().length > 0;
  const openPanel = () => [...document.querySelectorAll('#tabs > [role="tabpanel"]')].find(isShown);
  const press = (button) => {
    if (!button || button.disabled || !isShown(button)) return false;
    button.click();
    return true;
  };
  const mainButton = () => [...(openPanel()?.querySelectorAll("button.primary") ?? [])]
    .find((button) => isShown(button) && !button.disabled);
  const isTyping = (element) => element.isContentEditable || element.tagName === "TEXTAREA" || element.tagName === "SELECT"
    || (element.tagName === "INPUT" && !["checkbox", "radio", "button", "submit", "file"].includes(element.type));

  // Escape leaves a field for what is around it: the focus never falls to the page's body.
  const leave = (field) => {
    field.blur();
    const around = field.closest('[role="tabpanel"]');
    if (around) { around.tabIndex = -1; around.focus({ preventScroll: true }); }
  };

  // Neither does it where the focused element was taken away or written anew: then it goes to the one of the same id or
  // data, or else to the tab.
  let focused = null;
  const dataOf = (element) => JSON.stringify({ ...element.dataset });
  document.addEventListener("focusin", (event) => { focused = event.target; });
  setInterval(() => {
    if (!focused || focused.isConnected && focused.getClientRects().length || document.activeElement !== document.body) return;
    const lost = focused;
    focused = null;
    const panel = openPanel();
    const alike = (lost.id && document.getElementById(lost.id))
      || (Object.keys(lost.dataset).length && [...panel?.querySelectorAll(lost.tagName) ?? []].find((one) => dataOf(one) === dataOf(lost)));
    const next = alike && isShown(alike) ? alike : panel;
    if (next === panel && panel) panel.tabIndex = -1;
    next?.focus({ preventScroll: true });
  }, 250);

  const IMAGE_KEYS = { ArrowRight: "next", ArrowDown: "next", ArrowLeft: "previous", ArrowUp: "previous" };
  const besideTab = (event) => {
    const tab = event.target.closest?.('[role="tab"]');
    const tabs = tab && [...tab.parentElement.querySelectorAll('[role="tab"]')];
    const at = tabs && { ArrowRight: tabs.indexOf(tab) + 1, ArrowLeft: tabs.indexOf(tab) - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (at === undefined || at === null) return false;
    const next = tabs[(at + tabs.length) % tabs.length];
    next.focus();
    next.click();
    return true;
  };

  document.addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey;
    let done = false;
    if (dialog.open || event.isComposing) return;
    if (command && event.key === "Enter") done = press(mainButton());
    else if (command && event.key.toLowerCase() === "s") {
      press(document.querySelector("#dataset-save"));
      done = true; // never the browser's "save page"
    } else if (event.altKey && !command && event.key in IMAGE_KEYS) {
      done = press(document.querySelector(`#dataset-${IMAGE_KEYS[event.key]}`));
    } else if (event.altKey || command) return;
    else if (event.key === "Escape" && press(document.querySelector("#dataset-cancel-naming"))) {
      document.querySelector("#dataset-new")?.focus();
      done = true;
    } else if (event.key === "Escape" && isTyping(event.target)) leave(event.target);
    else if (event.key === "?" && !isTyping(event.target)) { dialog.showModal(); done = true; }
    else done = besideTab(event);
    if (done) { event.preventDefault(); event.stopPropagation(); }
  }, true);
}
