"""Preview pictures of runs: step by prompt, one against another under a slider, several runs side by side."""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from sdlora.data.thumbnails import thumbnail
from sdlora.runs.results import PreviewImage

GRID_EDGE_PX = 256
_SHOWN_STEPS = 40

NO_PREVIEWS = (
    '<div class="empty-state"><p>No previews yet. Write prompts under "Preview prompts" on the Train tab: they are '
    "drawn before training, with fixed seeds, and again as the run goes on.</p></div>"
)


def file_address(path: Path) -> str:
    """Where the page finds a file of the workspace; relative, so that it holds behind a proxy's path too."""
    return "gradio_api/file=" + urllib.parse.quote(str(path), safe="/")


def steps_of(images: Sequence[PreviewImage]) -> list[int]:
    """The steps at which pictures were generated, first to last."""
    return sorted({image.step for image in images})


def grid(images: Sequence[PreviewImage], thumbnails: Path) -> str:
    """A table, a row a prompt and a column a step; a picture's press compares it with step 0."""
    if not images:
        return NO_PREVIEWS
    steps = steps_of(images)
    shown = steps if len(steps) <= _SHOWN_STEPS else [steps[0], *steps[-_SHOWN_STEPS + 1 :]]
    by_place = {(image.prompt_index, image.step): image for image in images}
    prompts = {image.prompt_index: image.prompt for image in images}
    head = "".join(f'<th scope="col">step {step:,}</th>' for step in shown)
    rows = []
    for index in sorted(prompts):
        cells = "".join(f"<td>{_cell(by_place.get((index, step)), thumbnails)}</td>" for step in shown)
        rows.append(f'<tr><th scope="row">{html.escape(prompts[index])}</th>{cells}</tr>')
    return (
        '<div class="preview-grid" tabindex="0" role="region" aria-label="Previews by step and prompt">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def before_after(images: Sequence[PreviewImage], prompt_index: int, step: int) -> str:
    """One prompt's first picture under the slider's left part, the one of `step` under its right."""
    of_prompt = [image for image in images if image.prompt_index == prompt_index]
    after = next((image for image in of_prompt if image.step == step), None)
    if not of_prompt or after is None:
        return ""
    before = of_prompt[0]
    if before.step == after.step:
        return (
            f'<figure class="one-preview"><img src="{file_address(after.path)}" alt="{_alt(after)}">'
            f"<figcaption>{html.escape(after.prompt)}, step {after.step:,}: the next previews can be compared with it."
            "</figcaption></figure>"
        )
    label = html.escape(f"Share of the picture that shows step {after.step:,}", quote=True)
    return (
        '<figure class="before-after" style="--cut:50%">'
        f'<div><img src="{file_address(before.path)}" alt="{_alt(before)}">'
        f'<img class="after" src="{file_address(after.path)}" alt="{_alt(after)}"><span class="cut" aria-hidden="true">'
        f'</span></div><input type="range" min="0" max="100" value="50" aria-label="{label}">'
        f'<figcaption><span>step {before.step:,}</span><span class="prompt">{html.escape(after.prompt)}</span>'
        f"<span>step {after.step:,}</span></figcaption></figure>"
    )


def side_by_side(runs: Sequence[tuple[str, Sequence[PreviewImage]]], thumbnails: Path) -> str:
    """The newest pictures of several runs, a row a prompt and seed that all drew alike, a column a run."""
    newest: list[tuple[str, dict[str, PreviewImage]]] = []
    for name, images in runs:
        by_prompt = {image.prompt: image for image in images}  # sorted by step: the last one stays
        newest.append((name, by_prompt))
    prompts = list(dict.fromkeys(prompt for _, images in newest for prompt in images))
    if not prompts:
        return '<div class="empty-state"><p>These runs have generated no previews.</p></div>'
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name, _ in newest)
    rows = []
    for prompt in prompts:
        cells = "".join(
            f"<td>{_cell(images.get(prompt), thumbnails)}{_step_below(images.get(prompt))}</td>" for _, images in newest
        )
        rows.append(f'<tr><th scope="row">{html.escape(prompt)}</th>{cells}</tr>')
    return (
        '<div class="preview-grid" tabindex="0" role="region" aria-label="Newest previews of each run">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(image: PreviewImage | None, thumbnails: Path) -> str:
    if image is None:
        return '<span class="absent" aria-label="not generated">–</span>'
    small = file_address(thumbnail(image.path, thumbnails, GRID_EDGE_PX))
    return (
        f'<button type="button" data-step="{image.step}" data-prompt="{image.prompt_index}">'
        f'<img loading="lazy" src="{small}" alt="{_alt(image)}"></button>'
    )


def _step_below(image: PreviewImage | None) -> str:
    return f'<span class="small">step {image.step:,}, image {image.prompt_index + 1}</span>' if image else ""


def _alt(image: PreviewImage) -> str:
    return html.escape(f"{image.prompt}, step {image.step:,}", quote=True)
