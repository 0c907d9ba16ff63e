"""The parts of `sdlora generate` that repeat a picture, generate grids and compare adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdlora.cli.app import console, in_home
from sdlora.cli.progress import progress
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.words import as_typed

if TYPE_CHECKING:
    from sdlora.generation.generated import StepPreview
    from sdlora.generation.grid.run import GeneratedCell

FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="IMAGE",
        help="Repeat this picture, made here or by AUTOMATIC1111's web UI; other options overrule its settings.",
        callback=in_home,
    ),
]
GridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="AXIS=VALUES",
        help="Generate an image for every value of a setting, in a labelled sheet; up to three times (x, y, z). For "
        "example adapter.weight=0:1.2:0.2, checkpoint=100,200,final, replace=cat,dog, seed=1,2, sampler=Euler,DDIM, "
        "cfg=2:8:2, adapter.file=a,b, size=512x512,512x768.",
    ),
]
CompareOption = Annotated[
    bool,
    typer.Option("--compare", help="Generate without adapters, with each alone, and with all together, in a sheet."),
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="A run to generate with: its base model, new tokens and finished adapter, which --adapter or a tag in the "
        "prompt takes the place of; and the files of --grid checkpoint=...",
        callback=in_home,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Generate a grid of more than 400 images.")]

# --yes lifts the usual limit; a slip in a range must still end somewhere.
_MOST_CELLS_IF_ASKED = 10_000
_PARTS = 100
"""What a cell counts in the progress bar, so that its steps can be told."""
_FROM_TRAINING = {
    "model",
    "revision",
    "variant",
    "family",
    "prediction",
    "zero_terminal_snr",
    "flow_shift",
    "vae",
    "vae_scale",
    "vae_shift",
    "adapters",
    "clip_skip",
}


def picture_settings(image: Path, adapter_folders: Sequence[Path], *, base_is_given: bool) -> dict[str, Any]:
    """Settings of the picture to repeat, as a YAML request holds them; prints what will differ."""
    from sdlora.generation.restore.repeat import repeat_image

    repeated = repeat_image(image, adapter_folders, base_is_given=base_is_given)
    for note in repeated.notes:
        console.print(f"note: {note}", markup=False)
    return repeated.values


def run_settings(run: Path) -> dict[str, Any]:
    """The base model that a run was trained on, as a YAML request holds it, and where its new tokens are found."""
    from sdlora.runs.folder import open_run

    folder, config = open_run(run)
    settings = {"base_model": config.base_model.model_dump(mode="json", include=_FROM_TRAINING)}
    return {**settings, "embedding_folders": [str(folder.path)]} if config.adapter.new_tokens else settings


def with_adapter_of(run: Path, config: GenerateConfig) -> GenerateConfig:
    """The request with the run's adapter, unless it names adapters itself; prints what may be meant otherwise.

    Raises ConfigError where the run has none yet.
    """
    from sdlora.library.prompt_tags import split_prompt
    from sdlora.runs.folder import open_run
    from sdlora.runs.results import adapter_files

    folder, trained = open_run(run)
    if trained.adapter.rank == 0:  # new tokens alone
        return config
    adapter = folder.adapter(trained.name)
    tags = split_prompt(config.prompt)[1]
    if config.adapters or tags:
        named = {Path(one.file).expanduser().resolve() for one in config.adapters}
        is_own = any(folder.path in path.parents for path in named) or any(tag.name == adapter.stem for tag in tags)
        if not is_own:
            words = f"only the adapters that are named are used; --adapter {as_typed(adapter)} adds the run's own"
            console.print(f"note: {words}", markup=False)
        return config
    if not adapter.is_file():
        kept = adapter_files(folder)
        chosen = next((file for file in kept if file.is_best), kept[-1] if kept else None)
        if chosen is None:
            instead = f"--base {as_typed(trained.base_model.model)} generates with its base model alone"
            raise ConfigError("the command line", [f"--run {run}: it has no adapter yet; {instead}"])
        adapter = chosen.path
        console.print(f"note: {folder.path.name} isn't finished: {adapter.name} is used", markup=False)
    weight = _preferred_weight(adapter)
    if weight != 1:
        console.print(f"note: {adapter.name} is used at its preferred weight {weight:g}", markup=False)
    return config.model_copy(update={"adapters": (UsedAdapter(file=str(adapter), weight=weight),)})


def _preferred_weight(adapter: Path) -> float:
    from sdlora.adapters.files.catalog import describe

    card = adapter.with_suffix(".json")
    described = describe(adapter, card if card.is_file() else None)
    return 1.0 if described is None or described.preferred_weight is None else described.preferred_weight


def generate_grid(
    config: GenerateConfig, axes: Sequence[str] | None, *, run: Path | None, compare: bool, yes: bool
) -> None:
    """Generate a grid into a new folder in config.files.folder, with a progress bar; prints the sheet's path."""
    from sdlora.generation.grid.axes import COMPARE, parse_axes
    from sdlora.generation.grid.run import MOST_CELLS, Grid, save_grid

    specs = [*(axes or ()), *([COMPARE] if compare else [])]
    limits = {"most_cells": _MOST_CELLS_IF_ASKED} if yes else {"most_cells": MOST_CELLS, "for_more": ", or say --yes"}
    grid = Grid(config, parse_axes(specs, config, run), **limits)
    warnings: dict[str, None] = {}
    with progress("generating the grid") as advance:

        def on_cell(generated: GeneratedCell, _: Path) -> None:
            warnings.update(dict.fromkeys(generated.image.warnings))
            advance(generated.done * _PARTS, generated.total * _PARTS)

        def on_step(preview: StepPreview) -> None:
            at_once = min(config.batch_size, preview.num_images - preview.image_index)
            done = preview.image_index + at_once * preview.step / preview.total_steps
            advance(int(done * _PARTS), preview.num_images * _PARTS)

        sheet = save_grid(grid, config.files.folder, on_cell=on_cell, on_step=on_step)
    for warning in warnings:
        console.print(f"note: {warning}", markup=False)
    console.print(f"{sheet}: {len(grid.cells())} images, the single ones beside it", markup=False)
