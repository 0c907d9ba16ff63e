"""`sdlora estimate`: how much memory a run takes, and with which settings it fits a card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdlora.cli.app import app, console
from sdlora.cli.guesses import SettingsCommand
from sdlora.cli.train import PresetOption, SetOption
from sdlora.config.base_model import FamilyName
from sdlora.errors import ModelError

if TYPE_CHECKING:
    from sdlora.training.preflight.fitting import Fit


@app.command(cls=SettingsCommand)
def estimate(
    preset: PresetOption = None,
    overrides: SetOption = None,
    memory: Annotated[
        str | None, typer.Option("--memory", "-m", help="What the card has, as 8GB: says what makes the run fit.")
    ] = None,
    device: Annotated[
        Literal["cuda", "cpu"] | None,
        typer.Option(
            "--device",
            help="What trains: a card or this processor; else optimization.device, or cuda with --memory.",
        ),
    ] = None,
    family: Annotated[
        FamilyName | None, typer.Option("--family", help="Count a model of this family; the base need not be here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate the memory of a run's steps by part; with --memory the cheapest settings that make it fit.

    Exit code 1 when nothing makes it fit.
    """
    from sdlora.config import files
    from sdlora.training.preflight.fitting import MemoryNeeds, parse_memory, parts

    limit = None if memory is None else parse_memory(memory)
    config = files.load(preset, overrides or ())
    asked = config.optimization.device.partition(":")[0]
    where = device or (asked if asked in ("cpu", "cuda") else "cpu" if limit is None else "cuda")
    try:
        needs = MemoryNeeds.of(config, where, family)
    except ModelError as error:
        raise ModelError(f"{error}. Or count one of its kind: --family sd1, sd2 or sdxl") from None
    needed = needs.memory()
    fit = None if limit is None else needs.fit(limit)
    if as_json:
        found = {
            "width_px": needs.width_px,
            "height_px": needs.height_px,
            "batch_size": needs.config.optimization.batch_size,
            "gib": {name: round(gib, 3) for name, gib in parts(needed)},
            "total_gib": round(needed.total_gib, 3),
        }
        if limit is not None:
            found |= {"limit_gib": limit, "fits_with": None if fit is None else fit.settings}
        typer.echo(json.dumps(found, indent=2))
    else:
        size = f"{needs.width_px} x {needs.height_px} px, batch {needs.config.optimization.batch_size}"
        console.print(f"{family or config.base_model.model}: steps at {size} take about", markup=False)
        for name, gib in parts(needed):
            console.print(f"  {gib:6.2f} GiB  {name}", markup=False)
        console.print(
            f"  {needed.total_gib:6.2f} GiB  together: an estimate, to be trusted within a quarter. Encoding images "
            "before the steps, and previews, may take more for a moment.",
            markup=False,
        )
        if limit is not None:
            _say_what_fits(fit, limit)
    if limit is not None and fit is None:
        raise typer.Exit(1)


def _say_what_fits(fit: Fit | None, limit: float) -> None:
    if fit is None:
        console.print(
            f"{limit:.3g} GiB: not enough, whatever is switched on. Smaller images (images.resolution) or a base of "
            "another family take less.",
            markup=False,
        )
        return
    if not fit.switches:
        console.print(f"{limit:.3g} GiB: enough", markup=False)
        return
    console.print(f"{limit:.3g} GiB: enough with these, about {fit.memory.total_gib:.2f} GiB:", markup=False)
    for switch in fit.switches:
        console.print(
            f"  {' '.join(f'--set {setting}' for setting in switch.settings)}  ({switch.costs})", markup=False
        )
