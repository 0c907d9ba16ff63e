"""What a captioning has come to, kept so that killed at any moment and started again it loses and repeats nothing.

    <dataset>/.sdlora-trash/<time>/captions.jsonl   the settings; one line for each group of images, written before
                                                     their captions are; a last line when all is done
    <dataset>/.sdlora-trash/<time>/process.json     who is at it

It lies in the folder of its changes (see `fix.changes`), so that `undo` takes both away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdlora.config.captioning import CaptioningConfig
from sdlora.data.fix.changes import ChangeSet, append_line, batch_folders, fix_last_line, hash_of, with_text
from sdlora.errors import DataError
from sdlora.processes import ProcessRecord

_JOURNAL, PROCESS = "captions.jsonl", "process.json"


@dataclass(frozen=True)
class Written:
    """A caption on its way into a file."""

    image: str
    """Path below the dataset."""
    before: str | None
    """Hash of the caption file as it was, None if there was none."""
    text: str
    """What is written; nothing is when it is empty."""

    @classmethod
    def plan(cls, folder: Path, image: Path, text: str) -> Written:
        """The caption of an image below `folder`, its file being as it is now."""
        return cls(image.relative_to(folder).as_posix(), hash_of(image.with_suffix(".txt")), text)


class Journal:
    """One captioning of a dataset: what was done of it, and the batch of changes that `undo` takes back."""

    def __init__(self, folder: Path, batch: ChangeSet, groups: Sequence[Sequence[Written]]) -> None:
        self._folder, self._batch, self._groups = folder, batch, list(groups)
        ProcessRecord.of(os.getpid()).write(self.process_file)

    @classmethod
    def open(cls, folder: Path, config: CaptioningConfig) -> Journal:
        """Go on with what the same settings left unfinished in a dataset (resolved), else begin.

        Raises DataError while another process is at it, or when the trash can't be written.
        """
        # What decides the captions; speed doesn't
        settings = config.model_dump(mode="json", exclude={"batch_size", "device"})
        batches = batch_folders(folder)
        _refuse_second_process(folder, batches)
        # Only with the same settings: captions of two models in one set would be nobody's wish.
        unfinished = [path for path in batches if _is_unfinished(path, settings)]
        groups = _groups(_lines(unfinished[-1])) if unfinished else []
        if unfinished and unfinished[-1] == batches[-1]:
            fix_last_line(unfinished[-1] / _JOURNAL)
            return cls(folder, ChangeSet(folder, unfinished[-1]), groups)
        # Other changes were made since: `undo` must meet them first, so this becomes a batch of its own.
        batch = ChangeSet.begin(folder)
        known = [asdict(written) for group in groups for written in group]
        append_line(batch.path / _JOURNAL, {"settings": settings, "captions": known})
        return cls(folder, batch, groups)

    @property
    def process_file(self) -> Path:
        """The record of this process, to be touched while it lives."""
        return self._batch.path / PROCESS

    @property
    def done(self) -> set[str]:
        """Images that have their caption, as paths below the dataset."""
        return {written.image for group in self._groups for written in group}

    def repeat_last(self) -> None:
        """Write the captions of the last group that a crash kept from their files."""
        for written in self._groups[-1] if self._groups else ():
            self._write(written)

    def add(self, group: Sequence[Written]) -> None:
        """Write captions: first all of them into the journal, then each into its file."""
        append_line(self._batch.path / _JOURNAL, {"captions": [asdict(written) for written in group]})
        self._groups.append(group)
        # After the journal: a crash between the two leaves captions that the next call finds and writes.
        for written in group:
            self._write(written)

    def finish(self) -> Path | None:
        """Close the journal; returns the folder with the originals, None when nothing was changed."""
        append_line(self._batch.path / _JOURNAL, {"finished": True})
        self.process_file.unlink(missing_ok=True)
        if self._batch.is_empty:
            (self._batch.path / _JOURNAL).unlink()
            for folder in (self._batch.path, self._batch.path.parent):
                with suppress(OSError):  # not empty: older changes are in it
                    folder.rmdir()
            return None
        return self._batch.path

    def _write(self, written: Written) -> None:
        path = (self._folder / written.image).with_suffix(".txt")
        if not written.text or hash_of(path) != written.before:  # written already, or changed by hand since
            return
        self._batch.make(with_text(("caption",), path, written.text))


def _refuse_second_process(folder: Path, batches: Sequence[Path]) -> None:
    for batch in batches:
        record = ProcessRecord.read(batch / PROCESS)
        if record and record.process_id != os.getpid() and record.is_alive(batch / PROCESS):
            raise DataError(
                f"{folder} is being captioned already, by process {record.process_id}: let it end, or stop it."
            )


def _is_unfinished(batch: Path, settings: dict[str, Any]) -> bool:
    lines = _lines(batch)
    return bool(lines) and lines[0].get("settings") == settings and not lines[-1].get("finished")


def _lines(batch: Path) -> list[dict[str, Any]]:
    """The journal's lines; a last one cut off by a crash is none."""
    lines: list[dict[str, Any]] = []
    with suppress(OSError):
        for line in (batch / _JOURNAL).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def _groups(lines: Sequence[dict[str, Any]]) -> list[list[Written]]:
    return [[Written(**values) for values in line["captions"]] for line in lines if "captions" in line]
