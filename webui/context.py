"""What every tab is given: the workspace, remembered fields, the clock, and ways to reach other tabs."""

from __future__ import annotations

import functools
import html
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from sdlora.disk import circle_of_links, explain
from sdlora.errors import SdloraError
from webui.news import Stamp
from webui.services import Services
from webui.state import PageState
from webui.workspace import Workspace

log = logging.getLogger("webui")

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of an event that is no part of the API; queued: only so are `gr.Info` and a changed `gr.State` told of."""
QUEUED: dict[str, Any] = {**PRIVATE, "concurrency_limit": None}
"""The same, for quick handlers: they don't wait for each other."""
QUICK: dict[str, Any] = {**PRIVATE, "queue": False}
"""Answered at once. A second press while the first is under way is dropped: right for buttons only."""
LAST_COUNTS: dict[str, Any] = {**QUICK, "trigger_mode": "always_last"}
"""For typing and choosing: of what came meanwhile the last is sent once the first is through."""
EACH_COUNTS: dict[str, Any] = {**QUICK, "trigger_mode": "multiple"}
"""For presses that say by event data what was pressed."""


@dataclass
class Context:
    """Built once by app.py; tabs register here what the page wires after all of them stand."""

    services: Services
    page: gr.Blocks
    tabs: gr.Tabs
    clocks: dict[str, gr.HTML]
    """By tab: each ticks when there are news for its tab, and that is in view."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Components that other tabs address, by dotted name: `runs.selected`, `mix.prompt`."""
    remembered: dict[str, gr.components.Component] = field(default_factory=dict)
    shown_as: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    """For remembered fields, what a kept value becomes when a page opens."""
    on_load: list[tuple[Callable[..., Any] | None, list[Any], list[Any], str | None]] = field(default_factory=list)
    """Handlers with inputs, outputs and JavaScript, run when a page opens, after the remembered fields are there."""
    scripts: dict[str, str] = field(default_factory=dict)
    """JavaScript values that events share, by name in `window.sdlora`."""
    when_built: list[Callable[[], None]] = field(default_factory=list)
    """Run once when all tabs stand: the place to wire what reaches into a tab that is built later."""

    @property
    def workspace(self) -> Workspace:
        """The page's folders."""
        return self.services.workspace

    @property
    def state(self) -> PageState:
        """What the page remembers."""
        return self.services.state

    def follow(
        self, tab: str, stamp: Stamp, show: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> None:
        """Have a tab show what is new. stamp: changes with what it shows; show: a handler, `gr.skip()` for no news."""
        stamps = self.services.news.stamps.setdefault(tab, [])
        options: dict[str, Any] = {**LAST_COUNTS, "concurrency_limit": None}
        # Each on an event of its own, so that none waits for another's answer (see gradio_quirks.defer_one_each).
        tick = getattr(self.clocks[tab], f"tick_{len(stamps)}")
        tick(handler(show), list(inputs), list(outputs), **options)
        stamps.append(stamp)

    def remember(self, name: str, component: Any, show: Callable[[Any], Any] | None = None) -> Any:
        """Keep a field's value across reloads and restarts under a dotted name; returns the component.

        show: makes the update for a kept value, for fields whose choices come and go; by default the value itself.
        """
        self.remembered[name] = component
        if show is not None:
            self.shown_as[name] = show
        return component

    def share(self, name: str, component: Any) -> Any:
        """Let other tabs address a component; returns it."""
        self.shared[name] = component
        return component

    def go_to(self, tab: str) -> gr.Tabs:
        """The update of `context.tabs` that opens a tab: `dataset`, `train`, `runs`, `mix`, `generate`, `settings`."""
        return gr.Tabs(selected=tab)


def handler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler: our own errors reach the person as a message, others too, with the traceback in the log only."""
    # Called plainly, a generator function only makes the generator: its errors come later, outside of that `with`.
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def guarded_generator(*arguments: Any) -> Iterator[Any]:
            with _errors_as_messages(function.__name__):
                yield from function(*arguments)

        return guarded_generator

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        with _errors_as_messages(getattr(function, "__name__", "a handler")):
            return function(*arguments)

    return guarded


def loading(function: Callable[..., Any], outputs: Sequence[Any], problem: gr.Textbox) -> Callable[..., Any]:
    """Wrap a handler of a page that opens for its outputs and, as one more at the end, `problem`.

    What goes wrong is told there: nothing follows a handler that failed, and the page would never be ready.
    """
    act = handler(function)

    @functools.wraps(function)
    def loaded(*arguments: Any) -> Any:
        try:
            told = act(*arguments)
        except gr.Error as error:
            return {problem: html.unescape(error.message.replace("<br>", "\n"))}
        # By component, as handlers answer; the value of one output, such as a painted picture's, may be a dict, too.
        if isinstance(told, dict) and all(isinstance(key, gr.blocks.Block) for key in told):
            return {problem: gr.skip(), **told}
        return (told, gr.skip()) if len(outputs) == 1 else (*told, gr.skip())

    return loaded


def confirm(question: str) -> str:
    """JavaScript for an event's `js`: asks first; dismissed, the handler is not called.

    `{#selector}` in the question stands for that element's text, or value, at the time.
    """
    return (
        "(...values) => { const question = "
        + json.dumps(question)
        + r".replace(/\{(#[^}]+)\}/g, (_, place) => { const found = document.querySelector(place);"
        " return (found?.value ?? found?.textContent ?? '').trim(); });"
        " if (!confirm(question)) throw new Error('cancelled'); return values; }"
    )


@contextmanager
def _errors_as_messages(name: str) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except SdloraError as error:
        # Gradio would print the traceback too, though this is a person's mistake and no fault of the program.
        raise gr.Error(as_message(str(error)), print_exception=False) from None
    except OSError as error:  # a full disk, a name too long for it, no permission: a person's to mend
        log.warning("%s: %s", name, error)
        raise gr.Error(as_message(explain(error)), print_exception=False) from None
    except RecursionError:
        raise gr.Error("That is nested too deep to be read.", print_exception=False) from None
    except Exception as error:
        if isinstance(error, RuntimeError) and (circle := circle_of_links(error)):
            raise gr.Error(as_message(explain(circle)), print_exception=False) from None
        log.exception("%s failed", name)
        words = f"That did not work: {type(error).__name__}. Details are in the server's log."
        raise gr.Error(words, print_exception=False) from None


def as_message(text: str) -> str:
    """Plain text for a message that pops up, where Gradio shows HTML."""
    return html.escape(text).replace("\n", "<br>")
