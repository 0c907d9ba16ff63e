"""Going on with a run under other settings, with other images, and from damaged checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from sdlora.adapters.files.reading import read
from sdlora.adapters.hub.inspection import inspect
from sdlora.cli import app
from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, RunError, TrainingError
from sdlora.events import Event, StepFinished
from sdlora.runs import changes, checkpoints
from sdlora.runs.folder import RunFolder
from sdlora.training.loop import running
from sdlora.training.loop.run import resume, train
from sdlora.training.outputs import checkpoint_state
from tests.integration.test_resume import weights_hash


class Heard:
    """What a run says, and the rates of its steps."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.rates: list[float] = []

    def emit(self, event: Event) -> None:
        self.messages += [message] if (message := getattr(event, "message", None)) else []
        if isinstance(event, StepFinished):
            self.rates.append(event.learning_rates["unet"])

    def close(self) -> None:
        pass

    def has(self, words: str) -> bool:
        return any(re.search(words, message) for message in self.messages)


@pytest.fixture
def images(tiny_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


@pytest.fixture
def configure(shallow_sd1: Path, images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def with_overrides(*overrides: str) -> TrainConfig:
        settings = [
            f"base_model.model={shallow_sd1}", f"images.folder={images}", "images.resolution=64",
            "images.bucket_step=32", "adapter.rank=2", "adapter.layers=attention", "optimization.steps=2",
            "optimization.precision=fp32",
            "optimization.learning_rate=1e-3", "optimization.threads=1", f"outputs.folder={tmp_path / 'runs'}",
            "outputs.checkpoint_every=1", "outputs.self_test=false",
        ]  # fmt: skip
        return files.load(overrides=[*settings, *overrides])

    return with_overrides


def test_more_steps_continue_as_if_they_had_been_asked_for_at_once(configure) -> None:
    straight = train(configure("optimization.steps=4", "name=straight"))
    extended = train(configure("name=extended"))
    with pytest.raises(RunError, match=r"all 2 steps are done. To train it further: sdlora resume .*steps=4"):
        resume(extended.folder)
    heard = Heard()
    resumed = resume(extended.folder, [heard], overrides=["optimization.steps=3"])
    resumed = resume(extended.folder, [heard], overrides=["optimization.steps=4"])
    assert (resumed.outcome, resumed.step) == ("completed", 4)
    assert weights_hash(resumed.adapter) == weights_hash(straight.adapter)
    assert heard.has(r"changed optimization\.steps: 2 -> 3")
    told = inspect(read(resumed.adapter))
    assert told.lineage == [
        {"step": 2, "changes": {"optimization.steps": [2, 3]}},
        {"step": 3, "changes": {"optimization.steps": [3, 4]}},
    ]
    assert "changed         at step 2: optimization.steps 2 -> 3" in told.as_text()
    versions = changes.history(RunFolder(extended.folder))
    assert [[(one.name, one.before, one.after) for one in version.changes] for version in versions] == [
        [("optimization.steps", 2, 3)],
        [("optimization.steps", 3, 4)],
    ]
    assert [version.step for version in versions] == [2, 3]
    kept = [files.load(path).optimization.steps for path in sorted((extended.folder / "config.history").glob("*.yaml"))]
    assert kept == [2, 3]


def test_fewer_steps_than_are_done_end_an_unfinished_run_as_it_is_and_that_is_said(configure) -> None:
    run = train(configure())
    for path in run.folder.glob("*.safetensors"):  # as if it had been killed before its end
        path.unlink()
    heard = Heard()
    resumed = resume(run.folder, [heard], overrides=["optimization.steps=1"])
    assert (resumed.outcome, resumed.step) == ("completed", 2)
    assert heard.has("2 steps are done, more than the 1 that are asked for: the run ends with what it has learned")


def test_validation_that_begins_or_changes_with_a_resume_is_measured_anew(configure) -> None:
    """The base model's loss and the best step belong to the images that they were measured on."""
    heard = Heard()

    def validated(run: Any) -> list[dict[str, Any]]:
        told = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
        return [event for event in told if event["kind"] == "validated"]

    run = train(configure("optimization.steps=1"))
    run = resume(run.folder, overrides=["optimization.steps=2", "validation.fraction=0.2", "validation.every=1"])
    *_, first = validated(run)
    assert first["relative_loss"] == pytest.approx(first["loss"] / first["base_loss"])
    assert checkpoints.best_step(RunFolder(run.folder)) in (1, 2)
    same = resume(run.folder, overrides=["optimization.steps=3"])
    assert validated(same)[-1]["base_loss"] == first["base_loss"]
    checkpoints.name_best(RunFolder(run.folder), 2, 0.1)
    other = resume(run.folder, [heard], overrides=["optimization.steps=4", "validation.fraction=0.5"])
    last = validated(other)[-1]
    assert last["base_loss"] != first["base_loss"]
    assert last["relative_loss"] == pytest.approx(last["loss"] / last["base_loss"])
    assert checkpoints.best_step(RunFolder(run.folder)) in (None, 4)
    without = resume(run.folder, [heard], overrides=["optimization.steps=5", "validation.fraction=0"])
    assert checkpoints.best_step(RunFolder(run.folder)) is None
    (newest,) = (without.folder / "checkpoints" / "step_000005").glob("*.safetensors")
    finished, kept = load_file(without.adapter), load_file(newest)
    assert all(torch.equal(finished[name], kept[name]) for name in kept)


def test_prompts_taken_from_captions_are_not_called_a_contradiction(configure, tmp_path: Path) -> None:
    heard = Heard()
    config = configure("previews.from_captions=1", "previews.steps=1", "optimization.steps=1")
    run = train(config, [heard])
    resume(run.folder, [heard], overrides=["optimization.steps=2"])
    assert len(files.load(run.folder / "config.yaml").previews.prompts) == 1
    assert not heard.has("from_captions has no effect")


def test_another_rate_schedule_and_decay_win_over_the_checkpoint(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(configure())
    groups: list[dict[str, Any]] = []
    original = running.Trainer.load_state

    def load_state(self: running.Trainer, state: dict[str, Any]) -> None:
        original(self, state)
        groups.extend({**group, "params": None} for group in self.optimizer.param_groups)

    monkeypatch.setattr(running.Trainer, "load_state", load_state)
    heard = Heard()
    resume(
        run.folder,
        [heard],
        overrides=["optimization.steps=4", "optimization.learning_rate=5e-4", "optimization.weight_decay=0.2",
                   "optimization.optimizer_options={betas: [0.8, 0.9]}", "optimization.schedule=linear"],
    )  # fmt: skip
    assert [(group["weight_decay"], group["betas"]) for group in groups] == [(0.2, (0.8, 0.9))]
    assert heard.rates == pytest.approx([5e-4 * 0.5, 5e-4 * 0.25])


def test_another_optimizer_begins_with_a_fresh_state_and_says_so(configure) -> None:
    run = train(configure())
    heard = Heard()
    resume(run.folder, [heard], overrides=["optimization.steps=3", "optimization.optimizer=lion"])
    assert heard.has(r"changed optimization\.optimizer: adamw -> lion; its state begins afresh")


def test_an_average_switched_on_begins_from_the_weights_as_they_are(configure) -> None:
    run = train(configure("optimization.learning_rate=0.05"))
    before = load_file(run.adapter)
    slow = ["optimization.steps=3", "optimization.ema=0.9", "optimization.learning_rate=1e-9"]
    after = load_file(resume(run.folder, overrides=slow).adapter)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    "override",
    ["adapter.rank=4", "adapter.alpha=3", "adapter.layers=all", "adapter.text_encoder=true", "base_model.family=sdxl",
     "base_model.model=builtin:emoji", "name=other"],
)  # fmt: skip
def test_what_cannot_change_is_refused_before_anything_is_loaded(configure, override: str) -> None:
    run = train(configure())
    before = (run.folder / "config.yaml").read_text()
    name = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{re.escape(name)}: .*begin a new run"):
        resume(run.folder, overrides=[override, "optimization.steps=9"])
    assert (run.folder / "config.yaml").read_text() == before
    assert not (run.folder / "config.history").exists()


def test_changed_images_and_captions_are_said_and_accepted_on_request(configure, images: Path) -> None:
    run = train(configure())
    (images / "3.png").unlink()
    (images / "4.txt").write_text("another caption")
    shutil.copy(images / "5.png", images / "new.png")
    shutil.copy(images / "5.txt", images / "new.txt")
    with pytest.raises(RunError) as caught:
        resume(run.folder, overrides=["optimization.steps=3"])
    for words in ("1 image is gone: 3.png", "1 image is new: new.png", "1 caption was changed: 4.png"):
        assert words in str(caught.value)
    assert "--accept-changes and the same --set" in str(caught.value)
    heard = Heard()
    result = resume(run.folder, [heard], overrides=["optimization.steps=3"], accept_changes=True)
    assert result.step == 3
    assert heard.has("since the run began 1 image is gone: 3.png")
    assert "4.png" in changes.history(RunFolder(run.folder))[0].images
    resume(run.folder, overrides=["optimization.steps=4"])  # what was accepted is not asked again


def test_masks_that_were_there_before_can_be_switched_on(configure, images: Path) -> None:
    Image.new("L", Image.open(images / "3.png").size, 255).save(images / "3-masklabel.png")
    run = train(configure())
    heard = Heard()
    resume(run.folder, [heard], overrides=["optimization.steps=3", "images.mask=file"])
    assert heard.has("since the run began 1 mask was switched on: 3.png")
    # Accepted from elsewhere, as the page does, while no flag is given.
    (images / "4.txt").write_text("another caption")
    RunFolder(run.folder).accept_changes()
    assert resume(run.folder, overrides=["optimization.steps=4"]).step == 4


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "garbage":
        path.write_bytes(b"\x80\x04garbage")
    elif how == "other":
        torch.save({"adapter": 3}, path)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(configure, tmp_path: Path) -> None:
    straight = train(configure("optimization.steps=4", "name=straight"))
    run = train(configure("optimization.steps=3", "outputs.keep_checkpoints=5")).folder
    for number, (how, with_checksums) in enumerate(product(("bit", "garbage", "other", "cut"), (True, False))):
        if how == "bit" and not with_checksums:
            continue  # nobody could tell: that is what checksums are for
        copy = Path(shutil.copytree(run, tmp_path / f"{number}"))
        newest = checkpoints.newest(RunFolder(copy))
        assert newest is not None
        damage(newest.state, how)
        if not with_checksums:
            (newest.path / "checksums.json").unlink()
        heard = Heard()
        resumed = resume(copy, [heard], overrides=["optimization.steps=4"])
        case = f"{how}, {'with' if with_checksums else 'without'} checksums"
        assert heard.has(r"the checkpoint step_000003 is damaged: .*; going back to the one before"), case
        assert weights_hash(resumed.adapter) == weights_hash(straight.adapter), case


def test_a_damaged_adapter_beside_a_sound_state_is_found_too(configure) -> None:
    run = train(configure())
    newest = checkpoints.newest(RunFolder(run.folder))
    assert newest is not None
    (adapter,) = newest.path.glob("*.safetensors")
    damage(adapter, "bit")
    with pytest.raises(TrainingError, match=rf"step_000002 is damaged: {re.escape(adapter.name)} differ"):
        checkpoint_state.load(newest)


def test_when_all_checkpoints_are_damaged_the_run_does_not_start_over(configure) -> None:
    run = train(configure("optimization.steps=3"))
    for checkpoint in checkpoints.find(RunFolder(run.folder)):
        damage(checkpoint.state, "garbage")
    adapter = weights_hash(run.adapter)
    with pytest.raises(TrainingError, match=r"all 3 checkpoints of .* are damaged"):
        resume(run.folder, overrides=["optimization.steps=4"])
    assert weights_hash(run.adapter) == adapter


def test_a_finished_file_is_never_written_over_from_step_0(configure) -> None:
    run = train(configure())
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(RunError, match=r"would write over my-lora\.safetensors"):
        resume(run.folder, overrides=["optimization.steps=4"])


def test_the_command_line_takes_changes(configure) -> None:
    run = train(configure())
    result = CliRunner().invoke(app, ["resume", str(run.folder), "--set", "optimization.steps=3"])
    assert result.exit_code == 0, result.output
    assert len(json.loads((run.folder / "config.history" / "0001.json").read_text())["changes"]) == 1


def test_a_run_that_is_refused_keeps_the_settings_it_had(configure) -> None:
    folder = train(configure("optimization.steps=2")).folder
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=r"complete: all 2 steps .* --set optimization.steps=4"):
        resume(folder, overrides=["seed=5", "optimization.weight_decay=0.3"])
    with pytest.raises(RunError, match=r"has done 2 steps, more than the 1 that are asked for.*steps=4"):
        resume(folder, overrides=["optimization.steps=1"])
    assert (folder / "config.yaml").read_bytes() == before
    assert changes.history(RunFolder(folder)) == []
    heard = Heard()
    resume(folder, [heard], overrides=["optimization.steps=3", "seed=5"])
    assert heard.has("changed seed: 0 -> 5")
    assert [one.name for one in changes.history(RunFolder(folder))[0].changes] == ["seed", "optimization.steps"]


def test_settings_edited_by_hand_are_told_and_a_file_that_was_cut_off_is_refused(configure) -> None:
    folder = train(configure("optimization.steps=2")).folder
    config, whole = folder / "config.yaml", (folder / "config.yaml").read_text()
    config.write_text(whole[: whole.index("  learning_rate:")])
    with pytest.raises(ConfigError, match=r"settings are gone from it, .*: it was cut off or edited.*\.config\.yaml"):
        resume(folder, overrides=["optimization.steps=3"])
    config.write_text(re.sub(r"\n  learning_rate: .*", "\n  learning_rate: 0.002", whole))
    heard = Heard()
    resume(folder, [heard], overrides=["optimization.steps=3"])
    assert heard.has(r"changed optimization\.learning_rate: .* -> 0\.002")
    recorded = changes.history(RunFolder(folder))[0].changes
    assert {one.name for one in recorded} == {"optimization.learning_rate", "optimization.steps"}


def test_a_checkpoint_that_lost_its_checksums_is_not_trusted(configure, tmp_path: Path) -> None:
    run = train(configure("optimization.steps=2", "outputs.checkpoint_every=1")).folder
    for number, sums in enumerate((None, "{}", "[]")):
        folder = Path(shutil.copytree(run, tmp_path / f"{number}"))
        file = folder / "checkpoints" / "step_000002" / "checksums.json"
        file.unlink() if sums is None else file.write_text(sums)
        heard = Heard()
        resume(folder, [heard], overrides=["optimization.steps=3"])
        assert heard.has(r"step_000002 is damaged: .*; going back to the one before"), sums


def test_what_images_were_is_missed_where_it_was_lost(configure) -> None:
    folder = train(configure("optimization.steps=1")).folder
    (folder / "images.json").write_text("{]")
    heard = Heard()
    resume(folder, [heard], overrides=["optimization.steps=2"])
    assert heard.has(r"images\.json is missing or damaged, so it can't be told")
