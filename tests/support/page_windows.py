"""Windows on the page without a browser: what each shows, what it sends, and answers that may come late.

The handlers are the page's own, called with what the window shows when an event is sent. Of the page's scripts only
those of the captions' box are imitated.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import gradio as gr
from gradio.helpers import special_args

from webui.datasets.typed import NUMBERED
from webui.scripts import WRITTEN


@dataclass
class Sent:
    """An event on its way: `arrive` has the server act, `answer` has the window show what came of it."""

    window: Window
    function: Any
    values: list[Any]
    event: Any
    told: Any = None
    is_failed: bool = False

    def arrive(self) -> Sent:
        """The server's part."""
        values = special_args(self.function.fn, list(self.values), None, self.event)[0]
        try:
            self.told = self.function.fn(*values)
        except gr.Error as error:
            self.window.said.append(str(error.message))
            self.is_failed = True
        return self

    def answer(self) -> None:
        """The window's part."""
        if self.told is not None:
            told = self.told
            outputs = self.function.outputs
            if not isinstance(told, dict) or "__type__" in told:
                told = dict(zip(outputs, told if len(outputs) > 1 else [told], strict=True)) if outputs else {}
            self.window.show(told)
        for function in self.window.page.fns.values() if not self.is_failed else ():  # nothing follows what failed
            if function.trigger_after == self.function._id and function.fn is not None:
                self.window.send_by(function, self.event).arrive().answer()


@dataclass
class Window:
    """One window, as it stands when the page has loaded."""

    page: gr.Blocks
    values: dict[int, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """What popped up."""
    numbers: Any = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.blocks = {block.elem_id: block for block in self.page.blocks.values() if getattr(block, "elem_id", None)}
        self.values = {key: copy.deepcopy(getattr(block, "value", None)) for key, block in self.page.blocks.items()}
        for function in self.page.fns.values():
            if (self.page._id, "load") in function.targets:
                self.send_by(function).arrive().answer()

    def __getitem__(self, name: str) -> Any:
        return self.values[self.blocks[name]._id]

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[self.blocks[name]._id] = value

    def send(self, name: str, event: str, /, **pressed: Any) -> list[Sent]:
        """An event of a component, by its element's id, on its way to each handler."""
        target = (self.blocks[name]._id, event)
        data = gr.EventData(None, {"pressed": pressed})
        return [self.send_by(each, data) for each in self.page.fns.values() if target in each.targets and each.fn]

    def do(self, name: str, event: str = "click", /, **pressed: Any) -> None:
        """The same, answered at once."""
        for sent in self.send(name, event, **pressed):
            sent.arrive().answer()

    def type(self, name: str, text: Any) -> None:
        """Put a text into a field by hand."""
        self[name] = text
        self.do(name, "input")

    def send_by(self, function: Any, event: Any = None) -> Sent:
        values = [self.values[component._id] for component in function.inputs]
        if function.inputs_as_dict:
            values = [dict(zip(function.inputs, values, strict=True))]
        if function.js == NUMBERED:
            values[3] = str(next(self.numbers))
        return Sent(self, function, values, event)

    def show(self, updates: dict[Any, Any]) -> None:
        """Take updates in, and fire the events of what changed."""
        changed = []
        for component, update in updates.items():
            value = _value(update, self.values[component._id])
            if value != self.values[component._id]:
                self.values[component._id] = value
                changed.append((component._id, "change"))
        for function in self.page.fns.values():
            if any(target in changed for target in function.targets):
                if function.js == WRITTEN:
                    self._written()
                elif function.fn is not None:
                    self.send_by(function).arrive().answer()

    def _written(self) -> None:
        answer = json.loads(self["dataset-written"])
        if answer["of"] == self["dataset-editing"]:
            for name in ("tokens", "summary"):
                self[f"dataset-{name}"] = answer.get(name, self[f"dataset-{name}"])


def _value(update: Any, before: Any) -> Any:
    if isinstance(update, dict) and update.get("__type__") == "update":
        return update.get("value", before)
    if isinstance(update, gr.blocks.Block):
        return update._constructor_args[0].get("value", before)
    return update


Opener = Callable[[], Window]
