"""What the dataset tab shows as HTML, and its scripts. Text in, text out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from webui.data_sets.listing import TOKEN_LIMIT, Item
from webui.data_sets.uploads import Received

LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
"""What changes is read out by screen readers."""

ACTS = """element.addEventListener('click', (event) => {
  const pressed = event.target.closest('[data-act], [data-fix], [data-image]');
  if (!pressed) return;
  if (pressed.dataset.act === 'upload') { document.querySelector('#dataset-upload button')?.click(); return; }
  trigger('select', {...pressed.dataset});
});"""
"""Hands the data of a pressed button to the component's select handler; "upload" opens the file dialog."""

_LISTED = 8


def focus(element_id: str) -> str:
    """JavaScript that puts the cursor into a field that is about to appear."""
    return (
        f"() => setTimeout(() => document.querySelector('#{element_id} textarea, #{element_id} input')?.focus(), 150)"
    )


def nothing(name: str | None) -> str:
    """The empty state, with the next step as a button."""
    if name is None:
        return _empty(
            "No dataset yet. Drop pictures above, or begin with the sample images to see how it works.",
            [("sample", "Add the sample images"), ("create", "Create an empty dataset")],
        )
    return _empty(
        f"'{html.escape(name)}' is empty (<span id='dataset-count'>0 images</span>). Drop pictures above: 10 to 50 "
        "good ones are enough for a character or a style.",
        [("upload", "Choose files")],
    )


def nothing_found() -> str:
    """The empty state of a filter."""
    return _empty("No image passes the filter.", [("clear", "Show all images")])


def _empty(words: str, buttons: Sequence[tuple[str, str]]) -> str:
    pressed = "".join(
        f'<button type="button" data-act="{act}">{html.escape(label)}</button> ' for act, label in buttons
    )
    return f'<div class="empty-state"><p>{words}</p><p>{pressed}</p></div>'


def summary(items: Sequence[Item], num_tags: int) -> str:
    """What is in the dataset, in one line."""
    uncaptioned = sum(not item.caption for item in items)
    longer = sum(item.tokens > TOKEN_LIMIT for item in items)
    masks = sum(item.mask is not None for item in items)
    held = f"{count(len(items), 'image')} and {count(len(items) - uncaptioned, 'caption')}"
    parts = [f'<strong id="dataset-count">{held}</strong>']
    parts += [f'<span class="bad">{uncaptioned} without caption</span>'] if uncaptioned else []
    parts += [f'<span class="bad">{longer} over {TOKEN_LIMIT} tokens</span>'] if longer else []
    parts += [count(masks, "mask")] if masks else []
    return f'<p class="data-facts">{" · ".join([*parts, count(num_tags, "tag")])}</p>'


def label(item: Item) -> str:
    """What stands below a picture: its name, and what is wrong."""
    stem = item.name.rpartition(".")[0] or item.name
    if not item.caption:
        return f"no caption: {stem}"
    return f"{item.tokens} tokens: {stem}" if item.tokens > TOKEN_LIMIT else stem


def tokens(number: int, saved: bool) -> str:
    """The caption's length, and whether it is on the disk."""
    state = "Saved." if saved else ""
    if number > TOKEN_LIMIT:
        return (
            f'<p class="bad">{number} tokens: with the usual limit, what is beyond {TOKEN_LIMIT} is cut off. '
            f"captions.max_tokens on the Train tab raises it. {state}</p>"
        )
    return f'<p class="quiet">{number} of {TOKEN_LIMIT} tokens. {state}</p>'


def received(report: Received) -> str:
    """What became of an upload."""
    came = [
        count(number, what)
        for number, what in ((report.images, "image"), (report.captions, "caption"), (report.masks, "mask"))
        if number
    ]
    lines = [f"<p><strong>Added {', '.join(came)}.</strong></p>" if came else "<p><strong>Nothing new.</strong></p>"]
    if report.same:
        lines.append(f"<p>{count(report.same, 'file')} passed over: there already, byte for byte.</p>")
    if report.renamed:
        pairs = [f"{old} is {new}" for old, new in report.renamed.items()]
        lines.append(f"<p>The name was taken by another picture: {_listed(pairs)}.</p>")
    if report.replaced:
        lines.append(f"<p>{count(len(report.replaced), 'caption')} replaced; Undo brings the old ones back.</p>")
    if report.unclaimed:
        lines.append(f"<p>Captions without an image of that name, kept: {_listed(report.unclaimed)}.</p>")
    if report.refused:
        reasons = [f"{name}: {reason}" for name, reason in report.refused.items()]
        shown = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons[:_LISTED])
        more = f"<li>and {len(reasons) - _LISTED} more</li>" if len(reasons) > _LISTED else ""
        lines.append(f'<div class="problems" role="alert"><strong>Not taken</strong><ul>{shown}{more}</ul></div>')
    return "".join(lines)


def progress(shown: dict[str, Any] | None) -> str:
    """A job's progress bar, or how it ended; empty without a job."""
    if shown is None:
        return ""
    words = html.escape(shown["words"])
    if not shown["is_active"]:
        return f"<p>{words}</p>"
    percent = shown["percent"]
    value = f'aria-valuenow="{percent}"' if percent is not None else ""
    return (
        f'<p>{words}</p><div class="progress-bar" role="progressbar" aria-label="{words}" aria-valuemin="0" '
        f'aria-valuemax="100" {value}><i style="width:{percent or 4}%"></i></div>'
    )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return html.escape(", ".join(names[:_LISTED])) + rest


def count(number: int, what: str) -> str:
    """`1 image`, `12 images`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
