"""Copies of the files that released versions made (`tests/data/released-*`, made by `released_files.py`)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
MADE_AT = "/studio"
"""Where the studio lay when it was made, as its files say."""
_TEXT = {".json", ".jsonl", ".yaml"}


@dataclass(frozen=True)
class Released:
    """A studio of the page as an old version left it."""

    root: Path
    losses: tuple[float, ...]
    """The loss of each step of the old version's uninterrupted run."""

    @property
    def runs(self) -> Path:
        """`ink`, finished, in diffusers' layout, and `stopped`, in kohya's, which stopped after 3 of 6 steps."""
        return self.root / "runs"


def open_studio(version: str, root: Path) -> Released:
    """Copy the studio of a version to `root`, which its files then name as their place."""
    folder = DATA / f"released-{version}"
    shutil.copytree(folder / "studio", root)
    for path in root.rglob("*"):
        if path.suffix in _TEXT and path.is_file():
            text = path.read_text(encoding="utf-8").replace(MADE_AT, root.as_posix())
            path.write_text(text, encoding="utf-8", newline="\n")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return Released(root, tuple(facts["losses"]))
