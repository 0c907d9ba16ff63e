"""What a sweep's file may say: every problem at once, those of the trainings that it stands for too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdlora.config.sweep import Range, read, remarks, trial_config
from sdlora.errors import ConfigError

PLAIN: dict[str, Any] = {
    "preset": "demo.yaml",
    "train": {"validation": {"fraction": 0.2}, "optimization": {"steps": 4}},
    "vary": {"adapter.rank": [4, 8]},
    "trials": 2,
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**PLAIN, **changes}), encoding="utf-8")
    return path


def test_a_trial_has_the_presets_settings_the_sweeps_and_the_chosen_ones(tmp_path: Path) -> None:
    path = written(tmp_path)
    config = trial_config(read(path), path, {"adapter.rank": 8}, "trial-000", tmp_path / "runs")
    assert (config.adapter.rank, config.optimization.steps, config.name) == (8, 4, "trial-000")
    assert config.captions.trigger == "blueprint style"
    assert config.outputs.folder == tmp_path / "runs"
    assert trial_config(read(path), path, {"adapter.rank": 4}, "b", tmp_path).adapter.rank == 4


def test_a_preset_beside_the_file_is_found_and_epochs_take_the_place_of_its_steps(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("preset: demo.yaml\nadapter: {alpha: 3}\n", encoding="utf-8")
    train = {"validation": {"fraction": 0.2}}
    path = written(tmp_path, preset="own.yaml", train=train, vary={"optimization.epochs": [1, 2]})
    config = trial_config(read(path), path, {"optimization.epochs": 2}, "a", tmp_path)
    assert (config.adapter.alpha, config.optimization.epochs) == (3, 2)


def test_ranges_are_whole_where_both_ends_are(tmp_path: Path) -> None:
    vary = {
        "adapter.rank": {"low": 2, "high": 8},
        "optimization.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    }
    found = read(written(tmp_path, vary=vary)).vary
    assert isinstance(found["adapter.rank"], Range)
    assert found["adapter.rank"].is_whole
    assert isinstance(found["optimization.learning_rate"], Range)
    assert not found["optimization.learning_rate"].is_whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vary": {"adapter.rnak": [4]}}, "adapter.rnak"),
        ({"vary": {"adapter.rank": [4, 0, -1]}}, r"adapter.rank: .*-1.*with adapter.rank=-1"),
        ({"vary": {"adapter.rank": []}}, "vary.adapter.rank: has no values"),
        ({"vary": {"adapter.rank": [4, 4]}}, "holds a value twice: 4 and 4"),
        ({"vary": {"optimization.learning_rate": ["1e-3", 0.001]}}, "holds a value twice: 1e-3 and 0.001"),
        ({"vary": {"adapter.rank": {"low": 4.0, "high": 8}}}, "takes whole numbers only, .* got 4 and 8"),
        ({"vary": {"adapter.dropout": {"low": 0, "high": 1}}}, r"write low: 0\.0 and high: 1\.0 for all between"),
        ({"vary": {"adapter.rank": {"low": 4, "high": 9, "step": 2}}}, "steps of 2 from 4 miss high 9; the last is 8"),
        ({"train": {"adapter": {"rank": 4}}}, r"train\.adapter\.rank: is overruled by vary\.adapter\.rank"),
        (
            {"vary": {"optimization.epochs": [1, 2]}},
            r"train\.optimization\.steps: is overruled by vary\.optimization\.epochs",
        ),
        ({"vary": {"adapter.lokr_factor": [4, 8]}}, "vary.adapter.lokr_factor: .*no effect without .*lokr"),
        ({"vary": {"captions.trigger": ["a", "b"]}}, "changes what is measured"),
        ({"vary": {"previews.every": [1, 2]}}, "changes nothing of what is learned"),
        ({"vary": {}}, "vary"),
        ({"vary": {"adapter.rank": 8}}, "vary.adapter.rank"),
        ({"vary": {"adapter.rank": {"low": 8, "high": 4}}}, "low 8 must be below high 4"),
        ({"vary": {"adapter.alpha": {"low": 0, "high": 4, "log": True}}}, "low must be above 0 with log"),
        ({"vary": {"adapter.rank": {"low": 4, "high": 8, "step": 1.5}}}, "step must be a whole number"),
        ({"vary": {"adapter.rank": {"low": 4, "high": 8}}, "sampler": "grid"}, "a grid needs a list of values"),
        ({"sampler": "grid", "trials": 3}, "a trial for each of its 2 combinations"),
        ({"vary": {"validation.fraction": [0.1, 0.2]}}, "changes what is measured"),
        ({"vary": {"seed": [1, 2]}}, "changes what is measured"),
        ({"train": {"validation": {"fraction": 0}}}, "set validation.fraction or validation.folder"),
        ({"preset": "nosuch.yaml"}, "nosuch.yaml"),
        ({"train": {"adapter": {"rnak": 4}, "validation": {"fraction": 0.2}}}, "rnak"),
        ({"trails": 3}, "trails"),
        ({"trials": 2, "vary": {"adapter.rank": [4]}}, "2 are more than the 1 combination there is"),
        ({"trials": 3}, "3 are more than the 2 combinations there are, so that some would be trained twice"),
        ({"vary": {"adapter.rank": {"low": 4, "high": 8, "step": 4}}, "trials": 3}, "more than the 2 combinations"),
        (
            {"vary": {"adapter": {"rank": [4, 8], "alpha": [1, 2]}, "optimization": {"steps": [1]}}},
            "vary.adapter: is a section; write the full name of each of its settings that varies: adapter.alpha,"
            " adapter.rank\n  vary.optimization: is a section",
        ),
        ({"vary": {"adapter": [{"rank": 4}, {"rank": 8}]}}, "vary.adapter: is a section, which would be replaced"),
        ({"train": {"name": "x"}}, "train.name: every trial has its own"),
        ({"train": {"outputs": {"folder": "x"}}}, "train.outputs.folder: every trial has its own"),
        ({"name": "../elsewhere"}, "name"),
        ({"name": ""}, "name"),
        ({"sampler": "bayes"}, "sampler"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){said}"):
        read(written(tmp_path, **changes))


def test_settings_that_clash_in_some_combination_only_are_found_before_anything_runs(tmp_path: Path) -> None:
    vary = {"adapter.algorithm": ["lora", "loha"], "adapter.rslora": [False, True]}
    with pytest.raises(
        ConfigError, match=r"rslora goes with algorithm lora only.*with adapter.algorithm=loha, adapter.rslora=True"
    ):
        read(written(tmp_path, vary=vary))


def test_what_is_wrong_with_all_trials_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read(written(tmp_path, name="CON"))
    assert raised.value.problems == ["name: 'CON' can't be used as a name: Windows keeps it for devices"]


def test_every_problem_is_one_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read(written(tmp_path, vary={"seed": [1, 2], "adapter": [{}], "adapter.rank": []}))
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "vary.adapter",
        "vary.adapter.rank",
        "vary.seed",
    ]


def test_without_a_number_there_are_no_more_trials_than_combinations(tmp_path: Path) -> None:
    path = written(tmp_path)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["trials"]
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert read(path).num_trials == 2


def test_what_a_trial_is_given_does_not_become_the_sweeps(tmp_path: Path) -> None:
    train = {"validation": {"fraction": 0.2}, "outputs": {"self_test": False}}
    path = written(tmp_path, train=train)
    sweep = read(path)
    trial_config(sweep, path, {"adapter.rank": 8}, "trial-000", tmp_path / "runs")
    assert sweep.train == train


def test_what_some_trials_do_not_read_and_what_cannot_end_one_early_is_remarked(tmp_path: Path) -> None:
    train = {"validation": {"fraction": 0.2}, "optimization": {"steps": 40}}
    path = written(tmp_path, train=train, vary={"adapter.algorithm": ["lora", "lokr"], "adapter.lokr_factor": [4, 8]})
    idle, pruning = remarks(read(path), path)
    assert idle.startswith("vary.adapter.lokr_factor: adapter.lokr_factor has no effect without")
    assert idle.endswith("(with adapter.algorithm=lora)")
    assert pruning.startswith("prune=median has no effect: a trial is measured at its end only (validation.every=100)")
    assert remarks(read(again := written(tmp_path, prune="none")), again) == []
