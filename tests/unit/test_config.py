"""The configuration: loading, overriding, and what a user reads when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sdlora.config import files, schema
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("preset", files.shipped_presets(), ids=lambda path: path.name)
def test_every_shipped_preset_is_valid_and_says_what_it_is_for(preset: Path) -> None:
    files.load(preset.name)
    header = preset.read_text(encoding="utf-8").split("\nname:")[0]
    for word in ("Purpose:", "Base model:", "Memory:", "Time:", "Command: sdlora train --preset"):
        assert f"# {word}" in header
    assert files.purpose(preset)


@pytest.mark.parametrize("preset", files.shipped_presets(), ids=lambda path: path.name)
def test_a_preset_names_only_what_differs_from_the_defaults(preset: Path) -> None:
    written = {name for name, _ in flatten(yaml.safe_load(preset.read_text(encoding="utf-8")))}
    defaults = dict(flatten(TrainConfig().model_dump(mode="json")))
    resolved = dict(flatten(files.load(preset.name).model_dump(mode="json")))
    same = {name for name in written if name in defaults and defaults[name] == resolved.get(name)}
    assert same <= {"base_model.model", "images.resolution"}, f"set to the default: {same}"


ANIME = ("pony", "illustrious", "noobai", "noobai_vpred", "animagine4")


@pytest.mark.parametrize("preset", [path.stem for path in files.shipped_presets() if path.stem != "demo"])
def test_previews_of_a_preset_suit_its_family(preset: str) -> None:
    previews = files.load(preset).previews
    assert "lowres" in previews.negative
    assert 4 <= previews.guidance <= 7.5
    if preset in ANIME:
        assert "1girl" in previews.prompts[0]
        assert len(previews.prompts[0].split(", ")) > 6, "quality tags beside the subject"
        assert previews.sampler.startswith("Euler")


def test_the_preset_of_a_v_prediction_model_does_not_rely_on_marks_that_merges_lose() -> None:
    config = files.load("noobai_vpred")
    assert (config.base_model.prediction, config.base_model.zero_terminal_snr) == ("v_prediction", True)
    assert config.objective.v_loss_like_epsilon
    assert files.load("noobai").base_model.prediction == "auto"


def test_the_b_lora_preset_trains_the_attention_of_two_blocks(tiny_sdxl: Path) -> None:
    from sdlora.adapters.algebra.blocks import block_label
    from sdlora.adapters.files.kohya import kohya_name
    from sdlora.adapters.live.layers import choose
    from sdlora.models.detection import detect
    from sdlora.models.layout import unet_layout

    config = files.load("sdxl_blora", [f"base_model.model={tiny_sdxl}"])
    unet = unet_layout(config.base_model, detect(config.base_model))
    paths = [target.path for target in choose({"unet": unet}, config.adapter).targets]
    assert {block_label(kohya_name("unet", path, "sdxl")) for path in paths} == {"OUT00", "OUT01"}
    assert {path.partition(".attn")[2][2:] for path in paths} == {"to_q", "to_k", "to_v", "to_out.0"}
    assert len(paths) == 2 * 10 * 8, "two blocks of ten transformer layers, each with two attentions of four layers"


def flatten(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            pairs += flatten(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value))
    return pairs


def test_a_written_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = files.load("demo.yaml", ["images.folder=[a, b]", "seed=7"])
    assert files.load(write(tmp_path, files.dump(config))) == config
    assert files.load(write(tmp_path, files.dump(config, only_changes=True))) == config


def test_presets_are_found_by_name_with_and_without_ending_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.load("demo") == files.load("demo.yaml")


def test_a_file_in_the_current_folder_wins_over_a_shipped_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("name: own", encoding="utf-8")
    assert files.load("demo.yaml").name == "own"


def test_a_clash_with_what_stands_beside_a_preset_is_no_fault_of_the_preset_alone() -> None:
    with pytest.raises(ConfigError, match=r"demo\.yaml with the settings given beside it has 1 problem:\n.*rslora"):
        files.load("demo.yaml", ["adapter.algorithm=loha", "adapter.rslora=true"])


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError,
        match=r"animee.yaml has 1 problem:\n.*did you mean 'anime.yaml'\? presets are: animagine4.yaml",
    ):
        files.load("animee.yaml")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "adapter: {rnak: 3}\nimags: {}\nimages: {resolution: 100}\noptimization: {batch_size: x}")
    with pytest.raises(ConfigError) as caught:
        files.load(path)
    assert caught.value.problems == [
        "images.resolution: every value must be a multiple of 8 from 64 to 8192; got 100",
        "adapter.rnak: unknown setting; did you mean 'rank'?",
        "optimization.batch_size: must be a whole number; got 'x'",
        "imags: unknown setting; did you mean 'images'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.noise_offset=on", "objective.noise_offset: must be a number, not true or false"),
        ("optimization.batch_size=true", "optimization.batch_size: must be a number, not true or false"),
        ("images.resolution=[true]", "images.resolution: must be a number, not true or false"),
        ("adapter.block_ranks={mid_block: yes}", "adapter.block_ranks: must be a number, not true or false"),
        (
            "adapter.block_ranks={mid_block: 5000}",
            "adapter.block_ranks: a rank must be 0 .leave out. or more, up to 1024",
        ),
        ("base_model.flow_shift=lots", "base_model.flow_shift: must be 'auto' or a number, with a point and no comma"),
        ("base_model.precision=fp8", "base_model.precision: must be 'auto' or 'fp32', 'bf16' or 'fp16'; got 'fp8'"),
        (f"optimization.batch_size={'1' * 5000}", "optimization.batch_size: must be a whole number of fewer digits"),
        ("previews.prompts=a fox", "previews.prompts: must be a list, such as .one, two.; got 'a fox'"),
        ("adapter=lora", "adapter: must be a section of settings, such as .name: value.; got 'lora'"),
        ("optimization.learning_rate=1,0e-4", "must be a number, with a point and no comma; got '1,0e-4'"),
        ("validation.timesteps=[1000, -1]", "validation.timesteps: must be one or more whole numbers from 0 to 999"),
        ("captions.extension=txt", "'txt' is not of the form that is wanted: Ending of the caption files .*its dot"),
        ("images.background=red", "'red' is not of the form that is wanted: Colour behind .* as #rrggbb"),
        ("validation.timesteps=[]", "validation.timesteps: must be one or more whole numbers from 0 to 999"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_plain_words(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.load(overrides=[override])


def test_a_setting_in_the_wrong_section_is_pointed_to_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank: unknown setting; did you mean 'adapter.rank'"):
        files.load(write(tmp_path, "rank: 3"))


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'seed' is set twice"):
        files.load(write(tmp_path, "seed: 1\nseed: 2"))


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "must hold settings")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.load(write(tmp_path, text))


def test_an_override_of_a_section_leaves_its_other_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("adapter: {rank: 4, layers: attention}\noptimization: {steps: 4}", encoding="utf-8")
    config = files.load(file, ["adapter={rank: 8, block_ranks: {mid: 2}}", "optimization={epochs: 3}"])
    assert (config.adapter.rank, config.adapter.layers) == (8, "attention")
    assert config.adapter.block_ranks == {"mid": 2}
    assert (config.optimization.steps, config.optimization.epochs) == (None, 3)


def test_what_yaml_would_take_for_a_comment_is_text_on_the_command_line() -> None:
    config = files.load(overrides=["captions.trigger=ohwx #1", "images.folder=p #2"])
    assert config.captions.trigger == "ohwx #1"
    assert config.images.folder == Path("p #2")


def test_overrides_reach_nested_names_with_dots() -> None:
    config = files.load(overrides=["adapter.block_ranks.down_blocks.0=4", "optimization.learning_rate=1e-3"])
    assert config.adapter.block_ranks == {"down_blocks.0": 4}
    assert config.optimization.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rank", "write it as section.name=value"),
        ("seed.x=1", "'seed' is a value, not a section"),
        ("adapter={}", "--set adapter={}: sets nothing"),
        ("captions.trigger=None", "nothing is null here, or 'None' in two pairs of quotes if that is the word"),
        ("images.folder=2024_01_05", "must be a path; quotes make text of a number"),
        ("optimization={steps: 1,500}", "is no name; a comma parts settings here: write 1000, not 1,000"),
        ("adapter.algorithm=LoRA", "got 'LoRA'; did you mean 'lora'"),
        ("version='1'", "must be 1; got '1'; write it without quotes"),
        ("optimization.lr=1e-3", "`sdlora explain lr` knows other programs' names"),
        ("previews.sampler=k_dpmpp_2m", "did you mean 'DPM.. 2M'"),
        ("optimization.optimizer=AdamW8bit", "unknown 'AdamW8bit'; did you mean 'adamw8bit'"),
    ],
)
def test_a_malformed_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.load(overrides=["seed=3", override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimization.steps=3", "optimization.epochs=2"], "steps .3. or epochs .2., not both"),
        (
            ["optimization.optimizer=adam"],
            "optimizer: unknown 'adam'; did you mean 'adamw'. Or use one of adamw, .* or a dotted path",
        ),
        (["optimization.optimizer=prodigy"], "too low for prodigy"),
        (["optimization.learning_rate=1"], "too high for adamw"),
        (["optimization.text_encoder_learning_rate=1e-4"], "no effect without adapter.text_encoder=true"),
        (["optimization.precision=fp32", "base_model.precision=bf16"], "set both to the same"),
        (["objective.prior_preservation=class_images"], "needs images.class_folder"),
        (["images.class_folder=x"], "no effect without objective.prior_preservation=class_images"),
        (["objective.min_timestep=900", "objective.max_timestep=100"], r"min_timestep \(900\) is above max_timestep"),
        (["adapter.layers=everything"], "unknown layer set 'everything'; use one of attention, .*regex:PATTERN"),
        (["adapter.layers=regex:("], "not a regular expression"),
        (["adapter.conv_rank=4"], "no effect with layers=all; use all.conv"),
        (["adapter.algorithm=loha", "adapter.rslora=true"], "goes with algorithm lora only"),
        (["adapter.block_ranks.mid_block=-1"], "a rank must be 0"),
        (["images.bucket_min=512", "images.bucket_max=256"], r"bucket_min \(512\) is larger than bucket_max"),
        (["name='a:b'"], "other tools read it in <lora:name:1>"),
        (["seed=.nan"], "seed"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.load(overrides=overrides)


def test_every_setting_is_described_where_it_is_declared() -> None:
    undescribed = [setting.name for setting in schema.settings(TrainConfig) if not setting.description.endswith(".")]
    assert undescribed == []


def test_the_scale_is_a_half_unless_an_alpha_is_given() -> None:
    convolutions = ["adapter.rank=8", "adapter.layers=all+conv", "adapter.conv_rank=4"]
    adapter = files.load(overrides=convolutions).adapter
    assert (adapter.scale(8), adapter.scale(4, is_conv=True)) == (0.5, 0.5)
    adapter = files.load(overrides=[*convolutions, "adapter.alpha=2"]).adapter
    assert (adapter.scale(8), adapter.scale(32), adapter.scale(4, is_conv=True)) == (0.25, 0.25, 0.25)
    adapter = files.load(overrides=[*convolutions, "adapter.alpha=2", "adapter.conv_alpha=4"]).adapter
    assert (adapter.scale(8), adapter.scale(4, is_conv=True)) == (0.25, 1.0)


def test_rslora_divides_alpha_by_the_root_of_the_rank() -> None:
    adapter = files.load(overrides=["adapter.rank=16", "adapter.alpha=8", "adapter.rslora=true"]).adapter
    assert (adapter.scale(16), adapter.scale(64)) == (2.0, 4.0)


def test_frozen_weights_take_the_training_precision_unless_told_otherwise() -> None:
    assert files.load(overrides=["optimization.precision=fp32"]).resolved_base_model.precision == "fp32"
    assert files.load(overrides=["base_model.precision=fp32"]).resolved_base_model.precision == "fp32"


@pytest.mark.parametrize(
    ("text", "file", "weight"),
    [
        ("ink.safetensors", "ink.safetensors", 1.0),
        ("ink.safetensors:0.8", "ink.safetensors", 0.8),
        ("ink.safetensors:-1e-1", "ink.safetensors", -0.1),
        ("C:/ink.safetensors", "C:/ink.safetensors", 1.0),
        ("hf://owner/ink", "hf://owner/ink", 1.0),
        ("ink:nan", "ink:nan", 1.0),
    ],
)
def test_an_adapter_in_the_base_is_written_as_anywhere_else(text: str, file: str, weight: float) -> None:
    (merged,) = files.load(overrides=[f"base_model.adapters=['{text}']"]).base_model.adapters
    assert (merged.file, merged.weight) == (file, weight)


@pytest.mark.parametrize(
    "name",
    ["images.resolution", "images.bucket_min", "images.bucket_max", "previews.width_px", "previews.height_px",
     "previews.seed", "optimization.threads"],
)  # fmt: skip
def test_a_number_that_no_machine_can_work_with_is_refused(name: str) -> None:
    """Each ended in an overflow in the middle of a run, or in a list of buckets without end."""
    with pytest.raises(ConfigError, match=name.partition(".")[2]):
        files.load(overrides=[f"{name}=99999999999999999999968"])
