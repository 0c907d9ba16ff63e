"""Settings of kohya_ss and sd-scripts, metadata and folders, taken over; what can't be is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from sdlora.config import files
from sdlora.config.base_model import MergedAdapter
from sdlora.errors import ConfigError
from sdlora.imports import kohya
from sdlora.imports.read import import_settings
from sdlora.imports.sd_scripts_data import SUBSET
from sdlora.training.optimization import optimizers
from tests.support.foreign_settings import DATASET, KOHYA
from tests.support.imported_settings import imported, lost_names, read_back
from tests.support.kohya_presets import FLUX, ODD, PLAIN
from tests.support.settings_without_counterpart import KOHYA as WITHOUT_COUNTERPART


def test_kohya_settings_are_taken_over(tmp_path: Path) -> None:
    result = imported(tmp_path, "kohya.json", KOHYA)
    assert result.tool == "kohya_ss"
    config = result.config
    assert (config.name, config.seed) == ("my lora", 1234)
    assert (config.base_model.model, config.base_model.clip_skip) == ("models/sd15.safetensors", 2)
    assert config.images.folder == Path("pictures")
    assert (config.images.resolution, config.images.upscale) == (768, False)
    assert (config.images.bucket_min, config.images.bucket_max) == (256, 2048)
    captions = config.captions
    assert (captions.shuffle_tags, captions.keep_tags, captions.dropout, captions.max_tokens) == (True, 1, 0.05, 150)
    adapter = config.adapter
    assert (adapter.layers, adapter.rank, adapter.alpha) == ("all+conv", 32, 16)
    assert (adapter.conv_rank, adapter.conv_alpha, adapter.text_encoder) == (8, 4, True)
    optimization = config.optimization
    assert (optimization.epochs, optimization.steps, optimization.accumulation) == (10, None, 2)
    assert (optimization.learning_rate, optimization.text_encoder_learning_rate) == (2e-4, 5e-5)
    assert (optimization.optimizer, optimization.weight_decay) == ("adamw8bit", 0.1)
    assert optimization.optimizer_options == {"betas": [0.9, 0.99]}
    assert (optimization.schedule, optimization.warmup, optimization.precision) == ("cosine", 0.1, "bf16")
    assert (config.objective.weighting, config.objective.min_snr_gamma) == ("min_snr", 5)
    assert (config.objective.max_timestep, config.objective.noise_offset) == (999, 0.05)
    assert config.previews.prompts == ("a cat --n bad --w 512", "a dog")
    assert (str(config.outputs.checkpoint_every), optimization.max_weight_norm) == ("1 epoch", 1)
    read_back(result, tmp_path)


def test_kohya_settings_without_counterpart_are_listed_and_others_are_not(tmp_path: Path) -> None:
    assert imported(tmp_path, "kohya.json", KOHYA).lost == ()
    result = imported(tmp_path, "kohya.json", {**KOHYA, "adaptive_noise_scale": 0.01})
    assert result.lost == ("adaptive_noise_scale=0.01: no counterpart",)
    assert "#   adaptive_noise_scale=0.01: no counterpart" in result.as_yaml()


def test_settings_that_change_nothing_here_are_listed_by_name_in_one_line(tmp_path: Path) -> None:
    result = imported(tmp_path, "kohya.json", {**KOHYA, "xformers": True, "sdpa": False, "vae_batch_size": 4})
    assert {"xformers", "vae_batch_size"} <= set(result.without_effect)
    assert "sdpa" not in result.without_effect
    (line,) = [line for line in result.as_yaml().splitlines() if line.startswith("# Without effect here: ")]
    assert "xformers" in line
    assert files.validate(yaml.safe_load(result.as_yaml()), "it") == result.config


def test_every_kohya_setting_is_of_one_class_only() -> None:
    """Taken over, without effect on the adapter or listed: no name is left to chance."""
    taken = {*kohya.SETTINGS, *SUBSET}
    assert not taken & kohya.WITHOUT_EFFECT
    assert not taken & WITHOUT_COUNTERPART
    assert not kohya.WITHOUT_EFFECT & WITHOUT_COUNTERPART


@pytest.mark.parametrize("name", sorted(WITHOUT_COUNTERPART - {"additional_parameters"}))
def test_a_kohya_setting_without_counterpart_is_listed(tmp_path: Path, name: str) -> None:
    assert name in lost_names(imported(tmp_path, "kohya.json", {**KOHYA, name: 3}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_train_steps": "1600", "max_train_epochs": "3"}, "epochs win over steps, as there: 3 epochs"),
        ({"max_train_steps": "1600"}, "epoch=10: max_train_steps wins over it, as there: 1600 steps"),
        ({"bucket_reso_steps": 50}, "bucket_reso_steps=50"),
        ({"max_resolution": "512,768"}, "max_resolution=512,768"),
        ({"network_alpha": 0}, "means the rank there"),
        ({"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000}, "adapter.lokr_full"),
        ({"LoRA_type": "LyCORIS/BOFT"}, "a plain LoRA is trained"),
        ({"full_bf16": True}, "trained in fp32"),
        ({"color_aug": True}, "hue_jitter and colour_jitter"),
        ({"face_crop_aug_range": "2.0,4.0"}, "random crops around the face"),
    ],
)
def test_what_is_taken_over_with_another_value_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    result = imported(tmp_path, "kohya.json", {**KOHYA, **changes})
    assert said in "\n".join(result.changed)
    assert said in result.as_yaml()


@pytest.mark.parametrize(
    ("changes", "setting", "value"),
    [
        ({"LoRA_type": "LyCORIS/LoKr"}, "adapter.algorithm", "lokr"),
        ({"LoRA_type": "Standard"}, "adapter.layers", "all"),
        ({"LoRA_type": "LyCORIS/LoCon", "conv_dim": 0}, "adapter.layers", "all"),
        ({"text_encoder_lr": 0}, "adapter.text_encoder", False),
        ({"text_encoder_lr": ""}, "optimization.text_encoder_learning_rate", 1e-4),
        ({"max_train_steps": "1600", "epoch": ""}, "optimization.steps", 1600),
        ({"max_train_epochs": "3"}, "optimization.epochs", 3),
        ({"max_resolution": "512,768"}, "images.resolution", 624),
        ({"enable_bucket": False}, "images.buckets", False),
        ({"max_bucket_reso": 512}, "images.bucket_max", None),
        ({"sdxl": True}, "base_model.family", "sdxl"),
        ({"v2": True, "v_parameterization": True}, "base_model.prediction", "v_prediction"),
        (
            {"base_weights": "a.safetensors 'b c.safetensors'", "base_weights_multiplier": "0.5"},
            "base_model.adapters",
            (MergedAdapter(file="a.safetensors", weight=0.5), MergedAdapter(file="b c.safetensors")),
        ),
        ({"log_with": "wandb", "log_tracker_name": "mine"}, "outputs.wandb_project", "mine"),
        ({"color_aug": True}, "images.hue_jitter", 16),
        ({"face_crop_aug_range": "2.0,4.0"}, "images.crop_focus", "face"),
        ({"reg_data_dir": "people"}, "objective.prior_preservation", "class_images"),
        ({"optimizer": "Prodigy", "unet_lr": 1, "text_encoder_lr": 0.5}, "optimization.optimizer", "prodigy"),
        ({"optimizer": "AdamWScheduleFree"}, "optimization.schedule", "constant"),
        ({"optimizer": "DAdaptAdam"}, "optimization.optimizer", "dadapt_adam"),
        ({"lr_warmup_steps": 50}, "optimization.warmup", 50),
        ({"debiased_estimation_loss": True}, "objective.weighting", "debiased"),
        ({"loss_type": "smooth_l1"}, "objective.loss", "smooth_l1"),
        ({"caption_extension": ".caption"}, "captions.extension", ".caption"),
        ({"max_token_length": "100"}, "captions.max_tokens", 75),
        ({"optimizer_args": "use=sin("}, "optimization.optimizer_options", {}),
        ({"LoRA_type": "LyCORIS/BOFT"}, "adapter.algorithm", "lora"),
    ],
)
def test_variants_of_kohya_settings(tmp_path: Path, changes: dict[str, Any], setting: str, value: object) -> None:
    result = imported(tmp_path, "kohya.json", {**KOHYA, **changes})
    found: Any = result.config
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == value
    read_back(result, tmp_path)


def test_values_without_counterpart_say_why(tmp_path: Path) -> None:
    changes = {
        "max_token_length": "100",
        "max_bucket_reso": 512,
    }
    text = "\n".join(imported(tmp_path, "kohya.json", {**KOHYA, **changes}).lost)
    assert "max_token_length=100: 75, 150 or 225 is possible" in text
    assert "max_bucket_reso=512: has no effect at resolution 768" in text


def test_a_dataset_config_gives_folders_and_says_what_differs(tmp_path: Path) -> None:
    result = imported(tmp_path, "dataset.toml", DATASET)
    images = result.config.images
    hero, friend, people = images.folders
    assert (hero.folder, hero.repeats, hero.default) == (Path("pictures/hero"), 10, "zeta hero")
    assert (friend.folder, friend.repeats, friend.default) == (Path("pictures/friend"), 5, None)
    assert (people.folder, people.is_class) == (Path("pictures/people"), True)
    assert (images.resolution, images.folder, images.class_folder) == (768, None, None)
    assert (images.buckets, images.crop_focus) == (False, "face"), "enable_bucket is off there unless it is set"
    assert (result.config.captions.shuffle_tags, result.config.captions.keep_tags) == (True, 2)
    assert result.config.objective.prior_preservation == "class_images"
    assert result.config.optimization.batch_size == 4
    assert {name for name in lost_names(result) if "crop" in name} == {
        f"pictures/friend, pictures/people: images.{name}" for name in ("crop_focus", "random_crop")
    }
    assert len(result.lost) == 2
    assert "face_crop_aug_range" in "\n".join(result.changed)
    read_back(result, tmp_path)


def test_subsets_that_agree_stay_one_setting_for_all(tmp_path: Path) -> None:
    text = """
