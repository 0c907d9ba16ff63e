"""Textual-inversion files of odd forms: several words in one, other shapes, vectors that can't be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from sdlora.adapters.files.embeddings import bundled, embeddings_in, read_embedding, tokens_in
from sdlora.adapters.files.reading import read
from sdlora.cli import adapters as _commands  # noqa: F401  (registers them)
from sdlora.cli.app import app
from sdlora.config.generate import GenerateConfig
from sdlora.errors import AdapterError
from sdlora.generation.request.prompt_warnings import prompt_warnings
from sdlora.generation.sampling.embeddings import choose_embeddings


def rows(number: int, width: int = 8) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_of_a_file_of_several_words_a_prompt_uses_each_by_its_token(tmp_path: Path, suffix: str) -> None:
    words = {"<cat-toy>": rows(2), "<dog>": rows(3)}
    path = tmp_path / f"toys.{suffix}"
    if suffix == "bin":
        torch.save(words, path)
    else:
        save_file(words, path)
    assert tokens_in(path) == ("<cat-toy>", "<dog>")
    chosen = choose_embeddings(["a <Cat-Toy> on a chair"], [tmp_path], {}, [8])
    assert (chosen.names, chosen.notes) == (("<cat-toy>",), ())
    assert torch.equal(read_embedding(path, "<dog>").for_widths([8])[0], words["<dog>"])
    chosen = choose_embeddings(["toys on a chair"], [tmp_path], {}, [8])
    (note,) = chosen.notes
    assert "holds 2 embeddings, <cat-toy>, <dog>: a prompt uses each by its token: 'toys' is taken as words" in note
    with pytest.raises(AdapterError, match="generate with it by <cat-toy>, <dog> in the prompt"):
        read(path)


def test_a_token_of_a_pickle_is_known_whatever_its_file_is_called(tmp_path: Path) -> None:
    torch.save({"<cat-toy>": rows(1)[0]}, tmp_path / "learned_embeds.bin")
    assert choose_embeddings(["a <cat-toy>"], [tmp_path], {}, [8]).names == ("<cat-toy>",)


@pytest.mark.parametrize("form", ["a1111", "safetensors"])
def test_several_words_without_tokens_are_refused_with_what_to_do(tmp_path: Path, form: str) -> None:
    if form == "a1111":
        path = tmp_path / "both.pt"
        torch.save({"string_to_param": {"*": rows(2), "&": rows(3)}, "name": "both"}, path)
    else:
        path = tmp_path / "both.safetensors"
        save_file({"cat": rows(2), "dog": rows(3)}, path)
    with pytest.raises(AdapterError, match=r"holds 2 embeddings, .*: save each in a file of its own"):
        read_embedding(path)
    result = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert [len(one["encoders"]) for one in json.loads(result.output)["embeddings"]] == [1, 1]


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1, 3, 8), (3, 1, 8), (1, 1, 3, 8)])
def test_axes_of_length_1_are_none(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_file(
        {"emb_params": torch.arange(24.0)[: torch.Size(shape).numel()].reshape(shape)}, tmp_path / "x.safetensors"
    )
    (found,) = read_embedding(tmp_path / "x.safetensors").for_widths([8])
    assert torch.equal(found, torch.arange(24.0)[: torch.Size(shape).numel()].reshape(-1, 8))


@pytest.mark.parametrize("key", ["emb_params", "clip_g", "<fox>", "string_to_param.*"])
@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        (torch.ones(2, 3, 8), r"\[2, 3, 8\] in float32"),
        (torch.ones(0, 8), r"\[0, 8\] in float32"),
        (torch.ones(3, 0), r"\[3, 0\] in float32"),
        (torch.tensor(1.0), r"\[\] in float32"),
        (torch.ones(2, 8, dtype=torch.int8), r"\[2, 8\] in int8"),
    ],
)
def test_what_can_be_no_vectors_is_named_with_its_shape(tmp_path: Path, key: str, tensor: Tensor, shape: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: tensor}, path)
    for reader in (read_embedding, read, embeddings_in):
        with pytest.raises(AdapterError, match=f"{shape} is no row of an embedding's vectors"):
            reader(path)


def test_values_that_are_not_finite_are_named_where_a_file_is_inspected(tmp_path: Path) -> None:
    save_file({"clip_l": torch.full((2, 8), torch.inf)}, tmp_path / "x.safetensors")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "x.safetensors")])
    assert "clip_l has a value that is not finite" in str(result.exception)


def test_tensors_beside_the_vectors_are_said_where_they_are_left_out(tmp_path: Path) -> None:
    save_file({"clip_l": rows(2), "t5xxl": rows(2, 16)}, tmp_path / "fox.safetensors")
    assert read_embedding(tmp_path / "fox.safetensors").left_out == ("t5xxl",)
    chosen = choose_embeddings(["a fox"], [tmp_path], {}, [8])
    assert chosen.names == ("fox",)
    assert chosen.notes == ("1 tensor of fox not used, as no vectors of a word: t5xxl",)


def test_a_bundled_embedding_that_cannot_be_used_says_why() -> None:
    found, unused = bundled(
        {"bundle_emb.fox.clip_l": rows(2), "bundle_emb.fox.more": rows(2), "bundle_emb.cat.clip_l": torch.ones(2, 3, 8)}
    )
    assert list(found) == ["fox"]
    assert unused["bundle_emb.fox.more"] == "no vectors of the embedding that it is bundled with"
    assert "can't be used, cat: clip_l [2, 3, 8] in float32 is no row" in unused["bundle_emb.cat.clip_l"]


def test_of_two_files_with_one_name_the_one_that_is_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("Fox", "cat", "old/fox"):
        save_file({"emb_params": rows(2)}, tmp_path / f"{name}.safetensors")
    chosen = choose_embeddings(["a fox and a cat"], [tmp_path, tmp_path], {}, [8])
    assert chosen.names == ("fox", "cat")
    (note,) = chosen.notes
    first, other = tmp_path / "Fox.safetensors", tmp_path / "old" / "fox.safetensors"
    assert note == f"'fox' is {first}, the first of that name; not used: {other}"
    assert choose_embeddings(["a cat"], [tmp_path], {}, [8]).notes == ()


def test_an_embedding_of_an_adapter_that_a_file_of_the_same_name_replaces_is_said(tmp_path: Path) -> None:
    save_file({"emb_params": rows(2)}, tmp_path / "fox.safetensors")
    own, _ = bundled({"bundle_emb.fox.clip_l": rows(3)})
    (note,) = choose_embeddings(["a fox"], [tmp_path], own, [8]).notes
    assert note.endswith("fox.safetensors, the first of that name; not used: that of an adapter")
    beside = {"fox": tmp_path / "fox.safetensors"}
    assert choose_embeddings(["a fox"], [tmp_path], beside, [8]).notes == ()


@pytest.mark.parametrize(
    "text",
    ["embedding:fox.safetensors", "(embedding:sub/dir/FOX.pt:1.2)", "embedding:fox.", "embedding:sub\\fox", "fox"],
)
def test_comfyuis_names_of_embeddings_leave_no_words_behind(tmp_path: Path, text: str) -> None:
    save_file({"emb_params": rows(2)}, tmp_path / "fox.safetensors")
    chosen = choose_embeddings([text], [tmp_path], {}, [8])
    assert (chosen.names, chosen.notes) == (("fox",), ())
    seen: list[str] = []
    numbers = chosen.tokens.numbers(lambda part: seen.append(part) or [7], text)
    assert [number for number in numbers if number < 0] == [-1, -2]
    assert not any(letter.isalpha() for part in seen for letter in part)
    assert prompt_warnings(GenerateConfig(prompt=text), chosen.names) == []
    assert len(prompt_warnings(GenerateConfig(prompt=text), ())) == (text != "fox")


def test_an_ending_behind_a_bare_word_stays_words(tmp_path: Path) -> None:
    save_file({"emb_params": rows(2)}, tmp_path / "fox.safetensors")
    tokens = choose_embeddings(["fox.pt"], [tmp_path], {}, [8]).tokens
    seen: list[str] = []
    tokens.numbers(lambda part: seen.append(part) or [7], "fox.pt")
    assert seen == [".pt"]
