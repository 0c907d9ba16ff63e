"""What all tabs and the API share, one of each a server; everything in it is safe from several threads."""

from __future__ import annotations

import atexit
import inspect
from functools import cached_property
from pathlib import Path

from sdlora.generation.restore.history import History
from sdlora.launch.evaluations import Evaluations
from sdlora.launch.forecast import Forecaster
from sdlora.launch.images import ImageQueue
from sdlora.launch.watch import RunWatch
from sdlora.library.scan import Library, Scan
from sdlora.models.found import list_models
from webui.active_adapters import ActiveAdapters
from webui.news import News
from webui.state import PageState
from webui.workspace import Workspace

FOLDERS_STATE = "settings.adapter_folders"
"""Further folders with adapters, one a line."""


class Services:
    """What outlives any request of a page: runs, images, adapters, news. Made once, with the page."""

    def __init__(self, workspace: Workspace, state: PageState) -> None:
        self.workspace = workspace
        self.state = state
        self.watch = RunWatch(workspace.runs)
        self.forecaster = Forecaster(self.watch, workspace.jobs)
        self.evaluations = Evaluations(workspace.jobs)
        self.active = ActiveAdapters(state)
        self.history = History(workspace.outputs, workspace.internal / "history.json")
        self.news = News()
        self.signatures: dict[str, inspect.Signature] = {}
        """The API's functions, by the name they are called by."""
        self.scripts = ""
        """JavaScript that the page begins with."""
        self._library = Library((), workspace.internal / "library.json")

    @cached_property
    def images(self) -> ImageQueue:
        """The requests for images; no process is started before the first of them."""
        images = ImageQueue(self.workspace.internal / "image_worker", training=self.watch.training)
        # The worker is a process of its own with a model in its memory: it must not outlive the page.
        atexit.register(images.close)
        return images

    @property
    def adapter_folders(self) -> tuple[Path, ...]:
        """Where adapters are looked for: the workspace's, those of runs, and the folders named in the settings."""
        others = named_folders(self.state.get(FOLDERS_STATE))
        folders = (self.workspace.adapters, self.workspace.runs, *others)
        return tuple(folder for folder in folders if folder.is_dir())

    def scan(self) -> Scan:
        """Look through the adapter folders again."""
        # The settings may name other folders by now; the index file is kept, so known adapters aren't read again.
        if self._library.folders != self.adapter_folders:
            self._library = Library(self.adapter_folders, self.workspace.internal / "library.json")
        return self._library.scan()

    @property
    def adapters(self) -> Scan:
        """What the last scan found; scans if nobody has."""
        return self._library.last if self._library.folders else self.scan()

    def models(self) -> list[tuple[str, str]]:
        """Base models to choose from, label and value."""
        return list_models(self.workspace.models)

    def run_folder(self, run: str | None) -> Path | None:
        """The folder of a run of this workspace."""
        return self.workspace.runs / run if run else None


def named_folders(lines: str | None) -> list[Path]:
    """The folders that a text names, one a line."""
    return [Path(line.strip()).expanduser() for line in (lines or "").splitlines() if line.strip()]
