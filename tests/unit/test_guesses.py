"""What people try first on the command line: it works, or the message says how to write it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdlora.cli import app
from sdlora.cli.guesses import named, what_to_train
from sdlora.config import files
from sdlora.errors import ConfigError


def said(*arguments: str) -> str:
    """What a command prints, in one line without the box around it."""
    result = CliRunner().invoke(app, list(arguments))
    text = result.output or str(result.exception)
    return " ".join(re.sub(r"[│╭╮╰╯─]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text)).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "100"], "--set optimization.steps=100 or --set previews.steps=100"),
        (["--learning-rate=3"], "--set optimization.learning_rate=3"),
        (["--network_dim", "8"], "--set adapter.rank=8"),
        (["--rnk"], "--set adapter.rank=VALUE"),
        (["--nonsense", "1"], "there is no option --nonsense; settings"),
        (["--set", "optimization.steps", "100"], "write it as --set optimization.steps=100"),
    ],
)
def test_a_setting_tried_as_an_option_is_told_how_to_be_written(arguments: list[str], words: str) -> None:
    assert words in said("train", *arguments)


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


def test_explain_writes_defaults_as_yaml_and_knows_generates_settings() -> None:
    assert "adapter.conv_rank = null" in said("explain", "adapter.conv_rank")
    assert "generate.steps = 25" in said("explain", "generate.steps")
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
