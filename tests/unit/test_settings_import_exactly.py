"""What other trainers' files say in forms that are rare and legal: nothing is rounded, dropped or turned in silence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from sdlora.imports.read import Imported
from tests.support.foreign_settings import AI_TOOLKIT, CONCEPTS, ONETRAINER
from tests.support.imported_settings import imported, told


def ai_toolkit(tmp_path: Path, **sections: dict[str, Any]) -> Imported:
    job: dict[str, Any] = copy.deepcopy(AI_TOOLKIT)
    for section, changes in sections.items():
        job["config"]["process"][0].setdefault(section, {}).update(changes)
    return imported(tmp_path, "job.yaml", job)


def onetrainer(tmp_path: Path, concepts: list[dict[str, Any]], **changes: Any) -> Imported:
    return imported(tmp_path, "config.json", {**ONETRAINER, **changes, "concepts": concepts})


def test_a_fraction_is_not_cut_to_a_whole_number_in_silence(tmp_path: Path) -> None:
    changes = {"learning_rate_scheduler": "COSINE_WITH_RESTARTS", "learning_rate_cycles": 2.5}
    result = onetrainer(tmp_path, CONCEPTS, **changes)
    assert result.config.optimization.schedule_cycles == 2
    assert "learning_rate_cycles=2.5: a whole number is wanted here, 2 is taken" in told(result)
    result = onetrainer(tmp_path, CONCEPTS, save_every=2.5, save_every_unit="EPOCH")
    assert "save_every=2.5: a whole number is wanted here, 2 is taken" in told(result)
    result = ai_toolkit(tmp_path, train={"batch_size": 0.5})
    assert "train.batch_size=0.5: a whole number is wanted here, it is left out" in told(result)


def test_seeds_and_weights_of_previews_are_those_of_ai_toolkit(tmp_path: Path) -> None:
    prompts = ["a fox", "a dog --d 7"]
    result = ai_toolkit(
        tmp_path, sample={"prompts": prompts, "seed": 42, "walk_seed": False, "network_multiplier": 0.8}
    )
    assert result.config.previews.prompts[:2] == ("a fox --am 0.8 --d 42", "a dog --d 7 --am 0.8")
    result = ai_toolkit(tmp_path, sample={"prompts": prompts, "seed": 42, "walk_seed": True})
    assert result.config.previews.prompts[:2] == tuple(prompts)


def test_steps_between_which_ai_toolkit_accumulates_are_batches(tmp_path: Path) -> None:
    train = {"steps": 2000, "gradient_accumulation_steps": 2, "gradient_accumulation": 4}
    result = ai_toolkit(tmp_path, train=train, save={"save_every": 250}, sample={"sample_every": 1})
    assert (result.config.optimization.steps, result.config.optimization.accumulation) == (1000, 8)
    assert (result.config.outputs.checkpoint_every, result.config.previews.every) == (125, 1)
    assert "train.gradient_accumulation_steps=2: steps are batches there and updates here" in told(result)


def test_a_merged_adapter_and_another_card_of_ai_toolkit_are_taken_over(tmp_path: Path) -> None:
    job: dict[str, Any] = copy.deepcopy(AI_TOOLKIT)
    process = job["config"]["process"][0]
    process["device"], process["model"]["lora_path"] = "cuda:1", "style.safetensors"
    config = imported(tmp_path, "job.yaml", job).config
    assert (config.optimization.device, config.base_model.adapters[0].file) == ("cuda:1", "style.safetensors")


def test_special_tags_of_onetrainer_are_parted_as_its_captions(tmp_path: Path) -> None:
    text = {
        "tag_delimiter": ";",
        "tag_dropout_enable": True,
        "tag_dropout_mode": "RANDOM",
        "tag_dropout_probability": 0.1,
        "tag_dropout_special_tags": "red, fox; a",
        "tag_dropout_special_tags_mode": "WHITELIST",
    }
    result = onetrainer(tmp_path, [{**CONCEPTS[0], "text": text}])
    assert result.config.captions.protected_tags == ("red, fox", "a")


def test_onetrainer_validates_when_it_says_so_and_keeps_the_last_step(tmp_path: Path) -> None:
    every = {"validate_after": 2, "validate_after_unit": "EPOCH"}
    config = onetrainer(tmp_path, CONCEPTS, validation=True, **every).config
    assert (config.validation.folder, config.validation.every) == (Path("pictures/held-out"), "2 epochs")
    assert config.outputs.finish == "last"
    off = onetrainer(tmp_path, CONCEPTS, validation=False, **every)
    assert off.config.validation.folder is None
    assert "its concept is left out, as there" in told(off)


def test_what_a_part_of_onetrainer_holds_besides_is_named(tmp_path: Path) -> None:
    part = {"train": True, "learning_rate": 1e-4, "min_noising_strength": 0.2}
    assert "unet.min_noising_strength=0.2: no counterpart" in told(onetrainer(tmp_path, CONCEPTS, unet=part))


def test_ranks_epochs_and_warm_up_of_lora_easy(tmp_path: Path) -> None:
    text = """
    [general_args.args]
    pretrained_model_name_or_path = "b"
    max_train_epochs = 2.5
    [network_args.args]
    network_dim = 8.5
    [optimizer_args.args]
    learning_rate = 0.0001
    lr_scheduler = "cosine"
    warmup_ratio = 0.1
    [[subsets]]
    image_dir = "x"
    """
    result = imported(tmp_path, "easy.toml", text)
    assert (result.config.adapter.rank, result.config.optimization.epochs) == (8, 2)
    assert result.config.optimization.warmup == 0.1
    assert "network_dim=8.5: a whole number is wanted here, 8 is taken" in told(result)
    assert "max_train_epochs=2.5: a whole number is wanted here, 2 is taken" in told(result)
    assert "warmup_ratio" not in told(result)


@pytest.mark.parametrize(("module", "dropout"), [("lycoris.kohya", 0.1), ("networks.lora", 0.05)])
def test_dropout_among_network_args_is_that_of_lycoris(tmp_path: Path, module: str, dropout: float) -> None:
    text = f'network_module = "{module}"\nnetwork_dim = 8\nnetwork_dropout = 0.05\nlearning_rate = 1e-4\n'
    arguments = 'network_args = ["dropout=0.1"]\ntrain_data_dir = "x"\npretrained_model_name_or_path = "b"\n'
    assert imported(tmp_path, "train.toml", text + arguments).config.adapter.dropout == dropout
