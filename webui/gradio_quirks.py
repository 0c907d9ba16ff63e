"""Where Gradio behaves otherwise than the page needs, and what is done about it. Nothing else reaches into Gradio.

Each entry says what Gradio 6.31 does. `tests/browser/test_gradio_quirks.py` shows that on bare pages, one test a quirk,
and fails once a newer Gradio behaves: then the entry, and what it is used for, can go. Five more are mended in the
browser, in the first section of `assets/page.js`.

One rule follows from what can't be mended: a handler with queue=False must not call `gr.Info`, nor change a `gr.State`
that others wait for: neither is told of. So `webui.context` has options for queued events too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState, StateHolder
from gradio.utils import get_upload_folder, is_static_file

COMES_AND_GOES: dict[str, Any] = {"allow_custom_value": True}
"""For a Dropdown whose entries come and go, as folders do: else Gradio refuses one that is gone in words nobody
understands, before a handler can say anything about it."""

_QUEUE_LOOK_SECONDS, _PROGRESS_LOOK_SECONDS = 0.02, 0.1


def update_in_browser(**properties: Any) -> str:
    """JavaScript for one output of an event's `js`: what `gr.update` is for a handler. Gradio has no name for it."""
    return json.dumps({"__type__": "update", **properties})


def spare_progress(page: gr.Blocks) -> None:
    """Take the events that show no progress out of the news about it. Call it when the page stands.

    At each event Gradio writes the progress of all events so far, hidden or not, to their outputs, and each of those
    components updates: beside sixty fields a poll five times a second keeps the scripts busy a third of the time.
    """
    for function in page.fns.values():
        if function.show_progress == "hidden" and function.show_progress_on is None:
            function.show_progress_on = []


def rest_between_looks(page: gr.Blocks) -> None:
    """Have a page's queue look for work fifty times a second, not a thousand times. Call it once the queue is set up.

    Looking so often keeps a core busy for seven hundredths of the time, whether anybody has the page open or not.
    """
    page._queue.sleep_when_free = _QUEUE_LOOK_SECONDS
    page._queue.progress_update_sleep_when_free = _PROGRESS_LOOK_SECONDS


class _Session(SessionState):
    """What one window has changed of the page, without a description of each component."""

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))  # type: ignore[arg-type]
        self.blocks_config.config_for_block = lambda *_: {}  # type: ignore[method-assign]


class _Sessions(StateHolder):
    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = _Session(self.blocks)
        return super().__getitem__(session_id)


def describe_nothing_twice(page: gr.Blocks) -> None:
    """Have a served page keep no description of its components for each window.

    Gradio makes one of every component when a window first asks for something, and again of each that a handler
    updates: for this page a tenth of a CPU second and 1.4 MiB a window. It serves links that restore a page, of which
    there are none here: the address names what is in view, and what was typed lies with the workspace.
    """
    page.state_holder.__class__ = _Sessions


def defer_one_each(page: gr.Blocks) -> None:
    """Leave each event of a component one handler of those that are sent again at the end; others follow it.

    What came while a handler with trigger_mode=always_last was under way Gradio makes up for by repeating the whole
    event, with all its handlers. Where another of that kind is still under way then, it repeats the first in turn:
    three of them and a slow connection are enough for requests without end. Call it when the page stands. Raises
    ValueError for two that can't be chained.
    """
    for functions in _by_event(page).values():
        deferred = [function for function in functions if function.trigger_mode == "always_last"]
        # Nothing follows a handler that failed. What shows something is wired first, and says itself what is wrong;
        # what only writes fails on a full disk, and must keep nothing from being shown.
        first, *others = deferred or [None]
        for function in others:
            if len(function.targets) > 1 or function.collects_event_data:
                raise ValueError(
                    f"{function.name} can't follow {first.name}: it has other events, or asks for its data"
                )
            function.targets, function.trigger_after = [(None, "then")], first._id
            function.trigger_only_on_success = function.trigger_only_on_failure = False


def typed_into(page: gr.Blocks, clocks: Collection[int]) -> list[int]:
    """The handlers that are sent what a person types or chooses, and those that follow them at once.

    Gradio forgets a request that the server's end met, and then loads the page anew: what was typed would be gone.
    page.js holds requests of these until the server is back. clocks: components whose events only ask for news.
    """
    typed: set[int] = set()
    for function in page.fns.values():  # in the order in which they were wired: what follows comes later
        events = [(component, name) for component, name in function.targets if component is not None]
        is_other = any(component in clocks or name in ("click", "load") for component, name in events)
        begins = bool(events) and not is_other and function.trigger_mode == "always_last"
        if begins or (not events and not function.queue and function.trigger_after in typed):
            typed.add(function._id)
    return sorted(typed)


