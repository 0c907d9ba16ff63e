"""The groups of commands: in the order of use, with an example under each; an option given twice is refused."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

PANELS = {
    "Train": (
        "train",
        "resume",
        "stop",
        "save",
        "preview",
        "sweep",
        "evaluate",
        "compare",
        "suggest",
        "estimate",
        "runs",
        "queue",
        "presets",
        "explain",
    ),
    "Images": ("generate", "webui", "serve"),
    "Datasets": ("dataset", "cache"),
    "Adapters": ("inspect", "mix", "merge", "extract", "resize", "convert", "push"),
    "When something is wrong": ("doctor", "support"),
}
"""The commands by what they are for, in the order in which a newcomer meets them."""
EXAMPLES = {
    "train": "sdlora train --preset sd15_style.yaml --set images.folder=my_pictures --set captions.trigger=ohwx",
    "resume": "sdlora resume runs/my-lora --set optimization.steps=3000",
    "stop": "sdlora stop runs/my-lora",
    "save": "sdlora save runs/my-lora",
    "preview": "sdlora preview runs/my-lora",
    "sweep": "sdlora sweep rates.yaml",
    "evaluate": "sdlora evaluate runs/my-lora",
    "compare": "sdlora compare runs/my-lora runs/my-lora-2 --out comparison.html",
    "suggest": "sdlora suggest my_pictures --for style --memory 8GB --output my.yaml",
    "estimate": "sdlora estimate --preset sdxl_style.yaml --family sdxl --memory 8GB",
    "runs": "sdlora runs",
    "queue add": "sdlora queue add --preset sd15_style.yaml --set images.folder=my_pictures",
    "queue list": "sdlora queue list",
    "queue remove": "sdlora queue remove runs/my-lora",
    "queue hold": "sdlora queue hold",
    "queue start": "sdlora queue start",
    "presets show": "sdlora presets show sd15_style > mine.yaml",
    "explain": "sdlora explain adapter.rank",
    "generate": 'sdlora generate "a castle, ohwx" --run runs/my-lora --count 4',
    "webui": "sdlora webui --root my_studio",
    "serve": "sdlora serve --base sd15.safetensors --adapter-folder loras",
    "dataset check": "sdlora dataset check my_pictures --preset sdxl_style.yaml",
    "dataset fix": "sdlora dataset fix my_pictures --rules all --apply",
    "dataset edit": 'sdlora dataset edit my_pictures "\\bcat\\b" "tabby cat" --apply',
    "dataset undo": "sdlora dataset undo my_pictures",
    "dataset sheet": "sdlora dataset sheet my_pictures --out sheet.png",
    "dataset import": "sdlora dataset import kohya_settings.json --out mine.yaml",
    "dataset caption": "sdlora dataset caption my_pictures --model microsoft/Florence-2-base --trigger ohwx",
    "dataset mask": "sdlora dataset mask my_pictures --model alpha",
    "dataset class-images": 'sdlora dataset class-images --prompt "a dog" --count 100 --out class_images',
    "cache show": "sdlora cache show",
    "cache prune": "sdlora cache prune --older-than-days 30",
    "inspect": "sdlora inspect ink.safetensors --chart blocks.png",
    "mix": "sdlora mix ink.safetensors:0.8 wash.safetensors:0.5 --out both.safetensors",
    "merge": "sdlora merge ink.safetensors:0.8 --base sd15.safetensors --out sd15-ink.safetensors",
    "extract": "sdlora extract --tuned tuned.safetensors --base sd15.safetensors --rank 32 --out tuned-32.safetensors",
    "resize": "sdlora resize ink.safetensors --rank 8 --out ink-8.safetensors",
    "convert": "sdlora convert ink.safetensors --to diffusers --out ink-diffusers.safetensors",
    "push": "sdlora push runs/my-lora me/my-lora --private --dry-run",
    "doctor": "sdlora doctor",
    "support": "sdlora support runs/my-lora",
}
"""A line to copy for every command, by its path."""


class Commands(TyperGroup):
    """A group of commands with the order, panels and examples of this module."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of use; commands that no panel names come last."""
        known = [name for names in PANELS.values() for name in names]
        return sorted(self.commands, key=lambda name: known.index(name) if name in known else len(known))

    def invoke(self, ctx: Any) -> Any:
        """As Typer does; the word for its own validator, which is Python's, is left out of what it says is wrong."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(message := getattr(error, "message", None), str) and hasattr(error, "format_message"):
                told: Any = error
                told.message = message.removeprefix("Value error, ")
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, and what it is called with; an option of which one would be lost is refused."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and (twice := _given_twice(command, ctx, rest)):
            ctx.fail(f"{twice} is given twice: of the two only one would count")
        return name, command, rest

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, with its panel, its example, and switches that show no type."""
        command: Any = self.commands.get(cmd_name)
        if command is None:
            return None
        group = None if ctx.parent is None else ctx.info_name
        path = cmd_name if group is None else f"{group} {cmd_name}"
        if group is None:
            command.rich_help_panel = next((panel for panel, names in PANELS.items() if path in names), None)
        if path in EXAMPLES:
            command.epilog = f"Example: {EXAMPLES[path]}".replace("[", r"\[")
        for parameter in command.params:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return command


def _given_twice(command: Any, context: Any, arguments: list[str]) -> str | None:
    """An option with a value that stands twice and takes one; None where all is well, or wrong in another way."""
    try:
        _, _, order = command.make_parser(command.context_class(command, parent=context)).parse_args(list(arguments))
    except Exception as error:
        if not hasattr(error, "format_message"):  # what click says of a wrong line, and will say again
            raise
        return None
    values = [one for one in order if hasattr(one, "is_flag") and not (one.multiple or one.is_flag or one.count)]
    return next((one.opts[0] for place, one in enumerate(values) if one in values[:place]), None)
