"""What the training loop promises, on a tiny model of SD 1.5's topology."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sdlora.adapters.files.reading import read
from sdlora.adapters.live.attach import Adapter
from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import AdapterError, TrainingError
from sdlora.events import (
    Event,
    EventSink,
    Notice,
    PictureDrawn,
    PreviewReady,
    Progress,
    RunFailed,
    RunFinished,
    RunStarted,
    StepFinished,
    Validated,
    WarningRaised,
    parse_event,
)
from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder
from sdlora.runs.state import derive
from sdlora.training.loop.interrupts import StoppedEarly
from sdlora.training.loop.run import resume, train
from sdlora.training.loop.running import RunResult
from sdlora.training.loss.loss_function import LossFunction
from sdlora.training.outputs import checkpoint_state
from sdlora.training.outputs.validation import Validation

E = TypeVar("E")


class Collector:
    """Keeps events and lets a test act between steps."""

    def __init__(self, on_step: Callable[[int], None] | None = None) -> None:
        self.events: list[Event] = []
        self._on_step = on_step

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if self._on_step and isinstance(event, StepFinished):
            self._on_step(event.step)

    def close(self) -> None:
        pass

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def configure(shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def with_overrides(*overrides: str) -> TrainConfig:
        settings = {
            "base_model.model": shallow_sd1,
            "images.folder": tiny_images,
            "images.resolution": 64,
            "images.bucket_step": 32,
            "adapter.rank": 2,
            "optimization.steps": 3,
            "optimization.precision": "fp32",
            "optimization.learning_rate": "1e-3",
            "outputs.folder": tmp_path / "runs",
            "outputs.self_test": "false",
        }
        return files.load(overrides=[*(f"{name}={value}" for name, value in settings.items()), *overrides])

    return with_overrides


def run(config: TrainConfig, on_step: Callable[[int], None] | None = None) -> tuple[RunResult, Collector]:
    collector = Collector(on_step)
    return train(config, [collector]), collector


def test_validation_is_relative_to_the_base_and_the_best_checkpoint_is_named(configure) -> None:
    config = configure(
        "validation.fraction=0.2", "validation.every=4", "optimization.steps=8", "adapter.text_encoder=true"
    )
    result, collector = run(config)
    measured = collector.of(Validated)
    assert [event.step for event in measured] == [0, 4, 8]
    assert measured[0].relative_loss == pytest.approx(1.0, abs=1e-6)
    best = min(measured[1:], key=lambda event: event.relative_loss)
    assert best.relative_loss < 1
    assert checkpoints.best_step(RunFolder(result.folder)) == best.step
    assert result.relative_loss == measured[-1].relative_loss


def losses_in_turn(monkeypatch: pytest.MonkeyPatch, base: float, *later: float) -> None:
    """Have validation find these losses after the first step and later, one after another."""
    losses = iter(later)
    monkeypatch.setattr(Validation, "base_loss", lambda self: base)
    monkeypatch.setattr(Validation, "loss", lambda self: next(losses))


def weights(path: Path) -> dict[str, Any]:
    """The tensors of an adapter file, as bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def test_the_finished_file_holds_the_best_step_and_says_so(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    losses_in_turn(monkeypatch, 1.0, 0.6, 0.8)
    settings = ("validation.fraction=0.2", "validation.every=1", "optimization.steps=2", "previews.prompts=[a cat]")
    result, collector = run(configure(*settings, "previews.steps=1"))
    folder = RunFolder(result.folder)
    by_step = {found.step: next(found.path.glob("*.safetensors")) for found in checkpoints.find(folder)}
    assert weights(result.adapter) == weights(by_step[1]) != weights(by_step[2])
    assert result.step == collector.of(RunFinished)[0].step == 2
    assert read(result.adapter).metadata["ss_steps"] == "1"
    (said,) = [event.message for event in collector.of(Notice) if "best by validation" in event.message]
    assert "step 1, -40.0% against the base model (the last step: -20.0%); the finished file holds its weights" in said
    # The picture beside the file is one that these weights generate.
    assert result.adapter.with_suffix(".png").is_file()
    assert list(folder.previews(1).glob("*.png"))
    # Going on with more steps goes on from the last one.
    losses_in_turn(monkeypatch, 1.0, 0.5)
    more = resume(result.folder, overrides=["optimization.steps=3"])
    assert more.step == 3
    assert read(more.adapter).metadata["ss_steps"] == "3"


@pytest.mark.parametrize("left", [1, 3, None])
def test_the_best_step_is_the_states_whatever_a_kill_left_noted(
    configure, monkeypatch: pytest.MonkeyPatch, left: int | None
) -> None:
    losses_in_turn(monkeypatch, 1.0, 0.9, 0.6, 0.8)
    config = configure("validation.fraction=0.2", "validation.every=1", "optimization.steps=3")
    note = checkpoints.name_best

    def be_killed(folder: RunFolder, step: int | None, relative_loss: float) -> None:
        """Between the second checkpoint and its note."""
        note(folder, left if step == 2 else step, relative_loss)
        if step == 2:
            raise ZeroDivisionError

    monkeypatch.setattr(checkpoints, "name_best", be_killed)
    with pytest.raises(ZeroDivisionError):
        run(config)
    monkeypatch.setattr(checkpoints, "name_best", note)
    result = resume(config.outputs.folder / config.name)
    assert checkpoints.best_step(RunFolder(result.folder)) == 2
    assert read(result.adapter).metadata["ss_steps"] == "2"


@pytest.mark.parametrize(
    ("settings", "losses"),
    [(("outputs.finish=last",), (0.6, 0.8)), ((), (1.2, 1.3))],
    ids=["asked for", "no step is better than the base"],
)
def test_the_finished_file_holds_the_last_step_where_the_best_is_not_wanted(
    configure, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], losses: tuple[float, ...]
) -> None:
    losses_in_turn(monkeypatch, 1.0, *losses)
    result, _ = run(configure("validation.fraction=0.2", "validation.every=1", "optimization.steps=2", *settings))
    by_step = {found.step: found.path for found in checkpoints.find(RunFolder(result.folder))}
    assert weights(result.adapter) == weights(next(by_step[2].glob("*.safetensors")))


