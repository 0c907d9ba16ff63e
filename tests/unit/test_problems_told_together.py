"""Every problem of what a person typed is told, not the first alone; and what would be words in silence is said."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from sdlora.config import files
from sdlora.config.generate import GenerateConfig
from sdlora.config.mix import MixedAdapter, parse_adapters
from sdlora.config.train import TrainConfig
from sdlora.errors import AdapterError, ConfigError
from sdlora.generation.grid.axes import parse_axis
from sdlora.generation.request.prompt_choices import choose
from sdlora.generation.request.prompt_warnings import prompt_warnings
from sdlora.generation.request.requests import resolve
from sdlora.launch.runs import prepare
from sdlora.launch.support import support_zip


def test_all_adapters_that_cannot_be_read_are_told() -> None:
    with pytest.raises(ConfigError) as told:
        parse_adapters(["a.safetensors:much", "b.safetensors:unett=1", "c.safetensors:1"], MixedAdapter)
    assert len(told.value.problems) == 2
    assert "a.safetensors:much: ':much' is no weight" in told.value.problems[0]
    assert "b.safetensors:unett=1: 'unett' is not known here" in told.value.problems[1]


def test_misspelled_tags_do_not_hide_names_that_are_not_found(tmp_path: Path) -> None:
    config = GenerateConfig.model_validate(
        {
            "base_model": {"model": "builtin:emoji"},
            "prompt": "a <lora:ink:much> <lora:nowhere:1>",
            "adapter_folders": [str(tmp_path)],
            "adapters": [{"file": str(tmp_path / "gone.safetensors")}],
        }
    )
    with pytest.raises(ConfigError) as told:
        resolve(config)
    words = "\n".join(told.value.problems)
    assert "'much' is not a number" in words
    assert "<lora:nowhere:1>" in words
    assert "adapters.0" in words


def test_every_wrong_size_and_range_of_an_axis_is_told() -> None:
    with pytest.raises(ConfigError) as told:
        parse_axis("size=512x512,abc,12,64x", GenerateConfig())
    assert [problem.split(" ")[0] for problem in told.value.problems] == ["'abc'", "'12'", "'64x'"]
    with pytest.raises(ValueError, match=r"'1:a:2' is no range.*; '5:1:1' never gets"):
        parse_axis("steps=1:a:2,3,5:1:1", GenerateConfig())


def test_a_number_that_may_be_a_list_is_described_as_such() -> None:
    with pytest.raises(ConfigError, match=r"images.resolution: must be a whole number or a list of them, .*; got 'x'"):
        files.validate({"images": {"resolution": "x"}}, "here", TrainConfig)
    with pytest.raises(ConfigError) as told:
        files.validate({"images": {"resolution": [64, "x"], "bucket_min": "a"}}, "here", TrainConfig)
    assert told.value.problems == [
        "images.resolution.1: must be a whole number; got 'x'",
        "images.bucket_min: must be a whole number; got 'a'",
    ]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{2$$red}", "takes 2 of 1"),
        ("{3-4$$red|blue}", "takes 3 of 2"),
        ("{2-$$red|blue}", "is no count"),
        ("{2 $$red|blue}", "is no count"),
    ],
)
def test_braces_that_take_more_than_they_hold_are_refused(prompt: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose(prompt, 1)


def test_braces_that_take_up_to_more_than_they_hold_take_what_there_is() -> None:
    assert choose("{1-5$$red}", 1) == "red"


def test_a_wildcard_that_is_a_folder_or_no_text_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "colour.txt").mkdir()
    (tmp_path / "packed.txt").write_bytes(b"PK\x03\x04red")
    (tmp_path / "wide.txt").write_bytes("rot\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="colour.txt can't be read: it is a folder, not a text file") as told:
        choose("__colour__", 1, [tmp_path])
    assert "Errno" not in str(told.value)
    with pytest.raises(ConfigError, match="packed.txt is no text: it holds control characters"):
        choose("__packed__", 1, [tmp_path])
    assert choose("__wide__", 1, [tmp_path]) == "rot"


def test_what_is_no_weight_behind_and_is_said() -> None:
    def said(prompt: str) -> str:
        return "\n".join(prompt_warnings(GenerateConfig(prompt=prompt)))

    assert "':abc' is no weight of a prompt joined by AND" in said("a cat AND a dog :abc")
    assert "':1,2' is no weight of a prompt joined by AND" in said("a cat AND a dog:1,2")
    assert "an empty prompt is joined" in said("a cat AND")
    for sound in ("a cat AND a dog :1.2", "a cat AND a dog", "a cat AND (a dog:1.2)", "a cat :abc", "ratio 2:1 AND b"):
        assert said(sound) == "" or "joined by AND" not in said(sound), sound


def test_a_second_support_zip_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    run = prepare(TrainConfig(), tmp_path)
    first, second = support_zip(run, tmp_path / "out"), support_zip(run, tmp_path / "out")
    assert second.name == f"{first.stem}-2.zip"
    assert support_zip(run, tmp_path / "out", replace=True) == first
    with zipfile.ZipFile(second) as archive:
        assert "config.yaml" in archive.namelist()


def test_what_the_hub_takes_for_no_licence_or_repository_is_refused(tmp_path: Path) -> None:
    from sdlora.adapters.hub.publishing import prepare as prepare_push

    with pytest.raises(AdapterError, match="short names such as mit.*did you mean mit"):
        prepare_push(tmp_path, "me/mine", license_name="MIT")
    with pytest.raises(AdapterError, match="short names such as mit"):
        prepare_push(tmp_path, "me/mine", license_name="MIT: [nope")
    with pytest.raises(AdapterError, match="'mine' is no name of a repository"):
        prepare_push(tmp_path, "mine")
