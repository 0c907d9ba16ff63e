"""What a run's pictures and captions make of its settings: pictures spoilt by their size, settings that do nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sdlora.config.train import TrainConfig
from sdlora.config.without_effect import is_written
from sdlora.data.captions import all_tags, loose_tags, protected_tags
from sdlora.data.choices import has_choice
from sdlora.data.images import ImageRecord
from sdlora.training.inputs.images import RunImages
from sdlora.words import count, first_few

_ENLARGED = 4.0
"""Beyond this an image is all blur; the check of a dataset tells of less."""
_LEAST_KEPT = 1 / 3
_WILDCARD_FILE = re.compile(r"(?<!\w)__[A-Za-z][\w/*-]*?__(?!\w)")


def spoilt_pictures(images: RunImages) -> Iterator[str]:
    """Pictures that are enlarged to a blur, or cut down to a small part of themselves."""
    enlarged: dict[Path, float] = {}
    cut: dict[Path, float] = {}
    for item in images.placed:  # of several resolutions the worst counts
        path, placement = item.record.path, item.placement
        if placement.scale > _ENLARGED:
            enlarged[path] = max(placement.scale, enlarged.get(path, 0))
        if placement.kept_share < _LEAST_KEPT:
            cut[path] = min(placement.kept_share, cut.get(path, 1))
    if enlarged:
        named = first_few([f"{path.name} ({scale:.3g} times)" for path, scale in enlarged.items()])
        yield f"{count(len(enlarged), 'image')} enlarged more than {_ENLARGED:g} times, to a blur: {named}"
    if cut:
        named = first_few([f"{path.name} ({share:.0%} kept)" for path, share in cut.items()])
        yield f"{count(len(cut), 'image')} cut to less than a third, as no bucket has the shape: {named}"


def idle_settings(config: TrainConfig, images: RunImages) -> Iterator[str]:
    """Settings of images and captions that no image of the run follows."""
    records = images.trained
    if is_written(config.images, "repeats") and not any(record.follows_repeats for record in records):
        yield (
            f"images.repeats={config.images.repeats} has no effect: the folders' names (10_name) or images.folders "
            "give the repeats of every image"
        )
    yield from _prompts_grammar(records)
    # With wildcards a caption differs each time, and so do its tags.
    if not config.captions.wildcards:
        yield from _idle_order(records)
        yield from _idle_protection(config, records)


def _prompts_grammar(records: list[ImageRecord]) -> Iterator[str]:
    """Captions with what prompts settle and these settings, or training, leave as text."""

    def having(found: Callable[[str], bool], wildcards: bool | None = None) -> list[str]:
        asked = [one for one in records if wildcards in (None, one.captions.wildcards)]
        return [one.path.name for one in asked if any(found(text) for text in _texts(one))]

    if choices := having(has_choice, wildcards=False):
        words = f"{count(len(choices), 'caption')} with a choice such as {{red|green}}, trained as it stands"
        yield f"{words}: {first_few(choices)}. captions.wildcards=true settles one each time"
    if files := having(lambda text: _WILDCARD_FILE.search(text) is not None):
        words = f"{count(len(files), 'caption')} with a wildcard such as __colour__, trained as it stands"
        yield f"{words}: {first_few(files)}. Files of wildcards are read in prompts only"


def _idle_order(records: list[ImageRecord]) -> Iterator[str]:
    for name, fewest in (("shuffle_tags", 2), ("tag_dropout", 1)):
        asked = [record for record in records if getattr(record.captions, name)]
        loose = [len(loose_tags(text, record.captions)) for record in asked for text in _texts(record)]
        if loose and max(loose) < fewest:
            most = max(len(all_tags(text, record.captions)) for record in asked for text in _texts(record))
            kept = max(record.captions.keep_tags for record in asked)
            why = f"captions.keep_tags={kept} and " if kept else ""
            yield f"captions.{name} has no effect: {why}no caption has more than {count(most, 'tag')}"


def _idle_protection(config: TrainConfig, records: list[ImageRecord]) -> Iterator[str]:
    protected = protected_tags(config.captions)
    asked = [record for record in records if record.captions.tag_dropout]
    if not (protected and asked):
        return
    present = {tag.casefold() for record in asked for text in _texts(record) for tag in all_tags(text, record.captions)}
    absent = sorted(protected - present)
    # A file may be a list for many datasets, of which most tags are none of this one's.
    if absent and (not isinstance(config.captions.protected_tags, Path) or len(absent) == len(protected)):
        which = f"{len(absent)} of {count(len(protected), 'tag')}"
        yield f"captions.protected_tags: {which} in no caption, so nothing is protected by it: {first_few(absent)}"


def _texts(record: ImageRecord) -> list[str]:
    return [record.caption or "", *(text for text, _ in record.alternatives)]
