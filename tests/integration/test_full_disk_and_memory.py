"""A disk that is full, a memory that is too small, a kill between the last step and the finished file."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdlora import atomic, disk
from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, TrainingError
from sdlora.events import Event, RunFailed, RunFinished, StepFinished, WarningRaised
from sdlora.models.identity import sha256_of
from sdlora.processes import ProcessRecord
from sdlora.runs import checkpoints
from sdlora.runs.event_log import iterate_events
from sdlora.runs.folder import RunFolder
from sdlora.runs.state import derive
from sdlora.sinks.jsonl import JsonlSink
from sdlora.training.loop import running
from sdlora.training.loop.run import resume, train
from sdlora.training.loss.loss_function import LossFunction
from sdlora.training.outputs.checkpoint_state import _write_state
from tests.integration.test_resume import weights_hash

STEPS = 3


@pytest.fixture
def configure(shallow_sd1: Path, tiny_images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def with_overrides(*overrides: str, name: str = "my-lora") -> TrainConfig:
        settings = [
            f"name={name}", f"base_model.model={shallow_sd1}", f"images.folder={tiny_images}", "images.resolution=64",
            "adapter.rank=2", "adapter.layers=attention", f"optimization.steps={STEPS}", "optimization.precision=fp32",
            "optimization.learning_rate=1e-3", "optimization.threads=1", f"outputs.folder={tmp_path / 'runs'}",
            "outputs.checkpoint_every=1", "outputs.self_test=false",
        ]  # fmt: skip
        return files.load(overrides=[*settings, *overrides])

    return with_overrides


def refuse(number: int, path: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([str(path)] if path else []))


class FillsUp(io.BytesIO):
    """A disk with room for so many writes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= 1
        if self.room < 0:
            raise refuse(errno.ENOSPC)
        return super().write(data)


def test_the_disks_own_error_comes_out_of_every_write_of_a_checkpoint(tmp_path: Path) -> None:
    state = {"adapter": {"a": torch.ones(3000)}, "optimizer": {}}
    counted = FillsUp(10**6)
    _write_state(state, counted)
    for room in range(10**6 - counted.room):
        with pytest.raises(OSError, match="No space left"):
            _write_state(state, FillsUp(room))


REFUSALS = {
    errno.ENOSPC: "its disk is full, .* MiB are free",
    errno.EDQUOT: "your quota on its disk is used up",
    errno.EROFS: "its disk is read-only",
    errno.EIO: "input/output error",
}


def test_a_disk_that_refuses_a_checkpoint_ends_the_run_with_one_message_and_it_goes_on_later(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights_hash(train(configure(name="straight")).adapter)
    save = torch.save
    for number, words in REFUSALS.items():
        told: list[Any] = []

        def save_once(*arguments: Any, number: int = number, told: list[Any] = told) -> None:
            told.append(arguments)
            if len(told) == 2:
                raise refuse(number)
            save(*arguments)

        name = f"refused-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", save_once)
            said = rf"step_000002.* {words}.*Step 1 is saved: go on with `sdlora resume "
            with pytest.raises(TrainingError, match=said):
                train(configure(name=name))

        folder = RunFolder(configure().outputs.folder / name)
        assert [item.step for item in checkpoints.find(folder)] == [1]
        assert [path.name for path in folder.checkpoints.iterdir()] == ["step_000001"]
        assert derive(folder).status == "failed"
        assert weights_hash(resume(folder.path).adapter) == expected


