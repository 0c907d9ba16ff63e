"""Generating with the embedded base model: batches, and adapters on a resident base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from sdlora.config.generate import GenerateConfig, Sampler, UsedAdapter
from sdlora.errors import AdapterError, ConfigError
from sdlora.generation.generate import Generator
from sdlora.generation.generated import GeneratedImage
from sdlora.generation.sampling.adapted_base import AdaptedBase
from sdlora.generation.sampling.pool import AdapterPool
from sdlora.models.loading import load
from tests.support.adapter_files import ATTENTION, CONVOLUTIONS, EVERYTHING, TEXT, random_adapter
from tests.support.emoji_requests import FEW, KINDS, MODEL, QUICK, one, pixels, request_of


@pytest.fixture(scope="module")
def generator() -> Generator:
    config = request_of()
    return Generator(config.base_model, config.compute)


@pytest.fixture(scope="module")
def half() -> Generator:
    """In fp16, where large numbers overflow."""
    config = request_of(compute={"precision": "fp16", "device": "cpu"})
    return Generator(config.base_model, config.compute)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of every kind: the first with all layers, the others with some."""
    folder = tmp_path_factory.mktemp("adapters")
    layers = (EVERYTHING, f"{ATTENTION}|{TEXT}", ATTENTION, f"{ATTENTION}|{CONVOLUTIONS}", FEW)
    return [
        random_adapter(MODEL, folder / f"{kind}{index}.safetensors", algorithm=kind, seed=index, layers=layers[index])
        for index, kind in enumerate(KINDS)
    ]


def differ(first: GeneratedImage, second: GeneratedImage) -> bool:
    return bool(numpy.abs(pixels(first) - pixels(second)).max() > 3)


@pytest.fixture
def pixels_of(monkeypatch: pytest.MonkeyPatch, generator: Generator) -> Callable[..., torch.Tensor]:
    """Generates rows and gives their pixels before they are rounded to bytes, in [0, 1]."""
    from sdlora.generation.sampling import passes

    seen: list[torch.Tensor] = []
    decode = passes.decode_latents

    def remember(*arguments: Any) -> torch.Tensor:
        seen.append(decode(*arguments))
        return seen[-1]

    monkeypatch.setattr(passes, "decode_latents", remember)

    def generate(rows: list[GenerateConfig]) -> torch.Tensor:
        seen.clear()
        assert len(list(generator.generate_rows(rows))) == len(rows)
        return (torch.cat(seen) + 1) / 2

    return generate


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE Karras", "LCM", "DPM++ 2M Karras"])
def test_an_image_of_a_batch_generated_again_alone_has_the_same_bytes(generator: Generator, sampler: Sampler) -> None:
    generated = list(generator.generate(request_of(sampler=sampler, num_images=3, batch_size=3)))
    assert [image.config.seed for image in generated] == [11, 12, 13]
    assert differ(generated[0], generated[1])
    again = one(generator, generated[1].config)
    assert again.config == generated[1].config
    assert again.image.tobytes() == generated[1].image.tobytes()
    in_two = list(generator.generate(request_of(sampler=sampler, num_images=3, batch_size=2)))
    assert [image.image.tobytes() for image in in_two] == [image.image.tobytes() for image in generated]


def test_a_mixed_batch_of_eight_equals_eight_single_runs(
    pixels_of: Callable[..., torch.Tensor], adapters: list[Path]
) -> None:
    def used(index: int, **settings: Any) -> UsedAdapter:
        return UsedAdapter(file=str(adapters[index]), **settings)

    sets = [
        (used(0),),
        (used(1, weight=-0.7),),
        (used(2), used(0, unet=0.3, text_encoder=1.5)),
        (used(3, weight=0.5),),
        (used(4),),
        (),
        (used(0, blocks="OUTD"), used(1, start=0.3)),
        (used(0, weight=0.4, end=0.5),),
    ]
    rows = [
        request_of(adapters=own, seed=index, batch_size=8, prompt=f"a cat, {index}", guidance=2 + index / 8)
        for index, own in enumerate(sets)
    ]
    mixed = pixels_of(rows)
    single = torch.cat([pixels_of([row]) for row in rows])
    difference = (mixed - single).abs().amax(dim=(1, 2, 3))
    print(f"largest difference by row: {[f'{float(row):.1e}' for row in difference]}")
    assert float(difference.max()) < 1e-4
    bare = pixels_of([row.model_copy(update={"adapters": ()}) for row in rows])
    changed = (mixed - bare).abs().amax(dim=(1, 2, 3))
    assert [bool(row > 0.01) for row in changed] == [bool(own) for own in sets]


