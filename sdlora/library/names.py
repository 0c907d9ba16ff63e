"""Adapter files by the name, alias or hash that prompts and pictures know them by. Needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdlora.errors import ConfigError, ModelError
from sdlora.models.headers import file_tensor_hash, read_header

SHORT_HASH_LETTERS = 12
"""Letters of an adapter's hash in AUTOMATIC1111's texts and on model sites (AutoV3)."""
_LISTED = 8


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter file; `folder` is the searched one it lies in or below."""

    path: Path
    folder: Path

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def long_name(self) -> str:
        """The name with the folders between: styles/ink."""
        return self.path.relative_to(self.folder).with_suffix("").as_posix()

    @property
    def alias(self) -> str | None:
        """The name that the trainer wrote into the file (ss_output_name), which AUTOMATIC1111 takes too."""
        alias = _metadata(self.path, self.path.stat().st_mtime_ns)[0]
        return alias if alias and alias.lower() != "none" else None

    def short_hash(self) -> str:
        """The first 12 letters of the hash of its tensors; read from its metadata, else computed."""
        known = _metadata(self.path, self.path.stat().st_mtime_ns)[1]
        return (known or file_tensor_hash(self.path))[:SHORT_HASH_LETTERS].lower()


@lru_cache(maxsize=4096)
def _metadata(path: Path, _changed: int) -> tuple[str | None, str | None]:
    """Alias and hash as the file tells them; a file that can't be read has none."""
    try:
        metadata = read_header(path).metadata
    except (ModelError, OSError):
        return None, None
    return metadata.get("ss_output_name"), metadata.get("sshs_model_hash")


def list_adapters(folders: Sequence[Path]) -> list[FoundAdapter]:
    """Every .safetensors file in the folders and below them, each once, sorted by name within its folder.

    Raises ConfigError for folders that aren't there, all at once.
    """
    missing = [str(folder) for folder in folders if not folder.expanduser().is_dir()]
    if missing:
        raise ConfigError("adapter_folders", [f"{folder}: no such folder" for folder in missing])
    found: dict[Path, FoundAdapter] = {}
    for folder in folders:
        root = folder.expanduser()
        for path in sorted(root.rglob("*.safetensors")):
            if path.is_file() and not path.name.startswith("."):
                found.setdefault(path.resolve(), FoundAdapter(path, root))
    return list(found.values())


def find_adapter(name: str, folders: Sequence[Path]) -> Path:
    """The adapter file of that name in the folders and below: by file name, else by alias.

    `styles/ink` names the file in that subfolder. Raises ConfigError: no folder to search, nothing of that name (with
    the nearest names), or several files (with their places).
    """
    if not folders:
        raise ConfigError(f"adapter '{name}'", ["no folder to search for it; set adapter_folders (--adapter-folder)"])
    wanted = name.replace("\\", "/").removesuffix(".safetensors")
    adapters = list_adapters(folders)
    for matching in _matches(wanted, adapters):
        if len(matching) == 1:
            return matching[0].path
        if matching:
            places = ", ".join(str(adapter.path) for adapter in matching[:_LISTED])
            longest = matching[0].long_name
            raise ConfigError(
                f"adapter '{name}'",
                [f"{len(matching)} files are called so: {places}; name the folder too, such as {longest}"],
            )
    searched = ", ".join(str(folder) for folder in folders)
    raise ConfigError(f"adapter '{name}'", [f"nothing of that name in {searched}{_near(wanted, adapters)}"])


def find_adapter_by_hash(short_hash: str, folders: Sequence[Path]) -> Path | None:
    """The adapter file whose hash begins so; files whose metadata tell their hash are asked first."""
    wanted = short_hash.lower()[:SHORT_HASH_LETTERS]
    if len(wanted) < SHORT_HASH_LETTERS:
        return None
    adapters = list_adapters(folders)
    for adapter in _told_first(adapters):
        if adapter.short_hash() == wanted:
            return adapter.path
    return None


def _told_first(adapters: Sequence[FoundAdapter]) -> Iterator[FoundAdapter]:
    tells = {adapter: _metadata(adapter.path, adapter.path.stat().st_mtime_ns)[1] is not None for adapter in adapters}
    yield from sorted(adapters, key=lambda adapter: not tells[adapter])


def _matches(wanted: str, adapters: Sequence[FoundAdapter]) -> Iterator[list[FoundAdapter]]:
    """What matches the name, from the most exact way of naming to the least."""
    yield [adapter for adapter in adapters if adapter.long_name == wanted]
    yield [adapter for adapter in adapters if adapter.name == wanted]
    yield [adapter for adapter in adapters if adapter.alias == wanted]
    yield [adapter for adapter in adapters if adapter.name.casefold() == wanted.casefold()]


def _near(wanted: str, adapters: Sequence[FoundAdapter]) -> str:
    if not adapters:
        return ", which hold no .safetensors file"
    names = {adapter.name.casefold(): adapter.name for adapter in adapters}
    near = difflib.get_close_matches(wanted.casefold(), list(names), n=_LISTED, cutoff=0.5)
    if near:
        return f"; near it: {', '.join(names[one] for one in near)}"
    shown = sorted(names.values())[:_LISTED]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; there is: {', '.join(shown)}{more}"
