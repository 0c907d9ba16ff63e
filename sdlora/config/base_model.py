"""Which Stable Diffusion model is trained, and how its frozen weights are held."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from sdlora.config.section import Section

FamilyName = Literal["sd1", "sd2", "sdxl"]
Prediction = Literal["epsilon", "v_prediction", "flow", "edm_v"]
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
        """As the command line spells it: ink.safetensors:0.8."""
        if not isinstance(value, str):
            return value
        file, _, behind = value.rpartition(":")
        is_weight = file and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", behind)
        return {"file": file, "weight": float(behind)} if is_weight else {"file": value}


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
    """What the UNet predicts; auto reads it from the file's metadata, the scheduler's config or marker keys, and asks
    the UNet where none tells. flow is rectified flow (bigASP 2.5, NoobAI-RF), edm_v the v-prediction of CosXL."""

    flow_shift: Literal["auto"] | float = "auto"
    """How far the steps of a rectified flow lean towards noise in generating; 1 not at all, auto takes what
    scheduler_config.json says, else 3."""

    zero_terminal_snr: Literal["auto"] | bool = "auto"
    """Rescale the noise schedule so that the last step is pure noise (Lin et al. 2024); auto detects it."""

    vae: str | None = None
    """Another VAE than the model's own: a folder, a file or a hub name."""

    vae_scale: float | None = Field(default=None, gt=0)
    """Factor on the VAE's latents, where the model was trained with another one than the VAE's config says (a single
    file has none: 0.18215 for SD 1 and 2, 0.13025 for SDXL)."""

    vae_shift: float | None = None
    """What is taken off the VAE's latents before they are scaled, where the VAE's config doesn't say."""

    adapters: tuple[MergedAdapter, ...] = ()
    """Adapters merged into the model, in memory, before anything else happens: a list of files,
    with weights as style.safetensors:0.8. What is trained then builds on them and wants them beside it later."""

    precision: Literal["auto"] | Precision = "auto"
    """Number type of the frozen weights; auto takes optimization.precision."""

    quantization: Quantization = "none"
    """Hold frozen weights of UNet layers in int8 (LLM.int8) or 4 bits (NF4, as in QLoRA)."""

    clip_skip: int = Field(default=1, ge=1, le=12)
    """Which text-encoder layer feeds the UNet, counted from the end; 1 is the last, anime models often want 2.
    Layers behind it can't learn and get no adapter."""

    @model_validator(mode="after")
    def _check(self) -> BaseModelConfig:
        if not self.model.strip():
            raise ValueError("model: is empty; name builtin:emoji, a folder, a file or a hub name")
        if isinstance(self.flow_shift, float):
            if not 0 < self.flow_shift <= 100:
                raise ValueError(f"flow_shift: must lie above 0 and be at most 100; got {self.flow_shift:g}")
            if self.prediction not in ("auto", "flow"):
                raise ValueError(f"flow_shift has no effect with prediction={self.prediction}, which is no flow")
        return self
