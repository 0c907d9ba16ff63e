"""What the Dataset tab shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdlora.data.sets import listing, shapes
from sdlora.data.sets.edits import Rewritten
from sdlora.data.sets.listing import TOKEN_LIMIT, Item
from sdlora.data.sets.uploads import Received
from sdlora.launch.jobs import JobProgress
from sdlora.words import count
from webui.templating import macros

_HTML = macros("datasets.html")
_LISTED = 8
_LINE = 60
_EDITS_SHOWN = 20
_FILES_SHOWN = 6
_MESSAGES_SHOWN = 3
_FIX_WORDS = {
    "unreadable": "Move them to the trash",
    "exact-duplicate": "Keep one of each",
    "animated": "Keep the first frame",
    "exif-rotated": "Turn the pixels",
    "caption-extension": "Rename to .txt",
    "caption-encoding": "Write as UTF-8",
    "duplicate-tags": "Keep one of each tag",
    "near-miss-spelling": "Use the frequent spelling",
    "trigger-missing": "Put the trigger in front",
}

nothing = _HTML.nothing
"""The empty state of a dataset, or of none (name None), with the next step as a button."""
nothing_found = _HTML.nothing_found
"""The empty state of a filter."""
pager = _HTML.pager
"""Which page of the images it is."""
edited = _HTML.edited
"""What stands in place of the preview once the edit is made."""


# ---- images and captions


def summary(items: Sequence[Item], num_tags: int) -> str:
    """What is in the dataset, in one line."""
    uncaptioned = sum(not item.caption for item in items)
    longer = sum(item.is_too_long for item in items)
    masks = sum(item.mask is not None for item in items)
    wrong = [("no caption", f"{uncaptioned} without caption")] if uncaptioned else []
    wrong += [("too long", f"{longer} over {TOKEN_LIMIT} tokens")] if longer else []
    held = f"{count(len(items), 'image')} and {count(len(items) - uncaptioned, 'caption')}"
    return str(_HTML.summary(held, wrong, [*([count(masks, "mask")] if masks else []), count(num_tags, "tag")]))


def summary_of(items: Sequence[Item]) -> str:
    """The same, with the tags counted here."""
    return summary(items, len(listing.tag_counts(items)))


def line(item: Item) -> tuple[str, bool]:
    """What stands below a picture's name, and whether that is to be seen to."""
    if not item.caption:
        return f"no caption; trains as “{item.folder_name[:_LINE]}”" if item.folder_name else "no caption", True
    return (f"{item.tokens} tokens", True) if item.is_too_long else (item.caption[:_LINE], False)


def place(item: Item, index: int, num_items: int) -> str:
    """The image in the editor, and where it is in the list."""
    return str(_HTML.place(item.name, index + 1, num_items))


def tokens(item: Item, default: str | None, *, saved: bool) -> str:
    """The caption's length, or what is trained without one, and whether that is on the disk. default: Train's."""
    if not item.caption:
        return str(_HTML.no_caption(item.folder_name, default, saved))
    return str(_HTML.tokens(item.tokens, TOKEN_LIMIT, saved))


def saved(item: Item, default: str | None) -> str:
    """The same of a caption that was just written, with what the image's tile is to say now."""
    words, is_wrong = line(item)
    return str(_HTML.saved(item.name, words, is_wrong)) + tokens(item, default, saved=True)


changed_meanwhile = _HTML.changed_meanwhile
"""What stands below a caption that was changed elsewhere: their text, and the choice."""


def crop(item: Item, picture: Path, resolution: int) -> str:
    """An image with the part that training cuts off darkened, and the same in words.

    picture: a file that the page may load, with the whole image on it.
    """
    size = shapes.size_of(item.path)
    if size is None:
        return str(_HTML.unreadable(item.name))
    placed = shapes.placement(size, resolution)
    alternative = f"{item.name}: {item.caption or 'no caption'}"
    return str(_HTML.crop(picture, alternative, shapes.crop_in_words(placed, size), size, shapes.window_of(placed)))


def buckets(counts: shapes.BucketCounts) -> str:
    """How many images share a bucket: bars, which a screen reader reads as a sentence, and a table."""
    # From tall to wide, so that the bars show the spread of shapes.
    ordered = sorted(counts.items(), key=lambda each: each[0].width_px / each[0].height_px)
    most = max(counts.values(), default=0)
    label = f"{sum(counts.values())} images an epoch in {count(len(counts), 'bucket')}, {most} in the largest"
    return str(_HTML.buckets(label, ordered, most))


