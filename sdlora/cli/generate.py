"""`sdlora generate`: prompts and adapters to image files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdlora import disk
from sdlora.cli.app import app, console
from sdlora.cli.early import require_files
from sdlora.cli.grids import (
    CompareOption,
    FromOption,
    GridOption,
    RunOption,
    YesOption,
    generate_grid,
    picture_settings,
    run_settings,
    with_adapter_of,
)
from sdlora.cli.guesses import GenerateCommand
from sdlora.cli.progress import progress
from sdlora.cli.train import SetOption
from sdlora.config import files, schema
from sdlora.config.generate import GenerateConfig, Sampler, UsedAdapter
from sdlora.config.mix import parse_adapters
from sdlora.errors import ConfigError

if TYPE_CHECKING:
    from sdlora.generation.generated import StepPreview


def _option(name: str, *spellings: str, metavar: str | None = None) -> Any:
    """The option of a setting, described by the setting itself."""
    setting = next(setting for setting in schema.settings(GenerateConfig) if setting.name == name)
    default = "" if setting.default in (None, "", ()) else f" [default: {setting.default}]"
    # Square brackets are rich's markup.
    return typer.Option(*spellings, help=f"{setting.description}{default}".replace("[", r"\["), metavar=metavar)


@app.command(cls=GenerateCommand)
def generate(
    request: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT|FILE.yaml]", help="A prompt, or a YAML file with settings; options overrule it."
        ),
    ] = None,
    base: Annotated[str | None, _option("base_model.model", "--base")] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            metavar="FILE:WEIGHT",
            help="An adapter; may be given again. ink.safetensors:0.8, or ink.safetensors:unet=0.6,te=0,start=0.2. "
            "<lora:ink:0.8> in the prompt is another way to name one.",
        ),
    ] = None,
    adapter_folders: Annotated[list[Path] | None, _option("adapter_folders", "--adapter-folder")] = None,
    embedding_folders: Annotated[list[Path] | None, _option("embedding_folders", "--embedding-folder")] = None,
    prompt: Annotated[str | None, _option("prompt", "--prompt", "-p")] = None,
    negative: Annotated[str | None, _option("negative", "--negative", "-n")] = None,
    sampler: Annotated[Sampler | None, _option("sampler", "--sampler")] = None,
    steps: Annotated[int | None, _option("steps", "--steps")] = None,
    guidance: Annotated[float | None, _option("guidance", "--cfg")] = None,
    seed: Annotated[int | None, _option("seed", "--seed")] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Width and height in pixels; by default the model's.")
    ] = None,
    count: Annotated[int | None, _option("num_images", "--count")] = None,
    batch: Annotated[int | None, _option("batch_size", "--batch")] = None,
    image: Annotated[Path | None, _option("start.image", "--image")] = None,
    strength: Annotated[float | None, _option("start.strength", "--strength")] = None,
    mask: Annotated[Path | None, _option("start.mask", "--mask")] = None,
    out: Annotated[Path | None, _option("files.folder", "--out", "-o")] = None,
    overrides: SetOption = None,
    repeated: FromOption = None,
    grid: GridOption = None,
    compare: CompareOption = False,
    run: RunOption = None,
    yes: YesOption = False,
) -> None:
    """Generate images from a prompt, with any number of adapters."""
    folders = adapter_folders or ()
    values: dict[str, Any] = {}
    if request is not None and request.lower().endswith((".yaml", ".yml")):
        values = files.read_yaml(Path(request))
    elif request is not None and prompt is not None:
        raise ConfigError("the command line", [f"the prompt is given twice: '{request}' and --prompt '{prompt}'"])
    elif request is not None:
        prompt = request
    if run is not None:
        values = schema.joined(values, run_settings(run))
    if repeated is not None:
        values = schema.joined(
            values, picture_settings(repeated, folders, base_is_given=base is not None or run is not None)
        )
    folders_of_run = values.get("embedding_folders", ()) if run is not None else ()
    width_px, height_px = (None, None) if size is None else _size(size)
    given = {
        "base_model.model": base,
        "adapters": [one.model_dump() for one in parse_adapters(adapters, UsedAdapter)] if adapters else None,
        "adapter_folders": [str(folder) for folder in folders] or None,
        "embedding_folders": [*(str(folder) for folder in embedding_folders), *folders_of_run]
        if embedding_folders
        else None,
        "prompt": prompt,
        "negative": negative,
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "width_px": width_px,
        "height_px": height_px,
        "num_images": count,
        "batch_size": batch,
        "start.image": image,
        "start.strength": strength,
        "start.mask": mask,
        "files.folder": out,
    }
    values = schema.joined(values, schema.nest({name: value for name, value in given.items() if value is not None}))
    source = "the command line" if request is None or request == prompt else request
    files.override(values, overrides or (), source, GenerateConfig)
    config = files.validate(values, source, GenerateConfig)
    if run is not None:
        config = with_adapter_of(run, config)
    if problem := disk.why_not_writable(config.files.folder):
        raise ConfigError(source, [f"files.folder: {problem}"])
    if grid or compare:
        generate_grid(config, grid, run=run, compare=compare, yes=yes)
    else:
        _generate(config)


def _generate(config: GenerateConfig) -> None:
    """Generate and save all images, with a progress bar; prints their paths and what is worth knowing."""
    require_files([adapter.file for adapter in config.adapters], [config.base_model.model])
    from sdlora.generation.generate import generate as generate_images
    from sdlora.generation.restore.image_files import save_image

    paths: list[Path] = []
    warnings: dict[str, None] = {}
    with progress("generating") as advance:

        def on_step(preview: StepPreview) -> None:
            at_once = min(config.batch_size, preview.num_images - preview.image_index)
            done = preview.image_index * preview.total_steps + preview.step * at_once
            advance(done, preview.num_images * preview.total_steps)

        try:
            for generated in generate_images(config, on_step=on_step):
                warnings.update(dict.fromkeys(generated.warnings))
                paths.append(save_image(generated, config.files.folder))
        finally:
            # After Ctrl-C too: what was finished lies on the disk, and its path is wanted.
            for warning in warnings:
                console.print(f"note: {warning}", markup=False)
            for path in paths:
                console.print(str(path), markup=False)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise ConfigError("the command line", [f"--size {text}: write width and height as 512x768"])
    return int(match[1]), int(match[2])
