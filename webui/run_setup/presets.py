"""Presets to begin from: those that come with sdlora and those that a person saved."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.config import files
from sdlora.config.train import TrainConfig
from sdlora.errors import ConfigError

FOLDER = "my_presets"
"""Below the workspace; not `presets`, which in a checkout of the project holds the shipped ones."""
PLAIN = "none"
"""Stands for no preset: every setting at its default."""
_PLAIN_LABEL = "no preset: every setting at its default"


@dataclass(frozen=True)
class Preset:
    """A file of settings that the Train tab offers."""

    name: str
    """What the command line takes after --preset: a shipped preset's file name, or a path."""
    path: Path
    is_shipped: bool

    @property
    def label(self) -> str:
        """Name and purpose, in one line."""
        purpose = files.purpose(self.path)
        own = "" if self.is_shipped else " (yours)"
        return f"{self.path.stem}{own}: {purpose}" if purpose else f"{self.path.stem}{own}"


def find_presets(folder: Path) -> list[Preset]:
    """A person's own presets in a folder, then the shipped ones, the demo first."""
    own = [Preset(str(path), path, False) for path in sorted(folder.glob("*.yaml"))]
    shipped = [Preset(path.name, path, True) for path in files.shipped_presets()]
    return own + sorted(shipped, key=lambda preset: preset.name != "demo.yaml")


def choices(folder: Path) -> list[tuple[str, str]]:
    """Label and name of each preset, and of none."""
    return [*((preset.label, preset.name) for preset in find_presets(folder)), (_PLAIN_LABEL, PLAIN)]


def about(name: str) -> str:
    """What a preset's header says of it, as HTML: base model, memory, time."""
    if name == PLAIN:
        return ""
    facts = [line.lstrip("# ").partition(": ") for line in _header(files.find(name))]
    rows = "".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(text)}</dd>"
        for label, _, text in facts
        if text and label != "Command"
    )
    return f'<dl class="preset-facts">{rows}</dl>' if rows else ""


def _header(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        yield line


def load(name: str | None) -> TrainConfig:
    """The configuration of a preset. Raises ConfigError when there is none of that name, or it is damaged."""
    if name is None or name == PLAIN:
        return TrainConfig()
    path = files.find(name)
    return _load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _load(path: Path, changed: int) -> TrainConfig:
    return files.load(path)


def save(config: TrainConfig, name: str, folder: Path, purpose: str = "") -> Preset:
    """Keep settings as a preset of one's own. Raises ConfigError for a name that is taken or can't be a file's."""
    stem = name.strip()
    if not re.fullmatch(r"[\w.+() -]+", stem) or stem != stem.strip("."):
        raise ConfigError("the preset's name", [f"'{stem}': use letters, digits, spaces, _ - + . ( )"])
    path = folder / f"{stem}.yaml"
    if path.exists():
        raise ConfigError("the preset's name", [f"'{stem}' is taken: choose another one, or delete {path}"])
    folder.mkdir(parents=True, exist_ok=True)
    header = f"# Purpose: {' '.join(purpose.split())}\n" if purpose.strip() else ""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(header + files.dump(config, only_changes=True), encoding="utf-8")
    unfinished.replace(path)
    return Preset(str(path), path, False)
