"""Settings to begin with for a folder of pictures: a shipped preset, what these pictures change in it, and why."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sdlora.config import files, schema
from sdlora.config.base_model import BaseModelConfig, FamilyName
from sdlora.config.calls import Suggest
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.config.presets import Subject
from sdlora.config.shipped import BUILTIN_PREFIX, presets_folder, resolve_folder
from sdlora.config.train import TrainConfig
from sdlora.data.captions import has_trigger
from sdlora.data.images import ImageRecord, scan
from sdlora.data.lint.tags import tags_of
from sdlora.data.scan_problems import refuse_missing_folders
from sdlora.data.sets.suggestions import SHARED_BY
from sdlora.data.sets.suggestions import suggest as told_by_dataset
from sdlora.errors import ConfigError
from sdlora.models.detection import detect
from sdlora.words import as_typed, count

_PRESETS: dict[tuple[FamilyName, Subject], str] = {
    ("sd1", "style"): "sd15_style",
    ("sd1", "person"): "sd15_person",
    ("sd1", "character"): "anime",
    ("sd1", "concept"): "sd15_concept",
    ("sd2", "style"): "sd2_style",
    ("sdxl", "style"): "sdxl_style",
    ("sdxl", "person"): "sdxl_person",
    ("sdxl", "character"): "sdxl_anime",
    ("sdxl", "concept"): "sdxl_concept",
}
_TIMES_SEEN = {"style": 150, "person": 200, "character": 150, "concept": 150}
"""How often a picture is seen in all: about 100 steps a picture at batch 2 for people; 200 to 400 images x repeats in
ten epochs for characters, which is 100 to 200 times each for 20 pictures."""
_FEWEST_STEPS = 200
_ENOUGH_TO_HOLD_OUT = 10
"""Pictures from which on a tenth is held out, which tells the step to stop at."""
_TAGS = 3
"""Captions that have on the middle so many commas' parts, short ones, are lists of tags."""
_WORDS_IN_A_TAG = 3
_SMALL = 0.8
"""Of the base model's resolution: pictures below it would be enlarged so far that they teach blur."""
_STEP_PX = 64


@dataclass(frozen=True)
class Advice:
    """One setting, and why it has this value."""

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Suggestion:
    """A preset, and what is changed in it for these pictures."""

    preset: str
    preset_reason: str
    advice: tuple[Advice, ...]
    remarks: tuple[str, ...]
    """What no setting can mend."""

    def to_yaml(self) -> str:
        """A preset that `sdlora train` reads, each setting below its reason."""
        lines = [f"# {self.preset_reason}", f"preset: {self.preset}"]
        sections: dict[str, list[Advice]] = {}
        for each in self.advice:
            sections.setdefault(each.setting.rpartition(".")[0], []).append(each)
        for section, settings in sections.items():
            indent = "  " if section else ""
            lines += [f"{section}:"] if section else []
            for each in settings:
                named = {each.setting.rpartition(".")[2]: each.value}
                text = yaml.safe_dump(named, allow_unicode=True, default_flow_style=False, width=110)
                lines += [f"{indent}# {each.reason}", *(indent + line for line in text.splitlines())]
        return "\n".join(lines) + "\n"

    def config(self) -> TrainConfig:
        """The checked settings."""
        values = schema.nest({each.setting: each.value for each in self.advice})
        preset = {"preset": self.preset}
        return files.validate(files.on_preset(values | preset, "the suggestion", presets_folder()), "the suggestion")


