"""Everything that can be found wrong with a run in seconds, before a model is loaded or a folder made."""

from __future__ import annotations

from importlib.util import find_spec

from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError, MissingPackageError
from sdlora.models.detection import detect
from sdlora.training import optimizers
from sdlora.training.images import RunImages, find_images


def check(config: TrainConfig) -> RunImages:
    """The run's images, if the run can begin.

    Raises the SdloraError of what is wrong: optimizer, missing packages, adapter to start from, base model, images.
    """
    optimizers.check(config.optimization)
    if config.base_model.quantization.startswith("nf4") and find_spec("bitsandbytes") is None:
        raise MissingPackageError(f"base_model.quantization={config.base_model.quantization}", "bitsandbytes", "8bit")
    if config.outputs.tensorboard and find_spec("tensorboard") is None:
        raise MissingPackageError("outputs.tensorboard", "tensorboard", "tensorboard")
    if config.adapter.start_from is not None and not config.adapter.start_from.is_file():
        raise ConfigError("adapter.start_from", [f"no such file: {config.adapter.start_from}"])
    detect(config.resolved_base_model)
    return find_images(config)
