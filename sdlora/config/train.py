"""The whole configuration of a training run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.config.objective import ObjectiveConfig
from sdlora.config.optimization import OPTIMIZERS, OWN_RATE, OptimizationConfig
from sdlora.config.outputs import OutputsConfig, PreviewsConfig, ValidationConfig
from sdlora.config.section import Section

CONFIG_VERSION: Literal[1] = 1
DEFAULT_EPOCHS = 10
LONGEST_NAME_BYTES = 120
"""Of a run's name: with `-step_000500.safetensors` and the like it must stay below what a disk allows, 255."""
_GIVEN_RATE = tuple(name for name in OPTIMIZERS if name not in OWN_RATE)


def is_device_name(name: str) -> bool:
    """Whether Windows can have no file of this name, whatever comes after a dot."""
    return re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", name.partition(".")[0], re.IGNORECASE) is not None


class TrainConfig(Section):
    version: Literal[1] = CONFIG_VERSION
    """Version of this configuration format."""

    name: str = "my-lora"
    """Name of the adapter, its file and its run folder."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of every random draw of the run."""

    base_model: BaseModelConfig = BaseModelConfig()
    images: ImagesConfig = ImagesConfig()
    captions: CaptionsConfig = CaptionsConfig()
    adapter: AdapterConfig = AdapterConfig()
    optimization: OptimizationConfig = OptimizationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    validation: ValidationConfig = ValidationConfig()
    previews: PreviewsConfig = PreviewsConfig()
    outputs: OutputsConfig = OutputsConfig()

    @property
    def resolved_base_model(self) -> BaseModelConfig:
        """The base model's settings with precision auto filled in."""
        if self.base_model.precision != "auto":
            return self.base_model
        return self.base_model.model_copy(update={"precision": self.optimization.precision})

    @property
    def preview_base_model(self) -> BaseModelConfig:
        """The model that previews are generated with; `previews.base_model` is read and held as the trained one is."""
        base, other = self.resolved_base_model, self.previews.base_model
        if other is None:
            return base
        held = {name: getattr(base, name) for name in ("precision", "quantization", "clip_skip")}
        return BaseModelConfig(model=other, **held)

    @model_validator(mode="before")
    @classmethod
    def _single_token_is_trigger(cls, values: Any) -> Any:
        """A token that nothing calls up would not be trained, so the only one is the trigger unless there is one."""
        if not isinstance(values, Mapping):
            return values
        tokens, captions = _value(values.get("adapter"), "new_tokens"), values.get("captions", {})
        is_plain = isinstance(tokens, Mapping) and len(tokens) == 1 and isinstance(captions, Mapping | CaptionsConfig)
        if not is_plain or _value(captions, "trigger") is not None:
            return values
        token = str(next(iter(tokens)))
        if isinstance(captions, CaptionsConfig):
            return {**values, "captions": captions.model_copy(update={"trigger": token})}
        return {**values, "captions": {**captions, "trigger": token}}

    @field_validator("name")
    @classmethod
    def _name_fits_other_tools(cls, name: str) -> str:
        # A1111 takes no adapter called `none` or `addams`.
        if not re.fullmatch(r"[\w.+() -]+", name) or name.strip(" .") != name or name.lower() in {"none", "addams"}:
            raise ValueError(
                f"'{name}' can't be used as a name: other tools read it in <lora:name:1>, so use letters, digits, "
                "spaces, _ - + . ( ), and neither the name none nor addams"
            )
        if name.startswith("-"):
            raise ValueError(f"'{name}' can't be used as a name: commands would take it for an option")
        if is_device_name(name):
            raise ValueError(f"'{name}' can't be used as a name: Windows keeps it for devices")
        if len(name.encode()) > LONGEST_NAME_BYTES:
            raise ValueError(f"a name of {len(name.encode())} bytes is too long: use at most {LONGEST_NAME_BYTES}")
        return name

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        problems: list[str] = []
        has_class_images = self.images.class_folder is not None or any(each.is_class for each in self.images.folders)
        if self.objective.prior_preservation == "class_images" and not has_class_images:
            problems.append(
                "objective.prior_preservation=class_images needs images.class_folder, or an entry of images.folders "
                "with is_class: true"
            )
        if has_class_images and self.objective.prior_preservation != "class_images":
            problems.append("class images have no effect without objective.prior_preservation=class_images")
        masks = (self.images.mask, *(each.mask for each in self.images.folders))
        if self.objective.prior_outside_mask and not any(mask not in (None, "none") for mask in masks):
            problems.append("objective.prior_outside_mask has no effect without images.mask")
        optimization = self.optimization
        if optimization.precision == "fp32" and self.base_model.precision in ("bf16", "fp16"):
            problems.append(
                f"optimization.precision=fp32 can't compute with base_model.precision={self.base_model.precision}: "
                "set both to the same, or base_model.precision=auto"
            )
        if not self.adapter.text_encoder and optimization.text_encoder_learning_rate:
            problems.append("optimization.text_encoder_learning_rate has no effect without adapter.text_encoder=true")
        for name in ("text_encoder_until", "text_encoder_2_until"):
            if not self.adapter.text_encoder and getattr(optimization, name):
                problems.append(f"optimization.{name} has no effect without adapter.text_encoder=true")
        if optimization.max_weight_norm and self.adapter.algorithm != "lora":
            problems.append(
                f"optimization.max_weight_norm goes with adapter.algorithm=lora only, not {self.adapter.algorithm}"
            )
        if optimization.lora_plus_ratio != 1 and self.adapter.algorithm != "lora":
            problems.append(
                f"optimization.lora_plus_ratio goes with adapter.algorithm=lora only, not {self.adapter.algorithm}"
            )
        if optimization.precondition and (self.adapter.algorithm != "lora" or self.adapter.rank == 0):
            problems.append("optimization.precondition goes with layers of adapter.algorithm=lora only")
        problems += self._token_problems()
        if optimization.optimizer in OWN_RATE and optimization.learning_rate < 0.1:
            problems.append(
                f"optimization.learning_rate={optimization.learning_rate} is too low for {optimization.optimizer}, "
                "which finds its own: use 1.0"
            )
        if optimization.optimizer in _GIVEN_RATE and optimization.learning_rate > 0.1:
            problems.append(
                f"optimization.learning_rate={optimization.learning_rate} is too high for "
                f"{optimization.optimizer}: 1e-4 is usual"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _token_problems(self) -> list[str]:
        """Settings of new tokens where there are none, and of layers where tokens are trained alone."""
        tokens, optimization, outputs = self.adapter.new_tokens, self.optimization, self.outputs
        if not tokens:
            useless = {
                "optimization.new_token_learning_rate": optimization.new_token_learning_rate is not None,
                "optimization.new_tokens_until": optimization.new_tokens_until is not None,
                "outputs.bundle_embeddings": outputs.bundle_embeddings,
            }
            return [f"{name} has no effect without adapter.new_tokens" for name, is_set in useless.items() if is_set]
        separator = self.captions.separator.strip()
        problems = [
            f"adapter.new_tokens: '{token}' holds captions.separator '{separator}', which would cut it in two"
            for token in tokens
            if separator and separator in token
        ]
        if self.adapter.rank == 0:
            useless = {
                "optimization.lora_plus_ratio": optimization.lora_plus_ratio != 1,
                "optimization.max_weight_norm": optimization.max_weight_norm > 0,
                "optimization.block_learning_rates": bool(optimization.block_learning_rates),
                "optimization.new_tokens_until": optimization.new_tokens_until is not None,
                "outputs.bundle_embeddings": outputs.bundle_embeddings,
            }
            problems += [
                f"{name} has no effect with adapter.rank=0, which trains adapter.new_tokens alone"
                for name, is_set in useless.items()
                if is_set
            ]
        if outputs.bundle_embeddings and outputs.format == "diffusers":
            problems.append("outputs.bundle_embeddings: diffusers refuses such a file; use outputs.format=kohya")
        return problems


def _value(section: Any, name: str) -> Any:
    """A setting of a section, be it checked already or plain values."""
    return section.get(name) if isinstance(section, Mapping) else getattr(section, name, None)
