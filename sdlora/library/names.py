"""The one rule by which a name means an adapter file, and files by their hash. Needs no torch.

A name is, from the most exact way of naming to the least: a file's whole path; its name with the folders between
(`styles/ink`); its name alone; and, when none of these fits to the letter, any of them in other capitals, or a name
that stands in its metadata (the trainer's ss_output_name, ModelSpec's title). Where several files are left none is
taken.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from sdlora.adapters.files.catalog import own_names
from sdlora.errors import ConfigError, ModelError
from sdlora.file_memory import while_unchanged
from sdlora.library.listing import SUFFIX, ListedFile, list_files
from sdlora.models.headers import file_tensor_hash, read_header

SHORT_HASH_LETTERS = 12
"""Letters of an adapter's hash in AUTOMATIC1111's texts and on model sites (AutoV3)."""
_KEPT = 4096
_LISTED = 8


class Placed(Protocol):
    """A file in a folder, as `listing.ListedFile` is."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def long_name(self) -> str: ...


class Named(Placed, Protocol):
    """The same with the names that stand in its metadata."""

    @property
    def own_names(self) -> tuple[str, ...]: ...


Adapter = TypeVar("Adapter", bound=Named)


class FoundAdapter(ListedFile):
    """A listed file whose metadata is read when asked for."""

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names that stand in its metadata; a file that can't be read has none."""
        return own_names(_metadata(self.path))


def resolve(name: str, adapters: Sequence[Adapter], where: str) -> Adapter:
    """The adapter that a name means. where: what was searched, for messages.

    Raises ConfigError for a name that none has (with the nearest ones), or that several have (with the choices).
    """
    found = matching(name, adapters)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"adapter '{name}'", [f"no adapter of that name is in {where}{_near(name, adapters)}"])
    names = unique_names(adapters)
    choices = sorted(f"{names[adapter.path]} ({_described(adapter, name)})" for adapter in found)[:_LISTED]
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise ConfigError(
        f"adapter '{name}'", [f"{len(found)} files may be meant: {', '.join(choices)}{more}; write one of these names"]
    )


def matching(name: str, adapters: Sequence[Adapter]) -> list[Adapter]:
    """All adapters that a name may mean: one if it is clear, none if it is nobody's."""
    wanted = name.replace("\\", "/").removesuffix(SUFFIX)
    exact: tuple[Callable[[Adapter], str], ...] = (_path, lambda each: each.long_name, lambda each: each.name)
    for name_of in exact:
        if found := [adapter for adapter in adapters if name_of(adapter) == wanted]:
            return found
    folded = wanted.casefold()
    return [adapter for adapter in adapters if folded in {each.casefold() for each in _names(adapter)}]


def unique_names(adapters: Sequence[Placed]) -> dict[Path, str]:
    """By path, the shortest name that `resolve` takes for that file alone."""
    names, long_names = Counter(each.name for each in adapters), Counter(each.long_name for each in adapters)
    unique = {}
    for adapter in adapters:
        name, long_name = adapter.name, adapter.long_name
        # A name that is some file's long name too means that one, as `matching` tries long names first.
        is_clear = long_names[name] == 1 and long_name == name if name in long_names else names[name] == 1
        unique[adapter.path] = name if is_clear else long_name if long_names[long_name] == 1 else _path(adapter)
    return unique


def list_adapters(folders: Sequence[Path]) -> list[FoundAdapter]:
    """Every adapter file in the folders and below. Raises ConfigError for folders that aren't there, all at once."""
    missing = [str(folder) for folder in folders if not folder.expanduser().is_dir()]
    if missing:
        raise ConfigError("adapter_folders", [f"{folder}: no such folder" for folder in missing])
    return [FoundAdapter(**vars(file)) for file in list_files(folders)]


def find_adapter(name: str, folders: Sequence[Path]) -> Path:
    """The adapter file of that name in the folders and below.

    Raises ConfigError when there is no folder to search, and as `resolve` does.
    """
    if not folders:
        raise ConfigError(f"adapter '{name}'", ["no folder to search for it; set adapter_folders (--adapter-folder)"])
    return resolve(name, list_adapters(folders), ", ".join(str(folder) for folder in folders)).path


def find_adapter_by_hash(hash_: str, folders: Sequence[Path]) -> Path | None:
    """The adapter file whose hash begins so; files whose metadata tell their hash are asked first."""
    wanted = hash_.lower()[:SHORT_HASH_LETTERS]
    # Fewer letters could be the beginning of several files' hashes.
    if len(wanted) < SHORT_HASH_LETTERS:
        return None
    adapters = _told_first(list_adapters(folders))
    return next((adapter.path for adapter in adapters if short_hash(adapter.path) == wanted), None)


def short_hash(path: Path) -> str:
    """The first 12 letters of the hash of a file's tensors; read from its metadata, else computed."""
    return (_metadata(path).get("sshs_model_hash") or file_tensor_hash(path))[:SHORT_HASH_LETTERS].lower()


@while_unchanged(_KEPT)
def _metadata(path: Path) -> dict[str, str]:
    try:
        return read_header(path).metadata
    except (ModelError, OSError):
        return {}


def _told_first(adapters: Sequence[FoundAdapter]) -> Iterator[FoundAdapter]:
    yield from sorted(adapters, key=lambda adapter: "sshs_model_hash" not in _metadata(adapter.path))


def _names(adapter: Named) -> tuple[str, ...]:
    return (adapter.name, adapter.long_name, *adapter.own_names)


def _path(adapter: Placed) -> str:
    return adapter.path.as_posix().removesuffix(SUFFIX)


def _described(adapter: Named, name: str) -> str:
    """Its place, and why the name may mean it where neither file nor folders are called so."""
    called = next((own for own in adapter.own_names if own.casefold() == name.casefold()), None)
    is_named = name.casefold() in (adapter.name.casefold(), adapter.long_name.casefold())
    return str(adapter.path) if is_named or called is None else f"{adapter.path}, which calls itself {called}"


def _near(name: str, adapters: Sequence[Named]) -> str:
    if not adapters:
        return f", which holds no {SUFFIX} file"
    names = {adapter.name.casefold(): adapter.name for adapter in adapters}
    near = difflib.get_close_matches(name.casefold(), list(names), n=_LISTED, cutoff=0.5)
    if near:
        return f"; near it: {', '.join(names[one] for one in near)}"
    shown = sorted(names.values())[:_LISTED]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"; there is: {', '.join(shown)}{more}"
