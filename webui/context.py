"""What every tab is given: the workspace, remembered fields, the clock, and ways to reach other tabs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from sdlora.errors import SdloraError
from webui.state import PageState
from webui.workspace import Workspace

log = logging.getLogger("webui")


@dataclass
class Context:
    """Built once by app.py; tabs register here what the page wires after all of them stand."""

    workspace: Workspace
    state: PageState
    tabs: gr.Tabs
    timer: gr.Timer
    """Ticks every second while a page is open; handlers return `gr.skip()` when nothing changed."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Components that other tabs address, by dotted name: `train.dataset`, `generate.start.image`."""
    remembered: dict[str, gr.components.Component] = field(default_factory=dict)
    on_load: list[tuple[Callable[..., Any], list[Any], list[Any]]] = field(default_factory=list)
    """Handlers with inputs and outputs that run when a page opens."""

    def remember(self, name: str, component: Any) -> Any:
        """Keep a field's value across reloads and restarts under a dotted name; returns the component."""
        self.remembered[name] = component
        return component

    def share(self, name: str, component: Any) -> Any:
        """Let other tabs address a component; returns it."""
        self.shared[name] = component
        return component


def handler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler: our own errors reach the person as a message, others too, with the traceback in the log only."""

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except gr.Error:
            raise
        except SdloraError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            log.exception("%s failed", function.__name__)
            raise gr.Error(
                f"That did not work: {type(error).__name__}. Details are in the server's log.", print_exception=False
            ) from None

    return guarded
