"""`sdlora dataset mask`: masks for the loss, from transparency or a model that finds the subject."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sdlora.cli.app import console
from sdlora.cli.dataset import FolderArgument, dataset_app
from sdlora.cli.progress import progress
from sdlora.words import as_typed

_LISTED = 10


@dataset_app.command("mask")
def mask_command(
    folder: FolderArgument,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="alpha (the images' own transparency), a name of rembg's such as u2net or isnet-general-use, an .onnx "
            "file, or a hub name.",
        ),
    ] = "u2net",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make those anew that are there; by default they stay.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make masks beside the images, NAME-masklabel.png, white where an image is trained; `undo` takes them back."""
    from sdlora.data.masking import load_mask_maker, make_masks

    maker = load_mask_maker(model)
    with progress("finding subjects") as on_progress:
        masked = make_masks(folder, maker, overwrite=overwrite, on_progress=on_progress)
    if as_json:
        console.print_json(json.dumps(masked.as_dict()))
        return
    for path, reason in masked.unreadable.items():
        console.print(f"left out: {path.name}: {reason}", markup=False)
    for path in masked.without[:_LISTED]:
        console.print(f"no mask: {path.name}: nothing to tell its subject by", markup=False)
    console.print(masked.words)
    if masked.originals is not None:
        console.print(f"{as_typed('sdlora', 'dataset', 'undo', folder)} takes them back", markup=False)
        console.print("train with them: --set images.mask=file", markup=False)
