"""The command line: parse, call the API, show the result. Heavy imports live in the commands' bodies."""

from sdlora.cli import adapters, dataset, train
from sdlora.cli.app import app

__all__ = ["adapters", "app", "dataset", "train"]
