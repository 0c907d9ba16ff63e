"""How many steps a run comes to, counted from file names alone: at once, and exact but for buckets' last batches."""

from __future__ import annotations

from dataclasses import dataclass

from sdlora.config.train import DEFAULT_EPOCHS, TrainConfig
from sdlora.data.caption_files import repeats_folder
from sdlora.data.folder_listing import list_folder
from sdlora.data.image_sources import inner_folders, sources_of
from sdlora.errors import DataError


@dataclass(frozen=True)
class StepCount:
    """Images, samples and steps of a configuration."""

    images: int
    held_out: int
    samples: int
    """Images in an epoch, repeats and resolutions counted."""
    resolutions: int
    batch_size: int
    accumulation: int
    steps: int
    epochs: float

    def in_words(self) -> str:
        """The sum in one line: `8 images, 16 samples an epoch / batch 4 = 4 steps an epoch; 12 epochs = 48 steps`."""
        held_out = f" ({self.held_out} held out)" if self.held_out else ""
        sizes = f" x {self.resolutions} resolutions" if self.resolutions > 1 else ""
        images = f"{_count(self.images, 'image')}{held_out}{sizes}"
        with_repeats = self.samples != (self.images - self.held_out) * self.resolutions
        samples = f"{images} x repeats = {self.samples} samples" if with_repeats else images
        batch = f"batch {self.batch_size}" + (f" x {self.accumulation}" if self.accumulation > 1 else "")
        return (
            f"{samples} / {batch} = {_epochs_in_words(self.steps, self.epochs, bool(self.samples % self.batch_size))}"
        )


def _epochs_in_words(steps: int, epochs: float, is_rounded: bool) -> str:
    rounded = " (the last batch is smaller)" if is_rounded else ""
    return f"{steps / epochs:.4g} steps an epoch{rounded}; {_count(steps, 'step')} = {epochs:.3g} epochs"


def count_steps(config: TrainConfig) -> StepCount | None:
    """The numbers of a configuration whose image folders can be listed, else None."""
    # By whether they are class images, of which none is held out.
    images, samples = {False: 0, True: 0}, {False: 0, True: 0}
    sources = sources_of(config.images, config.captions)
    for source in sources:
        root, inner = source.folder, inner_folders(source.folder, [other.folder for other in sources])
        try:
            pictures = list_folder(root).pictures
        except (DataError, OSError):
            return None
        for picture in pictures:
            if any(picture.is_relative_to(folder) for folder in inner):
                continue
            named = repeats_folder(picture.parent, root)
            repeats = source.images.repeats if named is None else named[0]
            repeats = repeats if source.repeats is None else source.repeats
            images[source.is_class] += 1
            samples[source.is_class] += repeats * len(source.resolutions or config.images.resolutions)
    if not samples[False]:
        return None
    fraction = config.validation.fraction if config.validation.folder is None else 0.0
    # The same rounding as where images are really held out, or the page's sum would be one off the run's.
    held_out = max(1, round(fraction * images[False])) if fraction else 0
    trained = max(1, round(samples[False] * (images[False] - held_out) / images[False]))
    total = trained + samples[True]
    return _sum(config, sum(images.values()), held_out, total, len(config.images.resolutions))


def _sum(config: TrainConfig, images: int, held_out: int, samples: int, resolutions: int) -> StepCount:
    optimization = config.optimization
    batches = -(-samples // optimization.batch_size)
    epochs = optimization.epochs or DEFAULT_EPOCHS
    steps = optimization.steps or max(1, -(-batches * epochs // optimization.accumulation))
    return StepCount(
        images=images,
        held_out=held_out,
        samples=samples,
        resolutions=resolutions,
        batch_size=optimization.batch_size,
        accumulation=optimization.accumulation,
        steps=steps,
        epochs=steps * optimization.accumulation / batches,
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
