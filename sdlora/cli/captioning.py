"""`sdlora dataset caption`: captions written by a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sdlora.cli.app import console
from sdlora.cli.dataset import FolderArgument, dataset_app
from sdlora.cli.progress import event_stream
from sdlora.config import files
from sdlora.config.captioning import CaptioningConfig, Existing
from sdlora.words import as_typed

if TYPE_CHECKING:
    from sdlora.data.captioning.run import Captioned

_LISTED = 10


def _option(name: str, *spellings: str, metavar: str | None = None) -> Any:
    """The option of a setting, described by the setting itself."""
    help_text = CaptioningConfig.model_fields[name].description
    return typer.Option(*spellings or (f"--{name.replace('_', '-')}",), help=help_text, metavar=metavar)


@dataset_app.command("caption")
def caption_command(
    folder: FolderArgument,
    model: Annotated[str | None, _option("model", "--model", "-m")] = None,
    endpoint: Annotated[str | None, _option("endpoint", metavar="URL")] = None,
    prompt: Annotated[str | None, _option("prompt")] = None,
    detail: Annotated[Literal["short", "detailed", "paragraph"] | None, _option("detail")] = None,
    key_variable: Annotated[str | None, _option("key_variable", metavar="NAME")] = None,
    timeout_seconds: Annotated[float | None, _option("timeout_seconds")] = None,
    existing: Annotated[Existing | None, _option("existing")] = None,
    trigger: Annotated[str | None, _option("trigger")] = None,
    prefix: Annotated[str | None, _option("prefix")] = None,
    suffix: Annotated[str | None, _option("suffix")] = None,
    exclude: Annotated[list[str] | None, _option("exclude", metavar="TAG[,TAG...]")] = None,
    threshold: Annotated[float | None, _option("threshold")] = None,
    character_threshold: Annotated[float | None, _option("character_threshold")] = None,
    rating_threshold: Annotated[float | None, _option("rating_threshold")] = None,
    escape_brackets: Annotated[bool | None, _option("escape_brackets", "--escape-brackets/--plain-brackets")] = None,
    max_tokens: Annotated[int | None, _option("max_tokens")] = None,
    beams: Annotated[int | None, _option("beams")] = None,
    batch_size: Annotated[int | None, _option("batch_size")] = None,
    device: Annotated[str | None, _option("device")] = None,
    revision: Annotated[str | None, _option("revision")] = None,
) -> None:
    """Let a model caption the images; interrupted it goes on where it was, `undo` takes all of it back."""
    excluded = [tag.strip() for text in exclude or () for tag in text.split(",") if tag.strip()]
    given = {
        "model": model,
        "endpoint": endpoint,
        "prompt": prompt,
        "detail": detail,
        "key_variable": key_variable,
        "timeout_seconds": timeout_seconds,
        "existing": existing,
        "trigger": trigger,
        "prefix": prefix,
        "suffix": suffix,
        "exclude": excluded or None,
        "threshold": threshold,
        "character_threshold": character_threshold,
        "rating_threshold": rating_threshold,
        "escape_brackets": escape_brackets,
        "max_tokens": max_tokens,
        "beams": beams,
        "batch_size": batch_size,
        "device": device,
        "revision": revision,
    }
    values = {name: value for name, value in given.items() if value is not None}
    config = files.validate(values, "the command line", CaptioningConfig)

    from sdlora.data.captioning.run import caption_folder

    with event_stream() as events:
        result = caption_folder(folder, config, events=events)
    _show(result, folder)


def _show(result: Captioned, folder: Path) -> None:
    counts = {
        "captions written": result.written,
        "written before the interruption": result.before,
        "images left alone, captioned already": result.skipped,
        "of which the model said nothing": len(result.silent),
        "left out, since they can't be read": len(result.unreadable),
    }
    console.print(", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing to caption")
    for path in result.silent[:_LISTED]:
        console.print(f"no caption: {path.relative_to(folder.expanduser().resolve())}", markup=False)
    if len(result.silent) > _LISTED:
        console.print(f"and {len(result.silent) - _LISTED} more")
    if result.originals is not None:
        console.print(f"{as_typed('sdlora', 'dataset', 'undo', folder)} takes them back", markup=False)
