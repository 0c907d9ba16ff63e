"""Adapters in prompts, found by name, alias and hash."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.errors import ConfigError
from sdlora.library.names import find_adapter, find_adapter_by_hash
from sdlora.library.prompt_tags import split_prompt, take_tags, write_tag, write_tags


def write_adapter(path: Path, content: bytes = b"12345678", **metadata: str) -> Path:
    """A safetensors file with one tensor, made by hand: no torch is needed to find it."""
    entry = {"dtype": "F32", "shape": [len(content) // 4], "data_offsets": [0, len(content)]}
    header = json.dumps({"__metadata__": metadata, "lora_unet_x.lora_up.weight": entry}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return path


@pytest.mark.parametrize(
    ("tag", "text_encoder", "unet"),
    [
        ("<lora:ink>", 1, 1),
        ("<lora:ink:0.8>", 0.8, 0.8),
        ("<lora:ink:0.8:0.5>", 0.8, 0.5),
        ("<lora:ink:te=0.8>", 0.8, 0.8),
        ("<lora:ink:unet=0.5>", 1, 0.5),
        ("<lora:ink:0.8:unet=0.5>", 0.8, 0.5),
        ("<lora:ink:unet=0.5:te=0>", 0, 0.5),
        ("<lyco:ink:-1e-1>", -0.1, -0.1),
    ],
)
def test_a_tag_sets_text_encoder_and_unet_as_in_the_web_ui(tag: str, text_encoder: float, unet: float) -> None:
    prompt, (read,) = split_prompt(f"a cat {tag}, (ink:1.2)")
    assert prompt == "a cat , (ink:1.2)"
    assert (read.name, read.text_encoder, read.unet, read.text) == ("ink", text_encoder, unet, tag)


def test_a_prompt_without_tags_stays_as_it_is() -> None:
    text = " a <cat-toy> at 5 < 6 > 4, <emoji:smile>, <lora> "
    assert split_prompt(text) == (text, ())


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("<lora:ink:strong>", "'strong' is not a number"),
        ("<lora:ink:te=x>", "'x' is not a number"),
        ("<lora:ink:nan>", "'nan' is not a number"),
        (
            "<lora:ink:dyn=4>",
            "'dyn=' is not known here; write te=, unet= and lbw= "
            "(for a part of the steps give the adapter's start and end as settings)",
        ),
        ("<lora::1>", "it has no name; write <lora:name:0.8>"),
        ("<lora:ink:1:1:4>", "it has too many parts; write <lora:name:te:unet>"),
        ("<hypernet:old:1>", "hypernetworks can't be used; take it out of the prompt"),
    ],
)
def test_a_tag_that_cannot_be_read_says_why(tag: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_prompt(f"a cat {tag}")
    assert caught.value.problems == [f"{tag}: {reason}"]


weights = st.floats(-10, 10, allow_nan=False)
names = st.text("abc-_ .,'é猫()", min_size=1, max_size=12).filter(lambda name: name.strip() == name)


@given(names, weights, weights)
def test_a_written_tag_reads_back_exactly(name: str, text_encoder: float, unet: float) -> None:
    _, (read,) = split_prompt(f"cat{write_tag(name, text_encoder, unet)}")
    assert (read.name, read.text_encoder, read.unet) == (name, text_encoder, unet)


@given(st.lists(st.tuples(weights, weights), max_size=4), st.text("cat ,:()\n", max_size=20))
def test_adapters_go_into_the_prompt_and_back(pairs: list[tuple[float, float]], prompt: str) -> None:
    adapters = tuple(
        UsedAdapter(file=f"a{index}.safetensors", weight=unet, text_encoder=None if te == unet else te)
        for index, (te, unet) in enumerate(pairs)
    )
    written = GenerateConfig(prompt=write_tags(prompt.strip(), adapters))
    read = take_tags(written, lambda name: Path(f"{name}.safetensors"))
    assert read.adapters == adapters
    assert read.prompt == prompt.strip()


def test_a_name_the_grammar_has_no_place_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be empty or hold any of : < > =; rename the file"):
        write_tag("a:b")


def test_an_adapter_is_found_by_file_name_subfolder_alias_and_any_case(tmp_path: Path) -> None:
    ink = write_adapter(tmp_path / "styles" / "ink_v1.5.safetensors", ss_output_name="inkstyle")
    fur = write_adapter(tmp_path / "Fur.safetensors", ss_output_name="None")
    for name in ("ink_v1.5", "styles/ink_v1.5", "styles\\ink_v1.5", "inkstyle", "ink_v1.5.safetensors"):
        assert find_adapter(name, [tmp_path]) == ink
    assert find_adapter("fur", [tmp_path, tmp_path / "styles"]) == fur


def test_a_missing_adapter_names_its_neighbours_and_where_was_searched(tmp_path: Path) -> None:
    write_adapter(tmp_path / "watercolour.safetensors")
    with pytest.raises(ConfigError, match=f"no adapter of that name is in {tmp_path}; near it: watercolour"):
        find_adapter("watercolor", [tmp_path])
    with pytest.raises(ConfigError, match="there is: watercolour"):
        find_adapter("zzz", [tmp_path])
    with pytest.raises(ConfigError, match="no folder to search for it; set adapter_folders"):
        find_adapter("ink", [])
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        find_adapter("ink", [tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="which holds no .safetensors file"):
        find_adapter("ink", [tmp_path / "empty"])


def test_an_ambiguous_name_lists_the_places(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "a" / "ink.safetensors")
    two = write_adapter(tmp_path / "b" / "ink.safetensors")
    with pytest.raises(ConfigError) as caught:
        find_adapter("ink", [tmp_path])
    assert caught.value.problems == [f"2 files may be meant: a/ink ({one}), b/ink ({two}); write one of these names"]
    assert find_adapter("b/ink", [tmp_path]) == two
    assert find_adapter(str(two), [tmp_path]) == two


def test_every_missing_name_of_a_prompt_is_listed_at_once(tmp_path: Path) -> None:
    config = GenerateConfig(prompt="<lora:a:1> <lora:b:1>", adapter_folders=(tmp_path,))
    with pytest.raises(ConfigError) as caught:
        take_tags(config)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["<lora", "<lora"]


def test_an_adapter_is_found_by_hash_whether_or_not_its_metadata_tells_it(tmp_path: Path) -> None:
    silent = write_adapter(tmp_path / "a.safetensors", b"abcdefgh")
    telling = write_adapter(tmp_path / "b.safetensors", b"ijklmnop", sshs_model_hash="F" * 64)
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 20)
    assert find_adapter_by_hash(hashlib.sha256(b"abcdefgh").hexdigest()[:12], [tmp_path]) == silent
    assert find_adapter_by_hash("ffffffffffff", [tmp_path]) == telling
    assert find_adapter_by_hash("000000000000", [tmp_path]) is None
    assert find_adapter_by_hash("", [tmp_path]) is None