def suggest(
    folder: Path | str,
    subject: Subject,
    *,
    base: Path | str | None = None,
    memory_gib: float | None = None,
    trigger: str | None = None,
) -> Suggestion:
    """Settings for training these pictures; `train(suggest("my_pictures", "style").config())` takes them at their word.

    folder: the pictures with their captions, or `builtin:` and a sample set's name.
    subject: what they are to teach. base: a base model by name, folder or file; without it SD 1.5 or SDXL by the
    pictures' size and the memory. memory_gib: what the card has, if that is to be kept to.
    trigger: the word for the subject; without it the tag with which nearly all captions begin.
    Raises DataError for pictures that can't be used, ModelError for a base that can't, ConfigError for a subject that
    there is no preset for, values of the wrong kind, pictures without a caption or trigger, or memory that nothing
    makes it fit into.
    """
    given = {"folder": folder, "subject": subject, "base": base, "memory_gib": memory_gib, "trigger": trigger}
    asked = files.validate(given, "suggest", Suggest)
    folder, base, memory_gib = asked.folder, asked.base, asked.memory_gib
    refuse_missing_folders([resolve_folder(folder).expanduser()])
    told, trigger = told_by_dataset(resolve_folder(folder)), " ".join((trigger or "").split()) or None
    scanned = scan(ImagesConfig(folder=folder), CaptionsConfig(default=""))
    records = scanned.records
    if not (trigger or told.trigger) and not all(record.caption for record in records):
        raise ConfigError(
            "--trigger", [f"not every picture has a caption: give a word for the {subject} that stands in for one"]
        )
    edges_px = sorted(int((each.width_px * each.height_px) ** 0.5) for each in records)
    pictures, preset, family, native_px, preset_reason = _choose(subject, base, edges_px, memory_gib)
    start = files.load(presets_folder() / preset)
    if start.objective.prior_preservation == "base_prediction" and not (trigger or told.trigger):
        raise ConfigError("--trigger", [f"a {subject} needs a word of its own, by which it is told from its kind"])
    advice = [
        Advice("name", told.name, "after the folder"),
        *([Advice("base_model.model", base, "as you say")] if base else []),
        Advice("images.folder", str(folder if str(folder).startswith(BUILTIN_PREFIX) else folder.absolute()), pictures),
        _resolution(edges_px, native_px),
        *_captions(records, trigger, told.trigger, start),
        *_length(records, subject, start),
    ]
    if start.previews.prompts:
        advice.append(Advice("previews.prompts", [], "the preset's own are about other pictures"))
        advice.append(Advice("previews.from_captions", 2, "so many captions, with the trigger, in their place"))
    remarks = (*scanned.warnings, *_remarks(records, edges_px, advice))
    found = Suggestion(preset, preset_reason, tuple(advice), remarks)
    if memory_gib is None:
        return found
    fitting = {each.setting: each for each in _fitting(found, family, memory_gib)}
    kept = [each for each in advice if each.setting not in fitting]
    return Suggestion(preset, preset_reason, (*kept, *fitting.values()), remarks)


def _choose(
    subject: Subject, base: str | None, edges_px: Sequence[int], memory_gib: float | None
) -> tuple[str, str, FamilyName, int, str]:
    """What the pictures are called, the preset, its base's family and resolution in px, and the reason."""
    sizes = f"{edges_px[0]} to {edges_px[-1]}" if edges_px[0] != edges_px[-1] else f"{edges_px[0]}"
    pictures = f"{count(len(edges_px), 'picture')}, {sizes} px (the root of width x height)"
    if base is not None:
        found = detect(BaseModelConfig(model=base))
        family, native_px, why = found.family, found.native_resolution, f"{base} is {found.family}"
        if base.startswith(BUILTIN_PREFIX):
            return pictures, "demo.yaml", family, native_px, f"{base}: the preset for trying sdlora out"
    else:
        is_large = statistics.median(edges_px) >= _SMALL * 1024
        family = "sdxl" if is_large and (memory_gib is None or memory_gib >= 8) else "sd1"
        native_px = 1024 if family == "sdxl" else 512
        middle = f"the middle picture has {statistics.median(edges_px):g} px"
        why = f"{middle}, enough for SDXL" if family == "sdxl" else f"{middle}: SD 1.5 was trained at 512 px"
        if is_large and family == "sd1":
            why = f"{memory_gib:g} GiB is little for SDXL"
    preset = _PRESETS.get((family, subject))
    if preset is None:
        known = ", ".join(each for kind, each in _PRESETS if kind == family)
        raise ConfigError("--for", [f"no preset trains a {subject} on {family}; there is one for: {known}"])
    return pictures, f"{preset}.yaml", family, native_px, f"a {subject}, and {why}"


