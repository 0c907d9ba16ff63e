"""The schema: settings by dotted name, and values between dotted names and sections."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sdlora.config import files, schema
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import GenerateConfig
from sdlora.config.mix import MixConfig
from sdlora.config.serve import ServeConfig
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError


def setting(name: str, model: type = TrainConfig) -> schema.Setting:
    found = schema.find(model, name)
    assert found is not None
    return found


def test_a_setting_tells_all_of_its_declaration() -> None:
    rank = setting("adapter.rank")

    assert (rank.kind, rank.kinds, rank.is_optional, rank.is_number) == ("integer", (int,), False, True)
    assert rank.bounds == {"ge": 0, "le": 1024}
    assert rank.default == 16


@pytest.mark.parametrize(
    ("name", "kind", "choices", "entry"),
    [
        ("images.resolution", "integer | list of integer", (), int),
        ("images.buckets", "true | false", (True, False), None),
        ("base_model.precision", "auto | fp32 | bf16 | fp16", ("auto", "fp32", "bf16", "fp16"), None),
        ("adapter.conv_rank", "integer | null", (), None),
        ("adapter.block_ranks", "mapping", (), None),
        ("previews.prompts", "list of text", (), str),
    ],
)
def test_what_a_setting_takes(name: str, kind: str, choices: tuple[Any, ...], entry: Any) -> None:
    found = setting(name)

    assert (found.kind, found.choices, found.entry) == (kind, choices, entry)


def test_an_unknown_name_is_no_setting() -> None:
    assert schema.find(TrainConfig, "adapter.rnak") is None
    assert schema.find(TrainConfig, "adapter") is None


@pytest.mark.parametrize("model", [TrainConfig, GenerateConfig])
def test_flat_and_nested_values_are_each_others_inverse(model: type) -> None:
    config = model()
    flat = schema.flatten(config)

    assert list(flat) == [setting.name for setting in schema.settings(model)]
    assert files.validate(schema.nest(flat), "test", model) == config


def test_the_rest_of_a_name_is_a_key_of_a_mapping_dots_included() -> None:
    values: dict[str, Any] = {}
    schema.put(values, "adapter.block_ranks.unet.mid_block", 4, TrainConfig)
    schema.put(values, "images.caching.deep", 1, TrainConfig)

    assert values == {"adapter": {"block_ranks": {"unet.mid_block": 4}}, "images": {"caching": {"deep": 1}}}


def test_a_plain_value_is_no_section() -> None:
    with pytest.raises(ValueError, match="'adapter' is a value, not a section"):
        schema.put({"adapter": 3}, "adapter.rank", 4)
    with pytest.raises(ConfigError, match="--set adapter.rank=4: 'adapter' is a value, not a section"):
        files.override({"adapter": 3}, ["adapter.rank=4"], "the command line")


def test_joined_values_keep_what_the_others_do_not_say() -> None:
    below = {"adapter": {"rank": 4, "alpha": 2}, "seed": 1}

    assert schema.joined(below, {"adapter": {"rank": 8}, "name": "fox"}) == {
        "adapter": {"rank": 8, "alpha": 2},
        "seed": 1,
        "name": "fox",
    }
    assert below["adapter"] == {"rank": 4, "alpha": 2}


@pytest.mark.parametrize("kind", [TrainConfig, GenerateConfig, ServeConfig, EvaluateConfig, MixConfig])
def test_no_description_loses_its_signs_where_it_is_shown_as_markdown(kind: type) -> None:
    for each in schema.settings(kind):
        plain = re.sub(r"`[^`]*`", "", each.description)
        assert not re.search(r"__|\*\S[^*]*\*|(?<!\w)_\w+_(?!\w)", plain), f"{each.name}: put code between backticks"
