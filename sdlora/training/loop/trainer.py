"""The training loop.

One step is one optimizer update over `accumulation` batches, which the processes that train together divide between
them. Every random draw is a function of the run's seed, the batch's position in the run and the row in the batch, so a
resumed run repeats the uninterrupted one exactly, and several processes do what one would.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdlora.adapters.live.attach import Adapter
from sdlora.config.train import TrainConfig
from sdlora.data.batches import derive_seed
from sdlora.errors import OutOfMemoryError, TrainingError
from sdlora.events import EventStream, StepFinished
from sdlora.training.inputs.examples import BatchSource
from sdlora.training.loss.loss_function import LossFunction
from sdlora.training.optimization import optimizers, schedules
from sdlora.training.optimization.ema import MovingAverage
from sdlora.training.optimization.parameter_groups import NEW_TOKENS, parameter_groups, trained_parameters
from sdlora.training.optimization.precision import PrecisionContext
from sdlora.training.optimization.riemannian import factor_pairs, precondition
from sdlora.training.preflight import memory
from sdlora.training.shares import images_a_pass, share
from sdlora.training.workers import BadLoss, Workers

# By then every layer that can learn has had gradients in both factors: B leaves 0 with the first step.
DEAD_MODULE_STEP = 10
_SNAPSHOT_EVERY = 25
_NAMES_SHOWN = 8

Outcome = Literal["completed", "stopped"]


@dataclass
class TrainerProgress:
    """How far a run has come; part of every checkpoint."""

    step: int = 0
    position: int = 0
    """Batches used, good or bad, by all processes together: the counter behind every random draw."""
    bad_in_a_row: int = 0
    best_relative_loss: float = math.inf
    best_step: int | None = None
    """Step of that loss."""
    base_loss: float = math.nan
    """The base model's own validation loss, measured once for the images that are held out."""
    measured: str = ""
    """What validation measured last, see `Validation.identity`; empty before the first time."""
    validated_step: int = -1
    """Step of the last validation."""