def _by_event(page: gr.Blocks) -> dict[tuple[int | None, str], list[Any]]:
    """The handlers of each event of each component, in the order in which they were wired."""
    events: dict[tuple[int | None, str], list[Any]] = {}
    for function in page.fns.values():
        for component, name in function.targets:
            if component is not None:
                events.setdefault((component, name), []).append(function)
    return events


def take_uploads_only(page: gr.Blocks) -> None:
    """Refuse files that a request names and nobody uploaded. Call it when the page stands.

    A page that is mounted in another application has never "launched", and then Gradio copies any file of the machine
    that a request names to where the browser may fetch it, and fetches any address.
    """
    take_in = page.preprocess_data

    async def checked(block_fn: Any, inputs: list[Any], *rest: Any, **named: Any) -> Any:
        left: list[Any] = [inputs]
        while left:
            one = left.pop()
            if isinstance(one, dict):
                if "meta" in one and "path" in one:
                    _require_upload(one["path"])
                left += one.values()
            elif isinstance(one, list | tuple):
                left += one
        return await take_in(block_fn, inputs, *rest, **named)

    page.preprocess_data = checked  # type: ignore[method-assign]


def _require_upload(path: Any) -> None:
    try:
        is_ours = isinstance(path, str) and Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
        # Pictures that the page serves from where they lie come back as they went out.
        is_ours = (is_ours and Path(path).is_file()) or is_static_file(path)
    except (OSError, ValueError, TypeError):  # no path: a NUL, a name that is too long, a list
        is_ours = False
    if not is_ours:
        raise gr.Error(f"{str(path)[:200]!r} is no file that was uploaded here: upload it first", print_exception=False)


def collect(
    triggers: Any, components: Mapping[str, Any], into: Any, besides: str = "{}", names: str | None = None
) -> Any:
    """On these events, have the browser write what components show into one text component, as JSON by name.

    besides: JavaScript of an object with more to be written. names: JavaScript of the list of names, where many events
    share it. Go on with `.then(handler, into, ...)`. What
    `spare_progress` says of outputs is so of inputs too and can't be turned off: a hundred inputs keep a browser busy,
    one doesn't.
    """
    pairs = f"{names or json.dumps(list(components))}.map((name, place) => [name, values[place]])"
    script = f"(...values) => [JSON.stringify({{...Object.fromEntries({pairs}), ...{besides}}})]"
    options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    return gr.on(triggers, None, list(components.values()), into, js=script, trigger_mode="always_last", **options)


_EMPTY_IN_AN_EVENT = (
    "rendered_in", "render_id", "js_implementation", "event_specific_args", "api_description", "trigger_after",
    "trigger_only_on_success", "trigger_only_on_failure", "collects_event_data", "scroll_to_output", "batch",
    "time_limit", "component_prop_inputs",
)  # fmt: skip
"""What a browser takes for empty where it is left out."""


def slim(config: Any) -> None:
    """Take out of a served page's configuration what no browser and no client reads.

    What programs read of the types of components stays where an event of the API uses them.
    """
    of_the_api = {
        component
        for event in config["dependencies"]
        if event["api_visibility"] == "public"
        for component in (*event["inputs"], *event["outputs"])
    }
    for component in config["components"]:
        props = component["props"]
        component["component_class_id"] = ""
        props.pop("preserved_by_key", None)
        if component["id"] not in of_the_api and props.get("name") == component["type"]:
            del props["name"]
        if props.get("_selectable") is False:
            del props["_selectable"]
        if component.get("key") is None:
            component.pop("key", None)
        for name in ("api_info_as_input", "api_info_as_output", "example_inputs", "skip_api"):
            if component["id"] not in of_the_api:
                component.pop(name, None)
        if component["id"] not in of_the_api and component["type"] not in ("file", "imageeditor", "uploadbutton"):
            component.pop("api_info", None)
    for event in config["dependencies"]:
        for name in _EMPTY_IN_AN_EVENT:
            if any(event.get(name) is empty for empty in (None, False)) or event[name] == []:
                event.pop(name, None)
        for name in ("max_batch_size", "stream_every"):  # of events in batches and streams, which there are none of
            event.pop(name, None)


def empty_numbers(page: gr.Blocks) -> dict[Any, None]:
    """The update for a page that was opened: empty number fields, which Gradio would show, and send, as 0."""
    return {field: None for field in page.blocks.values() if isinstance(field, gr.Number) and field.value is None}
