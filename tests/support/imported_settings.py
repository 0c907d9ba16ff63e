"""Importing settings that a test makes up, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from sdlora.config import files
from sdlora.imports.read import Imported, import_settings


def imported(tmp_path: Path, name: str, content: object) -> Imported:
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(yaml.safe_dump(content) if name.endswith(".yaml") else json.dumps(content), encoding="utf-8")
    return import_settings(path)


def read_back(result: Imported, tmp_path: Path) -> None:
    """The YAML that is written loads to the same configuration."""
    (tmp_path / "ours.yaml").write_text(result.as_yaml(), encoding="utf-8")
    assert files.load(tmp_path / "ours.yaml") == result.config


def lost_names(result: Imported) -> set[str]:
    return {sentence.partition("=")[0] for sentence in result.lost}


def told(result: Imported) -> str:
    """All that was lost or changed, a sentence a line."""
    return "\n".join([*result.lost, *result.changed])
