"""The page: header, tabs, what it remembers; and the server around it."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import signal
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from sdlora.serving import connections
from sdlora.serving.foreign import known_hosts
from webui import api, theme
from webui.calls import ArgumentCount
from webui.context import LAST_COUNTS, PRIVATE, QUICK, Context, handler, loading
from webui.datasets import tab as datasets
from webui.generate import tab as generate
from webui.gradio_quirks import (
    defer_one_each,
    describe_nothing_twice,
    empty_numbers,
    rest_between_looks,
    slim,
    spare_progress,
    take_uploads_only,
    typed_into,
)
from webui.home import tab as home
from webui.layout import hidden_text
from webui.mix import tab as mix
from webui.runs import tab as runs
from webui.runs.view import StatusLine
from webui.scripts import CLOCK, READY, STATUS
from webui.security import Guard, Login
from webui.services import Services
from webui.settings import tab as settings
from webui.state import PageState
from webui.train import tab as train
from webui.workspace import Workspace

TABS = (
    ("home", "Home", home.build),
    ("dataset", "Dataset", datasets.build),
    ("train", "Train", train.build),
    ("runs", "Runs", runs.build),
    ("mix", "Mix", mix.build),
    ("generate", "Generate", generate.build),
    ("settings", "Settings", settings.build),
)
FIRST_TAB = "dataset"
"""What a first visit begins with; where a browser has been before, its visits begin at home."""
log = logging.getLogger("webui")

# None is a value that a field can be left with, so "never set" needs a value of its own.
_NEVER_SET = object()


def build(workspace: Workspace, services: Services | None = None) -> gr.Blocks:
    """The whole page for one workspace, not yet served. services: what its server asks too."""
    workspace.prepare()
    # Served from where they lie; anything else Gradio would first copy into its own cache, each picture once more.
    gr.set_static_paths([workspace.thumbnails, workspace.outputs])
    services = services or Services(workspace, PageState(workspace.state))
    with gr.Blocks(title="sdlora", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
        with gr.Row(elem_id="header"):
            gr.HTML("<h1>sd<span>lora</span></h1>", elem_id="title")
            gr.HTML("", elem_id="status", js_on_load=STATUS)
            gr.HTML('<button id="show-keys" type="button" aria-label="Keyboard shortcuts">?</button>')
        with gr.Column(elem_classes="off-page"):
            clocks = {name: gr.HTML("", elem_id=f"clock-{name}", js_on_load=CLOCK) for name, _, _ in TABS}
        with gr.Tabs(elem_id="tabs", selected=FIRST_TAB) as tabs:
            context = Context(services, page, tabs, clocks)
            for name, label, _ in TABS:
                context.share(f"tab.{name}", gr.Tab(label, id=name, elem_id=f"tab-{name}"))
            for name, _, build_tab in TABS:
                with context.shared[f"tab.{name}"]:
                    build_tab(context)
        for wire in context.when_built:
            wire()
        api.add_run_endpoints(context)
        api.add_dataset_endpoints(context)
        api.add_image_endpoints(context)
        context.scripts["names.tabs"] = json.dumps({name: label for name, label, _ in TABS})
        context.scripts["ticks"] = json.dumps({name: len(services.news.stamps.get(name, ())) for name in clocks})
        clock_ids = [clock._id for clock in clocks.values()]
        line = StatusLine()
        services.news.status = lambda: line.told(services.watch.snapshot())
        _wire_memory(page, context)
        spare_progress(page)
        defer_one_each(page)
        context.scripts["clocks.ids"] = json.dumps(clock_ids)
        context.scripts["typed.ids"] = json.dumps(typed_into(page, clock_ids))
        services.scripts, services.news.page = _scripts(context.scripts)
    take_uploads_only(page)
    return page


def _scripts(values: dict[str, str]) -> tuple[str, str]:
    """The values that scripts share, as one script, and what tells a page with these from one with others."""
    build = hashlib.sha256("".join(f"{name}={value};" for name, value in values.items()).encode()).hexdigest()[:16]
    shared = {**values, "build": json.dumps(build)}
    return "".join(f"window.sdlora[{json.dumps(name)}] = {value};" for name, value in shared.items()), build


def served(
    workspace: Workspace,
    *,
    host: str,
    allowed_hosts: Sequence[str] = (),
    login: Login | None = None,
    has_proxy: bool = False,
) -> tuple[gr.Blocks, Guard]:
    """The page and the whole web application around it, ready for a server."""
    services = Services(workspace, PageState(workspace.state))
    page = build(workspace, services)
    page.queue(default_concurrency_limit=1, max_size=64)
    rest_between_looks(page)
    around = FastAPI(openapi_url=None)
    around.add_middleware(ArgumentCount, signatures=services.signatures)
    around.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=6)
    around.add_api_route("/news/{tab}", services.news.now, methods=["GET"])
    gr.mount_gradio_app(
        around,
        page,
        path="/",
        server_name=host,
        theme=theme.theme(),
        css_paths=list(theme.STYLES),
        js=theme.SCRIPT.read_text(encoding="utf-8"),
        head=f"<script>{theme.SHARED.read_text(encoding='utf-8')}{services.scripts}</script>",
        # Pictures, previews, adapter files and downloads; datasets are seen as thumbnails only, and models never leave.
        allowed_paths=[
            str(folder) for folder in (workspace.outputs, workspace.runs, workspace.thumbnails, workspace.exports)
        ],
        max_file_size="512mb",
        run_history=False,
        enable_monitoring=False,
        # What went wrong is told by `webui.context.handler`; the rest, with its paths, belongs in the log.
        show_error=False,
        footer_links=["api"],
        ssr_mode=False,
    )
    describe_nothing_twice(page)
    slim(page.config)
    return page, Guard(around, known_hosts(host, allowed_hosts), login, has_proxy=has_proxy)


def serve(
    workspace: Workspace,
    *,
    host: str,
    port: int,
    auth: str | None,
    open_browser: bool,
    allowed_hosts: Sequence[str] = (),
    proxies: Sequence[str] = (),
) -> int:
    """Serve the page until interrupted; detached runs and jobs go on. Returns the exit code."""
    user, _, password = (auth or "").partition(":")
    login = Login(user, password) if auth else None
    page, application = served(workspace, host=host, allowed_hosts=allowed_hosts, login=login, has_proxy=bool(proxies))
    gc.freeze()  # the page stays as it is to the end, so no collection need walk through it
    gc.enable()
    server = uvicorn.Server(connections.configured(application, host, port, proxies))
    # Off the main thread uvicorn leaves the signals alone: they are answered in `_wait_for_the_end`.
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    if not server.started:
        return 2
    if open_browser:
        webbrowser.open(f"http://{'localhost' if host in ('0.0.0.0', '::') else host}:{port}")  # noqa: S104
    print("sdlora: ready; Ctrl-C ends the page, runs go on", flush=True)  # noqa: T201
    _wait_for_the_end(workspace.forget_uploads)
    # What its tasks say as they are cancelled is no error, though uvicorn prints a traceback for each.
    logging.getLogger("uvicorn.error").disabled = True
    # Without force the server would wait for the streams of every page that is still open.
    server.force_exit = server.should_exit = True
    thread.join(timeout=5)
    page.close(verbose=False)
    gc.freeze()  # Python's last collection would walk through all of Gradio: most of a second for nothing
    return 0


def _wait_for_the_end(each_hour: Callable[[], None]) -> None:
    """Return at Ctrl-C or SIGTERM; a second Ctrl-C ends the process the hard way."""
    ended = threading.Event()

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    next_time = time.monotonic() + 3600
    while not ended.wait(0.5):  # a wait without limit would not be interrupted on Windows
        if time.monotonic() > next_time:
            next_time += 3600
            each_hour()


def _wire_memory(page: gr.Blocks, context: Context) -> None:
    """Write remembered fields when a person changes them (not when a handler does); fill them when a page opens."""

    numbers = empty_numbers(page)
    with gr.Column(elem_classes="off-page"):
        problem = hidden_text("load-problem", "What went wrong as the page opened")

    def restore() -> dict[Any, Any]:
        updates: dict[Any, Any] = {**numbers}
        for name, component in context.remembered.items():
            value = context.state.get(name, _NEVER_SET)
            if value is not _NEVER_SET:
                try:
                    if (show := context.shown_as.get(name)) is None:
                        component.postprocess(value)
                    updates[component] = show(value) if show else value
                except Exception:  # one that another version kept, or a person wrote: the others are shown all the same
                    log.exception("%s is not shown as it was kept", name)
        return updates

    shown = dict.fromkeys([*numbers, *context.remembered.values()])
    filled = page.load(loading(restore, list(shown), problem), None, [*shown, problem], **QUICK)
    ready = READY % (len(context.on_load) + 1)
    filled.then(None, None, None, js=ready, api_visibility="private")
    for function, inputs, outputs, script in context.on_load:
        act = loading(function, outputs, problem) if function else None
        told = [*outputs, problem] if function else outputs
        loaded = filled.then(act, inputs, told, js=script, **QUICK)
        loaded.then(None, None, None, js=ready, api_visibility="private")
    problem.change(None, problem, None, js="(words) => { window.sdlora.say(words); return []; }", **PRIVATE)
    for name, component in context.remembered.items():

        def write(value: Any, name: str = name) -> None:
            context.state.set(name, value)

        trigger = component.input if hasattr(component, "input") else component.change
        trigger(handler(write), component, None, **LAST_COUNTS)
