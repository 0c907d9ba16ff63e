"""A training under way: what happens before its first step, between its steps, and at its end."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdlora import atomic
from sdlora.adapters.algebra.loaded_base import load_base
from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.writing import write_side_car
from sdlora.config.interval import is_due
from sdlora.config.train import TrainConfig
from sdlora.errors import AdapterError, OutOfMemoryError, TrainingError
from sdlora.events import (
    CheckpointSaved,
    EventStream,
    RunFinished,
    RunStarted,
    Stopping,
    Validated,
)
from sdlora.models.bundle import Bundle
from sdlora.models.identity import sha256_of
from sdlora.runs import changes, checkpoints
from sdlora.runs.checkpoints import Checkpoint
from sdlora.runs.folder import (
    FAILED_SELF_TEST,
    REQUESTS,
    Request,
    RunFolder,
    result_file,
    step_name,
    with_absolute_paths,
    write_config,
)
from sdlora.training.inputs.images import RunImages
from sdlora.training.loop.interrupts import Interrupts
from sdlora.training.loop.prepare import Prepared
from sdlora.training.loop.trainer import Outcome, Trainer
from sdlora.training.outputs import checkpoint_state
from sdlora.training.outputs.exporting import export, prove
from sdlora.training.outputs.facts import training_facts
from sdlora.training.outputs.former import keep_former
from sdlora.training.preflight.memory import is_out_of_memory, release
from sdlora.training.workers import Workers
from sdlora.words import first_few

# For checkpoint_every=auto: short runs are not slowed down by saving, and a long one loses ten minutes at most.
_SHORTEST_UNSAVED_SECONDS, _LONGEST_UNSAVED_SECONDS = 60.0, 600.0


@dataclass(frozen=True)
class RunResult:
    """How a run ended, and where its adapter lies."""

    folder: Path
    outcome: Outcome
    step: int
    adapter: Path
    """The finished file, or the newest checkpoint's when the run was stopped."""
    interrupted: bool
    """Whether Ctrl-C (or a termination signal) stopped it."""
    relative_loss: float | None
    """Last validation loss over the base model's, if images were held out."""