def test_a_damaged_best_checkpoint_gives_way_to_the_last_step_and_is_told_of(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_in_turn(monkeypatch, 1.0, 0.6, 0.8)
    original = checkpoint_state.load

    def damaged(checkpoint: Any, **options: Any) -> dict[str, Any]:
        (checkpoint.path / "state.pt").write_bytes(b"nothing")
        return original(checkpoint, **options)

    monkeypatch.setattr(checkpoint_state, "load", damaged)
    result, collector = run(configure("validation.fraction=0.2", "validation.every=1", "optimization.steps=2"))
    assert read(result.adapter).metadata["ss_steps"] == "2"
    (said,) = [event.message for event in collector.of(WarningRaised) if "damaged" in event.message]
    assert "the finished file holds the last step instead of step 1, the best" in said


def test_every_image_is_trained_in_every_epoch_and_short_batches_are_kept(configure) -> None:
    config = configure("optimization.batch_size=4").model_copy(
        update={
            "optimization": files.load(overrides=["optimization.epochs=2", "optimization.batch_size=4"]).optimization
        }
    )
    seen: list[str] = []
    original = LossFunction.loss

    def record(self: LossFunction, batch):  # type: ignore[no-untyped-def]
        seen.extend(batch.names)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossFunction, "loss", record)
        result, _ = run(config)
    assert sorted(seen) == sorted(2 * [f"{index}.png" for index in range(10)])
    assert result.step == 2 * 3  # three buckets of 3 or 4 images, a batch each


