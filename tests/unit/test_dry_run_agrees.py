"""A dry run refuses what the run would refuse, counts what it would train, and refuses nothing that it would take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.config.files import load
from sdlora.errors import ConfigError, SdloraError
from sdlora.training.preflight.checks import check
from sdlora.training.preflight.remarks import remarks
from sdlora.training.preflight.summary import Summary, summarise
from tests.support.emoji_adapters import random_adapter

_DEMO = ["previews.prompts=[]", "previews.every=0", "optimization.steps=2"]


def _summary(*settings: str) -> Summary:
    return summarise(load("demo.yaml", [*_DEMO, *settings]))


def _adapter_line(summary: Summary) -> str:
    return next(text for label, text in summary.lines() if label == "adapter")


def test_a_text_encoder_alone_is_counted() -> None:
    summary = _summary("adapter.unet=false", "adapter.text_encoder=true")
    assert summary.trainable_parameters > 0
    assert _adapter_line(summary).endswith(f"{summary.trainable_parameters:,} trainable parameters in the text encoder")


def test_block_ranks_may_name_the_text_encoder() -> None:
    plain, none = _summary("adapter.text_encoder=true"), "adapter.block_ranks={text_encoder: 0}"
    assert _summary("adapter.text_encoder=true", none).trainable_parameters < plain.trainable_parameters
    assert "in the UNet and the text encoder" in _adapter_line(plain)


def _changed(path: Path, change: Callable[[str, Tensor], Tensor], **more: Tensor) -> Path:
    tensors = {key: change(key, tensor) for key, tensor in load_file(random_adapter(path)).items()}
    save_file(tensors | more, path, {"ss_base_model_version": "sd_v1"})
    return path


@pytest.mark.parametrize("setting", ["adapter.start_from={}", "base_model.adapters=[{{file: {}}}]"])
def test_an_adapter_of_other_sizes_is_refused_before_a_model_is_loaded(tmp_path: Path, setting: str) -> None:
    file = _changed(tmp_path / "wide.safetensors", lambda key, one: torch.ones(2, 7) if "lora_down" in key else one)
    with pytest.raises(SdloraError, match=r"wide.safetensors doesn't fit (?:this|the) model: .*the model has"):
        check(load("demo.yaml", [*_DEMO, setting.format(file)]))


@pytest.mark.parametrize("setting", ["adapter.start_from={}", "base_model.adapters=[{{file: {}}}]"])
def test_how_an_adapter_is_taken_is_said_before_a_model_is_loaded(tmp_path: Path, setting: str) -> None:
    file = _changed(
        tmp_path / "odd.safetensors",
        lambda key, one: torch.zeros(()) if key.endswith("alpha") else one,
        stray=torch.ones(3),
    )
    notes = "\n".join(text for label, text in _summary(setting.format(file)).lines() if label == "note")
    assert "layers have alpha 0, which kohya's tools take for the rank" in notes
    assert "1 tensor is not used: 1 (its name means no part of an adapter): stray" in notes


def test_an_adapter_to_go_on_from_is_counted_as_it_is(tmp_path: Path) -> None:
    file = random_adapter(tmp_path / "ink.safetensors")
    line = _adapter_line(_summary(f"adapter.start_from={file}", "adapter.rank=64"))
    assert line == _adapter_line(_summary(f"adapter.start_from={file}", "adapter.rank=8"))
    assert line.startswith(f"that of {file}")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimization.device=gpu", "'gpu' is no device: use auto, cpu, cuda, cuda:1 or mps"),
        ("optimization.device=cuda:77", "there is no 'cuda:77' on this machine"),
        ("base_model.clip_skip=12", "base_model.clip_skip is 12, but the text encoder has 3 layers"),
        ("optimization.block_learning_rates={nowhere: 0.5}", "'nowhere' matches no trained layer"),
        ("adapter.block_ranks={nowhere: 4}", "'nowhere' matches no chosen layer"),
    ],
)
def test_what_the_run_would_refuse_is_refused_before_a_model_is_loaded(setting: str, words: str) -> None:
    with pytest.raises(SdloraError, match=words):
        check(load("demo.yaml", [*_DEMO, setting]))


def _notes(*settings: str) -> list[str]:
    config = load("demo.yaml", [*_DEMO, *settings])
    return [text for label, text in remarks(config, check(config)) if label == "note"]


def test_words_of_a_preview_that_only_generating_knows_are_named() -> None:
    told = _notes("previews.prompts=['a (fox:1.2) AND a [dog|cat] BREAK', 'a {red|green} fox <lora:x:0.5> __animal__']")
    assert [text.split(" is taken")[0] for text in told] == [
        "previews.prompts.1: <lora:x:0.5>",
        "previews.prompts.1: {red|green}",
        "previews.prompts.1: __animal__",
    ]


def test_what_sizes_folders_and_caption_files_come_to_is_said() -> None:
    (told,) = _notes("images.resolution=136")
    assert "136 is no multiple of images.bucket_step=64: square images are trained at 128 px" in told
    assert _notes("captions.alternatives={.short.txt: 0.3}") == [
        "captions.alternatives: no image has a caption file that ends in .short.txt"
    ]
    twice = "images.folder=['builtin:blueprint', 'builtin:blueprint']"
    assert any(text.startswith("images.folder: a folder named twice is read once") for text in _notes(twice))
    second = ["adapter.text_encoder=true", "optimization.text_encoder_2_learning_rate=1e-5"]
    assert _notes(*second)[-1:] == [
        "optimization.text_encoder_2_learning_rate has no effect: a base of sd1 has one text encoder"
    ]


def test_nothing_is_promised_of_previews_and_validation_that_there_are_not() -> None:
    assert _notes("previews.every=5", "validation.every=5", "validation.fraction=0") == [
        "validation.every has no effect without validation.folder or fraction",
        "previews.every has no effect without previews.prompts or from_captions",
    ]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("adapter.rank_dropout=0.1", "rank_dropout and module_dropout go with algorithm lora only, not loha"),
        ("optimization.max_weight_norm=1", "max_weight_norm goes with adapter.algorithm=lora only, not loha"),
        ("optimization.lora_plus_ratio=4", "lora_plus_ratio goes with adapter.algorithm=lora only, not loha"),
        ("optimization.precondition=true", "precondition goes with layers of adapter.algorithm=lora only"),
    ],
)
def test_what_does_not_go_with_the_algorithm_of_a_file_to_start_from_is_refused(
    setting: str, words: str, tmp_path: Path
) -> None:
    factors = load_file(random_adapter(tmp_path / "lora.safetensors"))
    loha = {}
    for module in {key.partition(".")[0] for key in factors}:
        down, up = (factors[f"{module}.lora_{name}.weight"].flatten(1) for name in ("down", "up"))
        loha |= {f"{module}.hada_w{number}_a": up.clone() for number in (1, 2)}
        loha |= {f"{module}.hada_w{number}_b": down.clone() for number in (1, 2)}
        loha[f"{module}.alpha"] = torch.tensor(2.0)
    file = tmp_path / "loha.safetensors"
    save_file(loha, file, {"ss_base_model_version": "sd_v1"})
    start = [f"adapter.start_from={file}", "adapter.text_encoder=true"]
    check(load("demo.yaml", [*_DEMO, *start]))
    with pytest.raises(ConfigError, match=f"loha.safetensors.*\n.*{words}"):
        check(load("demo.yaml", [*_DEMO, *start, setting]))
