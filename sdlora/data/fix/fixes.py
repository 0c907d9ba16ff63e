"""The changes that put a dataset right, rule by rule."""

from __future__ import annotations

import codecs
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from sdlora.config.images import CaptionsConfig
from sdlora.config.train import TrainConfig
from sdlora.data.captions import has_trigger, joint
from sdlora.data.companions import companions
from sdlora.data.decoding import UNREAD_SUFFIXES, is_animated, open_image
from sdlora.data.fix.changes import Change, with_text
from sdlora.data.images import ImageRecord
from sdlora.data.lint.check import exact_duplicates
from sdlora.data.lint.findings import FIXABLE
from sdlora.data.lint.measures import is_exif_rotated
from sdlora.data.lint.samples import Dataset, gather
from sdlora.data.lint.tags import near_miss_spellings, rewrite_tags
from sdlora.data.scan_problems import changeable
from sdlora.errors import ConfigError
from sdlora.text_files import UnreadableTextError, decode_text, encoded_like, read_file

_JPEG_QUALITY = 95


@dataclass
class _Draft:
    """A caption on its way from rule to rule."""

    text: str
    rules: list[str] = field(default_factory=list)

    def change(self, rule: str, text: str) -> None:
        if text != self.text:
            self.text = text
            self.rules.append(rule)


def plan_fixes(folder: Path, rules: Sequence[str], config: TrainConfig, *, encoding: str = "cp1252") -> list[Change]:
    """The changes that the named fixes (see `lint.findings.FIXABLE`) would make to one dataset; nothing is touched.

    encoding: what captions that aren't UTF-8 are read as. Raises ConfigError for an unknown rule or encoding and for
    trigger-missing without captions.trigger, DataError for a folder without images.
    """
    _refuse_bad_requests(rules, config, encoding)
    folder = changeable(folder)
    data = gather([folder], config.images, config.captions, figures=False)
    changes: list[Change] = []
    removed: set[Path] = set()
    if "unreadable" in rules:
        broken = [path for path in data.broken if path.suffix.lower() not in UNREAD_SUFFIXES]
        changes += [Change(("unreadable",), path, None, f"to the trash: {data.broken[path]}") for path in broken]
        removed.update(broken)
    if "exact-duplicate" in rules:
        copied = exact_duplicates(data.records)
        removed.update(copy.path for _, *copies in copied for copy in copies)
        for keep, *copies in copied:
            changes += _without_copies(keep, copies, removed)
    kept = [record for record in data.records if record.path not in removed]
    changes += [change for record in kept for change in _pixel_changes(record.path, rules)]
    changes += _caption_changes(data, kept, rules, config.captions, encoding)
    return changes


def _refuse_bad_requests(rules: Sequence[str], config: TrainConfig, encoding: str) -> None:
    problems = [f"'{rule}' has no fix; there are: {', '.join(FIXABLE)}" for rule in rules if rule not in FIXABLE]
    if "trigger-missing" in rules and not config.captions.trigger:
        problems.append("trigger-missing needs the trigger: --set captions.trigger=WORD")
    try:
        codecs.lookup(encoding)
    except LookupError:
        problems.append(f"--encoding {encoding} is unknown; usual are cp1252, shift_jis, gbk, euc_kr, cp1251, utf-16")
    if problems:
        raise ConfigError("the fix", problems)


def _without_copies(keep: ImageRecord, copies: Iterable[ImageRecord], leaving: Collection[Path]) -> Iterator[Change]:
    for copy in copies:
        for each in (copy.path, *companions(copy.path, leaving, copy.captions)):
            yield Change(("exact-duplicate",), each, None, f"to the trash: a copy of {keep.path.name} stays")


def _pixel_changes(path: Path, rules: Sequence[str]) -> Iterator[Change]:
    with open_image(path) as image:
        animated, exif_rotated = is_animated(image), is_exif_rotated(image)
    if animated and "animated" in rules:
        # A still GIF would be cut down to 256 colours once more; a PNG keeps what the frame has.
        still = path if path.suffix.lower() != ".gif" else path.with_suffix(".png")
        if still == path:
            yield Change(("animated",), path, partial(_first_frame, path), "keep the first frame")
        # Another picture of that name stays, and so does the animation: nothing is ever overwritten.
        elif not still.exists():
            yield Change(("animated",), still, partial(_first_frame, path), f"the first frame of {path.name}")
            yield Change(("animated",), path, None, "to the trash: animated")
    elif exif_rotated and "exif-rotated" in rules:
        yield Change(("exif-rotated",), path, partial(_turned, path), "turn the pixels, clear the EXIF orientation")


