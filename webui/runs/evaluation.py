"""What an evaluation found, as HTML: the recommendation, scores, chart, pictures, training images that stand out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdlora.data.thumbnails import make_thumbnails, thumbnail
from sdlora.evaluation.report import Evaluation, Scores
from sdlora.launch.jobs import JobProgress
from sdlora.words import count, duration_in_words
from webui.runs.trade_off import Picture, trade_off
from webui.templating import macros

_HTML = macros("evaluation.html")
_COPIES_SHOWN = 24
FIGURES = (
    ("likeness", "how much the images with the trigger are like the training images: mean cosine of their features"),
    ("adherence", "how well they follow their prompt without the trigger, as a share of what the base model reaches"),
    ("copies", "images nearer to a training image than any two training images are to each other"),
    ("diversity", "how much the seeds of one prompt differ, as a share of the base model's"),
    ("leak", "how far images without the trigger move: 0 is not at all, 1 as far as another seed would"),
    ("burned", "images more saturated or of higher contrast than all training images and all of the base model's"),
    ("held-out loss", "loss on held-out images over the base model's, with its 95% interval"),
)
"""What the table's columns are."""


@dataclass(frozen=True)
class Row:
    """A checkpoint in the table."""

    label: str
    cells: Sequence[tuple[str, str]]
    """What a figure is, and its value."""
    is_recommended: bool
    is_result: bool
    can_be_promoted: bool


@dataclass(frozen=True)
class Shown:
    """A generated picture; `remark` says what is wrong with it."""

    small: Path
    file: Path
    words: str
    remark: str = ""


@dataclass(frozen=True)
class StandsOut:
    """A training image that stands out, and where its caption is edited: dataset and image, or nowhere."""

    name: str
    kind: str
    score: float
    sentence: str
    small: Path | None
    place: tuple[str, str] | None


def standing(sentence: str, progress: JobProgress | None, remarks: Sequence[str]) -> str:
    """How the evaluation stands, with a bar while it runs."""
    return str(_HTML.standing(sentence, progress, remarks))


def when(found: Evaluation) -> str:
    """When and how it was made."""
    moment = time.strftime("%d %b %Y, %H:%M", time.localtime(found.finished_at))
    took = duration_in_words(sum(found.seconds.values()))
    seeds = count(found.num_seeds, "seed") + (" each" if found.num_seeds > 1 else "")
    made = f"{count(len(found.prompts), 'prompt')} with {seeds}, compared by {found.features}"
    return f"Evaluated on {moment} in {took}: {made}."


def result(found: Evaluation, result_label: str | None, thumbnails: Path, datasets: Path) -> str:
    """All of it. result_label: the checkpoint that the run's result is now. datasets: the folder of the page's own."""
    pictures = _Pictures(found, thumbnails)
    return str(
        _HTML.result(
            found.recommendation,
            [_row(one, found, result_label) for one in (found.base, *found.checkpoints)],
            [(name, words) for name, words in FIGURES if name != "held-out loss" or _has_held_out(found)],
            trade_off(found, pictures.over_points()),
            found.weight_advice,
            found.tied_words,
            found.characters,
            found.promoted,
            pictures,
            _standing_out(found, thumbnails, datasets),
            found.notes,
            None if found.problem_images is None else duration_in_words(found.problem_images.seconds),
        )
    )


def _has_held_out(found: Evaluation) -> bool:
    return any(one.held_out for one in found.checkpoints)


def _row(one: Scores, found: Evaluation, result_label: str | None) -> Row:
    cells = [
        ("likeness", f"{one.likeness:.3f}"),
        ("adherence", _share(one.adherence_of_base)),
        ("copies", f"{len(one.copies)} of {one.num_images}"),
        ("diversity", _share(one.diversity)),
        ("leak", "–" if one.leak is None else f"{one.leak:.2f}"),
        ("burned", f"{one.burned} of {one.num_images}"),
    ]
    if _has_held_out(found):
        held = one.held_out
        cells.append(("held-out loss", f"{held.value:.3f} ({held.low:.3f} to {held.high:.3f})" if held else "–"))
    is_result = one.label == result_label
    is_recommended = one.label == found.recommendation.label
    return Row(one.label, cells, is_recommended, is_result, one is not found.base and not is_result)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


class _Pictures:
    """The pictures of the first seed as a table, a row a prompt and a column a checkpoint; and all near copies."""

    def __init__(self, found: Evaluation, thumbnails: Path) -> None:
        self.heads = [one.label for one in (found.base, *found.checkpoints)]
        self._copies = {(one.label, Path(copy.image).name): copy.of for one in found.checkpoints for copy in one.copies}
        there = [one for one in found.images if (found.run / one.file).is_file()]
        first = min((one.seed for one in there), default=0)
        kept = [one for one in there if one.seed == first or (one.label, Path(one.file).name) in self._copies]
        small = make_thumbnails([found.run / one.file for one in kept], thumbnails)
        by_place: dict[tuple[str, int], Shown] = {}
        self.copies: list[Shown] = []
        for one, picture in zip(kept, small, strict=True):
            prompt = found.prompts[one.prompt]["bare" if one.label == "base" else "prompt"]
            of = self._copies.get((one.label, Path(one.file).name), "")
            words = f"{prompt}, {one.label}, seed {one.seed}"
            shown = Shown(picture, found.run / one.file, words, f"near copy of {of}" if of else "")
            if one.seed == first:
                by_place[one.label, one.prompt] = shown
            if of:
                self.copies.append(shown)
        self.more_copies = max(0, len(self.copies) - _COPIES_SHOWN)
        self.copies = self.copies[:_COPIES_SHOWN]
        self.rows = [
            (one["prompt"], one["kind"], [by_place.get((label, number)) for label in self.heads])
            for number, one in enumerate(found.prompts)
        ]
        self.seed = first if there else None
        self.num_seeds = found.num_seeds

    def over_points(self) -> dict[str, Picture]:
        """A picture for each checkpoint: that of the first prompt."""
        cells = self.rows[0][2] if self.rows else []
        pairs = zip(self.heads, cells, strict=False)
        return {label: Picture(shown.small, shown.file) for label, shown in pairs if shown is not None}


def _standing_out(found: Evaluation, thumbnails: Path, datasets: Path) -> list[StandsOut]:
    report = found.problem_images
    if report is None:
        return []
    listed = []
    for one in report.worst:
        path = Path(report.files[one.name]) if one.name in report.files else None
        small = thumbnail(path, thumbnails) if path is not None and path.is_file() else None
        listed.append(StandsOut(one.name, one.kind, one.score, one.sentence, small, _place(path, datasets)))
    return listed


def _place(image: Path | None, datasets: Path) -> tuple[str, str] | None:
    """The dataset of the page that an image lies in, and its name there."""
    folder = datasets.resolve()
    if image is None or not image.is_file() or not image.resolve().is_relative_to(folder):
        return None
    dataset, *below = image.resolve().relative_to(folder).parts
    return (dataset, "/".join(below)) if below else None
