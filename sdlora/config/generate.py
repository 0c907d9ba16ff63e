"""What is generated: base model, weighted adapters, prompts, sampler, sizes and where the images go."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from sdlora.config.base_model import BaseModelConfig, Precision, Prediction
from sdlora.config.mix import MixedAdapter
from sdlora.config.section import Section
from sdlora.constants import LARGEST_EDGE_PX, LATENT_FACTOR

Sampler = Literal[
    "DPM++ 2M Karras",
    "DPM++ 2M",
    "DPM++ SDE Karras",
    "DPM++ SDE",
    "Euler",
    "Euler a",
    "Heun",
    "DDIM",
    "UniPC",
    "LCM",
]
ImageFormat = Literal["png", "jpeg", "webp"]

_SAMPLERS: dict[Prediction, tuple[Sampler, ...]] = {
    "flow": ("Euler", "DPM++ 2M", "UniPC"),
    "edm_v": ("Euler", "DPM++ 2M"),
}
"""Of models that are no diffusion over Stable Diffusion's own noise levels: few samplers have a form for them."""


def samplers_for(prediction: Prediction) -> tuple[Sampler, ...]:
    """The samplers that can generate with a model which predicts so, the one to take by default first."""
    return _SAMPLERS.get(prediction, get_args(Sampler))


def sampler_problem(sampler: Sampler, prediction: Prediction) -> str | None:
    """Why a sampler can't generate with such a model; None where it can."""
    if sampler in (known := samplers_for(prediction)):
        return None
    return f"{sampler} has no form for a model that predicts {prediction}: take {', '.join(known)}"


class UsedAdapter(MixedAdapter):
    start: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the sampling steps after which the adapter sets in; its text encoder part counts from the beginning."""

    end: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the sampling steps after which the adapter is left out."""

    @model_validator(mode="after")
    def _check(self) -> UsedAdapter:
        if self.start >= self.end:
            raise ValueError(f"start {self.start:g} must come before end {self.end:g}")
        return self


class StartImageConfig(Section):
    image: Path | None = None
    """Picture to start from instead of pure noise (image to image)."""

    strength: float = Field(default=0.75, gt=0.0, le=1.0)
    """How much of the picture is generated anew; 1 keeps nothing but its colours' traces."""

    mask: Path | None = None
    """Inpainting: picture of the same shape, white where it is generated anew."""

    mask_blur_px: float = Field(default=4.0, ge=0.0, le=256.0)
    """Softness of the mask's edge."""


class SecondPassConfig(Section):
    scale: float = Field(default=1.0, ge=1.0, le=4.0)
    """Enlarge by this factor and generate again over it; 1 is off."""

    strength: float = Field(default=0.5, gt=0.0, le=1.0)
    """How much of the enlarged picture is generated anew."""

    steps: int | None = Field(default=None, ge=1, le=200)
    """Sampling steps of the second pass; by default those of the first."""

    upscaler: Literal["latent", "lanczos"] = "lanczos"
    """latent enlarges latents (softer, wants strength above 0.5), lanczos enlarges the picture."""


class ImageFilesConfig(Section):
    folder: Path = Path("outputs")
    """Folder for the images."""

    format: ImageFormat = "png"
    """File type; all three carry the settings."""

    quality: int = Field(default=95, ge=1, le=100)
    """Quality of JPEG and WebP."""

    metadata: bool = True
    """Write prompt and settings into the files, as A1111 does, and the whole request beside it."""


class ComputeConfig(Section):
    device: str = "auto"
    """cpu, cuda, mps or auto."""

    precision: Literal["auto"] | Precision = "auto"
    """Number type of the calculation; auto is fp16 on a card, bf16 on processors that have it, else fp32."""

    merge_adapters: Literal["auto"] | bool = "auto"
    """Bake the adapters into the weights while generating (faster for several images); auto does it when it pays."""

    compile: bool = False
    """Compile the UNet's blocks with torch.compile: slow first image, faster afterwards."""

    vae_tiling: Literal["auto"] | bool = "auto"
    """Decode in tiles, for little memory; auto does it above 1.5 megapixels."""


class GenerateConfig(Section):
    version: Literal[1] = 1
    """Version of this format."""

    base_model: BaseModelConfig = BaseModelConfig()
    adapters: tuple[UsedAdapter, ...] = ()
    """Adapters with their weights; `<lora:name:weight>` in the prompt adds to them."""

    adapter_folders: tuple[Path, ...] = ()
    """Folders, searched with what lies below them, for the names in `<lora:name:weight>`."""

    embedding_folders: tuple[Path, ...] = ()
    """Folders with textual-inversion embeddings; a prompt uses one by its file's name, `name` or `embedding:name`."""

    prompt: str = ""
    """What to generate. Takes (weights:1.2), [less], BREAK, <lora:name:weight>, [from:to:0.5] and [one|other] by step,
    `a AND b :0.8`, and {red|green} or `__file__` settled by the seed."""

    negative: str = ""
    """What not to generate."""

    choices: bool = True
    """Settle {red|green} and `__file__` in prompts by each image's seed; off leaves them as text."""

    wildcard_folders: tuple[Path, ...] = ()
    """Folders with the text files behind `__file__`, one choice a line."""

    sampler: Sampler = "DPM++ 2M Karras"
    """Sampler, by the names that other tools use."""

    steps: int = Field(default=25, ge=1, le=500)
    """Sampling steps."""

    guidance: float = Field(default=7.0, ge=0.0, le=50.0)
    """Classifier-free guidance scale (CFG); 1 leaves the negative prompt out and is twice as fast."""

    guidance_rescale: Literal["auto"] | float = "auto"
    """Share of CFG rescaling (Lin et al. 2024); auto is 0.7 for models with zero terminal SNR, else 0."""

    seed: int = Field(default=-1, ge=-1, lt=2**32)
    """Seed of the first image, the others count up; -1 picks one."""

    width_px: int | None = Field(default=None, ge=64, le=LARGEST_EDGE_PX, multiple_of=LATENT_FACTOR)
    """Width; by default the model's own."""

    height_px: int | None = Field(default=None, ge=64, le=LARGEST_EDGE_PX, multiple_of=LATENT_FACTOR)
    """Height; by default the model's own."""

    num_images: int = Field(default=1, ge=1, le=10_000)
    """Images to generate."""

    batch_size: int = Field(default=4, ge=1, le=64)
    """Images generated at once."""

    start: StartImageConfig = StartImageConfig()
    second_pass: SecondPassConfig = SecondPassConfig()
    compute: ComputeConfig = ComputeConfig()
    files: ImageFilesConfig = ImageFilesConfig()

    @model_validator(mode="after")
    def _check(self) -> GenerateConfig:
        problems = []
        if isinstance(self.guidance_rescale, float) and not 0 <= self.guidance_rescale <= 1:
            problems.append(f"guidance_rescale: must lie between 0 and 1; got {self.guidance_rescale:g}")
        if self.start.mask is not None and self.start.image is None:
            problems.append("start.mask needs start.image, the picture that is inpainted")
        if problems:
            raise ValueError("\n".join(problems))
        return self