def _first_frame(path: Path) -> bytes:
    with open_image(path) as image:
        image.seek(0)
        kind = "PNG" if image.format == "GIF" else str(image.format)
        frame = image.convert("RGBA" if image.has_transparency_data else "RGB")
        return _encoded(frame, kind, icc_profile=image.info.get("icc_profile"))


def _turned(path: Path) -> bytes:
    with open_image(path) as image:
        upright = ImageOps.exif_transpose(image)
        return _encoded(upright, str(image.format), icc_profile=image.info.get("icc_profile"), exif=upright.getexif())


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image's file: without loss where the format can, else at quality 95 and full colour resolution."""
    content = io.BytesIO()
    if kind == "JPEG":
        options |= {"quality": _JPEG_QUALITY, "subsampling": 0}
    elif kind == "WEBP":
        options |= {"lossless": True}
    elif kind == "AVIF":
        options |= {"quality": 100, "subsampling": "4:4:4"}
    image.save(content, kind, **options)
    return content.getvalue()


def _caption_changes(
    data: Dataset, records: Sequence[ImageRecord], rules: Sequence[str], config: CaptionsConfig, encoding: str
) -> Iterator[Change]:
    drafts: dict[Path, _Draft] = {}
    renamed: dict[Path, Path] = {}
    for record in records:
        path = record.path
        draft = _Draft(record.caption or "")
        source = path.with_suffix(config.extension)
        if path in data.unread.other_endings and "caption-extension" in rules:
            source = renamed[path] = data.unread.other_endings[path]
            draft.rules.append("caption-extension")
            draft.text = _read_text(source, None) or ""
            if not draft.text and "caption-encoding" in rules:
                draft.change("caption-encoding", _read_text(source, encoding) or "")
        elif "caption-encoding" in rules and source in data.wrongly_encoded:
            draft.change("caption-encoding", _read_text(source, encoding) or "")
        elif source.is_file() and draft.text:
            draft.text = _read_text(source, None) or draft.text
        drafts[path] = draft
    _change_texts([draft for draft in drafts.values() if draft.text], rules, config)
    for path, draft in drafts.items():
        yield from _written(path.with_suffix(config.extension), draft, renamed.get(path))


def _read_text(path: Path, encoding: str | None) -> str | None:
    """The file's text, from `encoding` if it isn't UTF-8; None where that fails."""
    content = read_file(path)
    try:
        return decode_text(content)
    except UnreadableTextError:
        return content.decode(encoding, errors="replace").replace("\0", "") if encoding else None


def _change_texts(drafts: Sequence[_Draft], rules: Sequence[str], config: CaptionsConfig) -> None:
    # In this order: a slip put right may be a tag that was there already, and goes as a double then.
    spellings = {}
    if "near-miss-spelling" in rules:
        spellings = near_miss_spellings([draft.text for draft in drafts], config)
    for draft in drafts:
        if spellings:
            merged = rewrite_tags(draft.text, config, lambda tags: [spellings.get(tag.lower(), tag) for tag in tags])
            draft.change("near-miss-spelling", merged)
        if "duplicate-tags" in rules:
            draft.change("duplicate-tags", rewrite_tags(draft.text, config, _once_each))
        if "trigger-missing" in rules:
            draft.change("trigger-missing", _with_trigger(draft.text, config))


def _once_each(tags: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.lower(), tag)
    return list(first.values())


def _with_trigger(text: str, config: CaptionsConfig) -> str:
    trigger = (config.trigger or "").strip()
    front = trigger + (joint(config) or " ")

    def put(line: str) -> str:
        return line if not line.strip() or has_trigger(line, trigger) else front + line

    # With wildcards each line is a caption of its own.
    if config.wildcards:
        return "".join(put(line) for line in text.splitlines(keepends=True))
    return text if has_trigger(text, trigger) else front + text


def _written(target: Path, draft: _Draft, renamed_from: Path | None) -> Iterator[Change]:
    if not draft.rules:
        return
    rules = tuple(draft.rules)
    if renamed_from is None:
        yield with_text(rules, target, draft.text)
        return
    before = renamed_from.read_bytes()
    # Where nothing but the name is wrong, every byte stays, line ends included.
    content = before if draft.rules == ["caption-extension"] else encoded_like(draft.text, before)
    steps = [
        Change(rules, target, lambda: content, f"caption: {' '.join(draft.text.split())}"),
        Change(rules, renamed_from, None, f"becomes {target.name}"),
    ]
    # The new one first, so that a kill between the two loses no caption; but to some disks a.TXT and a.txt are one.
    yield from reversed(steps) if renamed_from.name.lower() == target.name.lower() else steps