def _resolution(edges_px: Sequence[int], native_px: int) -> Advice:
    middle = statistics.median(edges_px)
    if middle >= _SMALL * native_px:
        return Advice("images.resolution", native_px, f"the base model's own; the middle picture has {middle:g} px")
    # Not below what the base model still knows: it draws double heads and torsos at less.
    resolution = max(int(middle) // _STEP_PX * _STEP_PX, int(0.6 * native_px) // _STEP_PX * _STEP_PX + _STEP_PX)
    if resolution >= native_px:
        return Advice("images.resolution", native_px, f"the base model's own; most, with {middle:g} px, are enlarged")
    words = f"the middle picture has {middle:g} px: at the base model's {native_px} px more would be enlarged"
    return Advice("images.resolution", resolution, words)


def _captions(records: Sequence[ImageRecord], trigger: str | None, own: str, start: TrainConfig) -> Iterator[Advice]:
    captions = [record.caption for record in records if record.caption]
    if trigger is not None:
        yield Advice("captions.trigger", trigger, "as you say; put before every caption that lacks it")
    elif own:
        yield Advice("captions.trigger", own, "nearly all captions begin with it")
    elif start.captions.trigger:
        yield Advice("captions.trigger", None, "none was given (--trigger), and the captions have no common beginning")
    without = len(records) - len(captions)
    if without:
        yield Advice("captions.default", "", f"{count(without, 'picture')} without a caption: the trigger alone")
    if not captions:
        return
    parts = [tags_of(caption, CaptionsConfig()) for caption in captions]
    middle = statistics.median(len(each) for each in parts)
    words = statistics.mean(len(tag.split()) for each in parts for tag in each)
    if middle >= _TAGS and words <= _WORDS_IN_A_TAG:
        reason = f"the captions are lists of tags, {middle:g} in the middle one: their order means nothing"
        yield Advice("captions.shuffle_tags", True, reason)
        if trigger or own:
            yield Advice("captions.keep_tags", 1, "the trigger stays in front")
    elif start.captions.shuffle_tags:
        yield Advice("captions.shuffle_tags", False, "the captions are sentences, which shuffling would break up")
        yield Advice("captions.keep_tags", 0, "as nothing is shuffled")


def _length(records: Sequence[ImageRecord], subject: Subject, start: TrainConfig) -> Iterator[Advice]:
    number = len(records)
    held_out = max(1, round(0.1 * number)) if number >= _ENOUGH_TO_HOLD_OUT else 0
    if held_out:
        yield Advice(
            "validation.fraction",
            0.1,
            f"{count(held_out, 'picture')} of {number} held out tells which step is best, and the file takes that one",
        )
    elif start.validation.fraction:
        yield Advice("validation.fraction", 0.0, f"too few to hold any out: {count(number, 'picture')}")
    batch = min(start.optimization.batch_size, number - held_out)
    if batch != start.optimization.batch_size:
        yield Advice("optimization.batch_size", batch, f"there is no more to train on: {count(batch, 'picture')}")
    most = start.optimization.steps or 2000
    seen = _TIMES_SEEN[subject]
    wanted = -(-seen * (number - held_out) // batch // 10) * 10
    steps = min(most, max(_FEWEST_STEPS, wanted))
    times = steps * batch / (number - held_out)
    reason = f"{times:.0f} times each of {count(number - held_out, 'picture')} at batch {batch}"
    repeats = sorted({record.repeats for record in records})
    if len(repeats) > 1:
        reason += f" on average, shared out by their folders' repeats ({repeats[0]} to {repeats[-1]})"
    if steps == wanted:
        reason += f"; {seen} times is what this kind of training usually takes"
    else:
        reason += ", the preset's length" if steps == most else "; fewer steps change little"
    yield Advice("optimization.steps", steps, reason)
    yield Advice("outputs.checkpoint_every", max(50, steps // 40 * 10), "to choose among them: sdlora evaluate")


def _remarks(records: Sequence[ImageRecord], edges_px: Sequence[int], advice: Sequence[Advice]) -> Iterator[str]:
    resolution = next(each.value for each in advice if each.setting == "images.resolution")
    small = sum(edge < _SMALL * resolution for edge in edges_px)
    if small:
        these = f"{count(small, 'picture')} of {len(records)}"
        yield f"{these} will be enlarged to {resolution} px: larger originals are better"
    without = sum(not record.caption for record in records)
    if without:
        yield (
            f"{count(without, 'picture')} of {len(records)} without a caption: `sdlora dataset caption` writes some, "
            "so that the trigger takes on what they don't mention"
        )
    trigger = next((each.value for each in advice if each.setting == "captions.trigger" and each.value), None)
    if trigger is None:
        yield "no trigger: a word of its own would call up what is learned; without one every prompt shows it" + _meant(
            records
        )
    elif any(record.caption and not has_trigger(record.caption, trigger) for record in records):
        yield f"captions without '{trigger}' get it in front; their files stay as they are"
    if len(records) < _ENOUGH_TO_HOLD_OUT:
        yield f"so few ({count(len(records), 'picture')}) teach little but themselves: 15 different ones work better"


def _meant(records: Sequence[ImageRecord]) -> str:
    """The end of a sentence: what nearly all captions hold somewhere, which may be meant as the trigger."""
    of_each = [tags_of(record.caption, CaptionsConfig()) for record in records if record.caption]
    tag, times = next(iter(Counter(tag for tags in of_each for tag in set(tags)).most_common(1)), ("", 0))
    if len(of_each) < 2 or times < SHARED_BY * len(of_each):
        return ""
    return f". '{tag}' stands in {times} of {len(of_each)} captions: if that is the word, {as_typed('--trigger', tag)}"


def _fitting(found: Suggestion, family: FamilyName, memory_gib: float) -> Iterator[Advice]:
    """What makes the run fit. Raises ConfigError where nothing does."""
    from sdlora.training.preflight.fitting import MemoryNeeds  # loads torch, which nothing else here needs

    config = found.config()
    fit = MemoryNeeds.of(config, "cuda", family).fit(memory_gib)
    if fit is None:
        raise ConfigError(
            "--memory", [f"{memory_gib:g} GiB is not enough for {config.base_model.model}, whatever is set"]
        )
    for switch in fit.switches:
        for setting in switch.settings:
            name, _, value = setting.partition("=")
            reason = f"to fit into {memory_gib:g} GiB (about {fit.memory.total_gib:.1f} in all): {switch.costs}"
            yield Advice(name, yaml.safe_load(value), reason)
