"""What Mix, Generate and the API share: library, adapters in use, requests, history. One object a server."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig
from sdlora.errors import AdapterError, ConfigError, SdloraError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.run import Grid
from sdlora.launch.images import ImageWorker
from sdlora.library.prompt_tags import split_prompt, take_tags
from sdlora.library.rows import Rows, check_family, used
from sdlora.library.scan import Library, Scan
from sdlora.models.found import family_of, list_models
from sdlora.models.prompts import CHUNK_TOKENS, count_tokens
from sdlora.models.tokenizer import light_tokenizer
from webui import fields
from webui.active_adapters import ActiveAdapters
from webui.context import Context
from webui.drawing.history import History
from webui.drawing.requests import Drawings
from webui.fields import Field
from webui.run_view.watch import RunWatch
from webui.state import PageState
from webui.workspace import Workspace

FOLDERS_STATE = "settings.adapter_folders"
"""Further folders with adapters, one a line."""
LEFT_OUT = ("adapters", "adapter_folders", "files.folder", "start.image", "start.mask")
"""Settings of a request that the form shows in another way, or not at all."""
FIELDS: tuple[Field, ...] = fields.fields(GenerateConfig, LEFT_OUT)
_NAMES = {field.name for field in FIELDS}


class Studio:
    """Made once by `of`; everything in it is safe from several threads."""

    def __init__(self, workspace: Workspace, state: PageState) -> None:
        self.workspace = workspace
        self.state = state
        self.active = ActiveAdapters(state)
        self.history = History(workspace.outputs, workspace.internal / "history.json")
        self._watch = RunWatch(workspace.runs)
        self._library = Library((), workspace.internal / "library.json")

    @classmethod
    def of(cls, context: Context) -> Studio:
        """The server's studio, made for the first tab that asks."""
        if "studio" not in context.shared:
            context.share("studio", cls(context.workspace, context.state))
        studio: Studio = context.shared["studio"]
        return studio

    @cached_property
    def drawings(self) -> Drawings:
        """The requests; no process is started before the first of them."""
        worker = ImageWorker(self.workspace.internal / "image_worker")
        drawings = Drawings(worker, self.workspace.outputs, self.active_training)
        atexit.register(drawings.close)
        return drawings

    @property
    def adapter_folders(self) -> tuple[Path, ...]:
        """Where adapters are looked for: the workspace's, those of runs, and the folders named in the settings."""
        others = named_folders(self.state.get(FOLDERS_STATE))
        folders = (self.workspace.adapters, self.workspace.runs, *others)
        return tuple(folder for folder in folders if folder.is_dir())

    @property
    def start_images(self) -> Path:
        """Start images and masks, by their content."""
        return self.workspace.internal / "start_images"

    def scan(self) -> Scan:
        """Look through the adapter folders again."""
        if self._library.folders != self.adapter_folders:
            self._library = Library(self.adapter_folders, self.workspace.internal / "library.json")
        return self._library.scan()

    @property
    def adapters(self) -> Scan:
        """What the last look found; looks once if nobody has."""
        return self._library.last if self._library.folders else self.scan()

    def models(self) -> list[tuple[str, str]]:
        """Base models to choose from, label and value."""
        return list_models(self.workspace.models)

    def active_training(self) -> str | None:
        """The name of a training that runs now."""
        return next((run.name for run in self._watch.look().active), None)

    # ---- requests

    def request(
        self,
        shown: Mapping[str, Any],
        *,
        start: tuple[Path | None, Path | None] = (None, None),
        rows: Rows | None = None,
        one_image: bool = False,
    ) -> GenerateConfig:
        """The request behind what the form shows and the adapters in use. start: image and mask.

        one_image: for a grid, which generates one a cell. Raises ConfigError with every problem at once.
        """
        rows = self.active.rows if rows is None else rows
        problems: list[str] = []
        others: dict[str, Any] = {
            "adapter_folders": [str(folder) for folder in self.adapter_folders],
            "start.image": start[0],
            "start.mask": start[1],
        }
        try:
            others["adapters"] = [adapter.model_dump() for adapter in used(rows)]
        except ConfigError as error:
            problems += error.problems
        unknown = [name for name in shown if name not in _NAMES]
        problems += [f"{name}: unknown setting" for name in unknown]
        values = {**shown, "num_images": 1} if one_image else shown
        config, found = fields.check(GenerateConfig, FIELDS, values, others)
        problems += found
        if config is not None:
            problems += self._problems_of(config, rows)
        if problems:
            raise ConfigError("the request", problems)
        checked: GenerateConfig = config
        return checked

    def grid(self, config: GenerateConfig, axes: Sequence[str], run: str | None = None) -> Grid:
        """The grid of a request over axes such as `adapter.weight=0:1.2:0.2`. Raises ConfigError with every problem.

        run: the name of the run that the axis `checkpoint` means.
        """
        config = take_tags(config)
        return Grid(config, parse_axes(axes, config, self.run_folder(run)))

    def run_folder(self, run: str | None) -> Path | None:
        """The folder of a run of this workspace."""
        return self.workspace.runs / run if run else None

    def runs(self) -> list[str]:
        """Names of the runs, newest first."""
        return [run.name for run in self._watch.look().runs]

    def _problems_of(self, config: GenerateConfig, rows: Rows) -> list[str]:
        problems: list[str] = []
        family = family_of(config.base_model)
        base = None if family is None else (config.base_model.model, family)
        try:
            check_family(rows, self.adapters, base)
        except AdapterError as error:
            problems.append(f"adapters: {error}")
        try:
            take_tags(config)
        except ConfigError as error:
            problems += [f"prompt: {problem}" for problem in error.problems]
        return problems


def named_folders(lines: str | None) -> list[Path]:
    """The folders that a text names, one a line."""
    return [Path(line.strip()).expanduser() for line in (lines or "").splitlines() if line.strip()]


def count_prompt_tokens(prompt: str, model: str) -> tuple[int, int]:
    """Tokens of a prompt without its `<lora:...>` tags, and the room in the chunks that they take."""
    try:
        text = split_prompt(prompt)[0]
    except ConfigError:
        text = prompt
    tokens = count_tokens(_tokenizer(model), text)
    return tokens, CHUNK_TOKENS * max(1, -(-tokens // CHUNK_TOKENS))


@lru_cache(maxsize=4)
def _tokenizer(model: str) -> Any:
    try:
        return light_tokenizer(BaseModelConfig(model=model))
    except (SdloraError, OSError, ValueError):  # nothing there yet: all families share CLIP's vocabulary
        return light_tokenizer(BaseModelConfig())
