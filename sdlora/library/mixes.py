"""Mixes as small files: what `sdlora mix --config FILE` reads, made of the adapters in use, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sdlora import atomic
from sdlora.config import files
from sdlora.config.mix import MixConfig, MixedAdapter, parse_adapter
from sdlora.config.train import LONGEST_NAME_BYTES, is_device_name
from sdlora.disk import changed_at, is_file
from sdlora.errors import ConfigError
from sdlora.library.rows import Rows, from_used, only_taggable, used
from sdlora.library.scan import Scan

_SUFFIX = ".yaml"
_FORBIDDEN = re.compile(r'[\\/:*?"<>|=\x00-\x1f]')


def mixed(rows: Rows) -> list[MixedAdapter]:
    """The enabled rows as operands of a mix. Raises ConfigError for none, or for weights that change over the steps."""
    adapters = used(rows)
    problems = [
        f"{Path(adapter.file).stem}: sets in or ends during the steps, which a file can't hold; set start 0 and end 1"
        for adapter in adapters
        if (adapter.start, adapter.end) != (0.0, 1.0)
    ]
    if not adapters:
        problems.append("no adapter is switched on; add one from the library")
    if problems:
        raise ConfigError("the mix", problems)
    return [MixedAdapter(**adapter.model_dump(exclude={"start", "end"})) for adapter in adapters]


def mix_config(rows: Rows, settings: Mapping[str, Any]) -> MixConfig:
    """The checked mix of the enabled rows; settings: method, rank, ... Raises ConfigError with every problem."""
    values = {name: value for name, value in settings.items() if value is not None}
    return files.validate({"adapters": [one.model_dump() for one in mixed(rows)], **values}, "the mix", MixConfig)


def find_operands(texts: Sequence[str], library: Scan) -> list[MixedAdapter]:
    """Adapters as on the command line (`NAME:0.8`, `FILE:unet=0.6`), by path or library name.

    Raises ConfigError that names all that aren't there.
    """
    found, problems = [], []
    for text in texts:
        adapter = parse_adapter(text)
        if not adapter.file.startswith("hf://") and not Path(adapter.file).exists():
            try:
                adapter = adapter.model_copy(update={"file": str(library.find(adapter.file).path)})
            except ConfigError as error:
                problems += [f"{adapter.file}: {problem}" for problem in error.problems]
        found.append(adapter)
    if problems:
        raise ConfigError("the adapters", problems)
    return found


def list_mixes(folder: Path) -> list[str]:
    """Names of the saved mixes, newest first."""
    found = sorted(filter(is_file, folder.glob(f"*{_SUFFIX}")), key=changed_at, reverse=True)
    return [path.stem for path in found]


def save_mix(rows: Rows, name: str, folder: Path) -> Path:
    """Write the enabled rows as a mix. Raises ConfigError: nothing to save, a bad name, a name that is taken."""
    path = new_file(name, folder, _SUFFIX)
    adapters = [one.model_dump(mode="json", exclude_defaults=True) for one in mixed(rows)]
    write_yaml(path, {"adapters": adapters})
    return path


def load_mix(name: str, folder: Path, library: Scan) -> tuple[Rows, list[str]]:
    """The rows of a saved mix, and sentences on adapters that are gone or have a name that no tag can hold.

    One that moved is found by its name. Raises ConfigError when there is no such mix, when its file is damaged, or when
    none of its adapters is there.
    """
    if name not in list_mixes(folder):
        raise ConfigError("saved mixes", [f"there is none called '{name}'"])
    path = folder / f"{name}{_SUFFIX}"
    config = files.validate(files.read_yaml(path), path.name, MixConfig)
    adapters, notes = [], []
    for adapter in config.adapters:
        if adapter.file.startswith("hf://") or _is_there(adapter.file):
            adapters.append(adapter)
            continue
        try:
            entry = library.find(Path(adapter.file).stem)
        except ConfigError as error:
            notes += [f"{adapter.file} is gone, and {problem}" for problem in error.problems]
        else:
            adapters.append(adapter.model_copy(update={"file": str(entry.path)}))
    rows, others = only_taggable(from_used(adapters), library)
    notes += others
    if not rows:
        raise ConfigError(path.name, [*notes, "none of its adapters is there, so the rows stay as they are"])
    return rows, notes


def _is_there(file: str) -> bool:
    try:
        return Path(file).exists()
    except OSError:  # a name that is too long for the disk
        return False


def new_file(name: str, folder: Path, suffix: str) -> Path:
    """The path of a file to write. Raises ConfigError for an empty name, one no file can have, or one that is taken."""
    plain = name.strip().removesuffix(suffix)
    if not plain:
        raise ConfigError("the name", ["give a name for the new file"])
    if plain.startswith("."):
        raise ConfigError("the name", [f"'{name}': give a name that begins with a letter or a digit"])
    if (found := _FORBIDDEN.search(plain)) is not None:
        raise ConfigError("the name", [f"'{name}': a file name can't hold {found.group()!r}"])
    if is_device_name(plain):
        raise ConfigError("the name", [f"'{name}': Windows keeps it for devices"])
    if len(f"{plain}{suffix}".encode()) > LONGEST_NAME_BYTES:
        raise ConfigError("the name", [f"a name of {len(plain.encode())} bytes is too long"])
    path = folder / f"{plain}{suffix}"
    if path.exists():
        raise ConfigError("the name", [f"{path.name} exists already; choose another name"])
    return path


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as a YAML file in one go."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)
    atomic.write_text(path, text, parents=True)