[general]
enable_bucket = true
[[datasets]]
resolution = 512
  [[datasets.subsets]]
  image_dir = "a"
  num_repeats = 2
  [[datasets.subsets]]
  image_dir = "b"
  num_repeats = 2
  [[datasets.subsets]]
  is_reg = true
  num_repeats = 2
  image_dir = "c"
"""
    result = imported(tmp_path, "dataset.toml", text)
    images = result.config.images
    assert (images.folder, images.class_folder) == ((Path("a"), Path("b")), Path("c"))
    assert (images.repeats, images.folders, images.buckets) == (2, (), True)
    assert result.lost == ()


def test_metadata_gives_captions(tmp_path: Path) -> None:
    entries = {
        "a": {"caption": "a cat", "tags": "red, small", "train_resolution": [512, 512]},
        "b.png": {"tags": "dog"},
        "c": {"caption": ["a lamp", "a light"], "tags": ["bright", "red"]},
    }
    result = imported(tmp_path, "meta.json", entries)
    assert result.captions == {"a": "a cat, red, small", "b.png": "dog", "c": "a lamp, bright, red"}
    assert result.config.images.folder == tmp_path
    assert result.lost == ("c: caption=['a light']: of a list of captions the first is taken",)


def test_a_folder_of_repeat_folders_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "10_zeta dog").mkdir()
    result = import_settings(tmp_path)
    assert (result.tool, result.config.images.folder) == ("sd-scripts folders", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"hello": 1}, "neither settings of kohya_ss, OneTrainer or SimpleTuner nor"),
        ("a.json", "{", "can't be imported"),
        ("a.json", [], "no enabled concept of type STANDARD"),
        ("a.toml", "[general]", r"it has no \[\[datasets.subsets\]\]"),
        ("a.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", "no subset of it names a folder"),
        ("a.json", "[" * 100_000, "can't be imported: nested too deep"),
        ("a.toml", "=", "can't be imported"),
        ("a.yaml", {"job": "extension"}, "it has no config.process"),
        ("a.yaml", "- [", "can't be imported"),
        ("a.yaml", "- 1", "it holds a list, not settings"),
        ("a.json", {**KOHYA, "LoRA_type": "Flux1"}, "only Stable Diffusion 1.x, 2.x and XL"),
        ("a.ini", "", r"\.ini is not read; \.json, \.toml, \.yaml, \.safetensors and folders are"),
        ("a.json", {**KOHYA, "noise_offset": 3}, "objective.noise_offset: must be less than or equal to 1; got 3"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, name, content)


def test_a_missing_file_and_a_plain_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        import_settings(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="plain image folders need no import"):
        import_settings(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "Adafactor", "optimizer_args": "", "lr_scheduler": "adafactor", "learning_rate": 1, "unet_lr": 1},
        {"optimizer": "Adafactor", "optimizer_args": "scale_parameter=False relative_step=False warmup_init=False"},
        {"optimizer": "DAdaptAdam", "optimizer_args": "decouple=True weight_decay=0.1"},
        {"optimizer": "Prodigy", "optimizer_args": "decouple=True d_coef=0.8 use_bias_correction=True"},
        {"optimizer": "Lion", "optimizer_args": "weight_decay=0.1 betas=0.9,0.99"},
    ],
)
def test_an_imported_optimizer_can_be_built(tmp_path: Path, changes: dict[str, Any]) -> None:
    optimizers.check(imported(tmp_path, "kohya.json", {**KOHYA, **changes}).config.optimization)


SD_SCRIPTS = """
[model]
pretrained_model_name_or_path = "models/sd15.safetensors"
output_name = "mine"
[network]
network_module = "lycoris.kohya"
network_dim = 8
network_alpha = 4
network_args = ["algo=lokr", "conv_dim=4", "conv_alpha=2", "factor=6"]
[training]
resolution = "512,512"
enable_bucket = true
train_data_dir = "pictures"
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
learning_rate = 1e-4
text_encoder_lr = 5e-5
max_train_epochs = 4
lr_scheduler = "cosine"
caption_extension = ".caption"
sample_prompts = "prompts.txt"
xformers = true
"""


def test_a_training_config_of_sd_scripts_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# two\na cat --w 640\na dog\n", encoding="utf-8")
    result = imported(tmp_path, "train.toml", SD_SCRIPTS)
    config = result.config
    assert (result.tool, config.name, config.images.folder) == ("sd-scripts training config", "mine", Path("pictures"))
    adapter, optimization = config.adapter, config.optimization
    assert (adapter.algorithm, adapter.rank, adapter.alpha, adapter.lokr_factor) == ("lokr", 8, 4, 6)
    assert (adapter.conv_rank, adapter.conv_alpha) == (4, 2)
    assert (optimization.optimizer, optimization.weight_decay) == ("adamw8bit", 0.1)
    assert (optimization.epochs, optimization.steps, optimization.text_encoder_learning_rate) == (4, None, 5e-5)
    assert config.captions.extension == ".caption"
    assert config.previews.prompts == ("a cat --w 640", "a dog")
    assert result.lost == ()
    read_back(result, tmp_path)


def test_what_a_training_config_leaves_out_has_the_defaults_there(tmp_path: Path) -> None:
    result = imported(tmp_path, "train.toml", 'network_module = "networks.lora"\ntrain_data_dir = "pictures"\n')
    config = result.config
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.layers) == (4, 1, "all")
    assert (config.optimization.steps, config.optimization.learning_rate, config.images.buckets) == (1600, 2e-6, False)


def test_prompts_and_parts_as_people_write_them(tmp_path: Path) -> None:
    text = """
