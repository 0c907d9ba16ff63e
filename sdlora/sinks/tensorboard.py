"""Writes losses, learning rates and previews for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from sdlora.errors import MissingPackageError
from sdlora.events import Event, PreviewReady, StepFinished, Validated


class TensorBoardSink:
    """Scalars by step; previews as images. Raises MissingPackageError without the tensorboard package."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingPackageError("outputs.tensorboard", "tensorboard", "tensorboard") from None
        self._writer = SummaryWriter(str(folder))

    def emit(self, event: Event) -> None:
        """Write what TensorBoard can show of one event."""
        if isinstance(event, StepFinished):
            self._writer.add_scalar("train/loss", event.loss, event.step)
            self._writer.add_scalar("train/gradient_norm", event.gradient_norm, event.step)
            if event.weight_norm is not None:
                self._writer.add_scalar("train/weight_norm", event.weight_norm, event.step)
            for group, rate in event.learning_rates.items():
                self._writer.add_scalar(f"learning_rate/{group}", rate, event.step)
        elif isinstance(event, Validated):
            self._writer.add_scalar("validation/loss", event.loss, event.step)
            self._writer.add_scalar("validation/relative_loss", event.relative_loss, event.step)
        elif isinstance(event, PreviewReady):
            import numpy as np
            from PIL import Image

            for index, path in enumerate(event.paths):
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
                self._writer.add_image(f"preview/{index}", pixels, event.step, dataformats="HWC")

    def close(self) -> None:
        """Write out what TensorBoard's writer still holds."""
        self._writer.close()
