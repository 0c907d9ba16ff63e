"""Folders and files that a configuration names and that are not there: told at once, nothing opened."""

from __future__ import annotations

from pathlib import Path

from sdlora.config.shipped import resolve_folder
from sdlora.config.train import TrainConfig
from sdlora.data.folder_listing import list_folder
from sdlora.data.scan_problems import dataset_meant
from sdlora.errors import SdloraError
from sdlora.models.source import locate


def missing_paths(config: TrainConfig, no_folder: str = "choose a dataset") -> list[str]:
    """A sentence for each, beginning with its setting's name; also for a folder without images.

    no_folder: what to do where no image folder is set.
    """
    problems = []
    if not config.images.all_folders:
        problems.append(f"images.folder: {no_folder}")
    named = {"images.class_folder": config.images.class_folder, "validation.folder": config.validation.folder}
    folders = [*(("images.folder", path) for path in config.images.all_folders), *named.items()]
    problems += [text for name, path in folders if path is not None and (text := _folder_problem(name, path))]
    models = {"base_model.model": config.base_model.model, "base_model.vae": config.base_model.vae}
    models["previews.base_model"] = config.previews.base_model
    for name, model in models.items():
        try:
            if model is not None:
                locate(model)
        except SdloraError as error:
            problems.append(f"{name}: {error}")
    files = {"adapter.start_from": config.adapter.start_from}
    files |= {f"base_model.adapters.{index}": each.file for index, each in enumerate(config.base_model.adapters)}
    files |= {f"previews.adapters.{index}": each.file for index, each in enumerate(config.previews.adapters)}
    for name, file in files.items():
        if file is not None and not file.startswith("hf:") and not Path(file).expanduser().exists():
            problems.append(f"{name}: no such file: {file}")
    return problems


def _folder_problem(name: str, folder: Path) -> str | None:
    folder = resolve_folder(folder).expanduser()
    if not folder.is_dir():
        return f"{name}: there is no folder {folder}{dataset_meant(folder)}"
    try:
        list_folder(folder.absolute())
    except SdloraError as error:
        return f"{name}: {error}"
    return None
