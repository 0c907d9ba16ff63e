"""Preview pictures of runs: step by prompt, one against another under a slider, several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdlora.data.thumbnails import thumbnail
from sdlora.runs.results import PreviewImage
from webui.templating import macros

_HTML = macros("runs.html")
_SHOWN_STEPS = 40
_SHOWN_ASKED = 48


def steps_of(images: Sequence[PreviewImage]) -> list[int]:
    """The steps at which pictures were generated, first to last."""
    return sorted({image.step for image in images})


def grid(images: Sequence[PreviewImage], thumbnails: Path, nothing: str) -> str:
    """A table, a row a prompt and a column a step; a picture's press compares it with step 0.

    nothing: what is said where there are none.
    """
    if not images:
        return str(_HTML.no_previews(nothing))
    steps = steps_of(images)
    # Step 0 stays, since every other step is compared with it; of the rest the newest do.
    shown = steps if len(steps) <= _SHOWN_STEPS else [steps[0], *steps[-_SHOWN_STEPS + 1 :]]
    by_place = {(image.prompt_index, image.step): image for image in images}
    prompts = {image.prompt_index: image.prompt for image in images}
    rows = [
        (prompts[index], [(*_with_thumbnail(by_place.get((index, step)), thumbnails), "") for step in shown])
        for index in sorted(prompts)
    ]
    heads = [f"step {step:,}" for step in shown]
    return str(_HTML.preview_table("Previews by step and prompt", heads, rows))


def before_after(images: Sequence[PreviewImage], prompt_index: int, step: int) -> str:
    """One prompt's first picture under the slider's left part, the one of `step` under its right."""
    of_prompt = [image for image in images if image.prompt_index == prompt_index]
    after = next((image for image in of_prompt if image.step == step), None)
    if not of_prompt or after is None:
        return ""
    before = of_prompt[0]
    return str(_HTML.one_preview(after) if before.step == after.step else _HTML.before_after(before, after))


def asked(drawn: Sequence[PreviewImage], thumbnails: Path) -> str:
    """The pictures that were asked for, newest first; those that are gone by now are left out."""
    there = [image for image in reversed(drawn[-_SHOWN_ASKED:]) if image.path.is_file()]
    return str(_HTML.asked([(image, thumbnail(image.path, thumbnails)) for image in there]))


def side_by_side(runs: Sequence[tuple[str, Sequence[PreviewImage]]], thumbnails: Path) -> str:
    """The newest pictures of several runs, a row a prompt and seed that all had, a column a run."""
    newest = {name: {image.prompt: image for image in images} for name, images in runs}  # the last step's stays
    prompts = list(dict.fromkeys(prompt for images in newest.values() for prompt in images))
    if not prompts:
        return str(_HTML.none_generated())
    rows = []
    for prompt in prompts:
        cells = []
        for images in newest.values():
            image = images.get(prompt)
            below = f"step {image.step:,}, image {image.prompt_index + 1}" if image else ""
            cells.append((*_with_thumbnail(image, thumbnails), below))
        rows.append((prompt, cells))
    return str(_HTML.preview_table("Newest previews of each run", list(newest), rows))


def _with_thumbnail(image: PreviewImage | None, thumbnails: Path) -> tuple[PreviewImage | None, Path | None]:
    return image, None if image is None else thumbnail(image.path, thumbnails)
