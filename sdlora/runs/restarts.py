"""Runs whose processes a launcher (torchrun's, accelerate's) starts again after one of them was lost.

The launcher repeats its command, and a `train` that is repeated must not begin another run. So a run notes which
launcher it began under; processes that are told to be a second try look for it.
"""

from __future__ import annotations

import os
from pathlib import Path

from sdlora.processes import ProcessRecord
from sdlora.runs.folder import RunFolder

_TRY_VARIABLE = "TORCHELASTIC_RESTART_COUNT"
_LAUNCHED_VARIABLE = "TORCHELASTIC_RUN_ID"


def is_under_launcher() -> bool:
    """Whether a launcher looks after this process, which starts all again where one ends with an error."""
    return _LAUNCHED_VARIABLE in os.environ


def note(folder: RunFolder) -> None:
    """Write down which launcher started this process, if one did."""
    if is_under_launcher():
        ProcessRecord.of(os.getppid()).write(folder.launcher)
    else:
        folder.launcher.unlink(missing_ok=True)


def begun(runs_folder: Path) -> Path | None:
    """The run that the processes before a restart had begun; None in a first try, or where they had not begun one."""
    if not is_under_launcher() or not int(os.environ.get(_TRY_VARIABLE, "0")):
        return None
    return begun_under(os.getppid(), runs_folder)


def begun_under(launcher: int, runs_folder: Path) -> Path | None:
    """The newest run in a folder that a launcher's processes began."""
    wanted = ProcessRecord.of(launcher)
    found = [
        path
        for path in (runs_folder.expanduser().iterdir() if runs_folder.expanduser().is_dir() else ())
        if (noted := ProcessRecord.read(RunFolder(path).launcher)) is not None
        and (noted.process_id, noted.started, noted.place) == (wanted.process_id, wanted.started, wanted.place)
    ]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
