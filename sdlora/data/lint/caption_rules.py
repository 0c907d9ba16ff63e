"""Findings about captions: files, length, tags, trigger."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from sdlora.config.images import CaptionsConfig
from sdlora.config.train import TrainConfig
from sdlora.data.caption_files import decode_text
from sdlora.data.captions import has_trigger, render
from sdlora.data.images import ImageRecord
from sdlora.data.lint.findings import Finding
from sdlora.data.lint.samples import Dataset
from sdlora.data.lint.tags import near_miss_spellings, repeated_tags, tags_of
from sdlora.models.prompts import MAX_TOKENS, count_tokens
from sdlora.models.tokenizer import light_tokenizer

_NEARLY_ALL = 0.8
_FEWEST_CAPTIONS = 5
"""Below this number a tag in all captions says nothing."""


def caption_findings(data: Dataset, config: TrainConfig) -> Iterator[Finding]:
    """One finding for each rule that captions break."""
    captioned = [record for record in data.records if record.caption]
    yield from _files(data, config.captions)
    yield from _lengths(captioned, config)
    yield from _tags(captioned, config.captions)
    yield from _trigger(captioned, config.captions)


def wrongly_encoded(image: Path) -> Path | None:
    """The image's .txt file if it is neither UTF-8 nor UTF-16."""
    path = image.with_suffix(".txt")
    try:
        decode_text(path.read_bytes())
    except UnicodeDecodeError:
        return path
    except OSError:
        return None
    return None


def _files(data: Dataset, config: CaptionsConfig) -> Iterator[Finding]:
    for problem in data.caption_problems:
        yield Finding("caption-unreadable", problem)
    records = [record for record in data.records if not record.caption]
    encodings = [path for record in records if (path := wrongly_encoded(record.path))]
    if encodings:
        yield Finding("caption-encoding", "not UTF-8 text: the run would be refused", tuple(encodings))
    uncaptioned = {record.path for record in records}
    unread = {image: text for image, text in data.unread_captions.items() if image in uncaptioned}
    if unread:
        endings = ", ".join(sorted({path.suffix for path in unread.values()}))
        yield Finding("caption-extension", f"{endings} files are not read: rename them to .txt", tuple(unread.values()))
    badly_encoded = {path.with_suffix("") for path in encodings}
    missing = [
        record.path
        for record in records
        if record.path not in unread and record.path.with_suffix("") not in badly_encoded
    ]
    if missing and config.default is None:
        yield Finding("caption-missing", "no caption, or an empty one: add a .txt file", tuple(missing))


def _lengths(records: Sequence[ImageRecord], config: TrainConfig) -> Iterator[Finding]:
    tokenizer = light_tokenizer(config.base_model)
    limit = config.captions.max_tokens
    whole = config.captions.model_copy(update={"dropout": 0.0, "tag_dropout": 0.0})
    counts = {
        record.path: count_tokens(
            tokenizer, render(record.caption or "", whole, random.Random(0)), weights=config.captions.weights
        )
        for record in records
    }
    longer = {path: count for path, count in counts.items() if count > limit}
    if not longer:
        return
    most = max(longer.values())
    fitting = next((size for size in (150, MAX_TOKENS) if size >= most), None)
    remedy = f"set captions.max_tokens={fitting}" if fitting else f"shorten them: {MAX_TOKENS} is the most there is"
    yield Finding(
        "caption-too-long",
        f"longer than captions.max_tokens={limit} (up to {most} tokens), the rest is cut off: {remedy}",
        tuple(longer),
        {"most_tokens": most, "limit": limit},
    )


def _tags(records: Sequence[ImageRecord], config: CaptionsConfig) -> Iterator[Finding]:
    repeated = {record.path: tags for record in records if (tags := repeated_tags(record.caption or "", config))}
    if repeated:
        examples = ", ".join(f"'{tag}'" for tag in list(dict.fromkeys(chain(*repeated.values())))[:3])
        yield Finding("duplicate-tags", f"the same tag more than once: {examples}", tuple(repeated))
    tags_by_image = {record.path: {tag.lower() for tag in tags_of(record.caption or "", config)} for record in records}
    for wrong, right in near_miss_spellings([record.caption or "" for record in records], config).items():
        yield Finding(
            "near-miss-spelling",
            f"'{wrong}' looks like a slip of '{right}'",
            tuple(path for path, tags in tags_by_image.items() if wrong in tags),
            {"wrong": wrong, "right": right},
        )
    if len(records) < _FEWEST_CAPTIONS:
        return
    for tag in sorted(set.intersection(*tags_by_image.values())):
        if not (config.trigger and has_trigger(tag, config.trigger)):
            yield Finding(
                "tag-everywhere",
                f"'{tag}' is in all {len(records)} captions: what is everywhere becomes part of it; if it is the "
                f"trigger, say so with captions.trigger",
                figures={"tag": tag},
            )


def _trigger(records: Sequence[ImageRecord], config: CaptionsConfig) -> Iterator[Finding]:
    trigger = (config.trigger or "").strip()
    if trigger:
        without = [record.path for record in records if not has_trigger(record.caption or "", trigger)]
        if without and len(without) < len(records):
            yield Finding(
                "trigger-missing",
                f"the caption lacks the trigger '{trigger}' that others have; it is put in front when training",
                tuple(without),
                {"trigger": trigger},
            )
        return
    if len(records) < _FEWEST_CAPTIONS:
        return
    firsts = Counter(tags[0].lower() for record in records if (tags := tags_of(record.caption or "", config)))
    if not firsts:
        return
    first, count = firsts.most_common(1)[0]
    without = [record.path for record in records if not has_trigger(record.caption or "", first)]
    if without and count >= _NEARLY_ALL * len(records):
        yield Finding(
            "trigger-inconsistent",
            f"{count} of {len(records)} captions begin with '{first}', these lack it: if it is the trigger, set "
            f"captions.trigger={first}",
            tuple(without),
            {"trigger": first},
        )
