"""Findings about captions: files, length, tags, trigger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from sdlora.config.images import CaptionsConfig
from sdlora.config.train import TrainConfig
from sdlora.data.captions import has_trigger
from sdlora.data.images import STAND_INS, ImageRecord
from sdlora.data.lint.findings import Finding
from sdlora.data.lint.samples import Dataset
from sdlora.data.lint.tags import near_miss_spellings, repeated_tags, tags_of
from sdlora.data.metadata_files import METADATA_FILES
from sdlora.models.prompts import MAX_TOKENS, count_tokens, parse_weights
from sdlora.models.tokenizer import light_tokenizer

_NEARLY_ALL = 0.8
_KOHYA_SEPARATOR = "|||"
"""The usual keep_tokens_separator of sd-scripts."""
_FEWEST_CAPTIONS = 5
"""Below this number a tag in all captions says nothing."""


def caption_findings(data: Dataset, config: TrainConfig) -> Iterator[Finding]:
    """One finding for each rule that captions break."""
    captioned = [record for record in data.records if record.caption]
    yield from _files(data, config.captions)
    yield from _lengths(captioned, config)
    yield from _brackets(captioned, config.captions)
    yield from _separators(captioned, config.captions)
    yield from _tags(captioned, config.captions)
    yield from _trigger(captioned, config.captions)


def _files(data: Dataset, config: CaptionsConfig) -> Iterator[Finding]:
    for problem in data.caption_problems:
        yield Finding("caption-unreadable", problem)
    for note in data.caption_notes:
        yield Finding("caption-metadata", note)
    encodings = data.wrongly_encoded
    if encodings:
        yield Finding("caption-encoding", "not UTF-8 text: the run would be refused", tuple(encodings))
    unread = data.unread.other_endings
    bare = [record for record in data.records if record.caption_from in (None, "folder")]
    if unread:
        instead = _instead([record for record in bare if record.path in unread], config)
        endings = ", ".join(sorted({path.suffix for path in unread.values()}))
        message = f"{endings} files are not read{instead}: rename them to {config.extension}"
        yield Finding("caption-extension", message, tuple(unread.values()))
    # One that can't be decoded is told of as that, not as a missing caption besides.
    badly_encoded = {path.with_suffix("") for path in encodings}
    missing = [
        record.path
        for record in data.records
        if not record.caption and record.path not in unread and record.path.with_suffix("") not in badly_encoded
    ]
    if missing and config.default is None:
        yield Finding("caption-missing", f"no caption, or an empty one: add a {config.extension} file", tuple(missing))
    yield from _empty(data, config)
    instead = _instead(bare, config)
    if data.unread.tables:
        readable = f"{config.extension} files beside the images, {', '.join(METADATA_FILES)}"
        message = f"not read for captions{instead}; those that are: {readable}"
        yield Finding("caption-unread", message, tuple(data.unread.tables))
    misspelt = data.unread.misnamed
    for path, meant in misspelt.items():
        message = f"a caption without an image of its name{instead}: did you mean {meant.name}?"
        yield Finding("caption-orphan", message, (path,))
    if others := tuple(path for path in data.orphan_captions if path not in misspelt):
        yield Finding("caption-orphan", "a caption without an image of its name, so it is not trained", others)


def _empty(data: Dataset, config: CaptionsConfig) -> Iterator[Finding]:
    """Empty caption files that something else stands in for; one for an empty captions.default is as it is meant."""
    files = {record.path.with_suffix(config.extension): record for record in data.records}
    empty = {path: files[path] for path in data.unread.empty if path in files}
    replaced = {path: record for path, record in empty.items() if record.caption or config.default}
    if replaced:
        words = _instead(list(replaced.values()), config)
        yield Finding("caption-empty", f"an empty caption file{words}: write its caption", tuple(replaced))


def _instead(records: Sequence[ImageRecord], config: CaptionsConfig) -> str:
    """What these images are trained with instead, as a part of a sentence; nothing where the run would be refused."""
    sources = {record.caption_from for record in records}
    stand_ins = [words for source, words in STAND_INS.items() if source in sources and source is not None]
    if None in sources and config.default is not None:
        stand_ins.append(STAND_INS[None])
    return f" ({' or '.join(stand_ins)} is trained instead)" if stand_ins else ""


def _lengths(records: Sequence[ImageRecord], config: TrainConfig) -> Iterator[Finding]:
    tokenizer = light_tokenizer(config.base_model)
    limit = config.captions.max_tokens
    counts = {
        record.path: max(
            count_tokens(tokenizer, text, weights=record.captions.weights)
            for text in record.trained_captions() or [record.plain_caption()]
        )
        for record in records
    }
    longer = {path: count for path, count in counts.items() if count > limit}
    if not longer:
        return
    most = max(longer.values())
    # Limits are whole windows of CLIP's 75 tokens, as more windows cost time with every caption.
    fitting = next((size for size in (150, MAX_TOKENS) if size >= most), None)
    remedy = f"set captions.max_tokens={fitting}" if fitting else f"shorten them: {MAX_TOKENS} is the most there is"
    yield Finding(
        "caption-too-long",
        f"longer than captions.max_tokens={limit} (up to {most} tokens), the rest is cut off: {remedy}",
        tuple(longer),
        {"most_tokens": most, "limit": limit},
    )


def _brackets(records: Sequence[ImageRecord], config: CaptionsConfig) -> Iterator[Finding]:
    """Brackets that are read otherwise than most data sets mean them, with what would be trained."""
    # With weights on, plain brackets are weights and escaped ones are text; off, a backslash itself is trained.
    kind = re.compile(r"(?<!\\)[()\[\]]") if config.weights else re.compile(r"\\[()\[\]]")
    with_brackets = [record for record in records if kind.search(record.caption or "")]
    if not with_brackets:
        return
    caption = next(iter((with_brackets[0].caption or "").splitlines()), "")
    tag = next((tag for tag in caption.split(config.separator or ",") if kind.search(tag)), caption).strip()
    if config.weights:
        spans = " + ".join(f"'{(span.text or 'BREAK').strip()}' x{span.weight:.3g}" for span in parse_weights(tag))
        yield Finding(
            "caption-brackets",
            f"captions.weights is on, so brackets are weights: '{tag}' is trained as {spans}. If they belong to the "
            "tags, set captions.weights=false",
            tuple(record.path for record in with_brackets),
        )
    else:
        yield Finding(
            "caption-escapes",
            f"captions.weights is off, so backslashes are trained as text: '{tag}'. Write the bracket without one: "
            r"sdlora dataset edit FOLDER '\\\\([()\[\]])' '\\1'",
            tuple(record.path for record in with_brackets),
        )


def _separators(records: Sequence[ImageRecord], config: CaptionsConfig) -> Iterator[Finding]:
    if config.keep_separator is None:
        bars = [record.path for record in records if _KOHYA_SEPARATOR in (record.caption or "")]
        if bars:
            yield Finding(
                "keep-separator",
                f"'{_KOHYA_SEPARATOR}' is trained as text: set captions.keep_separator='{_KOHYA_SEPARATOR}' to keep "
                "the tags before it in their place",
                tuple(bars),
            )
    elif records and not any(config.keep_separator in (record.caption or "") for record in records):
        yield Finding(
            "keep-separator", f"no caption has captions.keep_separator='{config.keep_separator}': it has no effect"
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
