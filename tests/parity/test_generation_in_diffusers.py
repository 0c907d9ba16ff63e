"""Images against diffusers' own pipelines: same scheduler, prompt and seed, in fp32, without and with adapters.

`pytest tests/parity/test_generation_in_diffusers.py --width true -s` takes SD 1.5 at its true width (4 GB in a
temporary folder, 8 GiB of memory) where the suite takes its topology at a reduced one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sdlora.config.generate import GenerateConfig, Sampler, StartImageConfig, UsedAdapter
from sdlora.generation.generate import Generator
from sdlora.generation.sampling import passes
from sdlora.models.builtin import BUILTIN_MODELS
from tests.support.adapter_files import ATTENTION, CONVOLUTIONS, TEXT, random_adapter
from tests.support.tiny_models import Width, build

pytestmark = pytest.mark.slow  # many samplers

MOST = 1e-3
EMOJI = BUILTIN_MODELS["builtin:emoji"]
PROMPT, NEGATIVE = "a cat face, noto style emoji", "grey"
SETTINGS: dict[str, Any] = {
    "prompt": PROMPT,
    "negative": NEGATIVE,
    "width_px": 96,
    "height_px": 64,
    "steps": 4,
    "guidance": 4.0,
    "seed": 7,
    "num_images": 2,
    "compute": {"precision": "fp32", "device": "cpu"},
}
LINSPACE = {"timestep_spacing": "linspace"}
SCHEDULERS: dict[Sampler, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, **LINSPACE}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", LINSPACE),
    "DPM++ SDE Karras": (
        "DPMSolverSinglestepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++", "lower_order_final": True},
    ),
    "DPM++ SDE": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}),
    "Euler": ("EulerDiscreteScheduler", LINSPACE),
    "Euler a": ("EulerAncestralDiscreteScheduler", LINSPACE),
    "Heun": ("HeunDiscreteScheduler", LINSPACE),
    "DDIM": ("DDIMScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", LINSPACE),
    "LCM": ("LCMScheduler", {}),
}


@cache
def pipeline_of(model: Path, kind: str = "StableDiffusionPipeline") -> Any:
    pipeline = getattr(diffusers, kind).from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.first_scheduler_config = dict(pipeline.scheduler.config)
    return pipeline


@cache
def generator_of(model: Path, **base_model: Any) -> Generator:
    config = GenerateConfig(**SETTINGS, base_model={"model": str(model), **base_model})
    return Generator(config.base_model, config.compute)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Generates a request and gives its pixels before they are rounded to bytes, in [0, 1]."""
    seen: list[Tensor] = []
    decode = passes.decode_latents

    def remember(*arguments: Any) -> Tensor:
        seen.append(decode(*arguments))
        return seen[-1]

    monkeypatch.setattr(passes, "decode_latents", remember)

    def generate(generator: Generator, **settings: Any) -> Tensor:
        seen.clear()
        config = GenerateConfig(**{**SETTINGS, "base_model": generator.bundle.config, **settings})
        images = list(generator.generate(config))
        assert len(images) == len(seen)
        return (torch.cat(seen).clamp(-1, 1) + 1) / 2

    return generate


def expected(pipeline: Any, scheduler: str, options: dict[str, Any], **arguments: Any) -> Tensor:
    """The pipeline's pixels for both seeds."""
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.first_scheduler_config, **options)
    given = {
        "prompt": [PROMPT] * 2,
        "negative_prompt": [NEGATIVE] * 2,
        "num_inference_steps": SETTINGS["steps"],
        "guidance_scale": SETTINGS["guidance"],
        "generator": [torch.Generator().manual_seed(SETTINGS["seed"] + index) for index in range(2)],
        "output_type": "pt",
    }
    if not {"image", "prompt_embeds"} & arguments.keys():
        given |= {"width": 96, "height": 64}
    pixels: Tensor = pipeline(**{**given, **arguments}).images
    return pixels


def check(ours: Tensor, theirs: Tensor, what: str) -> None:
    difference = float((ours - theirs).abs().max())
    print(f"{what}: largest difference {difference:.1e}")
    assert float(theirs.std()) > 0.005, "a picture of nothing proves nothing"
    assert difference < MOST


