"""What is evaluated: the checkpoints of a run, and a fixed list of prompts and seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdlora.adapters.files.container import content_hash
from sdlora.adapters.files.reading import read
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.images import CaptionsConfig
from sdlora.config.train import TrainConfig
from sdlora.data.captions import has_trigger, without_trigger
from sdlora.data.images import ImageRecord
from sdlora.data.planning import triggers
from sdlora.errors import AdapterError, ConfigError, RunError
from sdlora.models.prompts import literal
from sdlora.runs.folder import RunFolder
from sdlora.runs.results import adapter_files
from sdlora.training.outputs.checkpoint_state import adapter_damage
from sdlora.words import as_typed

PromptKind = Literal["known", "new", "plain"]
"""known: a training caption. new: the trigger in a scene that wasn't trained. plain: without the trigger."""

SCENES = (
    "a castle on a hill",
    "a red car",
    "an owl in a tree",
    "a sailboat on the sea",
    "a cup of coffee on a table",
    "a rocket in space",
    "a bowl of fruit",
    "a house in the snow",
)
"""Scenes that serve an object's trigger and a style's alike: each names a thing and can be a background."""


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """An adapter file to evaluate. `step` is None for a result that is no checkpoint's."""

    step: int | None
    path: Path
    content: str
    """Hash of the file's tensors: what is known of it holds wherever it is copied to."""

    @property
    def label(self) -> str:
        """How it is called in tables and folders."""
        return "final" if self.step is None else f"step {self.step}"


@dataclass(frozen=True)
class EvaluatedPrompt:
    """A prompt with its trigger, and `bare` without it: what the base model is asked, and adherence is held against."""

    kind: PromptKind
    prompt: str
    bare: str


def find_checkpoints(
    folder: RunFolder, config: TrainConfig, steps: Sequence[int] = (), notes: list[str] | None = None
) -> list[EvaluatedCheckpoint]:
    """The adapter files of a run, oldest first; those of `steps` alone, if given.

    The result is left out where it is the same as a checkpoint's file, and so is what is damaged, with a sentence in
    `notes`. Raises RunError when there is none or none is sound, ConfigError for steps without one.
    """
    if config.adapter.rank == 0:
        raise RunError(f"{folder.path}: this run trains new tokens alone; only adapters can be evaluated")
    found: list[EvaluatedCheckpoint] = []
    damaged: dict[int | None, str] = {}
    for file in adapter_files(folder):
        if file.step is None and file.path != folder.adapter(config.name):
            continue
        if steps and file.step is not None and file.step not in steps:
            found.append(EvaluatedCheckpoint(file.step, file.path, content=""))
        elif why := _damage(file.path):
            damaged[file.step] = f"{'the result' if file.step is None else f'step {file.step}'} is damaged: {why}"
        else:
            found.append(EvaluatedCheckpoint(file.step, file.path, content_hash(file.path)))
    known = {one.content for one in found if one.step is not None}
    found = [one for one in found if one.step is not None or one.content not in known]
    if damaged and not found:
        raise RunError("\n".join([f"{folder.path}: nothing is left to evaluate", *damaged.values()]))
    if asked := [damaged[step] for step in steps if step in damaged]:
        raise ConfigError("the evaluation", [f"checkpoints: {why}" for why in asked])
    if notes is not None:
        notes += [f"{why}; it is left out" for why in damaged.values()]
    if not found:
        raise RunError(
            f"{folder.path}: there is no checkpoint yet to evaluate; `{as_typed('sdlora', 'save', folder.path)}` asks"
            " a running training for one"
        )
    if missing := [step for step in steps if step not in [one.step for one in found]]:
        there = ", ".join(str(one.step) for one in found if one.step is not None) or "none"
        absent = ", ".join(map(str, missing))
        raise ConfigError("the evaluation", [f"checkpoints: the run has none at step {absent}; there is: {there}"])
    return [one for one in found if not steps or one.step in steps]


def _damage(path: Path) -> str:
    """Why an adapter file can't be evaluated; "" for a sound one."""
    if damage := adapter_damage(path):
        return damage
    try:
        read(path)
    except AdapterError as error:
        return str(error)
    return ""


def choose_prompts(
    config: EvaluateConfig, captions: CaptionsConfig, records: Sequence[ImageRecord]
) -> list[EvaluatedPrompt]:
    """The prompts: those given, else some made of the training captions and the trigger. No kind repeats a prompt.

    records: the trained images. Without any trigger there are no plain prompts by default: all that is generated is
    meant to change.
    """
    own = [record for record in records if not record.is_class]
    words = triggers(own)
    known = config.prompts.known or _spread([_spelled(one) for one in own], config.prompts.num_known)
    scenes = _unknown_scenes([record.plain_caption() for record in own])
    new = config.prompts.new or [", ".join([*words[:1], scene]) for scene in scenes[: config.prompts.num_new]]
    plain = config.prompts.plain or _plain(config, captions, known, scenes, words)
    kinds: tuple[tuple[PromptKind, Sequence[str]], ...] = (("known", known), ("new", new), ("plain", plain))
    return [
        EvaluatedPrompt(kind, prompt, bare(prompt, captions, words))
        for kind, prompts in kinds
        for prompt in dict.fromkeys(prompts)
        if prompt.strip()
    ]


def _plain(
    config: EvaluateConfig, captions: CaptionsConfig, known: Sequence[str], scenes: Sequence[str], words: Sequence[str]
) -> list[str]:
    """Scenes and captions without the trigger in turn: the first tell what else changes, the others what is near."""
    if not words:
        return []
    without = [text for prompt in known if (text := bare(prompt, captions, words)).strip() and text != prompt]
    mixed = [text for pair in zip(scenes, without, strict=False) for text in pair]
    return [*mixed, *scenes[len(without) :]][: config.prompts.num_plain]


def _spelled(record: ImageRecord) -> str:
    """A caption as a prompt spells it: its brackets are text, those of a prompt are weights."""
    text = record.plain_caption().strip()
    return text if record.captions.weights else literal(text)


def _spread(texts: Sequence[str], count: int) -> list[str]:
    """So many of the texts, from first to last, each once."""
    different = [text for text in dict.fromkeys(texts) if text]
    if count == 0:
        return []
    return different[:: max(1, len(different) // count)][:count]


def _unknown_scenes(captions: Sequence[str]) -> list[str]:
    """The scenes whose thing no caption speaks of; all of them when captions speak of everything."""
    words = {word for caption in captions for word in re.findall(r"\w+", caption.lower())}
    unknown = [scene for scene in SCENES if not words & set(_things(scene))]
    return unknown or list(SCENES)


def _things(scene: str) -> list[str]:
    small = {"a", "an", "the", "on", "in", "of", "red"}
    return [word for word in re.findall(r"\w+", scene) if word not in small]


def bare(prompt: str, captions: CaptionsConfig, words: Sequence[str]) -> str:
    """The prompt with every trigger in `words` taken out."""
    for word in words:
        if has_trigger(prompt, word):
            prompt = without_trigger(prompt, captions.model_copy(update={"trigger": word}))
    return prompt
