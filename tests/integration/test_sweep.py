"""Sweeps: what is tried, ended early, gone on with and kept. Most trainings here are only told of, two are real."""

from __future__ import annotations

import csv
import errno
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml

from sdlora.config import files
from sdlora.errors import ConfigError, DataError, RunError
from sdlora.events import Validated
from sdlora.launch import sweep as sweeps
from sdlora.launch.sweep import Sweep, Trial
from sdlora.runs import folder as run_folder


class Told:
    """A training that is told of: each look at it finds one validation more, then the end that `ends` has for it."""

    losses: Callable[[Any], list[float]] = staticmethod(lambda config: [0.9, 0.8])
    ends: Callable[[Any], str] = staticmethod(lambda config: "finished")
    begun: ClassVar[list[str]] = []
    cut_off: int | None = None
    """Looks after which Ctrl-C is pressed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, run_folder.RunFolder(folder)
        self.looks, self.is_stopped = 0, False

    def config(self) -> Any:
        return run_folder.open_run(self.folder)[1]

    def resume(self) -> None:
        Told.begun.append(self.folder.name)
        (self.folder / "begun").touch()

    def stop(self) -> None:
        self.is_stopped = True

    def state(self) -> Any:
        begun = (self.folder / "begun").exists()
        over = self.is_stopped or self.looks >= len(Told.losses(self.config()))
        status = "stopped" if not begun or self.is_stopped else Told.ends(self.config()) if over else "running"
        return SimpleNamespace(status=status, is_active=status == "running", last_error="no memory")

    def events(self, offset: int = 0) -> tuple[list[Any], int]:
        if Told.cut_off is not None:
            Told.cut_off -= 1
            if Told.cut_off < 0:
                raise KeyboardInterrupt
        self.looks += 1
        told = [
            Validated(step=10 * number, loss=loss, base_loss=1.0, relative_loss=loss, is_best=False)
            for number, loss in enumerate(Told.losses(self.config())[: self.looks], start=1)
        ]
        if Told.ends(self.config()) == "finished" and self.looks >= len(Told.losses(self.config())):
            self.files.result(self.config()).write_bytes(self.folder.name.encode())
        return told, 0


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[Told]]:
    monkeypatch.chdir(tmp_path)
    if "real" in request.node.name:
        yield Told
        return
    monkeypatch.setattr(sweeps, "RunHandle", Told)
    monkeypatch.setattr(sweeps, "prepare", lambda config: Told(run_folder.create(config).path))
    monkeypatch.setattr(sweeps, "_LOOK_SECONDS", 0.0)
    for name, value in {
        "losses": lambda c: [0.9, 0.8],
        "ends": lambda c: "finished",
        "begun": [],
        "cut_off": None,
    }.items():
        monkeypatch.setattr(Told, name, staticmethod(value) if callable(value) else value)
    yield Told


def written(root: Path, pictures: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "name": "mine",
        "train": {
            "base_model": {"model": "builtin:emoji"},
            "images": {"folder": str(pictures), "resolution": 64},
            "optimization": {"steps": 4, "device": "cpu"},
            "validation": {"fraction": 0.2, "every": 2},
        },
        "vary": {"adapter.rank": [2, 4, 8]},
        "sampler": "grid",
        "prune": "none",
    }
    path = root / "mine.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")
    return path


def table(sweep: Sweep) -> list[dict[str, str]]:
    return list(csv.DictReader((sweep.folder / "sweep.csv").read_text(encoding="utf-8").splitlines()))


def test_a_grid_tries_every_combination_once_and_keeps_the_best(tmp_path: Path, tiny_images: Path) -> None:
    Told.losses = staticmethod(lambda config: [0.9, 1 - config.adapter.rank / 20, 0.95])
    sweep = Sweep(written(tmp_path, tiny_images))
    trials = sweep.run()
    assert [trial.values["adapter.rank"] for trial in trials] == [8, 4, 2]
    assert (trials[0].relative_loss, trials[0].step) == (pytest.approx(0.6), 20)
    assert [row["adapter.rank"] for row in table(sweep)] == ["8", "4", "2"]
    assert (sweep.folder / "mine.safetensors").read_text() == trials[0].run.name  # type: ignore[union-attr]
    best = files.load(sweep.folder / "best.yaml")
    assert (best.adapter.rank, best.name) == (8, "mine")
    assert best.outputs.folder == files.load().outputs.folder


@pytest.mark.parametrize("failing", ["mine.safetensors", "best.yaml"])
def test_the_table_lists_no_best_whose_files_a_failing_disk_kept_from_being_there(
    tmp_path: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    sweep = Sweep(written(tmp_path, tiny_images))
    with monkeypatch.context() as disk:
        for name, target_at in (("write_text", 0), ("copy_file", 1)):
            write = getattr(sweeps.atomic, name)

            def fails(*arguments: Any, write: Any = write, at: int = target_at, **options: Any) -> None:
                if Path(arguments[at]).name == failing:
                    raise OSError(errno.EROFS, "Read-only file system", str(arguments[at]))
                write(*arguments, **options)

            disk.setattr(sweeps.atomic, name, fails)
        with pytest.raises((OSError, DataError, RunError)):
            sweep.run()
    assert not (sweep.folder / "sweep.csv").exists()
    Sweep(sweep.path).run()
    assert len(table(sweep)) == 3
    assert (sweep.folder / failing).is_file()


def test_values_come_from_their_ranges_and_the_same_seed_tries_the_same(tmp_path: Path, tiny_images: Path) -> None:
    vary = {
        "optimization.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "adapter.rank": {"low": 2, "high": 8, "step": 2},
        "images.horizontal_flip": [True, False],
    }
    found = []
    for name in ("a", "b"):
        path = written(tmp_path, tiny_images, name=name, vary=vary, sampler="tpe", trials=5, workers=2)
        found.append([trial.values for trial in sorted(Sweep(path).run(), key=lambda trial: trial.number)])
    assert found[0] == found[1]
    for values in found[0]:
        assert 1e-5 <= values["optimization.learning_rate"] <= 1e-3
        assert values["adapter.rank"] in (2, 4, 6, 8)
        assert values["images.horizontal_flip"] in (True, False)


def test_a_hopeless_training_is_ended_early(tmp_path: Path, tiny_images: Path) -> None:
    ranks = [2, 3, 4, 5, 32]
    Told.losses = staticmethod(lambda config: [2.0 if config.adapter.rank == 32 else 0.9, 0.5, 0.4])
    vary = {"adapter.rank": ranks}
    trials = Sweep(written(tmp_path, tiny_images, vary=vary, prune="median", seed=1)).run()
    states = {trial.values["adapter.rank"]: trial.state for trial in trials}
    after_three = {trial.values["adapter.rank"]: trial.number > 2 for trial in trials}
    assert all(state == "complete" for rank, state in states.items() if rank != 32)
    assert states[32] == ("pruned" if after_three[32] else "complete")


def test_an_interrupted_sweep_goes_on_with_what_ran_and_repeats_nothing(tmp_path: Path, tiny_images: Path) -> None:
    path = written(tmp_path, tiny_images)
    Told.cut_off = 3
    with pytest.raises(KeyboardInterrupt):
        Sweep(path).run()
    Told.cut_off, before = None, list(Told.begun)
    trials = Sweep(path).run()
    assert sorted(trial.values["adapter.rank"] for trial in trials) == [2, 4, 8]
    assert all(trial.state == "complete" for trial in trials)
    # What was cut off is gone on with in its own folder, and begins no second one.
    assert sorted({*before, *Told.begun}) == ["trial-000", "trial-001", "trial-002"]
    Told.begun.clear()
    assert [trial.number for trial in Sweep(path).run()] == [trial.number for trial in trials]
    assert Told.begun == []


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_sweep_that_is_gone_on_with_tries_what_it_would_have_tried(
    tmp_path: Path, tiny_images: Path, sampler: str
) -> None:
    vary = {"optimization.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "adapter.rank": [2, 4]}
    settings = {"vary": vary, "sampler": sampler, "trials": 4}
    whole = Sweep(written(tmp_path, tiny_images, name="whole", **settings)).run()
    path = written(tmp_path, tiny_images, name="cut", **settings)
    for looks in (3, 4):
        Told.cut_off = looks
        with pytest.raises(KeyboardInterrupt):
            Sweep(path).run()
    Told.cut_off = None
    by_number = [sorted((one.number, str(one.values)) for one in trials) for trials in (whole, Sweep(path).run())]
    assert by_number[0] == by_number[1]
    assert len({values for _, values in by_number[0]}) == 4


def test_more_trials_can_be_asked_for_later_but_no_other_settings(tmp_path: Path, tiny_images: Path) -> None:
    path = written(tmp_path, tiny_images, sampler="random", trials=2)
    Sweep(path).run()
    assert len(Sweep(written(tmp_path, tiny_images, sampler="random", trials=3)).run()) == 3
    with pytest.raises(ConfigError, match=r"holds a sweep of other settings \(vary.adapter.rank\): give this one"):
        Sweep(written(tmp_path, tiny_images, sampler="random", trials=3, vary={"adapter.rank": [2, 4, 16]}))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_values_are_tried_twice_while_others_are_left(tmp_path: Path, tiny_images: Path, sampler: str) -> None:
    vary = {"adapter.rank": {"low": 2, "high": 6, "step": 2}, "optimization.learning_rate": ["1e-4", 1e-3]}
    path = written(tmp_path, tiny_images, sampler=sampler, trials=6, vary=vary)
    heard: list[Trial] = []
    trials = Sweep(path).run(heard.append)
    assert len({str(trial.values) for trial in trials}) == len(trials) == 6
    assert len(Told.begun) == 6


def test_a_sweep_with_outputs_of_its_own_is_gone_on_with(tmp_path: Path, tiny_images: Path) -> None:
    path = written(tmp_path, tiny_images)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["train"]["outputs"] = {"self_test": False}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    Sweep(path).run()
    assert [trial.number for trial in Sweep(path).begun()] == [0, 1, 2]


def test_a_preset_that_was_changed_meanwhile_makes_another_sweep(tmp_path: Path, tiny_images: Path) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text("adapter: {alpha: 3}\n", encoding="utf-8")
    path = written(tmp_path, tiny_images, preset="own.yaml")
    Sweep(path).run()
    preset.write_text("adapter: {alpha: 4}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"another preset's settings, which have changed since \(adapter.alpha\)"):
        Sweep(path)


@pytest.mark.parametrize("damage", [b"x" * 40, b'{"op_code": 99}\n', b"\0" * 512])
def test_a_damaged_journal_is_told_of(tmp_path: Path, tiny_images: Path, damage: bytes) -> None:
    path = written(tmp_path, tiny_images)
    sweep = Sweep(path)
    sweep.run()
    (sweep.folder / "journal.log").write_bytes(damage + b"\n")
    with pytest.raises(RunError, match=r"journal\.log is damaged .*begin anew"):
        Sweep(path).run()


def test_a_journal_that_breaks_off_in_its_last_line_is_gone_on_with(tmp_path: Path, tiny_images: Path) -> None:
    path = written(tmp_path, tiny_images)
    sweep = Sweep(path)
    sweep.run()
    with (sweep.folder / "journal.log").open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    before = (sweep.folder / "journal.log").read_bytes()
    assert len(Sweep(path).begun()) == 3  # asked before the sweep is taken up, by the command line
    assert (sweep.folder / "journal.log").read_bytes() == before
    assert len(Sweep(path).run()) == 3


def test_a_sweep_killed_while_it_wrote_its_journal_is_gone_on_with_at_once(tmp_path: Path, tiny_images: Path) -> None:
    path = written(tmp_path, tiny_images)
    Told.cut_off = 3
    with pytest.raises(KeyboardInterrupt):
        Sweep(path).run()
    Told.cut_off = None
    (tmp_path / "sweeps" / "mine" / "journal.log.lock").symlink_to("journal.log")  # Optuna's, which it waits for
    began = time.monotonic()
    assert len(Sweep(path).run()) == 3
    assert time.monotonic() - began < 10
    assert not list((tmp_path / "sweeps" / "mine").glob("*.lock*.rename"))


def test_a_run_that_a_kill_kept_from_beginning_is_made_anew(
    tmp_path: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, tiny_images)
    prepare = sweeps.prepare

    def killed(config: Any) -> Any:
        prepare(config)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "prepare", killed)
        with pytest.raises(KeyboardInterrupt):
            Sweep(path).run()
    assert sorted(trial.values["adapter.rank"] for trial in Sweep(path).run()) == [2, 4, 8]
    runs = (tmp_path / "sweeps" / "mine" / "runs").iterdir()
    assert sorted(run.name for run in runs if run.is_dir()) == sorted(Told.begun)


@pytest.mark.parametrize(("seen", "ended"), [("starting", "crashed"), ("stopping", "stopped")])
def test_a_run_that_ends_with_the_sweep_before_just_after_it_is_taken_up_is_gone_on_with(
    tmp_path: Path, tiny_images: Path, monkeypatch: pytest.MonkeyPatch, seen: str, ended: str
) -> None:
    path = written(tmp_path, tiny_images)
    Told.cut_off = 0
    with pytest.raises(KeyboardInterrupt):
        Sweep(path).run()
    Told.cut_off, before = None, list(Told.begun)
    # A process whose sweep is killed lives for a moment without doing anything more.
    dying = iter([(seen, True), (ended, False)])
    state = Told.state

    def looked_at(one: Any) -> Any:
        status, is_active = next(dying, (None, False)) if one.folder.name == before[0] else (None, False)
        return SimpleNamespace(status=status, is_active=is_active, last_error=None) if status else state(one)

    monkeypatch.setattr(Told, "state", looked_at)
    assert [trial.state for trial in Sweep(path).run()] == ["complete"] * 3
    assert Told.begun.count(before[0]) == 2


def test_failed_trainings_are_told_of_and_three_on_end_give_up(tmp_path: Path, tiny_images: Path) -> None:
    Told.ends = staticmethod(lambda config: "failed" if config.adapter.rank == 4 else "finished")
    heard: list[Trial] = []
    trials = Sweep(written(tmp_path, tiny_images)).run(heard.append)
    assert [trial.state for trial in trials] == ["complete", "complete", "failed"]
    assert trials[-1].reason == "no memory"
    assert [trial.state for trial in heard].count("running") == 3
    Told.ends = staticmethod(lambda config: "failed")
    with pytest.raises(RunError, match="3 trainings failed one after another, the last with: no memory"):
        Sweep(written(tmp_path, tiny_images, name="other")).run()


def test_what_no_training_could_begin_with_is_said_before_the_first(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        Sweep(written(tmp_path, tmp_path / "empty")).run()
    assert Told.begun == []


def test_a_sweep_runs_once_at_a_time(tmp_path: Path, tiny_images: Path) -> None:
    sweep = Sweep(written(tmp_path, tiny_images))
    sweep.folder.mkdir(parents=True)
    with sweep._alone(), pytest.raises(RunError, match="is being run already by another process"):
        Sweep(sweep.path).run()


def test_the_command_trains_for_real(tmp_path: Path, tiny_images: Path, shallow_sd1: Path, cli: Any) -> None:
    train = {
        "base_model": {"model": str(shallow_sd1)},
        "images": {"folder": str(tiny_images), "resolution": 64},
        "adapter": {"layers": "attention"},
        "optimization": {"steps": 2, "device": "cpu", "optimizer": "adamw", "learning_rate": 1e-3},
        "validation": {"fraction": 0.2, "every": 2},
        "outputs": {"self_test": False},
    }
    path = written(tmp_path, tiny_images, train=train, vary={"adapter.rank": [2, 4]}, workers=2)
    dry = cli("sweep", path, "--dry-run")
    assert "2 trainings, every combination" in dry.output
    assert not (tmp_path / "sweeps").exists()
    result = cli("sweep", path, "--json")
    trials = json.loads(result.output.splitlines()[-1])
    assert [trial["state"] for trial in trials] == ["complete", "complete"]
    assert all(0 < trial["relative_loss"] < 1.5 for trial in trials)
    assert (tmp_path / "sweeps" / "mine" / "mine.safetensors").is_file()


def test_what_no_trial_may_do_is_refused_before_the_first(tmp_path: Path, tiny_images: Path) -> None:
    path = written(tmp_path, tiny_images)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["train"]["outputs"] = {"on_finish": "echo done"}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(ConfigError, match="runs only where sdlora train or resume is called by hand"):
        Sweep(path)
    (tmp_path / "sweeps").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"folder: .*sweeps is a file, not a folder"):
        Sweep(written(tmp_path, tiny_images))
