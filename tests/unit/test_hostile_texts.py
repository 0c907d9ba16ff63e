"""Texts that are meant to break a reader, or that were broken by accident: each ends in one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.errors import ConfigError, SdloraError
from sdlora.text_files import parse_json, parse_toml, parse_yaml, parse_yaml_value
from sdlora.training.preflight.checks import check


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("? [a]\n: b", "a list is no name"),
        ("a: 1\na: 2", "'a' is set twice"),
        ("seed: " + "9" * 5000, "digits"),
        ("seed: 0x" + "f" * 5000, "a number of more than a thousand digits"),
        ("seed: " + ":".join(["59"] * 3000), "a number of base 60"),
        ("steps: 1:30", "1:30 is a number of base 60 in YAML: write the one that is meant, or quotes around a text"),
        ("steps: 010", "010 is a number of base 8 in YAML"),
        ("[" * 3000 + "]" * 3000, "nested too deep|nesting"),
        ("- " * 100_000 + "a", "nested too deep"),
        ('name: "\\ud800x"', "half of a character|invalid Unicode"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a:\n\t- b", "cannot start any token"),
        ("\n".join(f"k{number}: 1" for number in range(300_000)), "characters are no settings"),
    ],
)
def test_yaml_that_is_none_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)
    with pytest.raises(ConfigError, match="my.yaml has 1 problem"):
        files.parse_yaml(text, "my.yaml")


def test_a_date_is_the_text_it_was_written_as() -> None:
    assert parse_yaml("name: 2024-01-05\nother: 2001-13-45") == {"name": "2024-01-05", "other": "2001-13-45"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("p #2", "p #2"),
        ("#ff0000", "#ff0000"),
        ("[a, b] # c", "[a, b] # c"),
        ('"p #2"', "p #2"),
        ("&a foo", "&a foo"),
        ("--- bad", "--- bad"),
        ("|", "|"),
        ("masterpiece, ", "masterpiece, "),
        (", ", ", "),
        ("010", "010"),
        ("1e-4", "1e-4"),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("null", None),
    ],
)
def test_a_value_on_the_command_line_has_no_comments_and_no_names(text: str, value: object) -> None:
    assert parse_yaml_value(text) == value


def test_yaml_may_take_another_mappings_settings_over() -> None:
    text = "optimization: &rates {steps: 5, batch_size: 2}\nadapter: {<<: *rates, steps: 6}"
    assert parse_yaml(text)["adapter"] == {"steps": 6, "batch_size": 2}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": "\\ud800"}', "{", "NaN x", "9" * 5000])
def test_json_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_json_with_whole_characters_of_two_escapes_is_read() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize("text", ["a = 0x" + "f" * 5000, "a = " + "[" * 5000, "a = 1979-13-01", "a"])
def test_toml_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_toml(text)


@pytest.mark.parametrize(
    ("name", "words"),
    [("CON", "Windows keeps it"), ("nul.x", "Windows keeps it"), ("-rf", "take it for an option"),
     ("..", "can't be used as a name"), ("x" * 121, "121 bytes is too long"), ("é" * 61, "122 bytes is too long")],
)  # fmt: skip
def test_names_that_some_system_can_not_have_are_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        files.validate({"name": name}, "my.yaml")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("adapter.start_from={file}", "not a safetensors file"),
        ("base_model.vae={file}", "not a safetensors file"),
        ("base_model.vae={folder}", "holds no VAE"),
        ("name=\udcff", "is no valid text"),
    ],
)
def test_files_that_are_something_else_are_found_before_a_model_is_loaded(
    tmp_path: Path, setting: str, words: str
) -> None:
    (tmp_path / "notes.safetensors").write_text("root:x:0:0:root:/root:/bin/bash\n", encoding="utf-8")
    text = setting.format(file=tmp_path / "notes.safetensors", folder=tmp_path)
    with pytest.raises(SdloraError, match=words):
        check(files.load("demo.yaml", [text]))


def test_programs_elsewhere_name_presets_or_send_settings_and_read_no_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("preset: demo.yaml\nname: mine\n", encoding="utf-8")
    (tmp_path / "secret.yaml").write_text("password: hunter22\n", encoding="utf-8")
    assert files.load_foreign("demo", tmp_path).name == "blueprint-demo"
    assert files.load_foreign("mine.yaml", tmp_path, ["seed=3"]).seed == 3
    sent = files.load_foreign("preset: mine\noptimization: {epochs: 2}", tmp_path)
    assert (sent.name, sent.optimization.epochs, sent.optimization.steps) == ("mine", 2, None)
    for path in (str(tmp_path / "secret.yaml"), "../secret.yaml", f"preset: {tmp_path}/secret.yaml"):
        with pytest.raises(ConfigError, match="files are not read here") as caught:
            files.load_foreign(path, tmp_path / "presets")
        assert "password" not in str(caught.value)
