"""`sdlora dataset class-images`: images of a class, drawn by the base model, for prior preservation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdlora.cli.app import console
from sdlora.cli.dataset import dataset_app
from sdlora.cli.progress import progress
from sdlora.cli.train import PresetOption, SetOption
from sdlora.config import files
from sdlora.config.generate import ComputeConfig, GenerateConfig
from sdlora.errors import ConfigError


@dataset_app.command("class-images")
def class_images_command(
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="What the subject is one of, for example 'a photo of a dog'; may be given again, all are taken in "
            "turn. {red|green} picks one each time.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images that the folder is to hold.")] = 200,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for them; by default images.class_folder.")
    ] = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    negative: Annotated[str, typer.Option("--negative", help="What not to draw.")] = "",
    steps: Annotated[int, typer.Option("--steps", min=1, max=500, help="Sampling steps.")] = 25,
    guidance: Annotated[float, typer.Option("--cfg", min=0, max=50, help="Classifier-free guidance scale.")] = 7.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first image; the others count up.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, max=64, help="Images drawn at once.")] = 4,
) -> None:
    """Draw class images with the base model of a run; run again, only what is missing."""
    config = files.load(preset, overrides or ())
    folder = out or config.images.class_folder
    if folder is None:
        raise ConfigError("the command line", ["--out is missing: name a folder, or set images.class_folder"])
    edge_px = config.images.resolutions[0]
    request = GenerateConfig(
        base_model=config.base_model,
        negative=negative,
        steps=steps,
        guidance=guidance,
        seed=seed,
        width_px=edge_px,
        height_px=edge_px,
        batch_size=batch,
        compute=ComputeConfig(device=config.optimization.device),
    )
    from sdlora.generation.class_images import draw_class_images

    with progress("drawing class images") as on_progress:
        result = draw_class_images(request, prompts or (), count, folder, on_progress=on_progress)
    before = f", {result.there} were there" if result.there else ""
    console.print(f"{result.drawn} class images drawn{before}", markup=False)
    console.print(
        f"train with them: --set objective.prior_preservation=class_images --set images.class_folder={folder}",
        markup=False,
    )
