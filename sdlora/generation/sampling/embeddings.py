"""Which textual-inversion embeddings the prompts name: files of folders, and those bundled with an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdlora.adapters.files.embeddings import SUFFIXES, Embedding, read_embedding
from sdlora.errors import AdapterError, ConfigError
from sdlora.models.new_tokens import NewTokens


@dataclass(frozen=True)
class ChosenEmbeddings:
    """The embeddings of a request. `names` in small letters."""

    tokens: NewTokens
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Those that are named but can't be used, so that their names are words."""


def choose_embeddings(
    texts: Sequence[str], folders: Sequence[Path], bundled: Mapping[str, Embedding], widths: Sequence[int]
) -> ChosenEmbeddings:
    """Read what the texts name, as `embedding:name` or by its bare name; a folder's file goes before a bundled one.

    widths: of the model's text encoders. Raises ConfigError for folders that aren't there.
    """
    missing = [str(folder) for folder in folders if not folder.expanduser().is_dir()]
    if missing:
        raise ConfigError("embedding_folders", [f"{folder}: no such folder" for folder in missing])
    words: dict[str, list[Tensor]] = {}
    notes: list[str] = []
    whole = "\n".join(texts)
    sources: dict[str, Embedding | Path] = {**bundled, **_files(folders)}
    for name, source in sources.items():
        if not re.search(rf"(?<!\w)(?:embedding:)?{re.escape(name)}(?!\w)", whole, re.IGNORECASE):
            continue
        try:
            embedding = read_embedding(source) if isinstance(source, Path) else source
            words[name] = embedding.for_widths(widths)
        except AdapterError as error:
            notes.append(f"{error}: '{name}' is taken as words")
    return ChosenEmbeddings(NewTokens(words), tuple(words), tuple(notes))


def _files(folders: Sequence[Path]) -> dict[str, Path]:
    """Files that may be embeddings, by name in small letters; the first of a name counts."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.expanduser().rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                found.setdefault(path.stem.casefold(), path)
    return found