# ---- uploads and edits


def received(report: Received) -> str:
    """What became of an upload."""
    came = ((report.images, "image"), (report.captions, "caption"), (report.masks, "mask"))
    added = ", ".join(count(number, what) for number, what in came if number)
    reasons = [f"{name}: {reason}" for name, reason in report.refused.items()]
    return str(_HTML.received(added, list(_remarks(report)), reasons[:_LISTED], max(0, len(reasons) - _LISTED)))


def _remarks(report: Received) -> Iterator[str]:
    if report.same:
        yield f"{count(report.same, 'file')} passed over: there already, byte for byte."
    if report.renamed:
        pairs = [f"{old} is {new}" for old, new in report.renamed.items()]
        yield f"The name was taken by another picture: {_listed(pairs)}."
    if report.replaced:
        yield f"{count(len(report.replaced), 'caption')} replaced; Undo brings the old ones back."
    if report.unclaimed:
        yield f"Captions without an image of that name, kept: {_listed(report.unclaimed)}."


def edit_preview(rewritten: Sequence[Rewritten], num_images: int) -> str:
    """How many captions an edit changes, and the first of them with what goes and what comes."""
    rows = [(each.name, each.pieces()) for each in rewritten[:_EDITS_SHOWN]]
    return str(_HTML.edit_preview(rows, len(rewritten), num_images, max(0, len(rewritten) - _EDITS_SHOWN)))


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest


# ---- jobs


def job(progress: JobProgress | None) -> str:
    """A job's progress bar, or how it ended; empty without a job."""
    return "" if progress is None else str(_HTML.job(progress.words, progress.is_active, progress.percent))


def masked(found: Mapping[str, Any], folder: Path) -> str:
    """What `sdlora dataset mask --json` did."""
    without = [_below(Path(path), folder) for path in found["without"]]
    lines = [f"No mask, as nothing tells the subject: {_listed(without)}."] if without else []
    lines += [f"Left out: {_below(Path(path), folder)}: {reason}." for path, reason in found["unreadable"].items()]
    return str(_HTML.masked(found["words"], lines[: _LISTED + 1]))


@dataclass(frozen=True)
class _Rule:
    severity: str
    title: str
    messages: Sequence[str]
    more_messages: int
    files: Sequence[str]
    more_files: Sequence[str]
    fix: str | None
    fix_words: str


def judged(at: str, resolutions: Sequence[int], now: Sequence[int] | None) -> str:
    """When a dataset was checked, and for which resolutions. now: those that Train is set to, None for not known."""
    words = f"Checked at {at}, judged for {_pixels(resolutions)}." if resolutions else f"Checked at {at}."
    if now is None or set(now) == set(resolutions):
        return words
    return f"{words} Train is set to {_pixels(now)} now: check again."


def _pixels(edges: Sequence[int]) -> str:
    return f"{' and '.join(str(edge) for edge in edges)} px"


def report(found: Mapping[str, Any] | None, folder: Path, judged: str = "") -> str:
    """What `sdlora dataset check --json` found, one block a rule; found None: it was not checked yet.

    judged: when, and by what. Buttons carry a fix's name in data-fix, a file's in data-image, the dataset's in data-of.
    """
    if found is None:
        return str(_HTML.unchecked())
    rules: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for finding in found["findings"]:
        rules[finding["rule"]].append(finding)
    counts = ", ".join(count(number, severity) for severity, number in found["counts"].items() if number)
    shown = [_rule(name, findings, folder) for name, findings in rules.items()]
    return str(_HTML.report(folder.name, judged, found["images"], counts or "nothing to fix", shown))


def _rule(name: str, findings: Sequence[Mapping[str, Any]], folder: Path) -> _Rule:
    severity, fix = str(findings[0]["severity"]), findings[0]["fix"]
    files = list(dict.fromkeys(_below(Path(file), folder) for finding in findings for file in finding["files"]))
    return _Rule(
        severity=severity,
        title=f"{severity.capitalize()}: {name.replace('-', ' ')}",
        messages=[finding["message"] for finding in findings[:_MESSAGES_SHOWN]],
        more_messages=max(0, len(findings) - _MESSAGES_SHOWN),
        files=files[:_FILES_SHOWN],
        more_files=files[_FILES_SHOWN:],
        fix=fix,
        fix_words=_FIX_WORDS.get(fix, "Fix"),
    )


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
