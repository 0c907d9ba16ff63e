"""What happens between a training's steps and at its end: previews, checkpoints, requests, stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdlora.adapters.live.attach import Adapter
from sdlora.config import files
from sdlora.errors import AdapterError
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
from tests.integration.test_resume import weights_hash
from tests.support.followed_runs import Collector, run, weights


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


def test_pictures_that_were_asked_for_too_late_are_named(configure) -> None:
    config = configure("name=late", "previews.prompts=[a cat]", "previews.steps=2")
    folder = RunFolder(config.outputs.folder / "late")

    def ask(step: int) -> None:
        if step == 2:
            folder.ask("preview")
            folder.ask_for_pictures(["a fox"])
            folder.ask("stop")

    _, collector = run(config, ask)
    said = [event.message for event in collector.of(WarningRaised) if "asked for" in event.message]
    assert said == ["asked for, and not drawn before the run ended: the previews, 'a fox'; ask when it goes on"]
    assert folder.take_asked_prompts() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), ["'a cat' isn't drawn", "'a --zoom 3' isn't drawn"]),
        (RuntimeError("no such layer"), ["no more pictures are drawn of those asked for"]),
    ],
)
def test_a_picture_that_cant_be_drawn_is_told_and_the_run_goes_on(
    configure, monkeypatch: pytest.MonkeyPatch, error: Exception, words: list[str]
) -> None:
    config = configure("name=asked", "outputs.checkpoint_every=3")
    folder = RunFolder(config.outputs.folder / "asked")

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("sdlora.training.outputs.previews.sample", fails)
    prompts = ["a cat", "a --zoom 3"]
    result, collector = run(config, lambda step: folder.ask_for_pictures(prompts) if step == 1 else None)
    told = [event.message for event in collector.of(WarningRaised) if "drawn" in event.message]
    assert [message.partition(":")[0] for message in told] == words
    assert (result.outcome, collector.of(PictureDrawn)) == ("completed", [])


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


def test_a_stop_at_the_last_step_changes_nothing_of_what_comes_out(configure) -> None:
    """What is due at the end alone, too: without it the best of the steps before would be taken for the best of all."""
    due = (
        "validation.fraction=0.3",
        "validation.every=2",
        "previews.every=2",
        "previews.steps=2",
        "optimization.steps=3",
    )
    whole, undisturbed = run(configure("name=whole", "previews.prompts=[a cat]", *due))
    folder = RunFolder(whole.folder.parent / "stopped")
    config = configure("name=stopped", "previews.prompts=[a cat]", *due)
    stopped, before = run(config, lambda step: folder.ask("stop") if step == 3 else None)
    assert (stopped.outcome, stopped.step) == ("stopped", 3)
    after = Collector()
    resumed = resume(folder.path, [after])
    measured = [(event.step, event.relative_loss) for event in (*before.of(Validated), *after.of(Validated))]
    assert measured == [(event.step, event.relative_loss) for event in undisturbed.of(Validated)]
    assert [event.step for event in after.of(PreviewReady)] == [3]
    assert checkpoints.best_step(folder) == checkpoints.best_step(RunFolder(whole.folder)) == 3
    assert weights_hash(resumed.adapter) == weights_hash(whole.adapter)


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