@pytest.fixture(scope="module")
def random_sd1(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    width: Width = request.config.getoption("--width")
    return build("sd1", tmp_path_factory.mktemp("random") / "sd1", width=width)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_every_sampler_draws_what_diffusers_draws(sampler: Sampler, generated: Callable[..., Tensor]) -> None:
    theirs = expected(pipeline_of(EMOJI), *SCHEDULERS[sampler])
    check(generated(generator_of(EMOJI), sampler=sampler), theirs, f"emoji, {sampler}")


def test_a_random_sd1_draws_what_diffusers_draws(random_sd1: Path, generated: Callable[..., Tensor]) -> None:
    theirs = expected(pipeline_of(random_sd1), *SCHEDULERS["Euler a"])
    check(generated(generator_of(random_sd1), sampler="Euler a"), theirs, "random SD 1.5")


@pytest.mark.parametrize("which", ["emoji", "random"])
def test_adapters_draw_what_diffusers_draws_live_and_merged(
    which: str, random_sd1: Path, generated: Callable[..., Tensor], tmp_path: Path
) -> None:
    model = EMOJI if which == "emoji" else random_sd1
    first = random_adapter(model, tmp_path / "first.safetensors", layers=f"{ATTENTION}|{TEXT}")
    second = random_adapter(model, tmp_path / "second.safetensors", layers=f"{CONVOLUTIONS}|{TEXT}", seed=1)
    pipeline = pipeline_of(model)
    for file in (first, second):
        pipeline.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name=file.stem)
    pipeline.set_adapters(["first", "second"], [0.8, -0.5])
    theirs = expected(pipeline, *SCHEDULERS["Euler"])
    pipeline.unload_lora_weights()
    plain = expected(pipeline, *SCHEDULERS["Euler"])
    assert float((plain - theirs).abs().max()) > 0.02, "adapters without effect prove nothing"
    adapters = (UsedAdapter(file=str(first), weight=0.8), UsedAdapter(file=str(second), weight=-0.5))
    for merged in (False, True):
        compute = {**SETTINGS["compute"], "merge_adapters": merged}
        ours = generated(generator_of(model), sampler="Euler", adapters=adapters, compute=compute)
        check(ours, theirs, f"{which} with adapters {'merged' if merged else 'live'}")
    check(generated(generator_of(model), sampler="Euler"), plain, f"{which} without them again")


def test_prompt_weights_and_long_prompts_equal_embeddings_made_by_hand(generated: Callable[..., Tensor]) -> None:
    """The web UI's rule, written out: z' = z w, then scaled back to the mean of z, chunk by chunk."""
    pipeline = pipeline_of(EMOJI)
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder

    def chunk(words: list[tuple[str, float]]) -> Tensor:
        tokens, weights = [tokenizer.bos_token_id], [1.0]
        for text, weight in words:
            numbers = tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens += numbers
            weights += [weight] * len(numbers)
        tokens += [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (76 - len(tokens))
        weights += [1.0] * (77 - len(weights))
        with torch.no_grad():
            states = encoder(torch.tensor([tokens]))[0]
        weighted = states * torch.tensor(weights)[None, :, None]
        return weighted * (states.mean() / weighted.mean())

    wanted = torch.cat(
        [chunk([("a", 1.0), ("red", 1.3), ("cat face,", 1.0), ("blue", 1 / 1.1)]), chunk([("noto", 1.1)])], 1
    )
    unwanted = torch.cat([chunk([("grey", 1.0)]), chunk([])], 1)
    theirs = expected(
        pipeline,
        *SCHEDULERS["Euler"],
        prompt=None,
        negative_prompt=None,
        prompt_embeds=wanted.expand(2, -1, -1),
        negative_prompt_embeds=unwanted.expand(2, -1, -1),
        width=96,
        height=64,
    )
    ours = generated(generator_of(EMOJI), sampler="Euler", prompt="a (red:1.3) cat face, [blue] BREAK (noto)")
    check(ours, theirs, "weights and BREAK")


def test_zero_terminal_snr_with_rescaled_guidance_draws_what_diffusers_draws(
    tiny_sd2: Path, generated: Callable[..., Tensor]
) -> None:
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    theirs = expected(pipeline_of(tiny_sd2), "DDIMScheduler", options, guidance_rescale=0.7)
    ours = generated(generator_of(tiny_sd2, zero_terminal_snr=True), sampler="DDIM")
    check(ours, theirs, "SD 2, v-prediction, zero terminal SNR")


def test_sdxl_draws_what_diffusers_draws(tiny_sdxl: Path, generated: Callable[..., Tensor]) -> None:
    pipeline = pipeline_of(tiny_sdxl, "StableDiffusionXLPipeline")
    theirs = expected(pipeline, *SCHEDULERS["Euler"], negative_prompt=None)  # an empty one is zeros in SDXL
    check(generated(generator_of(tiny_sdxl), sampler="Euler", negative=""), theirs, "SDXL")


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M Karras", "DDIM"])
def test_image_to_image_draws_what_diffusers_draws(
    sampler: Sampler, generated: Callable[..., Tensor], tmp_path: Path
) -> None:
    picture = start_picture(tmp_path)
    pipeline = pipeline_of(EMOJI, "StableDiffusionImg2ImgPipeline")
    theirs = expected(pipeline, *SCHEDULERS[sampler], image=[picture] * 2, strength=0.5)
    start = StartImageConfig(image=tmp_path / "start.png", strength=0.5)
    check(generated(generator_of(EMOJI), sampler=sampler, start=start), theirs, f"image to image, {sampler}")


def start_picture(folder: Path) -> Image.Image:
    picture = Image.new("RGB", (96, 64), "#dd8833")
    ImageDraw.Draw(picture).ellipse((20, 10, 70, 55), fill="#3355aa")
    picture.save(folder / "start.png")
    return picture
