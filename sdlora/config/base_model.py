"""Which Stable Diffusion model is trained, and how its frozen weights are held."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sdlora.config.section import Section

FamilyName = Literal["sd1", "sd2", "sdxl"]
Prediction = Literal["epsilon", "v_prediction"]
Precision = Literal["fp32", "bf16", "fp16"]
Quantization = Literal["none", "int8", "nf4", "nf4-double"]


class MergedAdapter(Section):
    """An adapter that is merged into the base model in memory."""

    file: str
    """Adapter file, or hf://owner/name[/file]."""

    weight: float = 1.0
    """What its update is multiplied by."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class BaseModelConfig(Section):
    model: str = "builtin:emoji"
    """Base model: `builtin:emoji`, a diffusers folder, a .safetensors or .ckpt file, or a hub name (owner/name)."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    variant: str | None = None
    """Weight variant of a hub model or folder, for example fp16."""

    family: Literal["auto"] | FamilyName = "auto"
    """Stable Diffusion family; auto reads it from the weights' shapes."""

    prediction: Literal["auto"] | Prediction = "auto"
    """What the UNet predicts; auto reads it from the file's metadata, the scheduler's config or marker keys."""

    zero_terminal_snr: Literal["auto"] | bool = "auto"
    """Rescale the noise schedule so that the last step is pure noise (Lin et al. 2024); auto detects it."""

    vae: str | None = None
    """Another VAE than the model's own: a folder, a file or a hub name."""

    adapters: tuple[MergedAdapter, ...] = ()
    """Adapters merged into the model, in memory, before anything else happens: a list of files, or of
    {file: style.safetensors, weight: 0.8}. What is trained then builds on them and wants them beside it later."""

    precision: Literal["auto"] | Precision = "auto"
    """Number type of the frozen weights; auto takes optimization.precision."""

    quantization: Quantization = "none"
    """Hold frozen weights of UNet layers in int8 (LLM.int8) or 4 bits (NF4, as in QLoRA)."""

    clip_skip: int = Field(default=1, ge=1, le=12)
    """Which text-encoder layer feeds the UNet, counted from the end; 1 is the last, anime models often want 2."""
