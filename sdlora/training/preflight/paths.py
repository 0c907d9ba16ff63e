"""Folders and files that a configuration names and that are not there: told at once, nothing opened."""

from __future__ import annotations

from pathlib import Path

from sdlora.config.train import TrainConfig
from sdlora.data.images import list_folder
from sdlora.errors import SdloraError

_FILE_SUFFIXES = (".safetensors", ".ckpt")


def missing_paths(config: TrainConfig) -> list[str]:
    """A sentence for each, beginning with its setting's name; also for a folder without images."""
    problems = []
    if not config.images.all_folders:
        problems.append("images.folder: choose a dataset")
    named = {"images.class_folder": config.images.class_folder, "validation.folder": config.validation.folder}
    folders = [*(("images.folder", path) for path in config.images.all_folders), *named.items()]
    problems += [text for name, path in folders if path is not None and (text := _folder_problem(name, path))]
    model = Path(config.base_model.model).expanduser()
    if (model.suffix in _FILE_SUFFIXES or model.is_absolute()) and not model.exists():
        problems.append(f"base_model.model: there is no {model}")
    return problems


def _folder_problem(name: str, folder: Path) -> str | None:
    folder = folder.expanduser()
    if not folder.is_dir():
        return f"{name}: there is no folder {folder}"
    try:
        list_folder(folder.absolute())
    except SdloraError as error:
        return f"{name}: {error}"
    return None
