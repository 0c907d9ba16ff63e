"""A run's training and held-out images, as the evaluation looks at them: in their crop, at the first resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from sdlora.config.train import TrainConfig
from sdlora.data.buckets import BucketedImage
from sdlora.data.crops import crop_image
from sdlora.data.images import ImageRecord
from sdlora.runs.folder import RunFolder
from sdlora.training.inputs import fingerprint
from sdlora.training.inputs.images import find_images


@dataclass(frozen=True)
class TrainingImages:
    """What was trained and what was held out, each image once; and what has changed since."""

    records: list[ImageRecord]
    placed: list[BucketedImage]
    held_out: list[BucketedImage]
    background: str
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The trained images' files, with their folder where two have one name."""
        names = [item.record.path.name for item in self.placed]
        return [
            f"{item.record.path.parent.name}/{name}" if names.count(name) > 1 else name
            for item, name in zip(self.placed, names, strict=True)
        ]

    def picture(self, place: int) -> Image.Image:
        """A trained image in its crop, not mirrored. Raises DataError for a file that has gone bad."""
        item = self.placed[place]
        return crop_image(item.record, item.placement, flip=False, crop_xy=None, background=self.background)

    @property
    def hashes(self) -> list[str]:
        """What each picture hangs on."""
        return [
            f"{item.record.content_hash}/{item.placement.bucket.width_px}x{item.placement.bucket.height_px}"
            f"/{item.placement.resized_width_px}x{item.placement.resized_height_px}/{item.record.crop_focus}"
            f"/{self.background}"
            for item in self.placed
        ]


def find_training_images(folder: RunFolder, config: TrainConfig) -> TrainingImages:
    """The run's images as they are now. Raises ConfigError and DataError as training does."""
    found = find_images(config)
    records = [record for record in found.trained if not record.is_class]
    before = fingerprint.read(folder.images)
    now = fingerprint.fingerprint([*found.trained, *found.held_out])
    changed = [] if before is None else fingerprint.differences(before, now)
    return TrainingImages(
        records=records,
        placed=_once([item for item in found.placed if not item.record.is_class]),
        held_out=_once(found.bucketed_held_out),
        background=config.images.background,
        notes=tuple(f"since the run began {one.sentence}" for one in changed),
    )


def _once(placed: Sequence[BucketedImage]) -> list[BucketedImage]:
    """Each file at its first resolution."""
    by_path: dict[str, BucketedImage] = {}
    for item in placed:
        by_path.setdefault(str(item.record.path), item)
    return list(by_path.values())
