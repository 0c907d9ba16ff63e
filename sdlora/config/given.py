"""What a caller may hand in where settings are meant (a name, a file, a dictionary), made into checked settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdlora.config.base_model import BaseModelConfig
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.files import load, on_preset, validate, with_files_read
from sdlora.config.generate import ComputeConfig, GenerateConfig
from sdlora.config.mix import MixConfig
from sdlora.config.train import TrainConfig

Values = Mapping[str, Any]
"""Settings by section, nested as in a YAML file."""


def train_config(given: TrainConfig | Values | Path | str) -> TrainConfig:
    """A run's settings. given: also a preset's name, a YAML file, or values as they stand in one (`preset` included).

    Raises ConfigError listing every problem.
    """
    if isinstance(given, TrainConfig):
        return with_files_read(given)
    if isinstance(given, Mapping):
        values = on_preset(given, "the configuration", Path())
        return with_files_read(validate(values, "the configuration"))
    return load(given)


def generate_config(given: GenerateConfig | Values | str) -> GenerateConfig:
    """A request for images. given: also its prompt alone, or values. Raises ConfigError listing every problem."""
    if isinstance(given, GenerateConfig):
        return given
    return validate({"prompt": given} if isinstance(given, str) else given, "the request", GenerateConfig)


def mix_config(given: MixConfig | Values) -> MixConfig:
    """What is to be mixed. given: also values. Raises ConfigError listing every problem."""
    return given if isinstance(given, MixConfig) else validate(given, "the mix", MixConfig)


def base_model_config(given: BaseModelConfig | Values | Path | str) -> BaseModelConfig:
    """A base model. given: also its name, folder or file alone, or values. Raises ConfigError listing every problem."""
    if isinstance(given, BaseModelConfig):
        return given
    return validate(given if isinstance(given, Mapping) else {"model": str(given)}, "the base model", BaseModelConfig)


def compute_config(given: ComputeConfig | Values | None) -> ComputeConfig:
    """How images are calculated. given: also values, None for the defaults. Raises ConfigError listing all problems."""
    return given if isinstance(given, ComputeConfig) else validate(given or {}, "compute", ComputeConfig)


def evaluate_config(given: EvaluateConfig | Values | None) -> EvaluateConfig:
    """How a run is evaluated. given: also values, None for the defaults. Raises ConfigError listing every problem."""
    return given if isinstance(given, EvaluateConfig) else validate(given or {}, "the evaluation", EvaluateConfig)
