"""A run's images: scanned, split into trained and held out, and placed into buckets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sdlora.config.shipped import resolve_folder
from sdlora.config.train import DEFAULT_EPOCHS, TrainConfig
from sdlora.data.batches import derive_seed
from sdlora.data.buckets import BucketedImage, assign
from sdlora.data.focus import focus_of
from sdlora.data.images import ImageRecord, ScanResult, Skipped, scan
from sdlora.data.planning import DataPlan, plan
from sdlora.data.scan_problems import Gathered
from sdlora.errors import ConfigError, DataError
from sdlora.words import as_typed, count, first_few


@dataclass(frozen=True)
class RunImages:
    """What is trained on and what is held out."""

    scan: ScanResult
    """All images found, class images included."""
    trained: list[ImageRecord]
    held_out: list[ImageRecord]
    placed: list[BucketedImage]
    """The trained images, once a resolution."""
    bucketed_held_out: list[BucketedImage]
    plan: DataPlan

    def total_steps(self, config: TrainConfig) -> int:
        """Optimizer updates of the whole run: as asked for, or what the epochs come to (the last may be short)."""
        optimization = config.optimization
        if optimization.steps is not None:
            return optimization.steps
        epochs = optimization.epochs or DEFAULT_EPOCHS
        # Rounded up: the last update takes the batches that it lacks from another epoch.
        return max(1, -(-self.plan.batches * epochs // optimization.accumulation))

    def steps_per_epoch(self, config: TrainConfig) -> float:
        """Optimizer updates in which every image is seen once; seldom a whole number."""
        return self.plan.batches / config.optimization.accumulation


def find_images(config: TrainConfig) -> RunImages:
    """Scan and place the run's images. Raises ConfigError without a folder, DataError for unusable images."""
    images = config.images
    if not images.sources:
        raise ConfigError("images.folder", ["no image folder is set: use --set images.folder=FOLDER"])
    problems, found = Gathered(), ScanResult()
    held_out_scan, held_out = ScanResult(), None
    has_class_folder = False
    with problems.go_on():
        has_class_folder = _has_class_folder(images.class_folder)
    with problems.go_on():
        scanned = images if has_class_folder else images.model_copy(update={"class_folder": None})
        found = _without_trained_class_images(scan(scanned, config.captions))
    if config.validation.folder is not None:
        with problems.go_on():
            held_out_scan = scan(images, config.captions, folders=[config.validation.folder])
            held_out = held_out_scan.records
    problems.refuse()
    own = [record for record in found.records if not record.is_class]
    if not own:
        raise DataError(
            f"all {len(found.records)} images are class images, so there is none of your subject to train: add its "
            "folder to images.folders without is_class"
        )
    trained, held_out = _hold_out(found.records, held_out, config)
    if all(record.is_class for record in trained):
        raise DataError(
            f"all {len(own)} training images are held out too, so none is left to train on: give "
            "validation.folder other images, or set validation.fraction=0"
        )
    if images.crop_focus == "face" and all(focus_of(record) is None for record in trained):
        raise DataError(
            f"images.crop_focus=face is set, but none of the names of the {len(trained)} images tells where its face "
            "is. Let them end in its centre and size in pixels, as in cat_512_300_200_220.png (sd-scripts' "
            "detect_face_rotate writes such names), or set images.crop_focus=centre"
        )
    found = replace(found, warnings=[*found.warnings, *held_out_scan.warnings])
    if config.objective.prior_preservation == "base_prediction":
        _refuse_priors_that_are_trained(trained, config.objective.prior_prompt)
    placed = assign(trained, images)
    # The plan counts what is trained, so held-out images are not in it.
    kept = ScanResult(trained, found.skipped, found.files_seen)
    return RunImages(
        scan=found,
        trained=trained,
        held_out=held_out,
        placed=placed,
        bucketed_held_out=assign(held_out, images),
        plan=plan(kept, placed, config.optimization.batch_size),
    )


def _refuse_priors_that_are_trained(records: list[ImageRecord], prompt: str) -> None:
    """Raise DataError where the prior term would hold the model to the base on the very captions that are trained."""
    own = [record for record in records if not record.is_class]
    same = [record for record in own if (prompt or record.prior_caption()) == record.plain_caption()]
    if not same:
        return
    names = ", ".join(record.path.name for record in same[:5]) + (", ..." if len(same) > 5 else "")
    why = "it is objective.prior_prompt" if prompt else "captions.trigger is not set or leaves nothing to take out"
    raise DataError(
        f"objective.prior_preservation=base_prediction would undo the training of {len(same)} of {len(own)} images "
        f"({names}): their prior caption is their training caption '{same[0].plain_caption()}', as {why}. Set "
        "captions.trigger to the word for your subject, or objective.prior_prompt to the words for its class."
    )


def _without_trained_class_images(found: ScanResult) -> ScanResult:
    """The same without class images that are trained too: held to the base, they would undo what is learned of them."""
    own = {record.content_hash for record in found.records if not record.is_class}
    twice = [record for record in found.records if record.is_class and record.content_hash in own]
    if not twice:
        return found
    words = f"{count(len(twice), 'class image')} left out, as the same pictures are trained"
    return replace(
        found,
        records=[record for record in found.records if record not in twice],
        skipped=[*found.skipped, *(Skipped(record.path, "a class image that is trained, too") for record in twice)],
        warnings=[*found.warnings, f"{words}: {first_few([record.path.name for record in twice])}"],
    )


def _has_class_folder(folder: Path | None) -> bool:
    """Whether there are class images in a folder. Raises DataError, with the command that generates them, for none."""
    if folder is None:
        return False
    folder = resolve_folder(folder).expanduser()
    if not (folder.is_dir() and any(folder.iterdir())):
        raise DataError(
            f"images.class_folder={folder} {'is empty' if folder.is_dir() else 'does not exist'}. Generate its images "
            f"with the base model: {as_typed('sdlora', 'dataset', 'class-images', '--out', folder)} --prompt"
            ' "a photo of a dog" --count 200 (with the same --preset and --set), the prompt being what your subject is'
            " one of."
        )
    return True


def _hold_out(
    records: list[ImageRecord], held_out: list[ImageRecord] | None, config: TrainConfig
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Split off the validation images: a folder's, or the share whose content's hash is lowest under the run's seed.

    held_out: the validation folder's. Copies of one image stay on one side. Class images are all trained: how they are
    predicted tells nothing of what is learned.
    """
    validation = config.validation
    if held_out is not None:
        inside = {record.content_hash for record in held_out}
        return [record for record in records if record.content_hash not in inside], held_out
    if validation.fraction == 0:
        return list(records), []
    own = [record for record in records if not record.is_class]
    hashes = {record.content_hash for record in own}
    number = max(1, round(validation.fraction * len(own)))
    if number >= len(hashes):
        raise DataError(
            f"validation.fraction={validation.fraction} would hold out all {len(own)} images; "
            "add images, or set validation.fraction=0"
        )
    # By a hash and not by shuffling: adding images moves few others over, and renaming moves none.
    ranked = sorted(hashes, key=lambda each: derive_seed(config.seed, "held out", each))
    chosen = set(ranked[:number])
    return (
        [record for record in records if record.content_hash not in chosen],
        [record for record in records if record.content_hash in chosen],
    )
