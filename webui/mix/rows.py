"""The adapters in use as rows of inputs, the same in Mix (with everything) and Generate (the essential).

Each tab's rows are one piece of HTML, made from the one list of `services.active`; a row's inputs name it by its id.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from sdlora.errors import AdapterError, ConfigError
from sdlora.library import rows as rows_of
from sdlora.library.rows import BLOCK_PRESETS, Rows, has_tag, to_tags
from webui.context import EACH_COUNTS, QUEUED, QUICK, Context, handler
from webui.layout import html
from webui.mix import view
from webui.scripts import ROWS

SWEEP = "0:1.2:0.2"
_FIELDS_REMEMBERED = 10_000
_FLAGS, _NUMBERS = ("enabled",), ("weight", "text_encoder", "start", "end")


@dataclass(frozen=True)
class Refused:
    """What was typed into a row's input and why it was not taken."""

    row: int
    name: str
    typed: str
    reason: str


class RowsPanel:
    """Both tabs' rows and their text; whoever changes the list returns `shown()` for `outputs`."""

    def __init__(self, context: Context) -> None:
        self.context, self.services = context, context.services
        self.tags = gr.Textbox(
            label="As text", lines=1, max_lines=5, elem_id="mix-tags", render=False, buttons=["copy"],
            info="The rows as they stand in a prompt. Edit it and press Enter: the rows follow.",
            placeholder="<lora:name:text encoder:UNet>",
        )  # fmt: skip
        self.html = {tab: html(f"{tab}-rows", js_on_load=ROWS, render=False) for tab in ("mix", "generate")}
        self._newest: dict[tuple[str, int, str], int] = {}
        self._lock = threading.Lock()
        self.revision = gr.State(-1)
        """Of the list, as this page shows it."""

    @classmethod
    def of(cls, context: Context) -> RowsPanel:
        """The page's one panel, made at the first call: Mix and Generate share it."""
        if "rows" not in context.shared:
            context.share("rows", cls(context))
        panel: RowsPanel = context.shared["rows"]
        return panel

    @property
    def outputs(self) -> list[Any]:
        """What `shown` returns updates for."""
        return [*self.html.values(), self.tags, self.revision]

    def place(self, tab: str) -> None:
        """Lay a tab's rows out here."""
        self.html[tab].render()

    def wire(self) -> None:
        """Connect both tabs' rows; call it when the prompt of Generate is there."""
        prompt = self.context.shared["generate.prompt"]
        for tab, rows in self.html.items():
            rows.select(handler(self._acting(tab)), None, self.outputs, **EACH_COUNTS)
            self.context.shared[f"tab.{tab}"].select(handler(self.follow), self.revision, self.outputs, **QUICK)
        self.html["mix"].words(handler(self._add_words), prompt, prompt, **QUEUED)
        self.context.on_load.append((self.shown, [], self.outputs, None))

    def shown(self, refused: Refused | None = None) -> dict[Any, Any]:
        """Rows and text as the list is now."""
        rows, revision = self.services.active.now()
        return {**{self.html[tab]: self._html(tab, rows, refused) for tab in self.html}, **self._others(rows, revision)}

    def follow(self, revision: int) -> dict[Any, Any]:
        """What another window, or a request, has changed since."""
        return {self.tags: gr.skip()} if self.services.active.now()[1] == revision else self.shown()

    # ---- handlers

    def _acting(self, tab: str) -> Any:
        def act(event: gr.EventData) -> dict[Any, Any]:
            """One change of one row. Where only a value changes, the rows it was made in are left as they stand."""
            pressed = event.pressed
            row_id, name = int(pressed["row"]), pressed.get("set")
            if not is_of(self.services.active.rows, pressed):
                raise AdapterError("This adapter is not in use any more.")
            if name is None:
                self.services.active.change(lambda rows: _rearranged(rows, row_id, pressed["act"]))
                return self.shown()
            if not self._is_newest(row_id, name, pressed):
                return {self.tags: gr.skip()}
            try:
                self._set(row_id, name, pressed["value"])
            except (ConfigError, AdapterError) as error:
                reason = error.problems[0] if isinstance(error, ConfigError) else str(error)
                return self.shown(Refused(row_id, name, str(pressed["value"]), reason))
            # A row isn't drawn anew for a value: the slider under the pointer or the field with the cursor would be
            # replaced.
            updates = self.shown()
            if name in ("linked", "blocks"):  # other inputs come, go, or lose what was said of them
                return updates
            return {**updates, self.html[tab]: gr.skip()}

        return act

    def _is_newest(self, row_id: int, name: str, pressed: Any) -> bool:
        """Whether no value that the same window typed into the field later has come before."""
        key = (str(pressed["window"]), row_id, name)
        with self._lock:
            newest = max(self._newest.get(key, 0), int(pressed["number"]))
            if len(self._newest) > _FIELDS_REMEMBERED:
                self._newest.clear()
            self._newest[key] = newest
            return newest == int(pressed["number"])

    def _set(self, row_id: int, name: str, value: Any) -> None:
        rows = self.services.active.rows
        row = next((row for row in rows if row.id == row_id), None)
        if row is None:
            raise AdapterError("this adapter is not in use any more")
        if name == "linked":
            values: dict[str, Any] = {"text_encoder": None if value else row.weight}
        elif name == "blocks":
            entry = self.services.adapters.by_path(row.file)
            family = entry.about.family if entry else None
            self.services.active.change(lambda now: rows_of.set_blocks(now, row_id, value.strip() or "ALL", family))
            return
        elif name in _FLAGS:
            values = {name: bool(value)}
        elif name in _NUMBERS:
            values = {name: _number(value)}
        else:
            raise AdapterError(f"a row has no {name}")
        self.services.active.change(lambda now: rows_of.update(now, row_id, **values))

    def _add_words(self, prompt: str, event: gr.EventData) -> str:
        words, text = str(event.pressed["words"]), prompt or ""
        if words.casefold() not in text.casefold():
            text = f"{text.rstrip(' ,')}, {words}" if text.strip() else words
            self.context.state.set("generate.prompt", text)
        gr.Info(f"The prompt holds {escape(words)}.", duration=3)
        return text

    # ---- pieces

    def _others(self, rows: Rows, revision: int) -> dict[Any, Any]:
        return {self.tags: to_tags(rows, self.services.adapters), self.revision: revision}

    def _html(self, tab: str, rows: Rows, refused: Refused | None) -> str:
        library = self.services.adapters
        found = [(row, library.by_path(row.file), row.enabled and not has_tag(row, library)) for row in rows]
        return view.rows(found, tab, refused, tuple(BLOCK_PRESETS), SWEEP)


def is_of(rows: Rows, pressed: Any) -> bool:
    """Whether the row that was pressed is still that adapter's: another window may have put others in its place."""
    file = pressed.get("file")
    return file is None or any((row.id, row.file) == (int(pressed["row"]), file) for row in rows)


def _rearranged(rows: Rows, row_id: int, act: str) -> Rows:
    if act == "remove":
        return rows_of.remove(rows, row_id)
    return rows_of.move(rows, row_id, -1 if act == "up" else 1)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise AdapterError(f"'{value}' is no number") from None
