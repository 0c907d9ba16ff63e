"""Metadata as other tools parse it."""

from __future__ import annotations

import json

import pytest

from sdlora.adapters.files.metadata import (
    BucketFacts,
    DatasetFolder,
    NetworkFacts,
    TrainingFacts,
    kohya_metadata,
    model_spec,
    side_car,
)
from sdlora.config.base_model import FamilyName, Prediction

NETWORK = NetworkFacts("networks.lora", 16, 8.0, {"conv_dim": "4", "conv_alpha": "8.0"})
FACTS = TrainingFacts(
    "blue prints",
    "sd1",
    trigger="blprnt",
    author="me",
    started=1700000000.0,
    finished=1700000100.5,
    resolution=(768, 512),
    clip_skip=2,
    min_timestep=100,
    max_timestep=900,
    bucket_counts=(BucketFacts(512, 768, 5),),
    folders=(DatasetFolder("10_private", 10, 24), DatasetFolder("1_class", 1, 50, is_class=True)),
    tag_frequency={"10_private": {"näher": 3}},
)


def test_json_values_have_the_shapes_that_a1111_parses() -> None:
    entries = kohya_metadata(FACTS, NETWORK, private=False)
    assert json.loads(entries["ss_bucket_info"]) == {
        "buckets": {"0": {"resolution": [512, 768], "count": 5}},
        "mean_img_ar_error": 0.0,
    }
    assert json.loads(entries["ss_dataset_dirs"]) == {"10_private": {"n_repeats": 10, "img_count": 24}}
    assert json.loads(entries["ss_reg_dataset_dirs"]) == {"1_class": {"n_repeats": 1, "img_count": 50}}
    assert json.loads(entries["ss_tag_frequency"]) == {"10_private": {"näher": 3}}
    assert json.loads(entries["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "8.0"}
    assert entries["ss_resolution"] == "(768, 512)"
    assert float(entries["ss_training_started_at"]) == FACTS.started


def test_every_value_is_text_and_unknown_ones_are_none_as_kohya_writes_them() -> None:
    entries = kohya_metadata(TrainingFacts("x", "sdxl"), NetworkFacts("networks.lora", 4, 4.0, {}), private=False)
    assert all(isinstance(value, str) for value in entries.values())
    assert entries["ss_noise_offset"] == "None"
    assert entries["ss_v2"] == "False"
    assert "ss_training_started_at" not in entries  # A1111 parses it as a number
    assert (entries["ss_network_dim"], entries["ss_network_alpha"]) == ("4", "4.0")


@pytest.mark.parametrize(
    ("family", "prediction", "version", "architecture", "sd_version"),
    [
        ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora", "SD1"),
        ("sd1", "v_prediction", "sd_v1_v", "stable-diffusion-v1/lora", "SD1"),
        ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora", "SD2"),
        ("sd2", "v_prediction", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "SD2"),
        ("sdxl", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "SDXL"),
    ],
)
def test_families_have_the_names_that_other_tools_filter_by(
    family: FamilyName, prediction: Prediction, version: str, architecture: str, sd_version: str
) -> None:
    facts = TrainingFacts("x", family, prediction)
    entries = kohya_metadata(facts, NETWORK, private=False)
    assert entries["ss_base_model_version"] == version
    assert entries["ss_v2"] == str(family == "sd2")
    spec = model_spec(facts, "ab" * 32)
    assert spec["modelspec.architecture"] == architecture
    assert spec["modelspec.prediction_type"] == ("v" if prediction == "v_prediction" else "epsilon")
    assert side_car(facts)["sd version"] == sd_version


def test_model_spec_has_the_required_fields_and_no_empty_ones() -> None:
    spec = model_spec(FACTS, "ab" * 32)
    assert spec["modelspec.sai_model_spec"] == "1.0.1"
    assert spec["modelspec.title"] == "blue prints"
    assert spec["modelspec.resolution"] == "768x512"
    assert spec["modelspec.date"] == "2023-11-14T22:15:00"
    assert spec["modelspec.trigger_phrase"] == "blprnt"
    assert spec["modelspec.hash_sha256"] == "0x" + "ab" * 32
    assert spec["modelspec.encoder_layer"] == "2"
    assert spec["modelspec.timestep_range"] == "100,900"
    assert "modelspec.license" not in spec


def test_privacy_leaves_out_folder_names_and_captions() -> None:
    private = kohya_metadata(FACTS, NETWORK, private=True)
    assert "10_private" not in json.dumps(private)
    assert not private.keys() & {"ss_tag_frequency", "ss_dataset_dirs", "ss_reg_dataset_dirs"}
    assert private["ss_network_dim"] == "16"


def test_the_side_car_carries_the_trigger_word_as_activation_text() -> None:
    assert side_car(FACTS)["activation text"] == "blprnt"
    assert side_car(FACTS).keys() >= {"description", "sd version", "preferred weight", "notes"}
