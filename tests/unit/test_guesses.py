"""What people try first on the command line: it works, or the message says how to write it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdlora.cli import app
from sdlora.cli.guesses import _MEANT, named, what_to_train
from sdlora.config import files, schema
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.given import train_config
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError


def said(*arguments: str) -> str:
    """What a command prints, in one line without the box around it."""
    result = CliRunner().invoke(app, list(arguments))
    text = result.output or str(result.exception)
    return " ".join(re.sub(r"[│╭╮╰╯─]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text)).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "100"], "a setting is written as --set optimization.steps=100"),
        (["--base", "builtin:emoji"], "--set base_model.model=builtin:emoji"),
        (["--model", "x"], "--set base_model.model=x"),
        (["--name", "ink"], "--set name=ink"),
        (["--rank", "8"], "--set adapter.rank=8"),
        (["--output", "out"], "--set outputs.folder=out"),
        (["--output_name", "ink"], "--set name=ink"),
        (["--resolution", "512"], "--set images.resolution=512"),
        (["--size", "512"], "--set images.resolution=512"),
        (["--lr", "1e-4"], "--set optimization.learning_rate=1e-4"),
        (["--epochs", "3"], "--set optimization.epochs=3"),
        (["--batch", "2"], "--set optimization.batch_size=2"),
        (["--seed", "2"], "--set seed=2"),
        (["--data", "pictures"], "--set images.folder=pictures"),
        (["--prompt", "a cat"], "--set 'previews.prompts=a cat'"),
        (["--learning-rate=3"], "--set optimization.learning_rate=3"),
        (["--network_dim", "8"], "--set adapter.rank=8"),
        (["--rnk"], "--set adapter.rank=VALUE"),
        (["--nonsense", "1"], "there is no option --nonsense; settings"),
        (["--set", "optimization.steps", "100"], "write it as --set optimization.steps=100"),
    ],
)
def test_a_setting_tried_as_an_option_is_told_how_to_be_written(arguments: list[str], words: str) -> None:
    shown = said("train", *arguments)
    assert words in shown
    assert " or --set" not in shown
    for command in (["queue", "add"], ["dataset", "check"]):
        assert words in said(*command, *arguments)


def test_options_of_generate_and_evaluate_are_told_by_their_own_settings() -> None:
    assert "--set base_model.clip_skip=2" in said("generate", "a cat", "--clip-skip", "2")
    assert "--set num_images=4" in said("generate", "a cat", "--num-images", "4")
    assert "--set base_model.vae=x" in said("generate", "a cat", "--vae", "x")
    assert "(`sdlora explain generate`)" in said("generate", "a cat", "--nonsense", "4")
    assert "--set sampler=DDIM" in said("evaluate", "runs/x", "--sampler", "DDIM")


def test_everything_that_a_command_lacks_is_told_at_once() -> None:
    assert "Missing parameters --tuned, --base, --out / -o" in said("extract")
    assert "Missing parameters FILE:WEIGHT..., --out / -o" in said("merge", "--base", "sd15.safetensors")
    assert "Missing parameter --to" in said("convert", "a.safetensors", "--out", "b.safetensors")


def test_every_setting_that_an_option_is_said_to_mean_is_there() -> None:
    known = {setting.name for setting in schema.settings(TrainConfig)}
    assert {name for meant in _MEANT.values() for name in meant} <= known


def test_a_bare_name_given_to_set_is_told_its_section() -> None:
    assert "did you mean 'base_model.model'?" in said("train", "--set", "model=x", "--dry-run")
    assert "did you mean 'optimization.steps'?" in said("train", "--set", "steps=3", "--dry-run")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kohya.toml", 'network_dim = 8\npretrained_model_name_or_path = "x"'),
        ("kohya.json", '{"network_dim": 8, "seed": 3}'),
        ("concepts.json", '[{"name": "cats"}]'),
        ("job.yaml", "job: extension\nconfig: {name: x}"),
    ],
)
def test_settings_of_another_trainer_are_told_how_to_be_taken_over(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    words = f"taken over by `sdlora dataset import {path}`"
    for arguments in (["train", "--preset"], ["train"], ["queue", "add", "--preset"], ["dataset", "check", "--preset"]):
        assert words in said(*arguments, str(path))
    with pytest.raises(ConfigError, match="taken over by `sdlora dataset import"):
        train_config(path)


def test_json_of_our_own_is_read_as_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"preset": "demo", "seed": 3, "adapter": {"rnak": 3}}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"adapter\.rnak: unknown setting; did you mean 'rank'"):
        files.load(path)
    path.write_text('{"preset": "demo", "seed": 3}', encoding="utf-8")
    assert files.load(path).seed == 3


def test_a_folder_that_is_almost_there_is_suggested_before_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_pictures").mkdir()
    assert "no such folder; did you mean my_pictures? As a preset: no such file" in said("train", "my_pictrues")
    assert "did you mean my_pictures?" in said("train", "my_pictrues", "--preset", "demo")
    assert "did you mean my_pictures?" in said("train", "demo", "--set", "images.folder=my_pictrues")
    assert "did you mean" not in said("train", "something-else")


def test_a_run_that_is_not_there_is_told_from_a_folder_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no such folder; `sdlora runs` lists the runs" in said("evaluate", "zibbo")
    run = Path("runs", "zibbo")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: zibbo", encoding="utf-8")
    meant = f"did you mean {run}?"
    for command in ("evaluate", "resume", "stop", "save", "preview", "support"):
        assert f"there is no such folder; {meant}" in said(command, "zibbo")
    assert meant in said("generate", "--run", "zibbo", "a cat")
    assert meant in said("queue", "add", "zibo")
    assert meant in said("queue", "remove", str(Path("runs", "zibo")))
    assert f"no such file or run folder; {meant}" in said("push", "zibbo", "--dry-run")
    assert "it has no config.yaml; it holds runs: zibbo" in said("resume", "runs")
    assert "but a file" in said("resume", str(run / "config.yaml"))
    assert "did you mean runs?" in said("runs", "run")


def test_everything_that_push_lacks_is_told_at_once() -> None:
    both = said("push")
    assert "FILE|RUN" in both
    assert "OWNER/NAME" in both
    assert "OWNER/NAME" in said("push", "ink.safetensors")
    assert "OWNER/NAME" not in said("push", "--dry-run")


def test_train_takes_a_preset_or_a_folder_and_knows_what_else_it_is_given(tmp_path: Path) -> None:
    assert what_to_train("demo", None, []) == ("demo", [])
    assert what_to_train(str(tmp_path), "demo", ["seed=1"]) == ("demo", [f"images.folder={tmp_path}", "seed=1"])
    (tmp_path / "kohya.toml").touch()
    with pytest.raises(ConfigError, match="taken over by `sdlora dataset import"):
        what_to_train(str(tmp_path / "kohya.toml"), None, [])
    with pytest.raises(ConfigError, match="no preset of that name; did you mean 'demo'"):
        what_to_train("dmo", None, [])
    for name in ("config.yaml", "events.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="go on with it by `sdlora resume"):
        what_to_train(str(tmp_path), None, [])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("network_dim", ["adapter.rank"]),
        ("unet_lr", ["optimization.learning_rate"]),
        ("keep_tokens", ["captions.keep_tags"]),
        ("mixed_precision", ["optimization.precision"]),
        ("save_every_n_epochs", ["outputs.checkpoint_every"]),
        ("max_train_epochs", ["optimization.epochs"]),
        ("prior_loss_weight", ["objective.prior_weight"]),
        ("lora_alpha", ["adapter.alpha"]),
        ("initializer_token", ["adapter.new_tokens"]),
        ("train_text_encoder_ti_frac", ["optimization.new_tokens_until"]),
        ("adapter.rnk", ["adapter.rank"]),
        ("nonsense at all", []),
    ],
)
def test_settings_are_found_by_their_names_in_other_tools(name: str, settings: list[str]) -> None:
    assert named(name)[: len(settings) or None] == settings


def test_a_choice_that_there_is_not_is_told_in_plain_words_and_explains_prefix_is_known() -> None:
    told = said("estimate", "--family", "SDXL")
    assert "'--family': 'SDXL' is not one of 'sd1', 'sd2', 'sdxl'." in told
    with pytest.raises(ConfigError, match="evaluate: unknown setting; `sdlora explain` puts it before each setting"):
        files.validate({"evaluate": {"num_seeds": 2}}, "here", EvaluateConfig)


def test_explain_writes_defaults_as_yaml_and_knows_generates_settings() -> None:
    assert "adapter.conv_rank = null" in said("explain", "adapter.conv_rank")
    assert "generate.steps = 25" in said("explain", "generate.steps")
    assert "sweep.vary = required" in said("explain", "sweep")
    assert "mix.method" in said("explain", "mix")
    assert "'unet_lr' is here:" in said("explain", "unet_lr")


def test_presets_can_be_shown_and_build_on_each_other(tmp_path: Path) -> None:
    assert "# Purpose:" in said("presets", "show", "demo")
    mine = tmp_path / "mine.yaml"
    mine.write_text("preset: sd15_style.yaml\nname: mine\noptimization: {epochs: 4}\n", encoding="utf-8")
    second = tmp_path / "second.yaml"
    second.write_text("preset: mine.yaml\nadapter: {rank: 3}\nimages: {folder: x}\n", encoding="utf-8")
    shipped, own = files.load("sd15_style"), files.load(second)
    assert (own.name, own.adapter.rank, own.optimization.epochs, own.optimization.steps) == ("mine", 3, 4, None)
    assert own.optimization.learning_rate == shipped.optimization.learning_rate
    mine.write_text("preset: second.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="build on each other in a circle"):
        files.load(second)


def test_epochs_asked_for_on_the_command_line_take_the_place_of_a_presets_steps() -> None:
    config = files.load("sd15_style", ["optimization.epochs=3", "images.folder=x"])
    assert (config.optimization.epochs, config.optimization.steps) == (3, None)
    with pytest.raises(ConfigError, match="not both"):
        files.load("sd15_style", ["optimization.epochs=3", "optimization.steps=9", "images.folder=x"])
