"""Sends losses, learning rates and previews to Weights & Biases."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from sdlora import atomic
from sdlora.errors import MissingPackageError, RunError
from sdlora.events import Event, PreviewReady, RunFailed, StepFinished, Validated


class WandbSink:
    """Scalars by step, previews as images, the configuration as the run's. Offline with WANDB_MODE=offline.

    A run that goes on after a stop goes on there too. Raises MissingPackageError without the wandb package, RunError
    where it can't begin.
    """

    def __init__(self, folder: Path, project: str, config: dict[str, Any]) -> None:
        """folder: the run's; its name is the run's there."""
        try:
            import wandb
        except ImportError:
            raise MissingPackageError("outputs.wandb", "wandb", "wandb") from None
        self._wandb = wandb
        self._failed = False
        try:
            self._run = wandb.init(
                project=project,
                name=folder.name,
                dir=str(folder),
                config=config,
                id=_identity(folder),
                resume="allow",
                # console: it would put itself between us and standard output, where the progress bar is.
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # of many kinds: no key, no network, no such project
            raise RunError(
                f"outputs.wandb: Weights & Biases can't be reached: {' '.join(str(error).split())[:300]}. Set "
                "WANDB_API_KEY or run `wandb login`; WANDB_MODE=offline logs into the run folder"
            ) from error

    def emit(self, event: Event) -> None:
        """Send what can be shown of one event."""
        if isinstance(event, StepFinished):
            values = {"train/loss": event.loss, "train/gradient_norm": event.gradient_norm}
            if event.weight_norm is not None:
                values["train/weight_norm"] = event.weight_norm
            values |= {f"learning_rate/{group}": rate for group, rate in event.learning_rates.items()}
            self._run.log(values, step=event.step)
        elif isinstance(event, Validated):
            values = {"validation/loss": event.loss, "validation/relative_loss": event.relative_loss}
            self._run.log(values, step=event.step)
        elif isinstance(event, PreviewReady):
            images = [
                self._wandb.Image(path, caption=prompt)
                for path, prompt in zip(event.paths, event.prompts, strict=False)
            ]
            self._run.log({"previews": images}, step=event.step)
        elif isinstance(event, RunFailed):
            self._failed = True

    def close(self) -> None:
        """Send or write out what is still held."""
        self._run.finish(exit_code=int(self._failed))


def _identity(folder: Path) -> str:
    """What the run is called over there, the same each time it goes on; two runs of one name stay two."""
    file = folder / "wandb-id.txt"
    if not file.is_file():
        atomic.write_text(file, secrets.token_hex(6))
    return file.read_text(encoding="utf-8").strip()