def test_an_image_of_a_mixed_batch_in_bf16_generated_again_alone_has_the_same_bytes(adapters: list[Path]) -> None:
    compute = {"precision": "bf16", "device": "cpu"}
    rows = [
        request_of(adapters=(UsedAdapter(file=str(path)),), seed=index, compute=compute, batch_size=8, steps=2)
        for index, path in enumerate(adapters)
    ]
    own = Generator(rows[0].base_model, rows[0].compute)
    for generated in own.generate_rows(rows):
        alone = one(own, generated.config)
        if torch.cpu._is_amx_tile_supported():  # there rounding goes by the number of rows, whatever is done about it
            assert numpy.abs(pixels(alone) - pixels(generated)).mean() < 8
        else:
            assert alone.image.tobytes() == generated.image.tobytes()


def test_rows_of_different_sizes_or_steps_are_refused(generator: Generator) -> None:
    with pytest.raises(ConfigError, match=r"steps: must be the same for all images of a batch\n.*width_px: must be"):
        generator.generate_rows([request_of(), request_of(steps=4, width_px=72)])


def test_a_request_for_another_model_is_refused(generator: Generator, shallow_sd1: Path) -> None:
    other = request_of(base_model={"model": str(shallow_sd1)})
    assert not generator.fits(other)
    assert generator.fits(request_of(base_model={"clip_skip": 2}))
    with pytest.raises(ConfigError, match=r"1 problem:\n  base_model: differs from what builtin:emoji was loaded with"):
        generator.generate(other)
    with pytest.raises(ConfigError, match=r"(?s)problem.*compute.precision: differs from what builtin:emoji"):
        generator.generate({"prompt": "a fox", "compute": {"precision": "fp16"}})


@pytest.mark.parametrize("given", [None, 5, [{"prompt": "a fox"}]])
def test_what_is_no_request_at_all_is_told_in_words(generator: Generator, given: Any) -> None:
    with pytest.raises(ConfigError, match="must be settings by name"):
        generator.generate(given)


def test_a_thousand_switches_leave_every_base_weight_as_it_was(tmp_path: Path) -> None:
    bundle = load(request_of().base_model, dtype=torch.bfloat16)
    adapted = AdaptedBase(bundle)
    pool = AdapterPool(adapted)
    files = [random_adapter(MODEL, tmp_path / f"{index}.safetensors", layers=FEW, seed=index) for index in range(3)]
    before = {name: weight.clone() for name, weight in bundle.unet.state_dict().items()}
    layer = bundle.unet.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q")
    original = layer.weight.clone()
    for switch in range(1000):
        used = pool.get(UsedAdapter(file=str(files[switch % 3]), weight=1 + switch / 1000))
        if switch % 4 == 3:
            adapted.use([(used,), ()], 2)
        else:
            adapted.merge((used,))
            assert not torch.equal(layer.weight, original)
    adapted.clear()
    after = bundle.unet.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_pool_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    adapted = AdaptedBase(load(request_of().base_model, dtype=torch.float32))
    files = [random_adapter(MODEL, tmp_path / f"{index}.safetensors", layers=FEW, seed=index) for index in range(3)]
    size = AdapterPool(adapted).get(UsedAdapter(file=str(files[0]))).loaded.num_bytes
    pool = AdapterPool(adapted, max_bytes=2 * size)
    first, second, _ = (pool.get(UsedAdapter(file=str(file))).loaded for file in (files[0], files[1], files[0]))
    pool.get(UsedAdapter(file=str(files[2])))
    assert (len(pool), pool.num_bytes) == (2, 2 * size)
    assert pool.get(UsedAdapter(file=str(files[0]))).loaded is first
    assert pool.get(UsedAdapter(file=str(files[1]))).loaded is not second


def test_a_changed_file_is_read_again(generator: Generator, tmp_path: Path) -> None:
    file = random_adapter(MODEL, tmp_path / "a.safetensors", layers=ATTENTION)
    config = request_of(adapters=(UsedAdapter(file=str(file)),))
    first = one(generator, config)
    random_adapter(MODEL, file, layers=f"{ATTENTION}|{CONVOLUTIONS}", seed=5)
    assert differ(first, one(generator, config))