class Trainer:
    """Owns everything that changes while training, and the order in which it changes."""

    def __init__(
        self,
        config: TrainConfig,
        total_steps: int,
        adapter: Adapter,
        batches: BatchSource,
        loss_function: LossFunction,
        events: EventStream,
        workers: Workers,
    ) -> None:
        optimization = config.optimization
        self.config = optimization
        self.seed = config.seed
        self.total_steps = total_steps
        self.adapter = adapter
        self.batches = batches
        self.loss_function = loss_function
        self.events = events
        self.workers = workers
        self.progress = TrainerProgress()
        self.groups = parameter_groups(adapter.weights(), optimization)
        self.parameters = trained_parameters(self.groups)
        self.optimizer = optimizers.build(self.groups, optimization, workers.device)
        self.precision = PrecisionContext(optimization.precision, workers.device)
        self.average = MovingAverage(adapter.parameters, optimization.ema) if optimization.ema else None
        self._preconditioned = factor_pairs(adapter.weights()) if optimization.precondition else []
        self._weight_norm: float | None = None
        self._pieces = 1
        """In how many parts a batch goes through the model: more than one where memory ran out."""
        # From the start, so that a run whose very first update fails has weights to go back to.
        self._last_good = self._changing_state()
        for note in optimizers.notes(self.groups, optimization, workers.device):
            events.notice(note)

    def run(self, after_step: Callable[[], Literal["go on", "stop"]]) -> Outcome:
        """Train to the last step; `after_step` is called between steps and may stop the run.

        Raises TrainingError when losses or gradients stay non-finite.
        """
        self.adapter.train(True)
        while self.progress.step < self.total_steps:
            self._step()
            if after_step() == "stop":
                return "stopped"
        return "completed"

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the adapter is as it would be exported: averaged weights if there are any, dropout off."""
        self.adapter.train(False)
        try:
            with self.average.averaged() if self.average else optimizers.evaluation_weights(self.optimizer):
                yield
        finally:
            self.adapter.train(True)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, for a checkpoint."""
        return {
            **self._changing_state(),
            "precision": self.precision.state_dict(),
            "progress": asdict(self.progress),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state; one without the optimizer's leaves it fresh."""
        self._take_over(state)
        self.precision.load_state_dict(state["precision"])
        self.progress = TrainerProgress(**state["progress"])
        self._last_good = self._changing_state()

    def _step(self) -> None:
        """Use batches until the optimizer has made one update."""
        started = time.perf_counter()
        epoch = self.batches.epoch_of(self.progress.position)
        while True:
            # A batch that can't be used costs its images, never a step: the schedule and the checkpoints count updates.
            loss = self._accumulate()
            if loss is not None and (norm := self._update()) is not None:
                break
        self.progress.step += 1
        self.progress.bad_in_a_row = 0
        # Not after each step: a copy of weights and optimizer state takes longer than the step of a small adapter.
        if self.progress.step % _SNAPSHOT_EVERY == 0:
            self._last_good = self._changing_state()
        self.events.emit(
            StepFinished(
                step=self.progress.step,
                epoch=epoch,
                loss=loss,
                learning_rates=self._learning_rates,
                gradient_norm=norm,
                weight_norm=self._weight_norm,
                seconds=time.perf_counter() - started,
                memory_gib=memory.peak_gib(self.workers.device),
            )
        )

    def _accumulate(self) -> float | None:
        """Sum up the gradients of one step's batches; returns their mean loss, None if one is not finite."""
        first, loss = self.progress.position, 0.0
        bad: BadLoss | None = None
        error: Exception | None = None
        try:
            loss, bad = self._own_share(first)
        except Exception as raised:
            error = raised
        # Every process comes here, and has the same answer: one that went another way alone would leave the others
        # waiting for it forever.
        loss, bad = self.workers.add_up(self.parameters, loss, bad, error)
        if bad is not None:
            self.progress.position = bad.position + 1
            self._handle_bad(f"the loss is {bad.value}", bad.names)
            return None
        self.progress.position = first + self.config.accumulation
        return loss

    def _own_share(self, first: int) -> tuple[float, BadLoss | None]:
        """Add the gradients of this process's share; where memory runs out it is done again in smaller pieces."""
        while True:
            try:
                return self._add_gradients(first)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                told = str(error)
            # Not in the handler: there the error still holds the tensors of the pass that failed. The draws hang on
            # the position, so the same images, captions and noise are seen once more.
            self._halve_pieces(told)

    def _add_gradients(self, first: int) -> tuple[float, BadLoss | None]:
        losses: list[tuple[int, list[str], Tensor]] = []
        count = self.config.accumulation
        sizes = [self.batches.size(first + number) for number in range(count)]
        for number, rows in share(sizes, self.workers.index, self.workers.count):
            position = first + number
            batch = self.batches.batch(position, rows)
            # Dropout draws from torch's global generator, on whatever device.
            torch.manual_seed(derive_seed(self.seed, "dropout", position, *([rows.start] if rows.start else [])))
            for piece in batch.pieces(self._pieces):
                # By size, not by number of pieces: their gradients then sum up to those of the batch's mean, however
                # it was cut.
                part = len(piece.names) / (batch.whole * count)
                with self.precision.autocast():
                    loss = self.loss_function.loss(piece) * part
                self.precision.backward(loss)
                losses.append((position, batch.names, loss.detach()))
        # Asked for here and not before each backward pass: a card answers when all that it was given is done, and would
        # meanwhile be given nothing.
        values = torch.stack([loss for _, _, loss in losses]).tolist() if losses else []
        for (position, names, _), value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                return math.nan, BadLoss(position, value, tuple(names))
        return math.fsum(values), None

    def _halve_pieces(self, told: str) -> None:
        """Make room for the step that memory ran out in. Raises OutOfMemoryError where nothing is left to halve."""
        self.optimizer.zero_grad(set_to_none=True)
        memory.release(self.workers.device)
        at_most = images_a_pass(self.config, self.workers.count)
        largest = -(-at_most // self._pieces)
        if self.config.on_out_of_memory == "stop" or largest == 1:
            raise OutOfMemoryError(
                f"out of memory at step {self.progress.step + 1}, {largest} images at a time ({told.splitlines()[0]}). "
                "Set optimization.gradient_checkpointing=true, a smaller optimization.batch_size or images.resolution, "
                "or base_model.quantization=int8"
            )
        self._pieces *= 2
        self.events.warn(
            f"step {self.progress.step + 1}: out of memory with {largest} images at a time; from here on "
            f"{-(-at_most // self._pieces)}, which trains the same and takes longer"
        )

    def _update(self) -> float | None:
        """Clip and apply the gradients; returns their norm before clipping, None when they are not finite."""
        # The gradients are those of all processes: each clips by the same norm, and the adapters stay alike.
        norm = self.precision.unscale_and_clip(self.optimizer, self.config.max_gradient_norm)
        # Not in the first steps: while LoRA's B is 0, A gets no gradient either.
        if self.progress.step + 1 == DEAD_MODULE_STEP:
            dead = self.adapter.dead_modules()
            if dead:
                shown = ", ".join(dead[:_NAMES_SHOWN]) + (", ..." if len(dead) > _NAMES_SHOWN else "")
                self.events.warn(f"{len(dead)} adapter modules get no gradient and will not learn: {shown}")
        factor = schedules.factor(self.progress.step, self.total_steps, self.config)
        parts = {group.part for group in self.groups}
        step, total = self.progress.step, self.total_steps
        factors: dict[str, float] = {part: schedules.part_factor(part, step, total, self.config) for part in parts}
        self._learning_rates = optimizers.set_learning_rates(self.optimizer, self.groups, factor, factors)
        # Adam moves weights by its momentum even at a rate of 0 where the decay isn't; without gradients nothing moves.
        for group in self.groups:
            if factors[group.part] == 0:
                for parameter in group.parameters:
                    parameter.grad = None
        precondition(self._preconditioned)
        finding_scale = self.precision.scale > 1  # fp16 begins with too high a scale, on purpose
        if not self.precision.step(self.optimizer):
            self.optimizer.zero_grad(set_to_none=True)
            if not finding_scale:
                self._handle_bad(f"the gradient's norm is {norm}")
            return None
        self.optimizer.zero_grad(set_to_none=True)
        if self.config.max_weight_norm:
            # Before the average takes the weights in, so that it holds limited ones only.
            self._weight_norm = self.adapter.limit_norms(self.config.max_weight_norm)
        if self.adapter.tokens is not None and factors.get(NEW_TOKENS, 0.0) > 0:
            self.adapter.tokens.keep_spread(lambda parameter: optimizers.points_of(self.optimizer, parameter))
        if self.average is not None:
            self.average.update()
        return norm

    def _handle_bad(self, reason: str, images: Sequence[str] = ()) -> None:
        """Leave out a step that can't be used; put weights back if they are spoiled; give up when it goes on."""
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.bad_in_a_row += 1
        names = f" for {', '.join(images)}" if images else ""
        if self.progress.bad_in_a_row > self.config.max_nonfinite:
            raise TrainingError(
                f"{reason}{names}, {self.progress.bad_in_a_row} times in a row: training can't go on. "
                "No file with such weights was written. Lower optimization.learning_rate, or set "
                "optimization.precision to bf16 or fp32, and resume from the newest checkpoint."
            )
        restored = ""
        if self.adapter.has_nonfinite():
            self._take_over(self._last_good)
            restored = "; the last good weights are back"
        self.events.warn(f"step {self.progress.step}: {reason}{names}; going on with the next batch{restored}")

    def _changing_state(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter.state(),
            # state_dict hands out the live tensors, which the next step changes.
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "average": copy.deepcopy(self.average.state_dict()) if self.average else None,
        }

    def _take_over(self, state: dict[str, Any]) -> None:
        self.adapter.load_state(state["adapter"])
        if "optimizer" in state:
            chosen = optimizers.chosen_settings(self.optimizer, self.config)
            # A copy: load_state_dict keeps the tensors it is given where their type fits, and would train on in the
            # snapshot itself.
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            # The state holds the settings it was saved with; those of the configuration may have changed since.
            for group, settings in zip(self.optimizer.param_groups, chosen, strict=True):
                group.update(settings)
        if self.average is not None and state["average"] is not None:
            # A run that goes on from a state without an average, say of
            # other settings, has nothing better than its weights.
            self.average.load_state_dict(state["average"])
        elif self.average is not None:
            self.average.restart()
