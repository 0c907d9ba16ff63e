"""The settings written into pictures, read by parsers that are not ours: one made from the grammar, and sd-parsers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from sdlora.config.generate import GenerateConfig, SecondPassConfig, StartImageConfig, UsedAdapter
from sdlora.generation.restore.image_files import SavedSettings, encode_image
from sdlora.generation.restore.infotext import from_infotext, to_infotext

FACTS = SimpleNamespace(model_name="tiny, a: model", model_hash="0123456789", adapter_hashes={"ink": "46e3576bb990"})


def independent_parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and settings, letter by letter from the grammar: no regular expression is shared.

    The last line holds settings, `key: value` between commas; keys are letters, digits, blanks, - and /; a value in
    quotes is JSON. Above it stands the prompt, and from a line on that begins with `Negative prompt:` the other one.
    """
    lines = text.strip().split("\n")
    values: dict[str, str] = {}
    rest = lines.pop()
    while rest:
        key, rest = rest.split(":", 1)
        rest = rest.lstrip(" ")
        assert all(letter.isalnum() or letter in " -/_" for letter in key.strip()), key
        if rest.startswith('"'):
            end = 1
            while rest[end] != '"':
                end += 2 if rest[end] == "\\" else 1
            values[key.strip()] = json.loads(rest[: end + 1])
            rest = rest[end + 1 :]
            assert not rest or rest[0] == ","
            rest = rest[1:]
        else:
            value, _, rest = rest.partition(",")
            values[key.strip()] = value.strip()
    prompts: list[list[str]] = [[], []]
    which = 0
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("Negative prompt:"):
            which, stripped = 1, stripped[16:].strip()
        prompts[which].append(stripped)
    return "\n".join(prompts[0]).strip(), "\n".join(prompts[1]).strip(), values


def as_others_keep_it(prompt: str) -> str:
    """What the grammar can hold of a prompt: lines without the blanks around them."""
    return "\n".join(line.strip() for line in prompt.split("\n")).strip()


pieces = st.sampled_from(
    [
        "Steps: 5",
        "Steps: 5, Sampler: x, Seed: 1",
        '"quoted"',
        "猫",
        "é",
        "(cat:1.2)",
        "a, b",
        ":",
        ",",
        "\n",
        "\\",
        "'",
        " ",
    ]
)
prompts = st.lists(st.one_of(pieces, st.text(max_size=8)), max_size=8).map("".join)
prompts = prompts.filter(lambda text: "Negative prompt:" not in text and "<" not in text)


@settings(max_examples=100, deadline=None)
@given(prompts, prompts, st.integers(0, 2**32 - 1), st.floats(0, 50), st.floats(-2, 2))
def test_any_prompt_reads_back_through_a_parser_made_from_the_grammar(
    prompt: str, negative: str, seed: int, guidance: float, weight: float
) -> None:
    config = GenerateConfig(
        prompt=prompt,
        negative=negative,
        seed=seed,
        guidance=guidance,
        width_px=512,
        height_px=768,
        adapters=(UsedAdapter(file="ink.safetensors", weight=weight),),
    )
    text = to_infotext(config, FACTS)
    read_prompt, read_negative, values = independent_parse(text)
    tag = f"<lora:ink:{int(weight) if weight.is_integer() else weight}>"
    assert read_prompt == as_others_keep_it(f"{prompt} {tag}" if prompt.strip() else tag)
    assert read_negative == as_others_keep_it(negative)
    assert int(values["Seed"]) == seed
    assert float(values["CFG scale"]) == guidance
    assert values["Size"] == "512x768"
    assert values["Model"] == "tiny, a: model"
    assert values["Lora hashes"] == "ink: 46e3576bb990"

    ours = from_infotext(text)
    assert ours.values["prompt"] == read_prompt
    assert ours.values["negative"] == read_negative
    assert (ours.values["seed"], ours.values["guidance"]) == (seed, guidance)
    assert (ours.unknown, ours.warnings) == ({}, ())


def everything() -> GenerateConfig:
    return GenerateConfig(
        prompt="a cat face, (blue:1.2)\nSteps: 5",
        negative="blurry",
        sampler="DPM++ SDE Karras",
        steps=12,
        seed=7,
        width_px=128,
        height_px=64,
        base_model={"clip_skip": 2},
        start=StartImageConfig(image=Path("a.png"), mask=Path("b.png"), mask_blur_px=2.5),
        second_pass=SecondPassConfig(scale=1.5, strength=0.4, steps=3, upscaler="latent"),
        adapters=(UsedAdapter(file="ink.safetensors", weight=0.5, text_encoder=0), UsedAdapter(file="x.safetensors")),
    )


def test_every_setting_stands_there_under_the_name_that_others_know() -> None:
    prompt, negative, values = independent_parse(to_infotext(everything(), FACTS))
    assert prompt == "a cat face, (blue:1.2)\nSteps: 5 <lora:ink:0:0.5> <lora:x:1>"
    assert negative == "blurry"
    assert values.pop("Version").startswith("sdlora ")
    assert values == {
        "Steps": "12",
        "Sampler": "DPM++ SDE",
        "Schedule type": "Karras",
        "CFG scale": "7",
        "Seed": "7",
        "Size": "128x64",
        "Model hash": "0123456789",
        "Model": "tiny, a: model",
        "Denoising strength": "0.4",
        "Clip skip": "2",
        "RNG": "CPU",
        "Mask blur": "2.5",
        "Hires upscale": "1.5",
        "Hires steps": "3",
        "Hires upscaler": "Latent",
        "Lora hashes": "ink: 46e3576bb990",
    }


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_sd_parsers_reads_our_files(format_: str) -> None:
    facts = SimpleNamespace(model_name="tiny", model_hash="0123456789", adapter_hashes={})
    text = to_infotext(everything().model_copy(update={"prompt": "une tête, 猫"}), facts)
    data = encode_image(Image.new("RGB", (64, 64)), format_, 90, SavedSettings(text))
    info = ParserManager().parse(io.BytesIO(data))
    assert info is not None
    assert info.generator.name == "AUTOMATIC1111"
    (sampler,) = info.samplers
    assert sampler.name == "DPM++ SDE"
    assert sampler.parameters == {"scheduler": "Karras", "cfg_scale": "7", "seed": "7", "steps": "12"}
    assert (sampler.model.name, sampler.model.hash) == ("tiny", "0123456789")
    assert info.full_prompt == "une tête, 猫 <lora:ink:0:0.5> <lora:x:1>"
    assert info.full_negative_prompt == "blurry"
    assert info.metadata["Hires upscaler"] == "Latent"
