"""Settings as form fields and back, the run behind the form, and the command that trains the same."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sdlora.cli import app
from sdlora.config import fields, files, presets, schema
from sdlora.config.fields import Field
from sdlora.config.generate import GenerateConfig
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError
from sdlora.imports.read import settings_as_yaml
from webui.services import Services
from webui.state import PageState
from webui.train import view
from webui.train.report import Draft, Reporter, from_yaml, to_yaml, with_preset
from webui.train.sheet import Sheet
from webui.workspace import Workspace

TRAIN = fields.fields(TrainConfig)
BY_NAME = {field.name: field for field in TRAIN}
PRESETS = [path.name for path in files.shipped_presets()]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_the_form_and_its_yaml(preset: str) -> None:
    config = files.load(preset)
    back, problems = fields.check(TrainConfig, TRAIN, fields.show_all(config, TRAIN))
    assert not problems
    assert back == config
    assert from_yaml(to_yaml(back)) == config


def test_the_request_for_images_goes_through_a_form_too() -> None:
    among = fields.fields(GenerateConfig)
    config = GenerateConfig(adapters=[{"file": "a.safetensors", "weight": 0.5}], guidance_rescale=0.7)  # type: ignore[list-item]
    assert fields.check(GenerateConfig, among, fields.show_all(config, among)) == (config, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("captions.default", ""),
        ("captions.default", None),
        ("captions.default", '"quoted"'),
        ("captions.default", "two\nlines"),
        ("captions.separator", " | "),
        ("images.resolution", (512, 768)),
        ("images.folder", (Path("one, two"), Path("three"))),
        ("adapter.block_ranks", {"down_blocks.0": 4, "mid_block": 32}),
        ("optimization.optimizer_options", {"betas": [0.9, 0.99], "safe": True}),
        ("base_model.zero_terminal_snr", True),
        ("base_model.zero_terminal_snr", "auto"),
        ("optimization.learning_rate", 1e-7),
        ("previews.prompts", ("a cat", "", "two\nlines", '"so", it said', " spaces ")),
    ],
)
def test_a_value_comes_back_from_its_input_as_it_was(name: str, value: Any) -> None:
    config = files.validate(schema.nest({name: value}), "test")
    back, problems = fields.check(TrainConfig, TRAIN, fields.show_all(config, TRAIN))
    assert not problems
    assert schema.flatten(back)[name] == value


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_prompts_survive_the_text_box(prompts: list[str]) -> None:
    field = BY_NAME["previews.prompts"]
    assert fields.read(field, fields.show(field, tuple(prompts))) == prompts


def test_every_field_has_a_label_and_an_explanation() -> None:
    assert all(field.label and field.info for field in TRAIN)
    assert BY_NAME["previews.width_px"].label == "Width (px)"
    assert BY_NAME["adapter.rank"].info.endswith("0 to 1024.")
    assert "by default" in BY_NAME["adapter.alpha"].info
    assert BY_NAME["adapter.alpha"].info.endswith("empty: the default.")
    assert fields.fields(GenerateConfig)[0].section == "base_model"


def test_html_in_a_description_is_shown_as_it_stands() -> None:
    info = {field.name: field.info for field in fields.fields(GenerateConfig)}
    assert "&lt;lora:name:weight&gt;" in info["prompt"]


def test_all_problems_are_listed_with_their_fields() -> None:
    shown = fields.show_all(TrainConfig(), TRAIN) | {
        "adapter.rank": None,
        "adapter.conv_rank": 4,
        "images.resolution": "large",
        "optimization.steps": 2.5,
        "adapter.layers": "some",
    }
    config, problems = fields.check(TrainConfig, TRAIN, shown)
    assert config is None
    named = {fields.setting_of(problem, TRAIN): problem for problem in problems}
    assert named[BY_NAME["adapter.rank"]] == "adapter.rank: is empty; its default is 16"
    assert "got 'large'" in named[BY_NAME["images.resolution"]]
    assert "got 2.5" in named[BY_NAME["optimization.steps"]]
    assert "unknown layer set 'some'" in named[BY_NAME["adapter.layers"]]


def test_a_section_s_own_check_names_the_field_inside_it() -> None:
    problem = "optimization: give steps (3) or epochs (2), not both"
    assert fields.setting_of(problem, TRAIN) == BY_NAME["optimization.steps"]
    assert fields.setting_of("the disk is full", TRAIN) is None


def read(shown: dict[str, Any], tmp_path: Path) -> Draft:
    workspace = Workspace(tmp_path)
    services = Services(workspace, PageState(workspace.state))
    among = [field for field in TRAIN if field.name != "outputs.folder"]
    return Reporter(services, workspace.runs, among, lambda name: (name, "section")).draft(
        Sheet(shown, "demo.yaml", "demo.yaml")
    )


def shown_of(preset: str, **changes: Any) -> dict[str, Any]:
    return fields.show_all(presets.load(preset), TRAIN) | {
        name.replace("__", "."): value for name, value in changes.items()
    }


def test_missing_folders_and_files_are_problems_before_anything_starts(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert read(shown_of("sd15_person.yaml"), tmp_path).problems == ("images.folder: choose a dataset",)
    found = read(shown_of("demo.yaml", images__folder="/nowhere/at/all"), tmp_path)
    assert found.problems == ("images.folder: there is no folder /nowhere/at/all",)
    assert "no image" in read(shown_of("demo.yaml", images__folder=str(empty)), tmp_path).problems[0]
    found = read(shown_of("demo.yaml", base_model__model="gone.safetensors"), tmp_path)
    assert found.problems == ("base_model.model: gone.safetensors: no such file",)
    assert read(shown_of("demo.yaml"), tmp_path).problems == ()


def test_runs_of_the_page_lie_in_its_workspace(tmp_path: Path) -> None:
    config = read(shown_of("demo.yaml"), tmp_path).config
    assert config is not None
    assert config.outputs.folder == tmp_path / "runs"
    assert "outputs" not in to_yaml(config)


@pytest.mark.parametrize("preset", ["demo.yaml", "sdxl_style.yaml", presets.PLAIN])
def test_the_command_trains_what_the_form_shows(preset: str, tmp_path: Path, monkeypatch: Any) -> None:
    changes: dict[str, Any] = {
        "outputs.description": "it's mine",
        "images.folder": "builtin:mascot",
        "optimization.steps": 7,
        "optimization.epochs": None,
        "captions.trigger": '""',
        "captions.shuffle_tags": True,
        "previews.prompts": 'a cat: black, white\n"two\\nlines"\n# no comment',
        "adapter.block_ranks": "down_blocks.0: 4",
        "images.resolution": "64, 128",
    }
    config = read(shown_of(preset) | changes, tmp_path).config
    assert config is not None
    program, subcommand, *arguments = shlex.split(presets.command_line(config, preset))
    assert (program, subcommand) == ("sdlora", "train")
    trained: list[TrainConfig] = []
    load = files.load

    def load_only(*given: Any) -> None:
        trained.append(load(*given))
        raise typer.Exit

    monkeypatch.setattr("sdlora.cli.train.files.load", load_only)
    CliRunner().invoke(app, [subcommand, *arguments], catch_exceptions=False)
    assert trained == [config]


def test_another_preset_keeps_what_a_person_chose() -> None:
    before, after = shown_of("demo.yaml"), shown_of("sd15_person.yaml")
    mine = before | {"images.folder": "/data/cats", "captions.trigger": "ohwx cat", "optimization.steps": 5}
    shown = with_preset(after, before, mine)
    assert (shown["images.folder"], shown["captions.trigger"]) == ("/data/cats", "ohwx cat")
    assert shown["optimization.steps"] == 2000
    assert with_preset(after, before, before) == after


def test_differences_from_the_preset_can_be_reset_one_by_one() -> None:
    before = shown_of("demo.yaml")
    after = before | {"adapter.rank": 4, "captions.trigger": "<b>"}
    changed = list(fields.differences(TRAIN, before, after))
    assert [(field.name, old, new) for field, old, new in changed] == [
        ("captions.trigger", "blueprint style", "<b>"),
        ("adapter.rank", 16, 4),
    ]
    listed = view.differences(changed)
    assert 'data-reset="adapter.rank"' in listed
    assert "&lt;b&gt;" in listed
    assert "Nothing" in view.differences([])


def test_settings_are_found_by_what_they_do() -> None:
    def names(query: str) -> list[str]:
        return [field.name for field in view.matches(query, TRAIN)]

    assert "optimization.gradient_checkpointing" in names("less memory")
    assert names("prodigy steps and bounds of nothing") == []
    assert names("") == []
    found = view.matches("rank", TRAIN)
    style = view.only_these(found, TRAIN, "rank", lambda name: f"train-{name.replace('.', '-')}")
    hidden, _, _ = style.partition("{display")
    assert "#train-adapter-rank," not in hidden
    assert "#train-adapter-dora" in style
    assert "#train-section-images{display" in style or ",#train-section-images" in style


def test_a_preset_of_one_s_own_is_kept_and_never_overwritten(tmp_path: Path) -> None:
    config = files.load("demo.yaml")
    saved = presets.save(config, "cats small", tmp_path, "for cats")
    assert presets.load(saved.name) == config
    assert ("cats small (yours): for cats", saved.name) in presets.choices(tmp_path)
    with pytest.raises(ConfigError, match="'cats small' is taken"):
        presets.save(config, "cats small", tmp_path)
    with pytest.raises(ConfigError, match="use letters, digits"):
        presets.save(config, "../away", tmp_path)
    assert "0.9 GiB measured" in view.about_preset("demo.yaml")


def test_yaml_with_mistakes_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"2 problems:\n  adapter.rnak: unknown setting; did you mean 'rank'"):
        from_yaml("adapter: {rnak: 4}\noptimization: {steps: 0}")
    with pytest.raises(ConfigError, match="not valid YAML"):
        from_yaml("a: [")


def test_settings_of_other_trainers_are_imported(tmp_path: Path) -> None:
    ours, kohya, neither = tmp_path / "ours.yaml", tmp_path / "kohya.json", tmp_path / "other.yaml"
    ours.write_text("adapter: {rank: 3}", encoding="utf-8")
    kohya.write_text('{"LoRA_type": "Standard", "network_dim": 12, "train_data_dir": "x"}', encoding="utf-8")
    neither.write_text("adapter: {rnak: 3}", encoding="utf-8")
    assert from_yaml(settings_as_yaml(ours)).adapter.rank == 3
    assert from_yaml(settings_as_yaml(kohya)).adapter.rank == 12
    with pytest.raises(ConfigError, match="did you mean 'rank'"):
        settings_as_yaml(neither)


def test_a_field_knows_its_choices() -> None:
    def spelled(name: str) -> list[str]:
        field: Field = BY_NAME[name]
        return field.spelled_choices

    assert spelled("base_model.zero_terminal_snr") == ["auto", "on", "off"]
    assert spelled("captions.max_tokens") == ["75", "150", "225"]
