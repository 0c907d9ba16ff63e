"""A run evaluated: images generated, looked at and compared, losses measured, a checkpoint recommended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sdlora.config.calls import Evaluate
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.files import validate
from sdlora.config.given import Values, evaluate_config
from sdlora.config.train import TrainConfig
from sdlora.config.without_effect import in_evaluating
from sdlora.data.cache import Cache
from sdlora.data.planning import triggers
from sdlora.errors import ConfigError
from sdlora.evaluation import characters, problem_images, tied_words
from sdlora.evaluation.comparing import Comparing
from sdlora.evaluation.features.scorer import load_scorer
from sdlora.evaluation.findings import Interval
from sdlora.evaluation.images import (
    PlannedImage,
    base_model_of,
    generate_missing,
    plan_images,
    used_adapter,
)
from sdlora.evaluation.lock import locked
from sdlora.evaluation.looking import LookedAt, Looking, Tell
from sdlora.evaluation.loss_measures import LossMeasures
from sdlora.evaluation.plan import EvaluatedCheckpoint, EvaluatedPrompt, choose_prompts, find_checkpoints
from sdlora.evaluation.promotion import promote as promote_checkpoint
from sdlora.evaluation.promotion import refuse_promotion
from sdlora.evaluation.recommendation import recommend
from sdlora.evaluation.report import (
    EvaluatedImage,
    Evaluation,
    ProblemReport,
    Scores,
    TiedWord,
    TriggerPair,
    WeightAdvice,
)
from sdlora.evaluation.scores import standardised
from sdlora.evaluation.training_images import TrainingImages, find_training_images
from sdlora.events import EventSink, EventStream, checked_sinks
from sdlora.generation.generate import Generator
from sdlora.generation.request.requests import resolve
from sdlora.runs.folder import RunFolder, open_run

_LEAST_ADHERENCE_BY_TEXT, _LEAST_ADHERENCE_BY_BASE = 0.85, 0.5
"""Share of the base's adherence below which images no longer show what is asked for."""


def evaluate(
    run: Path | str,
    config: EvaluateConfig | Values | None = None,
    sinks: Sequence[EventSink] = (),
    *,
    promote: bool = False,
) -> Evaluation:
    """Evaluate a run's checkpoints; the report is written to `RUN/evaluation/evaluation.json`, too.

    config: settings, or values as they stand in a YAML file. sinks: are told of the progress, and stay open. promote:
    make the recommended checkpoint the run's result. Interrupted, the same call goes on where it was: no image is
    generated twice. Everything that can be checked is checked before a model is loaded. Raises ConfigError listing
    every problem, RunError for a run without checkpoints or one that is being evaluated, DataError, ModelError,
    AdapterError.
    """
    sinks = checked_sinks(sinks)
    asked = validate({"run": run, "promote": promote}, "evaluate", Evaluate)
    promote = asked.promote
    config = evaluate_config(config)
    folder, train = open_run(asked.run)
    if promote:
        refuse_promotion(folder)
    notes: list[str] = []
    checkpoints = find_checkpoints(folder, train, config.checkpoints, notes)
    training = find_training_images(folder, train)
    training = replace(training, notes=(*notes, *training.notes))
    prompts = choose_prompts(config, train.captions, training.records)
    if config.tied_words.enabled and not triggers(training.records):
        raise ConfigError("the evaluation", ["tied_words: the run has no trigger that words could be tied to"])
    if config.characters.enabled:
        characters.find_characters(config.characters, [item.record for item in training.placed])
    _check(folder, train, config, checkpoints, prompts)
    stream = EventStream(list(sinks))
    with locked(folder):
        result = _Evaluating(folder, train, config, checkpoints, training, prompts, stream).go()
        result.write()
    return promote_checkpoint(folder.path, result.recommendation.label) if promote else result


def _check(
    folder: RunFolder,
    train: TrainConfig,
    config: EvaluateConfig,
    checkpoints: Sequence[EvaluatedCheckpoint],
    prompts: Sequence[EvaluatedPrompt],
) -> None:
    """Raise ConfigError with every problem that requests for these images have; reads headers only."""
    if not any(one.kind != "plain" for one in prompts):
        raise ConfigError("the evaluation", ["prompts.known and prompts.new: no prompt is left; give some"])
    problems: dict[str, None] = {}
    planned = plan_images(folder, train, config, checkpoints, prompts, "")
    seen: set[tuple[str | None, str]] = set()
    for one in planned:
        kind = (None if one.checkpoint is None else str(one.checkpoint.path), one.text)
        if kind not in seen:  # seeds can't be wrong each by itself
            seen.add(kind)
            try:
                resolve(one.request)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError("the evaluation", list(problems))


def _by_checkpoint(planned: Sequence[PlannedImage]) -> list[list[PlannedImage]]:
    """The base's images, then each checkpoint's."""
    groups: dict[EvaluatedCheckpoint | None, list[PlannedImage]] = {}
    for one in planned:
        groups.setdefault(one.checkpoint, []).append(one)
    return list(groups.values())


