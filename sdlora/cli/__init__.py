"""The command line: parse, call the API, show the result. Heavy imports live in the commands' bodies."""

from sdlora.cli import (
    adapters,
    captioning,
    class_images,
    dataset,
    doctor,
    estimate,
    evaluate,
    generate,
    masks,
    runs,
    serve,
    suggest,
    sweep,
    train,
    webui,
)
from sdlora.cli.app import app

__all__ = [
    "adapters",
    "app",
    "captioning",
    "class_images",
    "dataset",
    "doctor",
    "estimate",
    "evaluate",
    "generate",
    "masks",
    "runs",
    "serve",
    "suggest",
    "sweep",
    "train",
    "webui",
]
