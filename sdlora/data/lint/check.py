"""Every rule over whole folders: what is wrong with a dataset before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sdlora.config import without_effect
from sdlora.config.calls import CheckDataset
from sdlora.config.files import validate
from sdlora.config.given import Values, train_config
from sdlora.config.shipped import resolve_folder
from sdlora.config.train import TrainConfig
from sdlora.data.buckets import assign
from sdlora.data.images import ImageRecord
from sdlora.data.lint.caption_rules import caption_findings
from sdlora.data.lint.duplicates import groups, near_duplicates
from sdlora.data.lint.findings import Finding, Report, worst_first
from sdlora.data.lint.image_rules import image_findings
from sdlora.data.lint.samples import Dataset, Sample, gather
from sdlora.data.scan_problems import class_images_are_trained, refuse_missing_folders
from sdlora.errors import DataError

_OF_WHAT_IS_LEARNED = ("trigger-inconsistent", "trigger-missing", "tag-everywhere")
"""Rules for captions that class images, which hold on to what is known, are to break."""


def check(
    config: TrainConfig | Values | Path | str,
    folders: Sequence[Path | str] | Path | str = (),
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """The report on the folders (by default images.folder) as `config` would train them.

    folders: `builtin:mascot` is a shipped set.
    config: as for `train`; `check_dataset("sdxl_character.yaml", ["my_pictures"])`.
    validation.folder is read too, to find copies of training images in it, and images.class_folder as a run reads it.
    Memory holds figures, never pixels.
    on_progress: called with how much of the folders is read and how much there is.
    Raises DataError for a folder that doesn't exist or has no images.
    """
    folders = validate({"folders": folders}, "check_dataset", CheckDataset).folders or ()
    config = train_config(config)
    named = (resolve_folder(folder) for folder in (folders or config.images.all_folders))
    roots = tuple(folder.expanduser().absolute() for folder in named)
    held_out, class_folder = (
        None if folder is None else resolve_folder(folder).expanduser().absolute()
        for folder in (config.validation.folder, config.images.class_folder)
    )
    refuse_missing_folders(roots)  # which says so where there is none
    refuse_missing_folders([*roots, *(folder for folder in (held_out, class_folder) if folder is not None)])
    if class_folder in roots:
        raise DataError(class_images_are_trained([class_folder]))
    apart = [] if class_folder is None else [class_folder]
    data = gather(roots, config.images, config.captions, apart=apart, on_progress=on_progress)
    findings = [*image_findings(data, config.images), *caption_findings(data, config), *_buckets(data, config)]
    findings += _duplicates(data.samples, config)
    if held_out is not None:
        findings += _leaks(data, gather([held_out], config.images, config.captions))
    num_images = len(data.samples) + len(data.broken)
    if class_folder is not None:
        class_data = gather([class_folder], config.images, config.captions, is_class=True, apart=roots)
        findings += image_findings(class_data, config.images)
        findings += (one for one in caption_findings(class_data, config) if one.rule not in _OF_WHAT_IS_LEARNED)
        num_images += len(class_data.samples) + len(class_data.broken)
        roots = (*roots, class_folder)
    told = without_effect.in_training(config)
    findings += [Finding("without-effect", one) for one in told if one.startswith(("images.", "captions."))]
    return Report(roots, num_images, worst_first(findings))


def exact_duplicates(records: Sequence[ImageRecord]) -> list[list[ImageRecord]]:
    """Groups of files with the same bytes; the one to keep first: one with a caption, then by path."""
    by_hash: dict[str, list[ImageRecord]] = {}
    for record in records:
        by_hash.setdefault(record.content_hash, []).append(record)
    return [
        sorted(same, key=lambda record: (not record.caption, record.path)) for same in by_hash.values() if len(same) > 1
    ]


def _buckets(data: Dataset, config: TrainConfig) -> Iterator[Finding]:
    """Buckets whose only image is alone in its batch, where batches are larger."""
    placed = assign(data.records, config.images)
    if config.optimization.batch_size == 1:
        return
    counts: Counter[object] = Counter()
    for item in placed:
        counts[item.placement.bucket] += item.record.repeats
    for item in placed:
        bucket = item.placement.bucket
        if counts[bucket] == 1 and len(counts) > 1:
            yield Finding(
                "lonely-bucket",
                f"the only image in bucket {bucket.width_px}x{bucket.height_px}: its batches hold 1 image, not "
                f"{config.optimization.batch_size}; crop it to the shape of others",
                (item.record.path,),
            )


def _duplicates(samples: Sequence[Sample], config: TrainConfig) -> Iterator[Finding]:
    copies = exact_duplicates([sample.record for sample in samples])
    for same in copies:
        captions = {record.caption for record in same}
        differ = "" if len(captions) == 1 else ", with different captions"
        yield Finding(
            "exact-duplicate",
            f"{len(same)} files with the same bytes{differ}",
            tuple(record.path for record in same),
        )
    # Exact copies were told of already, so each group is compared by its first file alone.
    left_out = {record.path for same in copies for record in same[1:]}
    different = [sample for sample in samples if sample.record.path not in left_out]
    may_leak = "; one of them may be held out by validation.fraction" if config.validation.fraction else ""
    for group in groups(near_duplicates([sample.measures for sample in different])):
        yield Finding(
            "near-duplicate",
            f"{len(group)} images look the same, so the picture counts {len(group)} times: keep the best{may_leak}",
            tuple(different[index].record.path for index in group),
        )


def _leaks(data: Dataset, held_out: Dataset) -> Iterator[Finding]:
    """Held-out images that are trained on in another form. (A run leaves exact copies out of training by itself.)"""
    hashes = {sample.record.content_hash for sample in held_out.samples}
    trained = [sample for sample in data.samples if sample.record.content_hash not in hashes]
    both = [*trained, *held_out.samples]
    for first, second in near_duplicates([sample.measures for sample in both]):
        if first < len(trained) <= second:
            yield Finding(
                "validation-leak",
                "a held-out image looks like a training image, so its loss tells nothing: take one of them out",
                (both[second].record.path, both[first].record.path),
            )
