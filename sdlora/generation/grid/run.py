"""Grids: one request with every combination of up to three axes' values, as single files and a labelled sheet.

    grid = Grid(config, parse_axes(["adapter.weight=0:1.2:0.2", "checkpoint=100,200"], config, run))
    for generated in grid.generate():
        ...
    sheet = grid.sheet({generated.cell.place: generated.image.image for generated in ...})

Planning a grid loads no torch; generating it does.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdlora import atomic
from sdlora.config.generate import GenerateConfig
from sdlora.errors import ConfigError
from sdlora.generation.grid.axes import parse_axes
from sdlora.generation.grid.contact_sheet import GridPosition, SheetAxis, draw_contact_sheet
from sdlora.generation.grid.values import FILE, Axis, AxisValue
from sdlora.generation.restore.image_files import SUFFIX_OF, save_image, save_sheet
from sdlora.library.names import find_adapter
from sdlora.library.prompt_tags import take_tags
from sdlora.text_files import model_as_json

if TYPE_CHECKING:
    from sdlora.generation.generate import Generator
    from sdlora.generation.generated import GeneratedImage, StepPreview

MOST_CELLS = 400
"""More than this is asked for explicitly."""
_MOST_AXES = 3
# What each image of a batch has for itself; all else is shared by a call of the UNet or by the whole pass.
_DIFFER_IN_A_BATCH = {"prompt", "negative", "seed", "guidance", "adapters", "adapter_folders", "files"}
_CANNOT_FAIL = {"prompt", "negative", "seed", "guidance", "files"}
"""Settings that every value of which can be generated."""


@dataclass(frozen=True)
class Cell:
    """One image of a grid: column, row and block, its label along every axis, and its request."""

    place: GridPosition
    labels: tuple[str, ...]
    config: GenerateConfig


@dataclass(frozen=True)
class GeneratedCell:
    """A cell and what was generated for it; `done` of `total` cells are ready with it."""

    cell: Cell
    image: GeneratedImage
    done: int
    total: int


class Grid:
    """All combinations of the axes' values, applied to one request.

    Every cell has the same seed unless an axis varies it. Raises ConfigError listing every problem: settings that don't
    fit together, more than `most_cells` cells. for_more: what that error says of how to have more, where one can.
    """

    def __init__(
        self, config: GenerateConfig, axes: Sequence[Axis], *, most_cells: int = MOST_CELLS, for_more: str = ""
    ) -> None:
        self.axes = tuple(axes)
        # One seed for all cells, chosen here: else each batch would choose its own and nothing could be compared.
        self.config = config.model_copy(update={"seed": random.randrange(2**32) if config.seed == -1 else config.seed})
        total = 1
        for axis in self.axes:
            total *= len(axis.values)
        problems = []
        if not 1 <= len(self.axes) <= _MOST_AXES:
            problems.append(f"{len(self.axes)} axes; a grid has one to three")
        if config.num_images > 1:
            problems.append(f"num_images={config.num_images}: a grid generates one image a cell; vary the seed instead")
        if total > most_cells:
            sizes = " x ".join(str(len(axis.values)) for axis in self.axes)
            problems.append(f"{sizes} = {total:,} cells, more than {most_cells}; take fewer values{for_more}")
        if problems:
            raise ConfigError("the grid", problems)
        self._cells = self._build()

    def _build(self) -> tuple[Cell, ...]:
        find = _Finder(self.config.adapter_folders)
        cells: list[Cell] = []
        problems: dict[str, None] = {}
        counts = [len(axis.values) for axis in self.axes] + [1] * (_MOST_AXES - len(self.axes))
        places = [(x, y, z) for z in range(counts[2]) for y in range(counts[1]) for x in range(counts[0])]
        for place in places:
            chosen = [(axis, axis.values[index]) for axis, index in zip(self.axes, place, strict=False)]
            try:
                cells.append(Cell(place, tuple(value.label for _, value in chosen), _vary(self.config, chosen, find)))
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError("the grid", list(problems))
        return tuple(cells)

    def cells(self) -> tuple[Cell, ...]:
        """Every cell, as one reads: x first, then y, then z."""
        return self._cells

    def batches(self) -> list[tuple[Cell, ...]]:
        """The cells in the order in which they are generated, those together that can be generated at once.

        Base models switch least; then sizes, samplers and steps, which a batch must share; then sets of adapters.
        """
        batches: list[tuple[Cell, ...]] = []
        for group in _grouped(self._cells, _base_key):
            for alike in _grouped(group, lambda config: model_as_json(config, exclude=_DIFFER_IN_A_BATCH)):
                ordered = [cell for same in _grouped(alike, _adapters_key) for cell in same]
                size = ordered[0].config.batch_size
                batches += [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
        return batches

    def generate(
        self,
        generator: Generator | None = None,
        *,
        on_step: Callable[[StepPreview], None] | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[GeneratedCell]:
        """Generate every cell; cells come as they are ready, in the order of `batches`.

        generator: one that is loaded already; others are loaded as needed, one at a time. When cancelled, the
        cells that are ready have been given. Raises ConfigError with the problems of all cells (a base model or an
        adapter that isn't there or doesn't fit) before anything is loaded.
        """
        self._check()
        done = 0
        with closing(_Generators(generator)) as generators:
            for batch in self.batches():
                if is_cancelled():
                    return
                generator = generators.get(batch[0].config)
                rows = [cell.config for cell in batch]
                tell = None if on_step is None else self._counting(on_step, done)
                generated = generator.generate_rows(rows, on_step=tell, is_cancelled=is_cancelled)
                # Cancelled midway, a batch has fewer images than cells.
                for cell, image in zip(batch, generated, strict=False):
                    done += 1
                    yield GeneratedCell(cell, image, done, len(self._cells))

    def _counting(self, on_step: Callable[[StepPreview], None], done: int) -> Callable[[StepPreview], None]:
        """Steps told with the images of the whole grid counted, not those of a batch."""

        def tell(step: StepPreview) -> None:
            on_step(replace(step, image_index=done + step.image_index, num_images=len(self._cells)))

        return tell

    def _check(self) -> None:
        from sdlora.generation.request.requests import resolve

        problems: dict[str, None] = {}
        # One cell of each kind: 400 cells that differ in seeds alone need no 400 looks at the same files.
        for alike in _grouped(self._cells, lambda config: model_as_json(config, exclude=_CANNOT_FAIL)):
            try:
                resolve(alike[0].config)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError("the grid", list(problems))

    def sheet(self, images: Mapping[GridPosition, Image.Image]) -> Image.Image:
        """The labelled sheet; cells without an image stay grey."""
        axes = [SheetAxis(axis.title, tuple(value.label for value in axis.values)) for axis in self.axes]
        return draw_contact_sheet(images, *axes)

    def about(self) -> dict[str, Any]:
        """Axes, labels and the request, for the sheet's metadata; without the axes' texts, which may name folders."""
        return {
            "axes": [axis.title for axis in self.axes],
            "labels": [[value.label for value in axis.values] for axis in self.axes],
            "request": self.config.model_dump(mode="json", include={"prompt", "negative", "seed", "steps", "sampler"}),
        }


def plan_grid(config: GenerateConfig, specs: Sequence[str], run: Path | None = None) -> Grid:
    """The grid of a request over axes such as `adapter.weight=0:1.2:0.2`, its prompt's adapters among the others.

    run: the run that the axis `checkpoint` means. Raises ConfigError with every problem.
    """
    config = take_tags(config)
    return Grid(config, parse_axes(specs, config, run))


def save_grid(
    grid: Grid,
    folder: Path,
    generator: Generator | None = None,
    *,
    on_cell: Callable[[GeneratedCell, Path], None] | None = None,
    on_step: Callable[[StepPreview], None] | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Generate a grid into a new folder `<folder>/grid-0001`: sheet.png and a file a cell; returns the sheet's path.

    Cells are called after their place, x02-y01.png. When cancelled or interrupted, the sheet shows what is ready; with
    nothing ready there is none.
    """
    sheet: Path | None = None
    target = _new_folder(folder)
    images: dict[GridPosition, Image.Image] = {}
    try:
        for generated in grid.generate(generator, on_step=on_step, is_cancelled=is_cancelled):
            images[generated.cell.place] = generated.image.image
            places = zip("xyz"[: len(grid.axes)], generated.cell.place, strict=False)
            name = "-".join(f"{axis}{number:02d}" for axis, number in places) + SUFFIX_OF[grid.config.files.format]
            path = save_image(generated.image, target / name)
            if on_cell is not None:
                on_cell(generated, path)
    finally:
        if images:
            sheet = save_sheet(grid.sheet(images), target / "sheet.png", grid.config.files, grid.about())
        else:
            target.rmdir()
    return sheet