class Running:
    """The pieces of a running training and what happens between its steps."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        images: RunImages,
        prepared: Prepared,
        events: EventStream,
        workers: Workers,
        interrupts: Interrupts,
        started: float,
    ) -> None:
        self.config = config
        self.folder = folder
        self.images = images
        self.prepared = prepared
        self.events = events
        self.workers = workers
        self.interrupts = interrupts
        self.started = started
        self.relative_loss: float | None = None
        self._saved_at = time.monotonic()
        self._owes_previews = False
        self.trainer = Trainer(
            config,
            images.total_steps(config),
            prepared.adapter,
            prepared.batches,
            prepared.loss_function,
            events,
            workers,
        )

    def go(self) -> RunResult:
        """Train from where the trainer stands to the end, or until asked to stop."""
        trainer = self.trainer
        self.events.emit(
            RunStarted(
                name=self.config.name,
                folder=str(self.folder.path),
                process_id=os.getpid(),
                total_steps=trainer.total_steps,
                first_step=trainer.progress.step,
                trainable_parameters=self.prepared.adapter.trainable_parameters,
                total_parameters=self.prepared.adapter.total_parameters,
            )
        )
        self._recall_best()
        self._forget_other_best()
        outcome: Outcome = "stopped"
        if self._ready_to_train():
            try:
                outcome = trainer.run(self._after_step)
            except OutOfMemoryError:
                # The step that failed has changed nothing: the weights are those of the step before.
                if trainer.progress.step:
                    self._save()
                raise
        reached = trainer.progress.step
        if self.workers.is_main:
            self._tell_unanswered("generate them with its adapter" if outcome == "completed" else "ask when it goes on")
        adapter = self._finish() if outcome == "completed" else self._save()
        self.events.emit(
            RunFinished(
                step=reached,
                reason=outcome,
                adapter_path=str(adapter),
                adapter_sha256=sha256_of(adapter) if outcome == "completed" and self.workers.is_main else None,
                seconds=time.time() - self.started,
            )
        )
        return RunResult(
            folder=self.folder.path,
            outcome=outcome,
            step=reached,
            adapter=adapter,
            interrupted=self.interrupts.seen,
            relative_loss=self.relative_loss,
        )

    def _recall_best(self) -> None:
        """Have the note of the best checkpoint say what the state says that this run goes on from.

        It is written after the checkpoint: a kill between the two leaves an older one behind. And it is ahead of the
        state where the newest checkpoints are damaged.
        """
        progress = self.trainer.progress
        noted = checkpoints.best_step(self.folder)
        if progress.best_step is None and progress.best_relative_loss < math.inf:
            progress.best_step = noted  # state of an older version
        elif progress.best_step != noted and self.workers.is_main:
            checkpoints.name_best(self.folder, progress.best_step, progress.best_relative_loss)

    def _forget_other_best(self) -> None:
        """Choose the best step anew where validation measures something else than before the run was gone on with."""
        progress, validation = self.trainer.progress, self.prepared.validation
        identity = "" if validation is None else validation.identity
        # A state of an older version doesn't say what was measured.
        if progress.measured == identity or (not progress.measured and progress.best_step is None):
            return
        if progress.best_step is not None and (progress.measured or validation is None):
            why = "nothing is held out any more" if validation is None else "validation measures otherwise than before"
            self.events.notice(f"{why}: step {progress.best_step} is not the best any more")
            progress.best_relative_loss, progress.best_step = math.inf, None
            if self.workers.is_main:
                checkpoints.name_best(self.folder, None, math.inf)
        if progress.measured:
            progress.base_loss = math.nan

    def _ready_to_train(self) -> bool:
        """Evaluate the base model, or do what the stop that this run goes on from left undone.

        Returns False when asked to stop meanwhile: before the first step that takes minutes on a slow machine.
        """
        step = self.trainer.progress.step
        if self._is_asked_to_stop(self._agreed(("stop",))):
            return False
        is_missing = self.trainer.progress.validated_step < step and self._is_due_here(self.config.validation.every)
        if (step == 0 or is_missing) and self._validate() and self.workers.is_main:
            self._tidy_checkpoints(improved=True)
        if self._is_asked_to_stop(self._agreed(("stop",))):
            return False
        generated = len(list(self.folder.previews(step).glob("*.png")))
        is_missing = generated < len(self.config.previews.prompts) and self._is_due_here(self.config.previews.every)
        if step == 0 or is_missing:
            # What is left out now is generated when the run goes on.
            self._preview(until=lambda: self.interrupts.seen or (self.folder.requests / "stop").exists())
        return not self._is_asked_to_stop(self._agreed(("stop",)))

    def _after_step(self) -> Literal["go on", "stop"]:
        # Asked for before anything long is done: who wants the run to stop should not wait for previews.
        agreed = self._agreed()
        if self._is_asked_to_stop(agreed):
            self._owes_previews = "preview" in agreed
            return "stop"
        self._draw_asked()
        # Measured before saving, so that the checkpoint of the best step is always there to be kept.
        improved = self._is_due_here(self.config.validation.every) and self._validate()
        if improved or self._is_last or "save" in agreed:
            self._save()
            if self.workers.is_main:
                self._tidy_checkpoints(improved)
        if "preview" in agreed or self._is_due_here(self.config.previews.every):
            self._preview()
        return "go on"

    def _is_checkpoint_due(self) -> bool:
        every = self.config.outputs.checkpoint_every
        if every != "auto":
            return self._is_due(every)
        # A run over night loses ten minutes at most, and a short one is not slowed down by saving.
        waited = time.monotonic() - self._saved_at
        is_tenth = is_due("1 epoch", self.trainer.progress.step, self.trainer.total_steps / 10)
        return waited >= _LONGEST_UNSAVED_SECONDS or (is_tenth and waited >= _SHORTEST_UNSAVED_SECONDS)

    @property
    def _is_last(self) -> bool:
        return self.trainer.progress.step == self.trainer.total_steps

    def _is_due_here(self, every: int | str) -> bool:
        """Whether something is measured or pictured at this step: at its times, and at the end."""
        return self._is_last or self._is_due(every)

    def _is_due(self, every: int | str) -> bool:
        return is_due(every, self.trainer.progress.step, self.images.steps_per_epoch(self.config))

    def _agreed(self, wanted: Sequence[Request] = REQUESTS) -> set[Request]:
        """What is asked for now, by files or signals or because it is due: the same in all processes.

        One process sees a file or a signal a step earlier than another; one that saved or stopped alone would leave
        the others waiting for it.
        """
        asked: set[Request] = self.folder.take_requests(wanted) if self.workers.is_main else set()
        if self.interrupts.seen:
            asked.add("stop")
        if self.workers.is_main and self._is_checkpoint_due():
            asked.add("save")
        flags = self.workers.any_of([request in asked for request in REQUESTS])
        return {request for request, is_asked in zip(REQUESTS, flags, strict=True) if is_asked}

    def _is_asked_to_stop(self, agreed: set[Request]) -> bool:
        if "stop" not in agreed:
            return False
        self.events.emit(Stopping(step=self.trainer.progress.step))
        return True

    def _tidy_checkpoints(self, improved: bool) -> None:
        if improved:
            progress = self.trainer.progress
            checkpoints.name_best(self.folder, progress.best_step, progress.best_relative_loss)
        outputs = self.config.outputs
        per_epoch = self.images.steps_per_epoch(self.config)
        checkpoints.prune(
            self.folder, outputs.keep_checkpoints, lambda step: is_due(outputs.keep_every, step, per_epoch)
        )

    def _validate(self) -> bool:
        """Measure the held-out images; returns whether the adapter predicts them better than ever before."""
        validation, progress = self.prepared.validation, self.trainer.progress
        if validation is None:
            return False
        progress.validated_step, progress.measured = progress.step, validation.identity
        # The base never changes: measured once and carried on by the checkpoints.
        if math.isnan(progress.base_loss):
            progress.base_loss = validation.base_loss()
        if progress.step == 0 and self.config.adapter.start_from is None:
            loss = progress.base_loss  # a new adapter changes nothing until its first step
        else:
            with self.trainer.evaluating():
                loss = validation.loss()
        self.relative_loss = loss / progress.base_loss
        is_best = progress.step > 0 and self.relative_loss < progress.best_relative_loss
        if is_best:
            progress.best_relative_loss = self.relative_loss
            progress.best_step = progress.step
        self.events.emit(
            Validated(
                step=progress.step,
                loss=loss,
                base_loss=progress.base_loss,
                relative_loss=self.relative_loss,
                is_best=is_best,
            )
        )
        return is_best

    def _preview(self, until: Callable[[], bool] = lambda: False) -> None:
        self._picture(lambda: self.prepared.previews.generate(*self._to_picture, self._export, until), "previews")

    def _draw_asked(self) -> None:
        if self.workers.is_main and (prompts := self.folder.take_asked_prompts()):
            try:
                self._picture(lambda: self.prepared.previews.draw(prompts, *self._to_picture), "pictures")
            except RuntimeError as error:  # a training doesn't end because of a picture that somebody asked for
                self.events.warn(f"no more pictures are drawn of those asked for: {error}")

    def _tell_unanswered(self, advice: str) -> None:
        """Name what was asked for too late to be drawn."""
        previews = ["the previews"] if self._owes_previews or self.folder.take_requests(("preview",)) else []
        if asked := [*previews, *map(repr, self.folder.take_asked_prompts())]:
            self.events.warn(f"asked for, and not drawn before the run ended: {first_few(asked)}; {advice}")

    @property
    def _to_picture(self) -> tuple[RunFolder, int, EventStream, AbstractContextManager[Any]]:
        return self.folder, self.trainer.progress.step, self.events, self.trainer.precision.autocast()

    def _picture(self, generate: Callable[[], None], what: str) -> None:
        if not self.workers.is_main:
            return
        try:
            with self.trainer.evaluating():
                generate()
        # A training of hours must not end because its pictures need more memory than its steps.
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            advice = "leave out previews.base_model, or " if self.config.previews.base_model else ""
            told = f"no {what}, they need more memory than there is: {advice}lower previews.width_px"
            self.events.warn(f"step {self.trainer.progress.step}: {told}")
        release(self.workers.device)

    def _save(self) -> Path:
        """Write a checkpoint; returns the adapter file in it."""
        step = self.trainer.progress.step
        ending = step_name(step)
        if self.config.outputs.checkpoint_names == "epoch":
            ending = f"{round(step / self.images.steps_per_epoch(self.config)):06d}"
        name = f"{self.config.name}-{ending}.safetensors"
        if self.workers.is_main:
            self._record_again()
            # Outside `evaluating`: going on needs the weights that are trained, other tools get the averaged ones.
            state = self.trainer.state()
            with self.trainer.evaluating():
                saved = checkpoint_state.save(self.folder, step, state, lambda folder: self._export(folder / name)[0])
            self.events.emit(CheckpointSaved(step=step, path=str(saved.path)))
        self._saved_at = time.monotonic()
        self.workers.meet()
        return result_file(self.folder.checkpoint(step) / name, self.config.adapter)

    def _record_again(self) -> None:
        """Where another folder lies now in the place of the run's, have it tell what run it is."""
        if self.folder.config.is_file():
            return
        self.folder.path.mkdir(parents=True, exist_ok=True)
        write_config(self.folder, with_absolute_paths(self.config))
        self.events.warn(
            f"{self.folder.path} is not the folder any more that this run began in: its settings are written again. "
            "Earlier checkpoints, previews and its log went with the other one"
        )

    def _finish(self) -> Path:
        """Write the finished adapter with its side-cars and prove that it holds what was trained.

        All is made in a folder of its own; the adapter gets its place last. So where it lies nothing is left to do, and
        a run that was ended before does it all again when it is gone on with.
        """
        path = self.folder.result(self.config)
        if self.workers.is_main:
            self._take_best()
            shutil.rmtree(self.folder.finishing, ignore_errors=True)
            self.folder.finishing.mkdir()
            with self.trainer.evaluating():
                (made, *embeddings), warnings = self._export(self.folder.finishing / f"{self.config.name}.safetensors")
                for warning in warnings:
                    self.events.warn(warning)
                generated = sorted(self.folder.previews(self.trainer.progress.step).glob("*.png"))
                kind: Literal["LORA", "TextualInversion"] = "LORA" if self.config.adapter.rank else "TextualInversion"
                side_cars = write_side_car(made, self._facts(), generated[0] if generated else None, kind)
                if self.config.outputs.self_test:
                    # A file that doesn't hold what was trained must not lie about as if it did: it gets another name
                    try:
                        report = prove([made, *embeddings], self.prepared.adapter, self._load_fresh_base)
                    except AdapterError:
                        atomic.move(made, path.with_suffix(FAILED_SELF_TEST))
                        raise
                    self.events.notice(f"self-test passed: {report}")
            if former := keep_former(self.folder, self.config, path):
                kept = former.relative_to(self.folder.path)
                self.events.notice(f"{path.name} was there already; what it was before lies in {kept}")
            for file in (*side_cars, *embeddings, made):
                atomic.move(file, path.with_name(file.name))
            path.with_suffix(FAILED_SELF_TEST).unlink(missing_ok=True)  # of an earlier try
            shutil.rmtree(self.folder.finishing)
        self.workers.meet()
        return path

    def _load_fresh_base(self) -> Bundle:
        # In full precision whatever the run used: the file must hold
        # its updates exactly, and a quantised base would blur them.
        base = self.config.base_model.model_copy(update={"quantization": "none", "precision": "fp32"})
        return load_base(base, device=self.workers.device)

    def _take_best(self) -> None:
        """Turn to the weights that the finished file shall hold, and say which they are."""
        best, last = self.trainer.progress.best_step, self.trainer.progress.step
        if best is None:
            return
        relative = self.trainer.progress.best_relative_loss
        said = f"best by validation: {'the last step' if best == last else f'step {best}'}"
        said += f", {100 * (relative - 1):+.1f}% against the base model"
        if relative >= 1:
            said += "; no checkpoint predicts the held-out images better than the base model does"
        elif best != last and self.config.outputs.finish == "best":
            try:
                state = checkpoint_state.load(Checkpoint(best, self.folder.checkpoint(best)), with_checksums=True)
            except TrainingError as error:
                self.events.warn(f"{error}; the finished file holds the last step instead of step {best}, the best")
                return
            self.trainer.load_state(state)
            if self.relative_loss is not None:  # not known where only finishing was left to do
                said += f" (the last step: {100 * (self.relative_loss - 1):+.1f}%)"
            said += "; the finished file holds its weights, as outputs.finish is best; those of the last step are in "
            said += f"checkpoints/{step_name(last)}"
            if not list(self.folder.previews(best).glob("*.png")):
                self._preview()
        self.events.notice(said)

    def _export(self, path: Path) -> tuple[list[Path], tuple[str, ...]]:
        return export(path, self.prepared.adapter, self._facts(), self.config.outputs)

    def _facts(self) -> TrainingFacts:
        trainer, tokens = self.trainer, self.prepared.adapter.tokens
        return training_facts(
            self.config,
            self.prepared.bundle,
            self.images.trained,
            self.images.plan,
            total_steps=trainer.total_steps,
            step=trainer.progress.step,
            epoch=trainer.batches.epoch_of(trainer.progress.position),
            started=self.started,
            versions=changes.history(self.folder),
            new_tokens={token: len(vectors[0]) for token, vectors in tokens.vectors.items()} if tokens else None,
        )
