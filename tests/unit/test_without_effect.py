"""A setting that nothing reads is named, whoever wrote it; one that is read, or that nobody wrote, is not."""

from __future__ import annotations

import pytest

from sdlora.config.captioning import CaptioningConfig
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.files import load, validate
from sdlora.config.generate import GenerateConfig
from sdlora.config.without_effect import in_captioning, in_evaluating, in_generating, in_training, with_captioner


@pytest.mark.parametrize(
    ("setting", "goes_with"),
    [
        ("objective.min_snr_gamma=3", "objective.weighting=min_snr"),
        ("objective.huber_delta=0.2", "objective.loss=huber"),
        ("objective.huber_schedule=constant", "objective.loss=smooth_l1"),
        ("objective.multires_noise_discount=0.4", "objective.multires_noise_iterations=6"),
        ("objective.prior_weight=2", "objective.prior_preservation=base_prediction"),
        ("objective.prior_prompt=a dog", "objective.prior_preservation=base_prediction"),
        ("images.unmasked_weight=0.5", "images.mask=file"),
        ("images.bucket_step=32", "images.buckets=true"),
        ("images.cache_folder=elsewhere", "images.cache=true"),
        ("captions.keep_tags=2", "captions.shuffle_tags=true"),
        ("captions.keep_separator='|||'", "captions.tag_dropout=0.1"),
        ("captions.protected_tags=[fox]", "captions.tag_dropout=0.1"),
        ("adapter.lokr_factor=4", "adapter.algorithm=lokr"),
        ("adapter.text_encoder_layers=attention", "adapter.text_encoder=true"),
        ("optimization.text_encoder_2_learning_rate=1e-5", "adapter.text_encoder=true"),
        ("optimization.schedule_cycles=3", "optimization.schedule=cosine_with_restarts"),
        ("optimization.schedule_power=2", "optimization.schedule=polynomial"),
        ("optimization.schedule_floor=0.1", "optimization.schedule=cosine"),
        ("optimization.schedule_decay=0.5", "optimization.schedule=wsd"),
        ("optimization.schedule_timescale=50", "optimization.schedule=inverse_sqrt"),
        ("validation.every=7", "validation.fraction=0.1"),
        ("validation.timesteps=[5]", "validation.folder=held_out"),
        ("previews.every=5", "previews.from_captions=2"),
        ("previews.steps=5", "previews.from_captions=2"),
        ("previews.negative=blurry", "previews.prompts=[a fox]"),
        ("base_model.revision=main", "base_model.model=owner/name"),
        ("outputs.wandb_project=mine", "outputs.wandb=true"),
    ],
)
def test_a_setting_without_its_companion_is_named(setting: str, goes_with: str) -> None:
    off = ["images.buckets=false", "images.cache=false"]
    (sentence,) = in_training(load(overrides=[*off, setting]))
    assert sentence.startswith(f"{setting.partition('=')[0]} has no effect without ")
    assert list(in_training(load(overrides=[*off, setting, goes_with]))) == []


def test_settings_that_another_one_overrules_are_named() -> None:
    both = ["previews.prompts=[a fox]", "previews.from_captions=2", "validation.folder=x", "validation.fraction=0.1"]
    assert list(in_training(load(overrides=both))) == [
        "previews.from_captions has no effect beside previews.prompts",
        "validation.fraction has no effect beside validation.folder",
    ]
    (shuffled,) = in_training(load(overrides=["captions.separator=", "captions.shuffle_tags=true"]))
    assert "empty captions.separator" in shuffled
    (started,) = in_training(
        load(overrides=["adapter.start_from=a.safetensors", "adapter.rank=4", "adapter.dora=true"])
    )
    assert started.startswith("adapter.rank, dora: no effect beside adapter.start_from")


def test_defaults_are_passed_over_also_where_they_are_spelled_out() -> None:
    config = load()
    assert list(in_training(type(config).model_validate(config.model_dump()))) == []
    assert list(in_generating(GenerateConfig.model_validate(GenerateConfig().model_dump()))) == []


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("tied_words", {"words": ["a hat"]}),
        ("characters", {"triggers": ["fox", "owl"]}),
        ("problem_images", {"draws": 4}),
    ],
)
def test_what_an_evaluation_is_told_of_a_part_that_is_off_is_named(section: str, values: dict[str, object]) -> None:
    (name,) = values
    told = {
        enabled: list(in_evaluating(EvaluateConfig.model_validate({section: {"enabled": enabled, **values}})))
        for enabled in (False, True)
    }
    assert told == {False: [f"{section}.{name} has no effect without {section}.enabled=true"], True: []}
    assert list(in_evaluating(EvaluateConfig.model_validate(EvaluateConfig().model_dump()))) == []


def test_options_of_an_endpoint_and_of_a_model_are_told_apart() -> None:
    local = CaptioningConfig(prompt="Describe the dog.", beams=5)
    assert list(in_captioning(local)) == ["prompt has no effect without endpoint"]
    (told,) = in_captioning(local.model_copy(update={"endpoint": "http://localhost:1234/v1"}))
    assert told.startswith("beams has no effect without a model here")


def test_a_request_names_what_it_does_not_use() -> None:
    values = {
        "negative": "blurry",
        "guidance": 1,
        "start": {"strength": 0.5},
        "second_pass": {"strength": 0.3},
        "files": {"quality": 5},
    }
    told = list(in_generating(validate(values, "the request", GenerateConfig)))
    assert [sentence.split()[0] for sentence in told] == [
        "start.strength",
        "second_pass.strength",
        "files.quality",
        "negative",
    ]
    used = {
        "negative": "blurry",
        "start": {"strength": 0.5, "image": "a.png"},
        "files": {"quality": 5, "format": "webp"},
    }
    assert list(in_generating(validate(used, "the request", GenerateConfig))) == []


@pytest.mark.parametrize(
    ("kind", "unread"),
    [
        ("tagger", ["max_tokens", "beams", "detail"]),
        ("blip", ["threshold", "escape_brackets", "detail"]),
        ("florence2", ["threshold", "escape_brackets"]),
        (None, []),
    ],
)
def test_options_of_another_kind_of_captioner_are_named(kind: str | None, unread: list[str]) -> None:
    config = CaptioningConfig(threshold=0.5, escape_brackets=True, max_tokens=80, beams=5, detail="short")
    assert [sentence.partition(" ")[0] for sentence in with_captioner(config, kind)] == unread
    assert list(with_captioner(CaptioningConfig(), kind)) == []