def _new_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("grid-*"):
        atomic.sweep(earlier, shared=True)  # half a picture of a grid that was killed
    number = 1
    while True:
        # mkdir claims the number: of two grids that begin at once each gets its own.
        try:
            (folder / f"grid-{number:04d}").mkdir()
            return folder / f"grid-{number:04d}"
        except FileExistsError:
            number += 1


def _vary(
    config: GenerateConfig, chosen: Sequence[tuple[Axis, AxisValue]], find: Callable[[str], Path]
) -> GenerateConfig:
    """The request with one value of every axis; what its prompt names becomes adapters once the prompt is final."""
    in_order = sorted(chosen, key=lambda item: item[0].stage)
    for _, value in (item for item in in_order if item[0].stage < FILE):
        config = value.apply(config)
    config = take_tags(config, find)
    for _, value in (item for item in in_order if item[0].stage >= FILE):
        config = value.apply(config)
    return config


class _Finder:
    """`find_adapter` that remembers, also what it didn't find."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._known: dict[str, Path | ConfigError] = {}

    def __call__(self, name: str) -> Path:
        if name not in self._known:
            try:
                self._known[name] = find_adapter(name, self._folders)
            except ConfigError as error:
                self._known[name] = error
        known = self._known[name]
        if isinstance(known, ConfigError):
            raise known
        return known


class _Generators:
    """The generator that is loaded at the moment; one at a time."""

    def __init__(self, given: Generator | None) -> None:
        self._given = given
        self._loaded: Generator | None = None

    def get(self, config: GenerateConfig) -> Generator:
        """One for the request's base model, loaded unless it is there."""
        if self._given is not None and self._given.fits(config):
            return self._given
        if self._loaded is None or not self._loaded.fits(config):
            from sdlora.generation.generate import Generator

            self.close()
            self._loaded = Generator(config.base_model, config.compute)
        return self._loaded

    def close(self) -> None:
        """Let go of what was loaded here, also of its memory on a card: two models at once may not fit."""
        if self._loaded is None:
            return
        import torch

        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _grouped(cells: Sequence[Cell], key: Callable[[GenerateConfig], str]) -> list[list[Cell]]:
    """Cells with the same key together, in the order in which the keys first appear."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell.config), []).append(cell)
    return list(groups.values())


def _base_key(config: GenerateConfig) -> str:
    """Equal for requests that one loaded model serves; clip_skip only chooses a layer of it."""
    return f"{model_as_json(config.base_model, exclude={'clip_skip'})} {model_as_json(config.compute)}"


def _adapters_key(config: GenerateConfig) -> str:
    return " ".join(model_as_json(adapter) for adapter in config.adapters)