class _Evaluating:
    """One evaluation under way."""

    def __init__(
        self,
        folder: RunFolder,
        train: TrainConfig,
        config: EvaluateConfig,
        checkpoints: Sequence[EvaluatedCheckpoint],
        training: TrainingImages,
        prompts: Sequence[EvaluatedPrompt],
        stream: EventStream,
    ) -> None:
        self.folder = folder
        self.train = train
        self.config = config
        self.checkpoints = checkpoints
        self.training = training
        self.prompts = prompts
        self.stream = stream
        self.seconds: dict[str, float] = {}

    def go(self) -> Evaluation:
        """Everything in order; each stage's time is noted."""
        train, config = self.train, self.config
        for note in (*in_evaluating(config), *self.training.notes):
            self.stream.warn(note)
        with self._timed("loading"):
            # Before the base model: whether there is such a scorer is told sooner.
            scorer = load_scorer(config, train.base_model.model)
            generator = Generator(base_model_of(train), config.compute)
        identity = generator.bundle.identity
        planned = plan_images(self.folder, train, config, self.checkpoints, self.prompts, identity)
        with self._timed("generating"):
            made = generate_missing(planned, generator, self._telling("generating images"))
        cache = Cache(self.folder.evaluation / "cache", on_damage=self.stream.warn)
        looking = Looking(generator, scorer, cache, config.batch_size, config.seed)
        with self._timed("comparing"):
            looked_training = looking.at_training(self.training)
            base, *found = self._scores(_by_checkpoint(planned), looking, looked_training)
        measures = LossMeasures(generator, train, config, self.training)
        with self._timed("held-out loss"):
            used = [[used_adapter(one, config)] for one in self.checkpoints]
            intervals = measures.held_out(used, self._telling("measuring held-out images"))
            if intervals:
                found = [replace(one, held_out=own) for one, own in zip(found, intervals, strict=True)]
        # Similarities of CLIP have a floor, so that little of them is much; the base model's own gains have none.
        least_adherence = _LEAST_ADHERENCE_BY_BASE if scorer is None else _LEAST_ADHERENCE_BY_TEXT
        recommendation = recommend(base, found, config.most_copies, least_adherence)
        chosen = next(one for one in self.checkpoints if str(one.path) == recommendation.file)
        advice = None
        if config.weights:
            with self._timed("weights"):
                advice, more = self._weight_advice(
                    chosen, generator, looking, looked_training, measures, least_adherence
                )
            made += more
        tied = None
        if config.tied_words.enabled:
            with self._timed("tied words"):
                tied, more = self._tied_words(chosen, generator, looking, looked_training)
            made += more
        pairs = None
        if config.characters.enabled:
            with self._timed("characters"):
                pairs, more = self._characters(chosen, generator, looking, looked_training)
            made += more
        problems = None
        if config.problem_images.enabled:
            with self._timed("problem images"):
                problems = self._problems(measures, chosen, looked_training, centred=looking.is_centred)
            problems = replace(problems, seconds=self.seconds["problem images"])
        return Evaluation(
            run=self.folder.path,
            features=looking.scorer_name,
            base=base,
            checkpoints=tuple(found),
            recommendation=recommendation,
            prompts=tuple({"kind": one.kind, "prompt": one.prompt, "bare": one.bare} for one in self.prompts),
            num_seeds=config.num_seeds,
            weight_advice=advice,
            tied_words=tied,
            characters=pairs,
            problem_images=problems,
            notes=self.training.notes,
            seconds=self.seconds,
            generated=made,
            finished_at=time.time(),
            images=tuple(
                EvaluatedImage(
                    "base" if one.checkpoint is None else one.checkpoint.label,
                    self.prompts.index(one.prompt),
                    one.seed,
                    one.path.relative_to(self.folder.path).as_posix(),
                )
                for one in planned
            ),
        )

    def _scores(self, groups: Sequence[Sequence[PlannedImage]], looking: Looking, training: LookedAt) -> list[Scores]:
        """Scores of each group of images, the base's among them."""
        different = {one.path: one for group in groups for one in group}
        rows = list(different.values())
        looked = looking.at_generated(rows, self._telling("comparing images"))
        places = {path: place for place, path in enumerate(different)}
        comparing = Comparing(
            rows, looked, training, self.training.names, self.config.num_seeds, is_centred=looking.is_centred
        )
        return [comparing.of(own, [places[one.path] for one in own]) for own in groups]

    def _weight_advice(
        self,
        chosen: EvaluatedCheckpoint,
        generator: Generator,
        looking: Looking,
        training: LookedAt,
        measures: LossMeasures,
        least_adherence: float,
    ) -> tuple[WeightAdvice, int]:
        """The lowest weight that shows nearly all that any of them shows, by the rule for checkpoints; and how many
        images were made."""
        by_weight = [self.config.model_copy(update={"weight": weight}) for weight in sorted(self.config.weights)]
        identity = generator.bundle.identity
        plans = [plan_images(self.folder, self.train, each, [chosen], self.prompts, identity) for each in by_weight]
        planned = [one for plan in plans for one in plan]
        made = generate_missing(planned, generator, self._telling("generating images at other weights"))
        groups = [_by_checkpoint(plan) for plan in plans]  # of each the base's, which all share, and the weight's own
        base, *found = self._scores([groups[0][0], *(own for _, own in groups)], looking, training)
        used = [[used_adapter(chosen, each)] for each in by_weight]
        measured = measures.held_out(used, self._telling("measuring held-out images at other weights"))
        intervals: Sequence[Interval | None] = measured or [None] * len(found)
        tried = [
            replace(one, label=f"weight {each.weight:g}", held_out=interval)
            for one, each, interval in zip(found, by_weight, intervals, strict=True)
        ]
        advised = recommend(base, tried, self.config.most_copies, least_adherence)
        weight = next(each.weight for one, each in zip(tried, by_weight, strict=True) if one.label == advised.label)
        return WeightAdvice(weight, advised.sentence, tuple(tried)), made

    def _tied_words(
        self, chosen: EvaluatedCheckpoint, generator: Generator, looking: Looking, training: LookedAt
    ) -> tuple[tuple[TiedWord, ...], int]:
        """What the checkpoint has tied to the trigger; and how many images were made."""
        config = self.config.model_copy(update={"num_seeds": self.config.tied_words.num_seeds})
        records = [item.record for item in self.training.placed]
        words = tied_words.find_words(config.tied_words, self.train.captions, records)
        if not words:
            return (), 0
        asked = self._scenes()
        kinds = [asked, *(prompts for one in words for prompts in tied_words.prompts_of(one.word, asked))]
        identity = generator.bundle.identity
        plans = [plan_images(self.folder, self.train, config, [chosen], prompts, identity) for prompts in kinds]
        # The base's images, which all plans share, then the checkpoint's own: of the trigger, of each word with and
        # without it.
        stages = ("generating images with and without words", "comparing words")
        (base, without, *of_words), training_MD, made = self._seen(plans, generator, looking, training, stages)
        pairs = zip(words, of_words[::2], of_words[1::2], strict=True)
        found = [tied_words.compare(one, base, without, both, alone, training_MD) for one, both, alone in pairs]
        return tuple(found), made

    def _characters(
        self, chosen: EvaluatedCheckpoint, generator: Generator, looking: Looking, training: LookedAt
    ) -> tuple[tuple[TriggerPair, ...], int]:
        """What each trigger brings of the others; and how many images were made."""
        config = self.config.model_copy(update={"num_seeds": self.config.characters.num_seeds})
        found = characters.find_characters(config.characters, [item.record for item in self.training.placed])
        kinds = [characters.prompts_of(one.trigger, self._scenes()) for one in found]
        identity = generator.bundle.identity
        plans = [plan_images(self.folder, self.train, config, [chosen], prompts, identity) for prompts in kinds]
        stages = ("generating images of each character", "comparing characters")
        (base, *own), training_MD, made = self._seen(plans, generator, looking, training, stages)
        by_trigger = {one.trigger: each for one, each in zip(found, own, strict=True)}
        return tuple(characters.compare(found, base, by_trigger, training_MD)), made

    def _scenes(self) -> list[EvaluatedPrompt]:
        """The prompts that are asked with and without words, or with each trigger: new scenes, if there are any."""
        new = [one for one in self.prompts if one.kind == "new"]
        return new or [one for one in self.prompts if one.kind == "known"]

    def _seen(
        self,
        plans: Sequence[Sequence[PlannedImage]],
        generator: Generator,
        looking: Looking,
        training: LookedAt,
        stages: tuple[str, str],
    ) -> tuple[list[Tensor], Tensor, int]:
        """Features of plans for one checkpoint with the same scenes: the base's, which all share, then each plan's own;
        the training images' features beside them, and how many images were made."""
        groups = [_by_checkpoint(plans[0])[0], *(_by_checkpoint(plan)[1] for plan in plans)]
        made = generate_missing([one for group in groups for one in group], generator, self._telling(stages[0]))
        features, training_MD = looking.features(groups, training.features_ND, self._telling(stages[1]))
        return features, training_MD, made

    def _problems(
        self, measures: LossMeasures, chosen: EvaluatedCheckpoint, training: LookedAt, *, centred: bool
    ) -> ProblemReport:
        features = training.features_ND
        features = standardised(features, features) if centred else features
        first, listed = self.checkpoints[0], self.config.problem_images.listed
        by_kind = measures.problems(
            [used_adapter(first, self.config)],
            [used_adapter(chosen, self.config)],
            features,
            self._telling("measuring training images"),
        )
        worst = tuple(problem_images.worst(by_kind, listed))
        shown = {kind: tuple(problems[:listed]) for kind, problems in by_kind.items()}
        named = {one.name for problems in (worst, *shown.values()) for one in problems}
        paths = zip(self.training.names, (item.record.path for item in self.training.placed), strict=True)
        return ProblemReport(
            worst=worst,
            by_kind=shown,
            checkpoints=tuple(dict.fromkeys(("base", first.label, chosen.label))),
            seconds=0.0,
            files={name: str(path) for name, path in paths if name in named},
        )

    def _telling(self, stage: str) -> Tell:
        return lambda done, total: self.stream.progress(stage, done, total)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 2)
