"""The home tab: the last runs, datasets and pictures, each a link to where one goes on with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import gradio as gr

from sdlora.data.sets import folders
from sdlora.data.thumbnails import thumbnail, tile
from sdlora.disk import changed_at
from sdlora.words import count
from webui.context import QUICK, Context, handler
from webui.layout import html
from webui.runs.view import run_rows
from webui.templating import macros

_HTML = macros("home.html")
_RUNS, _DATASETS, _PICTURES = 5, 6, 9


@dataclass(frozen=True)
class Link:
    """A tile that leads somewhere."""

    address: str
    picture: Path
    name: str
    line: str


def build(context: Context) -> None:
    """Lay out the tab."""
    services, thumbnails = context.services, context.workspace.thumbnails

    def datasets() -> list[Link]:
        """Changed last first."""
        known = [context.workspace.datasets / name for name in folders.names(context.workspace.datasets)]
        newest = sorted(known, key=changed_at, reverse=True)[:_DATASETS]
        return [_dataset(folder, thumbnails) for folder in newest]

    def pictures() -> list[Link]:
        """Generated last first."""
        return [
            Link(str(image.path), thumbnail(image.path, thumbnails), image.prompt or image.path.stem, "")
            for image in islice(services.history.images(), _PICTURES)
        ]

    def show() -> str:
        return str(_HTML.overview(run_rows(services.watch.snapshot())[:_RUNS], datasets(), pictures()))

    def stamp() -> object:
        runs = tuple((run.name, run.state.status, run.state.step) for run in services.watch.snapshot().runs[:_RUNS])
        return runs, folders.stamps(context.workspace.datasets)

    gr.HTML("<h2>Home</h2>", elem_classes="tab-title")
    overview = html("home-overview")
    context.follow("home", stamp, show, [], [overview])
    context.shared["tab.home"].select(handler(show), None, overview, **QUICK)


def _dataset(folder: Path, thumbnails: Path) -> Link:
    """With its first picture; a tile with its name when it has none."""
    pictures = folders.pictures(folder)
    shown = thumbnail(pictures[0], thumbnails) if pictures else tile(folder.name, thumbnails)
    return Link(folder.name, shown, folder.name, count(len(pictures), "image"))