[network_arguments]
network_dim = 8
network_train_text_encoder = false
[sample_prompts]
sample_every_n_steps = 200
sample_prompts = ["a cat, close up", "a dog"]
"""
    config = imported(tmp_path, "train.toml", text).config
    assert config.previews.prompts == ("a cat, close up", "a dog")
    assert (config.previews.every, config.adapter.text_encoder) == (200, False)


def test_the_data_set_that_a_training_config_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text(DATASET, encoding="utf-8")
    text = 'network_dim = 8\ndataset_config = "data.toml"\n'
    config = imported(tmp_path, "train.toml", text).config
    assert [(one.folder.name, one.repeats) for one in config.images.folders] == [
        ("hero", 10), ("friend", 5), ("people", 1),
    ]  # fmt: skip
    lost = imported(tmp_path, "train.toml", text.replace("data.toml", "gone.toml")).lost
    assert "dataset_config=gone.toml: no such file beside this one; set images.folder" in lost


def test_sections_of_lora_easy_are_only_for_the_reader(tmp_path: Path) -> None:
    text = """
[[subsets]]
image_dir = "pictures"
num_repeats = 3
[general_args.args]
pretrained_model_name_or_path = "model.safetensors"
max_train_epochs = 5
[general_args.dataset_args]
resolution = 768
[network_args.args]
network_dim = 16
network_alpha = 8
[network_args.args.network_args]
conv_dim = 4
[optimizer_args.args]
optimizer_type = "Prodigy"
learning_rate = 1.0
[optimizer_args.args.optimizer_args]
weight_decay = 0.05
"""
    config = imported(tmp_path, "easy.toml", text).config
    assert (config.adapter.rank, config.adapter.layers, config.adapter.conv_rank) == (16, "all+conv", 4)
    assert (config.optimization.optimizer, config.optimization.weight_decay) == ("prodigy", 0.05)
    assert (config.images.folder, config.images.repeats, config.images.resolution) == (Path("pictures"), 3, 768)


def test_a_lora_file_tells_how_it_was_trained(tmp_path: Path) -> None:
    metadata = {
        "ss_output_name": "ink",
        "ss_sd_model_name": "model.safetensors",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "32",
        "ss_network_alpha": "16.0",
        "ss_network_args": '{"conv_dim": "8", "conv_alpha": "4"}',
        "ss_learning_rate": "0.0001",
        "ss_unet_lr": "0.0002",
        "ss_text_encoder_lr": "None",
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
        "ss_lr_scheduler": "cosine",
        "ss_max_train_steps": "900",
        "ss_resolution": "(1024, 1024)",
        "ss_enable_bucket": "True",
        "ss_shuffle_caption": "False",
        "ss_min_snr_gamma": "5.0",
        "ss_seed": "7",
        "ss_dataset_dirs": '{"10_ink": {"n_repeats": 10, "img_count": 20}}',
        "ss_tag_frequency": "{}",
    }
    path = tmp_path / "ink.safetensors"
    save_file({"lora_unet_x.lora_down.weight": np.zeros((1, 1), np.float32)}, path, metadata=metadata)
    result = import_settings(path)
    config = result.config
    assert (config.base_model.family, config.adapter.rank, config.adapter.conv_rank) == ("sdxl", 32, 8)
    assert (config.optimization.optimizer, config.optimization.weight_decay) == ("adamw8bit", 0.1)
    assert config.optimization.optimizer_options == {"betas": [0.9, 0.99]}
    assert (config.optimization.steps, config.optimization.learning_rate, config.seed) == (900, 2e-4, 7)
    assert (config.images.resolution, config.objective.weighting) == (1024, "min_snr")
    assert result.lost == ("dataset_dirs=10_ink (10 repeats): its path isn't told; set images.folder",)
    read_back(result, tmp_path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"ss_output_name": "mixed"}, "doesn't tell how it was trained"),
        ({"ss_network_dim": "4", "ss_learning_rate": "1", "ss_base_model_version": "flux1"}, "trained on flux1; only"),
    ],
)
def test_a_lora_file_that_tells_nothing_usable_says_so(tmp_path: Path, metadata: dict[str, str], said: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": np.zeros((1, 1), np.float32)}, path, metadata=metadata)
    with pytest.raises(ConfigError, match=said):
        import_settings(path)


@pytest.mark.parametrize("kind", ODD)
def test_odd_settings_that_people_share_are_imported_and_can_be_built(tmp_path: Path, kind: str) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, **ODD[kind]})
    read_back(result, tmp_path)
    optimizers.check(result.config.optimization)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("an adapter kind that is not here, at the largest rank", "a plain LoRA is trained"),
        ("a full matrix, steps of one pixel, options in quotes and a scheduler by class", "network_dim=100000"),
        ("a full matrix, steps of one pixel, options in quotes and a scheduler by class", "bucket_reso_steps=1"),
        ("a full matrix, steps of one pixel, options in quotes and a scheduler by class", "lr_scheduler_type="),
        ("epochs and steps, two weightings", "epoch=100: max_train_steps wins over it, as there: 160 steps"),
        ("epochs and steps, two weightings", "one weighting at a time: debiased is taken"),
        ("Adafactor that finds its own rate", "Adafactor with relative_step finds its own"),
        ("a rectangle without buckets", "a rectangle without buckets can't be held"),
        ("a file to go on from, under a Windows path", "adaptive_noise_scale=0.00357: no counterpart"),
    ],
)
def test_what_odd_settings_lose_or_change_is_said(tmp_path: Path, kind: str, said: str) -> None:
    result = imported(tmp_path, "preset.json", {**PLAIN, **ODD[kind]})
    assert said in "\n".join([*result.lost, *result.changed])


def test_shared_settings_for_flux_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only Stable Diffusion 1.x, 2.x and XL can be trained here"):
        imported(tmp_path, "preset.json", {**PLAIN, **FLUX})
    with pytest.raises(ConfigError, match=r"it trains flux1-dev\.safetensors; only Stable Diffusion"):
        imported(tmp_path, "preset.json", {**PLAIN, "pretrained_model_name_or_path": "flux1-dev.safetensors"})