def test_a_run_whose_record_can_not_be_written_has_failed_all_the_same(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = JsonlSink.emit

    def emit_until_full(sink: JsonlSink, event: Event) -> None:
        if isinstance(event, RunFailed) or getattr(event, "step", 0) >= 2:
            raise refuse(errno.ENOSPC, sink._path)
        emit(sink, event)

    monkeypatch.setattr(JsonlSink, "emit", emit_until_full)
    with pytest.raises(TrainingError, match=r"events\.jsonl can't be written: its disk is full"):
        train(configure())
    folder = RunFolder(configure().outputs.folder / "my-lora")
    assert not any(isinstance(event, RunFailed) for event in iterate_events(folder.events))
    ProcessRecord.of(2**22 + 1).write(folder.process)  # above the highest id that Linux gives out: a dead one
    assert derive(folder).status == "crashed"
    monkeypatch.setattr(disk, "why_not_writable", lambda path: f"the disk of {path} is full")
    state = derive(folder)
    assert state.status == "failed"
    assert "is full" in str(state.last_error)


def test_a_run_that_the_disk_has_no_room_for_is_refused_before_its_first_step(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    with pytest.raises(ConfigError, match=r"outputs\.folder: the run's folder takes up to .*keep fewer"):
        train(configure())


def test_folders_that_can_not_be_made_are_told_all_at_once(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"outputs\.folder: .*file is a file.*\n.*cache_folder: .*longer than"):
        train(configure(f"outputs.folder={tmp_path / 'file'}", f"images.cache_folder={tmp_path / ('x' * 300)}"))


@pytest.mark.parametrize("moment", ["write_side_car", "move", "emit"])
def test_a_run_that_ended_while_it_finished_finishes_when_it_is_gone_on_with(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Only the very last act puts the file in its place; until the end is told, all of it is done again."""

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    if moment == "write_side_car":
        monkeypatch.setattr(running, "write_side_car", die)
    elif moment == "move":
        move = atomic.move
        monkeypatch.setattr(
            atomic, "move", lambda source, target: die() if target.suffix == ".safetensors" else move(source, target)
        )
    else:
        emit = JsonlSink.emit
        monkeypatch.setattr(
            JsonlSink, "emit", lambda sink, event: die() if isinstance(event, RunFinished) else emit(sink, event)
        )
    with pytest.raises(KeyboardInterrupt):
        train(configure())
    monkeypatch.undo()
    folder = RunFolder(configure().outputs.folder / "my-lora")
    assert folder.adapter("my-lora").exists() == (moment == "emit")

    result = resume(folder.path)

    assert result.outcome == "completed"
    assert derive(folder).status == "finished"
    assert result.adapter.with_suffix(".json").is_file()
    assert not folder.finishing.exists()
    ending = [event for event in iterate_events(folder.events) if isinstance(event, RunFinished)][-1]
    assert ending.adapter_sha256 == sha256_of(result.adapter)


def test_what_a_killed_process_left_half_written_is_gone_after_the_next_start(
    configure: Callable[..., TrainConfig],
) -> None:
    folder = train(configure()).folder
    gone = 2**22 + 1  # above the highest id that Linux gives out
    debris = folder / "checkpoints" / f".step_000009.{gone}-0123abcd{atomic.TEMPORARY_SUFFIX}"
    debris.mkdir()
    (debris / f".state.pt.{gone}-0123abcd{atomic.TEMPORARY_SUFFIX}").touch()
    at_work = folder / f".config.yaml.{os.getpid()}-0123abcd{atomic.TEMPORARY_SUFFIX}"
    at_work.touch()
    resume(folder, overrides=["optimization.steps=4"])
    assert not debris.exists()
    assert at_work.exists()


def test_half_of_the_previews_are_generated_again(configure: Callable[..., TrainConfig]) -> None:
    previews = ("previews.prompts=[a cat, a dog]", "previews.steps=1", "previews.every=3")
    folder = RunFolder(train(configure(*previews)).folder)
    (folder.previews(3) / "01.png").unlink()
    resume(folder.path, overrides=["optimization.steps=4"])
    assert (folder.previews(3) / "01.png").is_file()


class Short:
    """A device that holds at most so many images at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, error: type[Exception], words: str) -> None:
        loss = LossFunction.loss

        def limited(function: LossFunction, batch: Any) -> Any:
            if len(batch.names) > most:
                raise error(words)
            return loss(function, batch)

        monkeypatch.setattr(LossFunction, "loss", limited)


class Told:
    """What a run warns of, and the losses and gradients of its steps."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.figures: list[tuple[float, float]] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, WarningRaised):
            self.warnings.append(event.message)
        if isinstance(event, StepFinished):
            self.figures.append((event.loss, event.gradient_norm))

    def close(self) -> None:
        pass


def test_a_step_without_memory_is_done_again_in_smaller_pieces_with_the_same_gradients(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, in_pieces = Told(), Told()
    train(configure("optimization.batch_size=4", "optimization.accumulation=2", name="straight"), [at_once])
    Short(monkeypatch, 1, torch.cuda.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB")
    train(configure("optimization.batch_size=4", "optimization.accumulation=2"), [in_pieces])
    assert [message for message in in_pieces.warnings if "out of memory" in message] == [
        "step 1: out of memory with 4 images at a time; from here on 2, which trains the same and takes longer",
        "step 1: out of memory with 2 images at a time; from here on 1, which trains the same and takes longer",
    ]
    # From then on Adam makes steps of full size out of gradients that are nothing but rounding.
    assert in_pieces.figures[0] == pytest.approx(at_once.figures[0], rel=5e-3)
    assert [loss for loss, _ in in_pieces.figures] == pytest.approx([loss for loss, _ in at_once.figures], rel=1e-3)


@pytest.mark.parametrize(("setting", "most"), [("stop", 1), ("smaller_batch", 0)])
def test_a_run_that_memory_does_not_suffice_for_saves_and_says_what_to_change(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, setting: str, most: int
) -> None:
    config = configure("optimization.batch_size=2", f"optimization.on_out_of_memory={setting}", "optimization.epochs=2",
                       "optimization.steps=null", "outputs.checkpoint_every=0")  # fmt: skip
    steps = running.Running._after_step

    def after_first(run: Any) -> Any:
        Short(monkeypatch, most, torch.cuda.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB")
        return steps(run)

    monkeypatch.setattr(running.Running, "_after_step", after_first)
    at_a_time = 2 if setting == "stop" else 1
    with pytest.raises(
        TrainingError,
        match=rf"out of memory at step 2, {at_a_time} images at a time .*gradient_checkpointing.* Step 1 is saved",
    ):
        train(config)
    assert derive(RunFolder(config.outputs.folder / "my-lora")).status == "failed"
