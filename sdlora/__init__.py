"""sdlora: train, mix and use Stable Diffusion LoRA adapters whose files load everywhere.

The public API, loaded on first use so that `import sdlora` stays light:

    from sdlora import load_config, train
    result = train(load_config("demo.yaml"))
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "MixConfig": ("sdlora.config.mix", "MixConfig"),
    "GenerateConfig": ("sdlora.config.generate", "GenerateConfig"),
    "Generator": ("sdlora.generation.generate", "Generator"),
    "SdloraError": ("sdlora.errors", "SdloraError"),
    "TrainConfig": ("sdlora.config.train", "TrainConfig"),
    "convert_adapter": ("sdlora.adapters.algebra.convert", "convert"),
    "extract_adapter": ("sdlora.adapters.algebra.making", "extract_adapter"),
    "generate": ("sdlora.generation.generate", "generate"),
    "load_config": ("sdlora.config.files", "load"),
    "load_model": ("sdlora.models.loading", "load"),
    "merge_adapters": ("sdlora.adapters.algebra.making", "merge_adapters"),
    "mix_adapters": ("sdlora.adapters.algebra.making", "mix_adapters"),
    "read_adapter": ("sdlora.adapters.files.reading", "read"),
    "resize_adapter": ("sdlora.adapters.algebra.making", "resize_adapter"),
    "resume": ("sdlora.training.loop.run", "resume"),
    "summarise": ("sdlora.training.preflight.summary", "summarise"),
    "train": ("sdlora.training.loop.run", "train"),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sdlora' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
