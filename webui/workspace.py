"""Where the page keeps its files: one folder with datasets, runs, adapters and images in it."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_KEPT_SECONDS = 86400
"""As long as the page itself keeps uploads."""


@dataclass(frozen=True)
class Workspace:
    """Folders under one root. Creating the object touches nothing; `prepare` makes the folders."""

    root: Path

    @property
    def datasets(self) -> Path:
        """One folder a dataset: images and captions."""
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        """One folder a run, those of the command line included when it writes here."""
        return self.root / "runs"

    @property
    def adapters(self) -> Path:
        """Adapter files from elsewhere and mixed ones; finished runs' files are found in `runs`."""
        return self.root / "adapters"

    @property
    def models(self) -> Path:
        """Base models: files and diffusers folders."""
        return self.root / "models"

    @property
    def mixes(self) -> Path:
        """Saved mixes, one small YAML each."""
        return self.root / "mixes"

    @property
    def presets(self) -> Path:
        """A person's own presets; not `presets`, which in a checkout of the project holds the shipped ones."""
        return self.root / "my_presets"

    @property
    def outputs(self) -> Path:
        """Generated images."""
        return self.root / "outputs"

    @property
    def trash(self) -> Path:
        """What was deleted, until a person empties it."""
        return self.root / "trash"

    @property
    def internal(self) -> Path:
        """The page's own files: state, thumbnails, job logs."""
        return self.root / ".webui"

    @property
    def thumbnails(self) -> Path:
        """Small pictures of datasets and images, made once."""
        return self.internal / "thumbnails"

    @property
    def start_images(self) -> Path:
        """Start images and masks of requests, by their content."""
        return self.internal / "start_images"

    @property
    def uploads(self) -> Path:
        """What browsers sent, until it is taken to its place or a day is over."""
        return self.internal / "uploads"

    @property
    def exports(self) -> Path:
        """Files made for a download: tables, logs, support zips."""
        return self.internal / "exports"

    @property
    def jobs(self) -> Path:
        """One folder a background job."""
        return self.internal / "jobs"

    @property
    def state(self) -> Path:
        """Values of the page's fields."""
        return self.internal / "state.json"

    def prepare(self) -> None:
        """Make the folders that are missing."""
        for folder in (
            self.datasets,
            self.runs,
            self.adapters,
            self.models,
            self.mixes,
            self.outputs,
            self.trash,
            self.thumbnails,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self.jobs.mkdir(exist_ok=True)
        # Pictures of people, perhaps: nobody else's on a shared machine, whatever its umask says.
        self.uploads.mkdir(mode=0o700, exist_ok=True)
        self.forget_uploads()

    def forget_uploads(self) -> None:
        """Delete what killed servers and broken-off uploads left; what is new may be in use, by another server too."""
        oldest = time.time() - _KEPT_SECONDS
        for path in list(self.uploads.rglob("*")):
            with suppress(OSError):
                if not path.is_dir() and path.lstat().st_mtime < oldest:
                    path.unlink()
                    if path.parent != self.uploads:
                        path.parent.rmdir()  # fails where others lie beside it