def test_weights_by_part_block_and_share_of_the_steps_have_their_effect(
    generator: Generator, adapters: list[Path]
) -> None:
    def generate(**settings: Any) -> GeneratedImage:
        return one(generator, request_of(adapters=(UsedAdapter(file=str(adapters[0]), **settings),)))

    plain, whole = one(generator, request_of()), generate()
    assert differ(plain, whole)
    for nothing in (
        {"weight": 0.0},
        {"unet": 0, "text_encoder": 0},
        {"blocks": "NONE"},
        {"start": 0.9, "text_encoder": 0},
    ):
        assert not differ(plain, generate(**nothing)), nothing
    parts = [generate(unet=0), generate(text_encoder=0), generate(blocks="INS"), generate(start=0.4), generate(end=0.4)]
    for index, part in enumerate([plain, *parts]):
        assert differ(whole, part), index
    assert not differ(generate(start=0.0, end=1.0), whole)


def test_adapters_named_in_the_prompt_count_as_settings(generator: Generator, adapters: list[Path]) -> None:
    by_tag = one(
        generator,
        request_of(prompt=f"{QUICK['prompt']} <lora:{adapters[0].stem}:0.5>", adapter_folders=(adapters[0].parent,)),
    )
    by_setting = one(generator, request_of(adapters=(UsedAdapter(file=str(adapters[0]), weight=0.5),)))
    assert by_tag.config.adapters == by_setting.config.adapters
    assert by_tag.config.prompt == QUICK["prompt"]
    assert by_tag.image.tobytes() == by_setting.image.tobytes()
    assert by_tag.facts.adapter_hashes == by_setting.facts.adapter_hashes
    assert len(by_tag.facts.adapter_hashes[adapters[0].stem]) == 12


def test_merging_is_decided_by_an_images_own_settings_and_kept(generator: Generator, adapters: list[Path]) -> None:
    used = (UsedAdapter(file=str(adapters[1])),)
    long = request_of(adapters=used, steps=10)
    (first, _) = generator.generate(long.model_copy(update={"num_images": 2}))
    assert first.config.compute.merge_adapters is True
    assert one(generator, long).image.tobytes() == first.image.tobytes()
    assert one(generator, request_of(adapters=used)).config.compute.merge_adapters is False
    scheduled = request_of(adapters=(UsedAdapter(file=str(adapters[1]), start=0.5),), steps=10)
    assert one(generator, scheduled).config.compute.merge_adapters is False


def test_an_adapter_of_other_layer_sizes_is_refused(generator: Generator, shallow_sd1: Path, tmp_path: Path) -> None:
    other = random_adapter(shallow_sd1, tmp_path / "other.safetensors", layers=ATTENTION)
    with pytest.raises(AdapterError, match=r"other.safetensors doesn't fit the base model: lora_unet_.* the model has"):
        list(generator.generate(request_of(adapters=(UsedAdapter(file=str(other)),))))


def test_guidance_one_leaves_the_negative_prompt_out(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = generator.bundle.unet.forward

    def counted(noisy: torch.Tensor, *rest: Any, **more: Any) -> Any:
        rows.append(len(noisy))
        return forward(noisy, *rest, **more)

    monkeypatch.setattr(generator.bundle.unet, "forward", counted)
    first = one(generator, request_of(guidance=1))
    second = one(generator, request_of(guidance=1, negative="a cat face"))
    assert rows == [1] * 6
    assert first.image.tobytes() == second.image.tobytes()
    one(generator, request_of(guidance=2))
    assert rows[6:] == [2] * 3


def test_a_picture_that_overflows_is_generated_again_in_fp32(half: Generator, tmp_path: Path) -> None:
    compute = {"precision": "fp16", "device": "cpu"}
    plain = request_of(compute=compute)
    before = one(half, plain)
    assert before.warnings == ()
    file = random_adapter(MODEL, tmp_path / "strong.safetensors", layers=r".*mid_block_resnets_0_conv1")
    strong = UsedAdapter(file=str(file), weight=1e6)
    generated = one(half, plain.model_copy(update={"adapters": (strong,)}))
    assert any("in float16, so it was generated again in fp32" in warning for warning in generated.warnings), (
        generated.warnings
    )
    assert numpy.asarray(generated.image).max() > 2
    assert half.bundle.dtype == torch.float16
    assert one(half, plain).image.tobytes() == before.image.tobytes()
