"""sdlora: train, mix and use Stable Diffusion LoRA adapters whose files load everywhere.

The public API, loaded on first use so that `import sdlora` stays light:

    from sdlora import train
    result = train("demo.yaml")

Where settings are meant, their objects, values as in a YAML file, and names of presets and files are taken alike.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sdlora.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; what runs is `_PUBLIC`, and a test holds the two together
    from sdlora.adapters.algebra.convert import convert as convert_adapter
    from sdlora.adapters.algebra.loaded_base import load_base as load_model
    from sdlora.adapters.algebra.making import extract_adapter, merge_adapters, mix_adapters, resize_adapter
    from sdlora.adapters.files.reading import read as read_adapter
    from sdlora.adapters.files.weights import AdapterFile
    from sdlora.adapters.hub.inspection import inspect as inspect_adapter
    from sdlora.config.base_model import BaseModelConfig
    from sdlora.config.evaluate import EvaluateConfig
    from sdlora.config.files import load as load_config
    from sdlora.config.generate import GenerateConfig, UsedAdapter
    from sdlora.config.mix import MixConfig, MixedAdapter
    from sdlora.config.train import TrainConfig
    from sdlora.data.lint.check import check as check_dataset
    from sdlora.errors import SdloraError
    from sdlora.evaluation.evaluate import evaluate
    from sdlora.evaluation.report import Evaluation
    from sdlora.events import Event, EventSink
    from sdlora.generation.generate import Generator, generate
    from sdlora.generation.generated import GeneratedImage
    from sdlora.training.loop.run import resume, train
    from sdlora.training.loop.running import RunResult
    from sdlora.training.preflight.suggestion import Suggestion, suggest
    from sdlora.training.preflight.summary import summarise

__all__ = [
    "AdapterFile",
    "BaseModelConfig",
    "EvaluateConfig",
    "Evaluation",
    "Event",
    "EventSink",
    "GenerateConfig",
    "GeneratedImage",
    "Generator",
    "MixConfig",
    "MixedAdapter",
    "RunResult",
    "SdloraError",
    "Suggestion",
    "TrainConfig",
    "UsedAdapter",
    "__version__",
    "check_dataset",
    "convert_adapter",
    "evaluate",
    "extract_adapter",
    "generate",
    "inspect_adapter",
    "load_config",
    "load_model",
    "merge_adapters",
    "mix_adapters",
    "read_adapter",
    "resize_adapter",
    "resume",
    "suggest",
    "summarise",
    "train",
]

_PUBLIC = {
    "AdapterFile": ("sdlora.adapters.files.weights", "AdapterFile"),
    "BaseModelConfig": ("sdlora.config.base_model", "BaseModelConfig"),
    "EvaluateConfig": ("sdlora.config.evaluate", "EvaluateConfig"),
    "Evaluation": ("sdlora.evaluation.report", "Evaluation"),
    "Event": ("sdlora.events", "Event"),
    "EventSink": ("sdlora.events", "EventSink"),
    "GenerateConfig": ("sdlora.config.generate", "GenerateConfig"),
    "GeneratedImage": ("sdlora.generation.generated", "GeneratedImage"),
    "Generator": ("sdlora.generation.generate", "Generator"),
    "MixConfig": ("sdlora.config.mix", "MixConfig"),
    "MixedAdapter": ("sdlora.config.mix", "MixedAdapter"),
    "RunResult": ("sdlora.training.loop.running", "RunResult"),
    "SdloraError": ("sdlora.errors", "SdloraError"),
    "Suggestion": ("sdlora.training.preflight.suggestion", "Suggestion"),
    "TrainConfig": ("sdlora.config.train", "TrainConfig"),
    "UsedAdapter": ("sdlora.config.generate", "UsedAdapter"),
    "check_dataset": ("sdlora.data.lint.check", "check"),
    "convert_adapter": ("sdlora.adapters.algebra.convert", "convert"),
    "evaluate": ("sdlora.evaluation.evaluate", "evaluate"),
    "extract_adapter": ("sdlora.adapters.algebra.making", "extract_adapter"),
    "generate": ("sdlora.generation.generate", "generate"),
    "inspect_adapter": ("sdlora.adapters.hub.inspection", "inspect"),
    "load_config": ("sdlora.config.files", "load"),
    "load_model": ("sdlora.adapters.algebra.loaded_base", "load_base"),
    "merge_adapters": ("sdlora.adapters.algebra.making", "merge_adapters"),
    "mix_adapters": ("sdlora.adapters.algebra.making", "mix_adapters"),
    "read_adapter": ("sdlora.adapters.files.reading", "read"),
    "resize_adapter": ("sdlora.adapters.algebra.making", "resize_adapter"),
    "resume": ("sdlora.training.loop.run", "resume"),
    "suggest": ("sdlora.training.preflight.suggestion", "suggest"),
    "summarise": ("sdlora.training.preflight.summary", "summarise"),
    "train": ("sdlora.training.loop.run", "train"),
}

if not TYPE_CHECKING:  # or every name, misspelt ones too, would be an Any to type checkers

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'sdlora' has no attribute '{name}'")
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
