"""Text states and noise schedules against diffusers' own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.images import CaptionsConfig
from sdlora.errors import ModelError
from sdlora.models.builtin import BUILTIN_MODELS
from sdlora.models.bundle import Bundle, TextStates, join_text_states
from sdlora.models.loading import load
from sdlora.models.prompts import token_numbers
from sdlora.models.schedule import build_schedule
from sdlora.models.text import emphasise
from sdlora.models.tokenizer import clip_tokenizer, light_tokenizer
from sdlora.training.inputs.texts import TextSource

CAPTIONS = ["a photo of a cat, (masterpiece:1.2) [blurry]", "", "two dogs"]


@cache
def bundle_of(model: Path, clip_skip: int = 1) -> Bundle:
    return load(BaseModelConfig(model=str(model), precision="fp32", clip_skip=clip_skip))


@pytest.mark.parametrize("clip_skip", [1, 2])
@torch.no_grad()
def test_sd1_states_equal_diffusers(tiny_sd1: Path, tiny_files: dict[str, Path], clip_skip: int) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd1)
    if not hasattr(
        pipeline.text_encoder, "text_model"
    ):  # diffusers 0.42's clip_skip expects it, transformers 5 has none
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    expected, _ = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False, clip_skip=clip_skip - 1 or None)
    states = encode(bundle_of(tiny_files["sd1"], clip_skip), CAPTIONS, weights=False)
    assert torch.equal(states.states_BTD, expected)
    assert states.pooled_BD is None


@torch.no_grad()
def test_sd2_states_equal_diffusers(tiny_sd2: Path, tiny_files: dict[str, Path]) -> None:
    expected, _ = StableDiffusionPipeline.from_pretrained(tiny_sd2).encode_prompt(CAPTIONS, "cpu", 1, False)
    assert torch.equal(encode(bundle_of(tiny_files["sd2"]), CAPTIONS, weights=False).states_BTD, expected)


@torch.no_grad()
def test_sdxl_states_equal_diffusers(tiny_sdxl: Path, tiny_files: dict[str, Path]) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    expected, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, device="cpu", do_classifier_free_guidance=False)
    bundle = bundle_of(tiny_files["sdxl"])
    states = encode(bundle, CAPTIONS, weights=False)
    assert torch.equal(states.states_BTD, expected)
    assert states.pooled_BD is not None
    assert torch.equal(states.pooled_BD, pooled)
    sizes = bundle.family.full_size_conditions(640, 512)
    added = bundle.family.added_conditions(states, [sizes] * 3)
    assert added is not None
    assert added["time_ids"].tolist() == [[512, 640, 0, 0, 512, 640]] * 3


# ---- what diffusers doesn't do


@torch.no_grad()
def test_a_long_caption_is_its_chunks_side_by_side(tiny_sdxl: Path) -> None:
    bundle = bundle_of(tiny_sdxl)
    head, tail = "cat " * 75, "dog " * 5
    both = encode(bundle, [head + tail])
    alone = encode(bundle, [head, tail])
    assert both.states_BTD.shape == (1, 154, 192)
    torch.testing.assert_close(both.states_BTD[0], torch.cat([alone.states_BTD[0], alone.states_BTD[1]]))
    torch.testing.assert_close(both.pooled_BD, alone.pooled_BD[:1])  # type: ignore[index]
    assert encode(bundle, [head + tail], max_tokens=75).states_BTD.shape[1] == 77


@torch.no_grad()
def test_short_captions_in_a_batch_are_filled_up_with_empty_chunks(tiny_sdxl: Path) -> None:
    bundle = bundle_of(tiny_sdxl)
    captions = ["cat " * 80, "a dog"]
    batch = encode(bundle, captions)
    single = [encode(bundle, [caption]) for caption in captions]
    joined = join_text_states(single, encode(bundle, [""]))
    torch.testing.assert_close(joined.states_BTD, batch.states_BTD)
    torch.testing.assert_close(joined.pooled_BD, batch.pooled_BD)


@pytest.mark.parametrize("live", [True, False])
@torch.no_grad()
def test_a_part_of_a_batch_is_filled_up_like_the_whole(tiny_sdxl: Path, live: bool) -> None:
    source = TextSource(bundle_of(tiny_sdxl), CaptionsConfig(max_tokens=150), None, live=live)
    captions = ["cat " * 80, "a dog", "two dogs", "cat " * 400]
    whole = source.states(captions)
    part = source.states(captions[1:3], captions)
    assert part.states_BTD.shape[:2] == (2, 154)
    torch.testing.assert_close(part.states_BTD, whole.states_BTD[1:3])
    torch.testing.assert_close(part.pooled_BD, whole.pooled_BD[1:3])  # type: ignore[index]
    assert source.states(captions[1:3], captions[1:3]).states_BTD.shape[1] == 77


def encode(bundle: Bundle, captions: list[str], **options: Any) -> TextStates:
    return bundle.family.encode_text(bundle, captions, **options)


def test_emphasis_multiplies_and_restores_the_mean() -> None:
    states_NTD = torch.rand(2, 77, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    weights_NT = torch.ones(2, 77)
    weights_NT[0, 5] = 1.4
    emphasised = emphasise(states_NTD, weights_NT)
    by_hand = states_NTD[0].double() * weights_NT[0, :, None]
    by_hand *= states_NTD[0].double().mean() / by_hand.mean()
    torch.testing.assert_close(emphasised[0], by_hand.float())
    torch.testing.assert_close(emphasised[1], states_NTD[1])
    assert emphasised[0].mean() == pytest.approx(states_NTD[0].mean().item())


def test_emphasis_leaves_a_mean_close_to_zero_alone() -> None:
    states_NTD = torch.tensor([[[1.0, -1.0], [1.0, -0.999]]])
    weights_NT = torch.tensor([[1.0, 2.0]])
    weighted = states_NTD * weights_NT[:, :, None]
    states_NTD[0, 0, 0], weighted[0, 0, 0] = 0.5, 0.5
    assert torch.equal(emphasise(states_NTD, weights_NT).sign(), weighted.sign())


def test_weights_in_a_caption_change_its_states_and_keep_its_type(tiny_sd1: Path) -> None:
    bundle = load(BaseModelConfig(model=str(tiny_sd1), precision="bf16"))
    with torch.no_grad():
        plain, weighted = (encode(bundle, [text]).states_BTD for text in ("a cat", "a (cat:1.5)"))
    assert weighted.dtype == torch.bfloat16
    assert not torch.equal(plain, weighted)


@pytest.mark.parametrize("name", ["tiny_sd1", "tiny_sdxl"])
def test_gradients_reach_every_text_encoder(name: str, request: pytest.FixtureRequest) -> None:
    bundle = load(BaseModelConfig(model=str(request.getfixturevalue(name)), precision="fp32"))
    layers = [
        getattr(encoder, "text_model", encoder).encoder.layers[0].mlp.fc1.weight.requires_grad_()
        for encoder in bundle.text_encoders
    ]
    encode(bundle, ["a (cat:1.2)"]).states_BTD.square().sum().backward()
    assert all(layer.grad is not None and layer.grad.abs().sum() > 0 for layer in layers)


def test_text_states_move_to_another_number_type() -> None:
    states = TextStates(torch.zeros(1, 77, 4), torch.zeros(1, 4)).to("cpu", torch.bfloat16)
    assert states.states_BTD.dtype == torch.bfloat16
    assert states.pooled_BD is not None
    assert states.pooled_BD.dtype == torch.bfloat16


# ---- tokenizers


def test_the_light_tokenizer_counts_as_transformers_does(tiny_sd1: Path) -> None:
    ours = light_tokenizer(BaseModelConfig(model="owner/name"))
    folders = light_tokenizer(BaseModelConfig(model=str(tiny_sd1)))
    theirs = CLIPTokenizer.from_pretrained(tiny_sd1, subfolder="tokenizer")
    for text in (
        "a photo of a cat",
        "it's 2 CATS, caf\u00e9 \u732b\U0001f638!!",
        "under_score  (x:1.2)\n\ttab",
        "",
        "\u00c9",
    ):
        assert token_numbers(ours, text) == token_numbers(theirs, text) == token_numbers(folders, text)


def test_the_light_tokenizer_of_the_built_in_model_counts_as_transformers_does() -> None:
    ours = light_tokenizer(BaseModelConfig(model="builtin:emoji"))
    theirs = CLIPTokenizer.from_pretrained(BUILTIN_MODELS["builtin:emoji"] / "tokenizer")
    for text in ("a cat face, noto style emoji", "unheard-of wordings 42", ""):
        assert token_numbers(ours, text) == token_numbers(theirs, text)


def test_the_shipped_tokenizer_marks_and_pads_as_each_encoder_was_trained() -> None:
    caption = "a photo of a cat"
    marked = [49406, 320, 1125, 539, 320, 2368, 49407]
    first = clip_tokenizer()(caption, padding="max_length").input_ids
    assert first == marked + [49407] * 70
    assert clip_tokenizer("!")(caption, padding="max_length").input_ids == marked + [0] * 70


# ---- noise schedules


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_the_noise_schedule_equals_diffusers(beta_schedule: str, zero_terminal_snr: bool) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": beta_schedule, "num_train_timesteps": 1000}
    theirs = DDPMScheduler(**config, rescale_betas_zero_snr=zero_terminal_snr)
    ours = build_schedule(config, "v_prediction", zero_terminal_snr)
    torch.testing.assert_close(ours.alpha_bars(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)
    assert (ours.alpha_bars()[-1] == 0) == zero_terminal_snr


def test_trained_betas_are_taken_as_they_are() -> None:
    betas = torch.linspace(0.001, 0.02, 50)
    theirs = DDPMScheduler(num_train_timesteps=50, trained_betas=betas.tolist())
    ours = build_schedule({"trained_betas": betas.tolist()}, "epsilon", False)
    torch.testing.assert_close(ours.alpha_bars(), theirs.alphas_cumprod)


def test_an_unknown_noise_schedule_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'squaredcos_cap_v2'.* is not supported: scaled_linear or linear is"):
        build_schedule({"beta_schedule": "squaredcos_cap_v2"}, "epsilon", False)
