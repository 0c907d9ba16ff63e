"""What the training loop promises, on a tiny model of SD 1.5's topology."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sdlora.adapters.files.reading import read
from sdlora.config import files
from sdlora.errors import TrainingError
from sdlora.events import (
    Notice,
    RunFinished,
    StepFinished,
    Validated,
    WarningRaised,
)
from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder
from sdlora.training.loop.run import resume, train
from sdlora.training.loss.loss_function import LossFunction
from sdlora.training.outputs import checkpoint_state
from sdlora.training.outputs.validation import Validation
from tests.support.followed_runs import run, weights


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
