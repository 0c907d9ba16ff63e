"""New tokens: their settings, where their vectors start, what moves them, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from sdlora.adapters.live.attach import Adapter, Weight, attach
from sdlora.config import files
from sdlora.config.adapter import AdapterConfig, NewTokenConfig, bare_token
from sdlora.config.images import CaptionsConfig
from sdlora.config.optimization import OptimizationConfig
from sdlora.config.train import TrainConfig
from sdlora.errors import AdapterError, ConfigError
from sdlora.models.bundle import Bundle
from sdlora.models.loading import load
from sdlora.models.new_tokens import NewTokens
from sdlora.runs.folder import embedding_files, result_file
from sdlora.training.optimization.optimizers import build, points_of
from sdlora.training.optimization.parameter_groups import parameter_groups
from sdlora.training.optimization.schedules import part_factor
from sdlora.training.preflight.new_tokens import token_notes

FOX = "adapter.new_tokens.<ohwx>=red fox"
ALONE = (FOX, "adapter.rank=0")


def test_a_text_means_init_and_a_single_token_is_the_trigger() -> None:
    config = files.load(overrides=[FOX])
    assert config.adapter.new_tokens == {"<ohwx>": NewTokenConfig(init="red fox")}
    assert config.captions.trigger == "<ohwx>"
    assert files.validate(yaml.safe_load(files.dump(config)), "the dump") == config
    tokens = AdapterConfig(new_tokens={"<ohwx>": NewTokenConfig(init="fox")})
    assert TrainConfig(adapter=tokens, captions=CaptionsConfig(prefix="art, ")).captions.trigger == "<ohwx>"
    assert files.load(overrides=[FOX, "captions.trigger=a fox"]).captions.trigger == "a fox"
    assert files.load(overrides=[FOX, "captions.trigger=''"]).captions.trigger == ""
    assert files.load(overrides=[FOX, "adapter.new_tokens.<b>=blue"]).captions.trigger is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.rank=0"], "adapter.rank: 0 leaves nothing to train; give a rank of 1 or more"),
        (["adapter.new_tokens={<a b>: x}"], "'<a b>' can't be a token, as ' ' has a meaning in prompts or files"),
        (["adapter.new_tokens={'a,b': x}"], "'a,b' can't be a token, as ','"),
        (["adapter.new_tokens={'(a)': x}"], r"'\(a\)' can't be a token, as '\('"),
        (["adapter.new_tokens={'a:b': x}"], "can't be a token, as ':'"),
        (["adapter.new_tokens={'a|b': x}"], r"can't be a token, as '\|'"),
        (["adapter.new_tokens={a.b: x}"], "can't be a token, as '.'"),
        (["adapter.new_tokens={<BREAK>: x}"], "can't be a token, as 'BREAK'"),
        (["adapter.new_tokens={'<>': x}"], "'<>' can't be a token: it needs a letter or a digit"),
        (["adapter.new_tokens={<a>: x, A: y}"], "'<a>' and another one differ in signs or capitals only"),
        (["adapter.new_tokens={<a>: ' '}"], "adapter.new_tokens.<a>.init: is empty"),
        (["adapter.new_tokens={<a>: 3}"], "must be the words that it starts with, or .*; got 3"),
        ([*ALONE, "adapter.alpha=4"], "adapter.alpha: has no effect with rank=0"),
        ([*ALONE, "adapter.conv_rank=4", "adapter.layers=all+conv"], "adapter.conv_rank: has no effect with rank=0"),
        ([*ALONE, "adapter.text_encoder=true"], "adapter.text_encoder: has no effect with rank=0"),
        ([*ALONE, "adapter.start_from=x.safetensors"], "adapter.start_from: has no effect with rank=0"),
        ([*ALONE, "optimization.max_weight_norm=1"], "optimization.max_weight_norm has no effect with adapter.rank=0"),
        ([*ALONE, "optimization.lora_plus_ratio=4"], "optimization.lora_plus_ratio has no effect with adapter.rank=0"),
        ([*ALONE, "optimization.new_tokens_until=3"], "optimization.new_tokens_until has no effect with adapter.rank"),
        ([*ALONE, "outputs.bundle_embeddings=true"], "outputs.bundle_embeddings has no effect with adapter.rank=0"),
        (["optimization.new_token_learning_rate=1"], "new_token_learning_rate has no effect without adapter.new_tok"),
        (["optimization.new_tokens_until=1"], "optimization.new_tokens_until has no effect without adapter.new_tok"),
        (["outputs.bundle_embeddings=true"], "outputs.bundle_embeddings has no effect without adapter.new_tokens"),
        ([FOX, "outputs.bundle_embeddings=true", "outputs.format=diffusers"], "diffusers refuses such a file"),
        ([FOX, "captions.separator=<"], "'<ohwx>' holds captions.separator '<', which would cut it in two"),
        (
            [FOX, "optimization.optimizer=prodigy", "optimization.learning_rate=1",
             "optimization.new_token_learning_rate=2"],
            "new_token_learning_rate=2.0: prodigy takes one learning rate for all parts",
        ),
    ],
)  # fmt: skip
def test_settings_without_effect_and_names_with_a_meaning_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        files.load(overrides=overrides)


def test_learning_rates_and_the_share_of_the_steps() -> None:
    assert OptimizationConfig(learning_rate=2e-4).learning_rates["new_tokens"] == pytest.approx(1e-3)
    assert OptimizationConfig(new_token_learning_rate=3e-3).learning_rates["new_tokens"] == 3e-3
    assert OptimizationConfig(optimizer="prodigy", learning_rate=1).learning_rates["new_tokens"] == 1
    config = OptimizationConfig(new_tokens_until=0.5, text_encoder_until=8)
    assert [part_factor("new_tokens", step, 10, config) for step in (4, 5)] == [1, 0]
    assert [part_factor("text_encoder_2", step, 10, config) for step in (7, 8)] == [1, 0]


def test_tokens_have_a_group_without_decay_and_no_block_pattern_reaches_them() -> None:
    layer = Weight("a", "unet", "mid_block.x", "mid_block", nn.Parameter(torch.zeros(2, 2)), False)
    tokens = [
        Weight(part, part, "new_tokens.<a>", "new_tokens", nn.Parameter(torch.zeros(2, 2)), False, is_token=True)
        for part in ("text_encoder", "text_encoder_2")
    ]
    config = OptimizationConfig(learning_rate=1e-4, block_learning_rates={"*": 0.5}, lora_plus_ratio=4)
    groups = {group.name: group for group in parameter_groups([layer, *tokens], config)}
    found = groups["new_tokens"]
    assert (found.part, found.learning_rate, found.weight_decay) == ("new_tokens", pytest.approx(5e-4), 0.0)
    assert found.parameters == [weight.parameter for weight in tokens]
    with pytest.raises(ConfigError, match="'text_encoder' matches no trained layer, trained blocks are: mid_block"):
        parameter_groups([layer, *tokens], OptimizationConfig(block_learning_rates={"text_encoder": 0.5}))


def test_files_are_named_by_the_token_where_there_are_several() -> None:
    path = Path("runs/fox.safetensors")
    assert bare_token("<my-ohwx_2>") == "my-ohwx_2"
    assert [one.name for one in embedding_files(path, ["<a>"]).values()] == ["fox_emb.safetensors"]
    several = embedding_files(path, ["<a>", "b"])
    assert [one.name for one in several.values()] == ["fox_emb-a.safetensors", "fox_emb-b.safetensors"]
    assert result_file(path, files.load(overrides=[FOX]).adapter) == path
    assert result_file(path, files.load(overrides=ALONE).adapter).name == "fox_emb.safetensors"


@pytest.fixture
def bundle(tiny_sdxl: Path) -> Bundle:
    return load(files.load(overrides=[f"base_model.model={tiny_sdxl}", "base_model.precision=fp32"]).base_model)


def attached(bundle: Bundle, *overrides: str, seed: int = 0) -> Adapter:
    return attach(bundle, files.load(overrides=[*ALONE, *overrides]).adapter, seed=seed)


def table(bundle: Bundle, index: int) -> Tensor:
    return bundle.text_encoders[index].get_input_embeddings().weight


def test_vectors_start_at_those_of_the_init_words(bundle: Bundle) -> None:
    adapter = attached(bundle, "adapter.new_tokens.<b>={init: red fox, vectors: 5}")
    assert adapter.targets == ()
    assert [weight.name for weight in adapter.weights()] == [
        "text_encoder.new_tokens.<ohwx>",
        "text_encoder_2.new_tokens.<ohwx>",
        "text_encoder.new_tokens.<b>",
        "text_encoder_2.new_tokens.<b>",
    ]
    assert adapter.tokens is not None
    for index in (0, 1):
        numbers = bundle.tokenizers[index].convert_tokens_to_ids(["red</w>", "fox</w>"])
        expected = table(bundle, index)[numbers]
        assert torch.equal(adapter.tokens.vectors["<ohwx>"][index], expected)
        several = adapter.tokens.vectors["<b>"][index].detach()
        assert torch.equal(several[:2], expected)
        distance = (several[2:4] - expected).norm(dim=1) / expected.norm(dim=1)
        assert bool(((distance > 0.05) & (distance < 0.2)).all())
        assert not torch.equal(several[2], several[4])
    again = attach(load(bundle.config), adapter.config, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(adapter.parameters, again.parameters, strict=True))


@torch.no_grad()
def test_at_first_a_token_reads_as_its_init_words(bundle: Bundle) -> None:
    plain = bundle.family.encode_text(bundle, ["a photo of red fox"])
    attached(bundle)
    found = bundle.family.encode_text(bundle, ["a photo of <ohwx>"])
    torch.testing.assert_close(found.states_BTD, plain.states_BTD)
    torch.testing.assert_close(found.pooled_BD, plain.pooled_BD)


def test_only_the_new_vectors_take_gradients_and_the_table_stays_as_it_is(bundle: Bundle) -> None:
    adapter = attached(bundle)
    before = [table(bundle, index).detach().clone() for index in (0, 1)]
    optimizer = torch.optim.AdamW(adapter.parameters, lr=0.1)
    states = bundle.family.encode_text(bundle, ["a photo of <ohwx>", "a cat"])
    (states.states_BTD.square().mean() + states.pooled_BD.square().mean()).backward()
    assert all(bool(one.grad.any(dim=1).all()) for one in adapter.parameters)
    optimizer.step()
    changed = bundle.family.encode_text(bundle, ["a photo of <ohwx>", "a cat"])
    assert not torch.equal(changed.states_BTD[0], states.states_BTD[0])
    assert torch.equal(changed.states_BTD[1], states.states_BTD[1])
    for index in (0, 1):
        assert table(bundle, index).grad is None
        assert torch.equal(table(bundle, index), before[index])


def test_captions_without_the_token_give_gradients_of_zero(bundle: Bundle) -> None:
    adapter = attached(bundle)
    bundle.family.encode_text(bundle, ["", "a cat"]).states_BTD.sum().backward()
    assert all(one.grad is not None and not one.grad.any() for one in adapter.parameters)


@torch.no_grad()
def test_a_changed_vector_is_seen_and_the_base_model_reads_the_init_words(bundle: Bundle) -> None:
    adapter = attached(bundle)
    text = "a photo of <OHWX>"
    first, signature = bundle.family.encode_text(bundle, [text]).states_BTD, bundle.new_tokens.signature(text)
    assert len(signature) == 1
    adapter.parameters[0].mul_(3)
    assert bundle.new_tokens.signature(text) != signature
    assert not torch.equal(bundle.family.encode_text(bundle, [text]).states_BTD, first)
    with adapter.disabled():
        assert torch.equal(bundle.family.encode_text(bundle, [text]).states_BTD, first)
    assert not torch.equal(bundle.family.encode_text(bundle, [text]).states_BTD, first)


def test_the_spread_is_drawn_to_the_vocabulary_by_a_tenth_in_logarithms(bundle: Bundle) -> None:
    tokens = attached(bundle).tokens
    assert tokens is not None
    (first, second), spread = tokens.vectors["<ohwx>"], float(table(bundle, 0).std())
    with torch.no_grad():
        first[0].mul_(100)
    before = first.detach().clone()
    companion = before * 2
    tokens.keep_spread(lambda parameter: [companion] if parameter is first else [])
    factor = (spread / before.std(dim=1, keepdim=True)) ** 0.1
    torch.testing.assert_close(first.detach(), before * factor)
    torch.testing.assert_close(companion, before * factor * 2)
    for _ in range(80):
        tokens.keep_spread()
    torch.testing.assert_close(first.std(dim=1), torch.full((2,), spread), rtol=1e-2, atol=0)
    torch.testing.assert_close(second.std(dim=1), torch.full((2,), tokens.spreads[1]), rtol=1e-2, atol=0)


def test_the_other_point_of_a_schedule_free_optimizer_follows() -> None:
    pytest.importorskip("schedulefree")
    parameter = nn.Parameter(torch.ones(2, 3))
    weight = Weight("a", "text_encoder", "new_tokens.<a>", "new_tokens", parameter, False, is_token=True)
    config = OptimizationConfig(optimizer="schedule_free_adamw")
    optimizer = build(parameter_groups([weight], config), config, torch.device("cpu"))
    assert points_of(optimizer, parameter) == []
    parameter.square().sum().backward()
    optimizer.step()
    (point,) = points_of(optimizer, parameter)
    assert point is optimizer.state[parameter]["z"]


def test_state_is_taken_over_and_other_tokens_are_refused(bundle: Bundle, tiny_sdxl: Path) -> None:
    adapter = attached(bundle)
    state = adapter.state()
    with torch.no_grad():
        adapter.parameters[0].add_(1)
    adapter.load_state(state)
    assert torch.equal(adapter.parameters[0], state["text_encoder.new_tokens.<ohwx>"])
    other = attached(load(bundle.config), "adapter.new_tokens.<ohwx>={init: fox, vectors: 3}")
    with pytest.raises(AdapterError, match="these adapter weights belong to other settings"):
        other.load_state(state)


def test_a_word_without_vectors_of_its_own_is_left_alone() -> None:
    words = NewTokens({"<a>": [torch.zeros(2, 4)], "b": [torch.zeros(1, 4)]})
    assert words.words_in("x <A> embedding:b") == ["<a>", "b"]


@pytest.mark.parametrize(("token", "is_word"), [("fox", True), ("Fox", True), ("ohwxq", False), ("<fox>", False)])
def test_a_token_that_is_a_word_already_is_said(token: str, is_word: bool) -> None:
    notes = [*token_notes(files.load(overrides=["images.folder=x", f"adapter.new_tokens={{{token}: red}}"]))]
    assert [f"{token} is a word of the vocabulary already" in note for note in notes] == [True] * is_word
