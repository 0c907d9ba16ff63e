"""Wrong values in calls of `import sdlora`: told in words, all at once, before a file or a model is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdlora

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def ink(tmp_path: Path) -> Path:
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(4, 320), f"{LAYER}.lora_up.weight": torch.ones(320, 4)}
    save_file(tensors, tmp_path / "ink.safetensors", {"ss_base_model_version": "sd_v1"})
    return tmp_path / "ink.safetensors"


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"rank": 2, "energy": 0.5}, ["energy: rank and energy exclude each other"]),
        (
            {"rank": 2, "energy": 1.5, "precision": "half", "family": "sd3"},
            [
                "energy: rank and energy exclude each other",
                "energy: is a share above 0 and up to 1, not 1.5",
                "precision: must be 'fp32', 'bf16' or 'fp16'; got 'half'",
                "family: must be 'sd1', 'sd2' or 'sdxl'; got 'sd3'",
            ],
        ),
        ({"energy": 0}, ["energy: is a share above 0 and up to 1, not 0"]),
        ({"rank": -3}, ["rank: must be greater than or equal to 1; got -3"]),
        ({"rank": 2.5}, ["rank: must be a whole number; got 2.5"]),
        ({}, ["energy: give a rank or an energy"]),
        ({"rank": 2, "force": "maybe"}, ["force: must be true or false; got 'maybe'"]),
    ],
)
def test_resizing_tells_every_wrong_value_before_the_file_is_read(given: Any, problems: list[str]) -> None:
    with pytest.raises(sdlora.SdloraError) as caught:
        sdlora.resize_adapter("not-there.safetensors", "new.safetensors", **given)
    assert sorted(caught.value.problems) == sorted(problems)  # type: ignore[attr-defined]


def test_whole_numbers_of_numpy_are_ranks(ink: Path, tmp_path: Path) -> None:
    made = sdlora.resize_adapter(ink, tmp_path / "small.safetensors", rank=np.int64(2))
    assert [layer.rank for layer in made.result.layers] == [1]  # all that a constant matrix has


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: sdlora.convert_adapter("a.st", "b.safetensors", "khoya"), "file_format: must be .*mean 'kohya'"),  # type: ignore[arg-type]
        (lambda: sdlora.convert_adapter("a.st", "b.safetensors", "kohya", precision="half"), "precision: must be"),  # type: ignore[arg-type]
        (lambda: sdlora.merge_adapters("builtin:emoji", [], "new"), "adapters: must not be empty"),
        (lambda: sdlora.merge_adapters("builtin:emoji", 3, "new"), "adapters: must be a list"),  # type: ignore[arg-type]
        (lambda: sdlora.merge_adapters(3, ["a"], 4), "(?s)target: must be a path.*base: must be text"),  # type: ignore[arg-type]
        (lambda: sdlora.mix_adapters({"adapters": ["a"]}, None), "target: must be a path"),  # type: ignore[arg-type]
        (lambda: sdlora.extract_adapter("a", "b", "c.safetensors", "8x"), "rank: must be a whole number"),  # type: ignore[arg-type]
        (lambda: sdlora.extract_adapter("a", "b", "c.safetensors", 0), "rank: must be greater than or equal to 1"),
        (lambda: sdlora.suggest("pictures", "style", memory_gib="8GB"), "memory_gib: must be a number"),  # type: ignore[arg-type]
        (lambda: sdlora.suggest("pictures", "stile", base=""), "(?s)subject: .*mean 'style'.*base: is empty"),  # type: ignore[arg-type]
        (lambda: sdlora.summarise("demo.yaml", 0), "processes: must be greater than or equal to 1"),
        (lambda: sdlora.read_adapter(None), "file: must be text"),  # type: ignore[arg-type]
        (lambda: sdlora.read_adapter("a.safetensors", "sd3"), "family: must be 'sd1', 'sd2' or 'sdxl'"),  # type: ignore[arg-type]
        (lambda: sdlora.inspect_adapter(3), "file: must be text"),  # type: ignore[arg-type]
        (lambda: sdlora.resume(3), "run: must be a path"),  # type: ignore[arg-type]
        (lambda: sdlora.evaluate(None), "run: must be a path"),  # type: ignore[arg-type]
        (lambda: sdlora.train("demo.yaml", [print]), "sinks has 1 problem:\n  must be a list of objects with emit"),  # type: ignore[list-item]
        (lambda: sdlora.load_config("demo.yaml", None), "overrides must be a list of texts"),  # type: ignore[arg-type]
        (lambda: sdlora.check_dataset("demo.yaml", [3]), "folders.0: must be a path"),  # type: ignore[list-item]
        (lambda: sdlora.load_model("builtin:emoji", device="gpu"), "device: 'gpu' can't be used here"),
        (lambda: sdlora.load_model("builtin:emoji", dtype="fp16"), "dtype: must be one of torch"),  # type: ignore[arg-type]
        (lambda: sdlora.Generator("builtin:emoji", pool_bytes=-1), "pool_bytes: must be greater than or equal to 0"),
    ],
)
def test_wrong_arguments_are_told_in_words(call: Any, problem: str) -> None:
    with pytest.raises(sdlora.SdloraError, match=problem):
        call()


@pytest.mark.parametrize("kind", [str, Path])
def test_one_adapter_or_folder_needs_no_list(kind: type, tmp_path: Path) -> None:
    with pytest.raises(sdlora.SdloraError, match=r"nothing\.safetensors"):
        sdlora.merge_adapters("builtin:emoji", kind(tmp_path / "nothing.safetensors"), tmp_path / "new")
    with pytest.raises(sdlora.SdloraError, match="nothing-here doesn't exist"):
        sdlora.check_dataset("demo.yaml", kind(tmp_path / "nothing-here"))


def test_one_number_is_the_rank_of_an_extraction(tmp_path: Path) -> None:
    with pytest.raises(sdlora.SdloraError, match="base model .*tuned' was not found"):
        sdlora.extract_adapter(tmp_path / "tuned", "builtin:emoji", tmp_path / "x.safetensors", 8)
