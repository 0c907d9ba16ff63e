"""The page: header, tabs, what it remembers; and the server around it."""

from __future__ import annotations

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it would look up its own servers

import gradio as gr

from webui import theme
from webui.context import Context, handler
from webui.state import PageState
from webui.tabs import dataset, generate, mix, runs, settings, train
from webui.workspace import Workspace

TABS = (
    ("dataset", "Dataset", dataset.build),
    ("train", "Train", train.build),
    ("runs", "Runs", runs.build),
    ("mix", "Mix", mix.build),
    ("generate", "Generate", generate.build),
    ("settings", "Settings", settings.build),
)
POLL_SECONDS = 1.0


def build(workspace: Workspace) -> gr.Blocks:
    """The whole page for one workspace, not yet served."""
    workspace.prepare()
    gr.set_static_paths([workspace.thumbnails])
    state = PageState(workspace.state)
    with gr.Blocks(title="sdlora", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# sdlora", elem_id="title")
        timer = gr.Timer(POLL_SECONDS)
        with gr.Tabs(elem_id="tabs") as tabs:
            context = Context(workspace, state, tabs, timer)
            for name, label, build_tab in TABS:
                with gr.Tab(label, id=name, elem_id=f"tab-{name}") as tab:
                    context.share(f"tab.{name}", tab)
                    build_tab(context)
        _wire_memory(page, context)
        for function, inputs, outputs in context.on_load:
            page.load(handler(function), inputs, outputs, show_progress="hidden", api_visibility="private", queue=False)
    return page


def serve(workspace: Workspace, *, host: str, port: int, auth: str | None, open_browser: bool) -> int:
    """Serve the page until interrupted."""
    page = build(workspace)
    page.queue(default_concurrency_limit=1, max_size=64)
    page.launch(
        server_name=host,
        server_port=port,
        auth=tuple(auth.split(":", 1)) if auth else None,
        theme=theme.theme(),
        css_paths=[theme.CSS],
        js=theme.KEYBOARD.read_text(encoding="utf-8"),
        allowed_paths=[str(folder) for folder in (workspace.outputs, workspace.runs, workspace.thumbnails)],
        max_file_size="256mb",
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        footer_links=["settings"],
        share=False,
        inbrowser=open_browser,
        quiet=True,
    )
    return 0


def _wire_memory(page: gr.Blocks, context: Context) -> None:
    """Write remembered fields when a person changes them (not when a handler does); fill them when a page opens."""
    names, components = list(context.remembered), list(context.remembered.values())
    if not components:
        return

    def restore() -> list[Any]:
        missing = object()
        values = [context.state.get(name, missing) for name in names]
        return [gr.skip() if value is missing else value for value in values]

    page.load(restore, None, components, show_progress="hidden", api_visibility="private", queue=False)
    for name, component in context.remembered.items():

        def write(value: Any, name: str = name) -> None:
            context.state.set(name, value)

        trigger = component.input if hasattr(component, "input") else component.change
        trigger(write, component, None, show_progress="hidden", api_visibility="private", queue=False)