def test_a_nonfinite_loss_is_left_out_and_training_goes_on(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = LossFunction.loss, iter(range(100))

    def spoiled(self: LossFunction, batch):  # type: ignore[no-untyped-def]
        return original(self, batch) * (float("nan") if next(calls) == 1 else 1.0)

    monkeypatch.setattr(LossFunction, "loss", spoiled)
    result, collector = run(configure())
    assert result.step == 3
    warning = collector.of(WarningRaised)[0]
    assert "the loss is nan for" in warning.message
    assert ".png; going on with the next batch" in warning.message


def test_spoiled_weights_are_replaced_by_the_last_good_ones(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = LossFunction.loss, iter(range(100))

    def spoiled(self: LossFunction, batch):  # type: ignore[no-untyped-def]
        if next(calls) == 1:
            next(iter(self._adapter.parameters)).data.fill_(float("nan"))
        return original(self, batch)

    monkeypatch.setattr(LossFunction, "loss", spoiled)
    result, collector = run(configure())
    assert result.step == 3
    assert "the last good weights are back" in collector.of(WarningRaised)[0].message
    assert result.adapter.is_file()


def test_losses_that_stay_nonfinite_end_the_run_without_a_file(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossFunction, "loss", lambda self, batch: torch.tensor(float("inf"), requires_grad=True))
    config = configure("optimization.max_nonfinite=2", "name=broken")
    with pytest.raises(TrainingError, match="the loss is inf for .*, 3 times in a row: training can't go on"):
        train(config)
    assert not list(config.outputs.folder.rglob("*.safetensors"))
    assert '"kind":"run_failed"' in (config.outputs.folder / "broken" / "events.jsonl").read_text(encoding="utf-8")


def test_modules_without_gradient_are_named(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LossFunction.loss

    def without_attention(self: LossFunction, batch):  # type: ignore[no-untyped-def]
        weights = [weight for weight in self._adapter.weights() if weight.path.endswith("attn2.to_q")]
        for weight in weights:
            weight.parameter.requires_grad_(False)
        return original(self, batch)

    monkeypatch.setattr(LossFunction, "loss", without_attention)
    _, collector = run(configure("optimization.steps=10"))
    warning = collector.of(WarningRaised)[0]
    assert re.match(
        r"\d+ adapter modules get no gradient and will not learn: unet.down_blocks.0.*attn2.to_q", warning.message
    )


def test_fp16_trains_with_a_loss_scale_on_the_cpu(configure) -> None:
    result, collector = run(configure("optimization.precision=fp16", "optimization.steps=6"))
    losses = [event.loss for event in collector.of(StepFinished)]
    assert result.step == 6
    assert all(0 < loss < 10 for loss in losses)
    newest = checkpoints.newest(RunFolder(result.folder))
    assert newest is not None
    assert checkpoint_state.load(newest)["precision"]["scale"] > 1


def test_gradient_checkpointing_changes_nothing_but_memory(configure) -> None:
    losses = []
    for value in ("false", "true"):
        overrides = ["adapter.text_encoder=true", "adapter.dropout=0.2", "optimization.threads=1"]
        _, collector = run(configure(*overrides, f"optimization.gradient_checkpointing={value}"))
        losses.append([event.loss for event in collector.of(StepFinished)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("text_encoder", ["false", "true"])
def test_prior_preservation_with_the_base_prediction_adds_its_term(configure, text_encoder: str) -> None:
    overrides = [f"adapter.text_encoder={text_encoder}", "captions.trigger=sks", "optimization.threads=1"]
    _, plain = run(configure(*overrides))
    _, kept = run(configure(*overrides, "objective.prior_preservation=base_prediction"))
    plain_losses = [event.loss for event in plain.of(StepFinished)]
    kept_losses = [event.loss for event in kept.of(StepFinished)]
    assert kept_losses[0] == plain_losses[0]  # the adapter is still zero, so it agrees with the base
    assert kept_losses[2] != plain_losses[2]


def test_class_images_are_trained_with_their_weight(configure, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (64, 64), "green").save(folder / "a.png")
    (folder / "a.txt").write_text("a shape", encoding="utf-8")
    overrides = ["objective.prior_preservation=class_images", f"images.class_folder={folder}"]
    result, _ = run(configure(*overrides, "objective.prior_weight=0.5", "optimization.steps=12"))
    assert result.step == 12


def test_what_a_folders_name_stands_in_for_is_warned_of_as_the_run_begins(configure, tmp_path: Path) -> None:
    folder = tmp_path / "10_a cat"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.caption").write_text("a red cat", encoding="utf-8")
    _, collector = run(configure(f"images.folder={folder}", "optimization.steps=1"))
    (said,) = [event.message for event in collector.of(WarningRaised) if "a.caption" in event.message]
    assert said.endswith("the folder's name is trained instead")


def test_masks_weight_the_loss(configure, tmp_path: Path, tiny_images: Path) -> None:
    folder = tmp_path / "masked"
    folder.mkdir()
    for source in tiny_images.iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
        if source.suffix == ".png":
            with Image.open(source) as image:
                Image.new("L", image.size, 0).save(folder / f"{source.stem}-masklabel.png")
    overrides = [f"images.folder={folder}", "images.mask=file"]
    _, collector = run(configure(*overrides))
    assert [event.loss for event in collector.of(StepFinished)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("overrides", [["adapter.algorithm=loha"], ["adapter.algorithm=lokr"], ["adapter.dora=true"]])
def test_other_algorithms_train_and_pass_the_self_test(configure, overrides: list[str]) -> None:
    result, collector = run(configure(*overrides, "adapter.layers=all+conv", "outputs.self_test=true"))
    assert result.adapter.is_file()
    assert "self-test passed" in " ".join(getattr(event, "message", "") for event in collector.events)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"),
    [
        ("adamw8bit", "1e-3"),
        ("paged_adamw8bit", "1e-3"),
        ("lion", "1e-4"),
        ("adafactor", "1e-3"),
        ("prodigy", "1.0"),
        ("schedule_free_adamw", "1e-3"),
        ("torch.optim.SGD", "1.0"),
    ],
)
def test_every_optimizer_moves_the_adapter_and_exports(configure, optimizer: str, learning_rate: str) -> None:
    overrides = [f"optimization.optimizer={optimizer}", f"optimization.learning_rate={learning_rate}"]
    result, collector = run(configure(*overrides, "outputs.precision=fp32"))
    assert result.step == 3
    assert next(iter(collector.of(StepFinished)[-1].learning_rates.values())) > 0
    assert any(module.factors["lora_up"].any() for module in read(result.adapter).modules.values())


def test_previews_are_drawn_before_the_first_step_and_on_request(configure) -> None:
    config = configure("previews.prompts=[a cat]", "previews.steps=2", "name=asked")
    folder = RunFolder(config.outputs.folder / "asked")
    _, collector = run(config, lambda step: folder.ask("preview") if step == 1 else None)
    assert [event.step for event in collector.of(PreviewReady)] == [0, 1, 3]


def test_any_picture_is_drawn_between_two_steps_and_changes_nothing_of_the_run(configure) -> None:
    config = configure("name=asked", "previews.steps=2", "optimization.learning_rate=0.05")
    folder = RunFolder(config.outputs.folder / "asked")
    prompts = ["a cat --d 3 --w 72", "a cat --d 3 --w 72 --am 0"]
    asked, collector = run(config, lambda step: folder.ask_for_pictures(prompts) if step < 3 else None)
    drawn = collector.of(PictureDrawn)
    assert [(event.step, event.prompt) for event in drawn] == [(step, each) for step in (1, 2) for each in prompts]
    pictures = [Image.open(event.path) for event in drawn]
    assert [Path(event.path).name for event in drawn][:3] == [
        f"step_00000{name}.png" for name in ("1-01", "1-02", "2-01")
    ]
    assert pictures[0].size == (72, 64)
    assert pictures[1].tobytes() == pictures[3].tobytes(), "weight 0 is the base model"
    assert pictures[0].tobytes() != pictures[2].tobytes() != pictures[3].tobytes()
    alone, _ = run(configure("name=alone", "optimization.learning_rate=0.05"))
    assert weights(asked.adapter) == weights(alone.adapter)


def test_a_folder_exchanged_while_a_run_trains_still_tells_what_run_it_is(configure) -> None:
    config = configure("name=moved", "outputs.checkpoint_every=3")
    folder = config.outputs.folder / "moved"

    def exchange(step: int) -> None:
        if step == 1:
            folder.rename(folder.with_name("gone"))
            folder.mkdir()

    result, collector = run(config, exchange)
    assert any(
        "is not the folder any more that this run began in" in event.message for event in collector.of(WarningRaised)
    )
    assert files.load(folder / "config.yaml").name == "moved"
    assert (derive(RunFolder(folder)).status, result.adapter.is_file()) == ("finished", True)


def test_every_preview_has_its_own_size_seed_and_adapter_weight(configure) -> None:
    lines = "[a cat --w 64 --h 72 --d 3, a cat --d 3 --am 0, a cat --d 3, 'a cat --d 3 --l 1 --ss ddim']"
    result, _ = run(configure(f"previews.prompts={lines}", "previews.steps=2", "optimization.learning_rate=0.05"))
    before, after = (
        [Image.open(path) for path in sorted((result.folder / "previews" / step).glob("*.png"))]
        for step in ("step_000000", "step_000003")
    )
    assert [image.size for image in after] == [(64, 72), (64, 64), (64, 64), (64, 64)]
    assert after[1].tobytes() == before[1].tobytes() == before[2].tobytes(), "weight 0 is the base model"
    assert after[2].tobytes() != before[2].tobytes()
    assert before[3].tobytes() != before[2].tobytes()


def test_a_stop_request_saves_and_ends_the_run(configure) -> None:
    config = configure("name=stopped", "optimization.steps=50")
    folder = RunFolder(config.outputs.folder / "stopped")
    result, collector = run(config, lambda step: folder.ask("stop") if step == 2 else None)
    assert (result.outcome, result.step, result.interrupted) == ("stopped", 2, False)
    assert collector.of(RunFinished)[0].reason == "stopped"
    assert result.adapter.is_file()
    assert "step_000002" in str(result.adapter)


def test_what_a_stop_left_undone_at_its_step_is_done_when_the_run_goes_on(configure) -> None:
    due = ("validation.fraction=0.3", "validation.every=2", "previews.every=2", "previews.steps=2")
    config = configure("name=stopped", "optimization.steps=5", "previews.prompts=[a cat]", *due)
    folder = RunFolder(config.outputs.folder / "stopped")
    _, before = run(config, lambda step: folder.ask("stop") if step == 2 else None)
    assert [event.step for event in before.of(PreviewReady)] == [0]
    after = Collector()
    resume(folder.path, [after])
    assert [event.step for event in after.of(Validated)] == [2, 4, 5]
    assert [event.step for event in after.of(PreviewReady)] == [2, 4, 5]


def test_ctrl_c_saves_and_ends_the_run(configure) -> None:
    result, _ = run(configure("optimization.steps=50"), lambda step: os.kill(os.getpid(), signal.SIGINT))
    assert (result.outcome, result.step, result.interrupted) == ("stopped", 1, True)
    assert checkpoints.newest(RunFolder(result.folder)) is not None


def test_old_checkpoints_are_pruned(configure) -> None:
    config = configure("optimization.steps=5", "outputs.checkpoint_every=1", "outputs.keep_checkpoints=2")
    result, _ = run(config)
    assert [checkpoint.step for checkpoint in checkpoints.find(RunFolder(result.folder))] == [4, 5]


def test_a_second_run_of_the_same_name_gets_its_own_folder(configure) -> None:
    folders = [run(configure("optimization.steps=1"))[0].folder.name for _ in range(2)]
    assert folders == ["my-lora", "my-lora-2"]


def test_parameters_are_counted(configure) -> None:
    _, collector = run(configure("optimization.steps=1"))
    (started,) = collector.of(RunStarted)
    assert 0 < started.trainable_parameters < started.total_parameters / 10


def test_a_file_that_fails_its_self_test_is_renamed_and_the_run_fails(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_weights(self: Adapter, part: str, path: str) -> torch.Tensor:
        return original(self, part, path) + 1.0  # type: ignore[arg-type]

    original = Adapter.delta_weight
    monkeypatch.setattr(Adapter, "delta_weight", other_weights)
    config = configure("optimization.steps=1", "outputs.self_test=true")
    with pytest.raises(AdapterError, match="does not hold what was trained"):
        train(config)
    folder = config.outputs.folder / "my-lora"
    assert not (folder / "my-lora.safetensors").exists()
    assert (folder / "my-lora.failed-self-test").exists()
    last = parse_event((folder / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert isinstance(last, RunFailed)
    assert last.step == 1


def test_checkpoints_previews_and_validation_follow_epochs_and_are_called_as_sd_scripts_does(configure) -> None:
    config = configure(
        "name=cat", "optimization.steps=10", "optimization.batch_size=3", "validation.fraction=0.1",
        "validation.every=1 epoch", "previews.prompts=[a cat]", "previews.steps=1", "previews.every=2 epochs",
        "outputs.checkpoint_every=1 epoch", "outputs.checkpoint_names=epoch", "outputs.keep_checkpoints=1",
        "outputs.keep_every=2 epochs",
    )  # fmt: skip
    result, collector = run(config)
    folder = RunFolder(result.folder)
    epochs = [event.epoch for event in collector.of(StepFinished)]
    ends = [step for step in range(1, 10) if epochs[step] != epochs[step - 1]]  # 9 images in 3 buckets of batches
    assert [event.step for event in collector.of(Validated)] == [0, *ends, 10]
    assert [event.step for event in collector.of(PreviewReady)] == [0, ends[1], 10]
    names = [path.name for found in checkpoints.find(folder) for path in found.path.glob("*.safetensors")]
    assert names[0] == "cat-000002.safetensors"
    assert len(names) in (2, 3), "every second epoch, the newest and perhaps the best"


def test_a_run_saves_by_itself_at_tenths_and_when_it_has_waited_long(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdlora.training.loop import running

    clock = iter(range(0, 10_000_000, 31))  # seconds between two looks at the clock
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    result, _ = run(configure("optimization.steps=20", "outputs.keep_checkpoints=50"))
    saved = [checkpoint.step for checkpoint in checkpoints.find(RunFolder(result.folder))]
    assert 20 in saved
    assert len(saved) > 3
    assert all(step % 2 == 0 for step in saved), "only at tenths, as ten minutes never pass"


def stop_while_encoding(act: Callable[[RunFolder], None], folder: RunFolder) -> EventSink:
    """A sink that acts once, as the first image is encoded."""

    class Acting(Collector):
        def emit(self, event: Event) -> None:
            super().emit(event)
            if isinstance(event, Progress) and len(self.of(Progress)) == 1:
                act(folder)

    return Acting()


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_run_can_be_stopped_while_its_images_are_encoded(configure, tmp_path: Path, is_asked: bool) -> None:
    config = configure("name=early", "optimization.steps=2", f"images.cache_folder={tmp_path / 'cache'}")
    folder = RunFolder(config.outputs.folder / "early")
    act = (lambda folder: folder.ask("stop")) if is_asked else (lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedEarly) as stopped:
        train(config, [stop_while_encoding(act, folder)])
    assert stopped.value.is_asked == is_asked
    state = derive(folder)
    assert (state.status, state.step, state.can_start) == ("stopped", 0, True)
    assert f"to go on: sdlora resume {folder.path}" in folder.log.read_text(encoding="utf-8")
    assert resume(folder.path).outcome == "completed"


def test_a_result_that_more_steps_replace_is_kept(configure) -> None:
    config = configure("name=longer", "optimization.steps=1")
    first, _ = run(config)
    content = first.adapter.read_bytes()
    again = Collector()
    resume(first.folder, [again], overrides=["optimization.steps=2"])
    (kept,) = (first.folder / "former" / "step_000001").glob("*.safetensors")
    assert kept.read_bytes() == content
    told = [notice.message for notice in again.of(Notice)]
    assert "longer.safetensors was there already; what it was before lies in former/step_000001" in told
    assert first.adapter.read_bytes() != content


def test_a_stop_before_the_first_step_is_obeyed_between_validation_and_previews(configure) -> None:
    config = configure("name=soon", "optimization.steps=1", "validation.fraction=0.3", "previews.prompts=[a cat]",
                       "previews.steps=2")  # fmt: skip
    folder = RunFolder(config.outputs.folder / "soon")

    class Asking(Collector):
        def emit(self, event: Event) -> None:
            super().emit(event)
            if isinstance(event, Validated):
                folder.ask("stop")

    asking, after = Asking(), Collector()
    assert train(config, [asking]).outcome == "stopped"
    assert asking.of(PreviewReady) == asking.of(StepFinished) == []
    resume(folder.path, [after])
    assert [event.step for event in after.of(PreviewReady)] == [0, 1]
