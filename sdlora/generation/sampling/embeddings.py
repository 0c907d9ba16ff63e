"""Which textual-inversion embeddings the prompts name: files of folders, and those that adapters bring with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdlora.adapters.files.embeddings import SUFFIXES, Embedding, read_embedding, tokens_in
from sdlora.errors import AdapterError, ConfigError
from sdlora.models.new_tokens import NewTokens, word_pattern
from sdlora.words import count, first_few

Source = Embedding | Path


@dataclass(frozen=True)
class ChosenEmbeddings:
    """The embeddings of a request. `names` in small letters."""

    tokens: NewTokens
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Those that are named but can't be used, so that their names are words."""
    unusable: tuple[str, ...] = ()
    """The names of those."""
    signature: tuple[tuple[str, ...], ...] = ()
    """Equal for embeddings that are the same."""


def choose_embeddings(
    texts: Sequence[str],
    folders: Sequence[Path],
    of_adapters: Mapping[str, Source],
    widths: Sequence[int],
    expected: Mapping[str, str] | None = None,
) -> ChosenEmbeddings:
    """Read what the texts name, as `embedding:name` or by its bare name.

    A folder's file goes by its name or, behind those of the adapters, by the token that it tells. of_adapters: by name
    in small letters. widths: of the model's text encoders. expected: adapters by the tokens, in small letters, that
    were trained with them. Raises ConfigError for folders that aren't there.
    """
    missing = [str(folder) for folder in folders if not folder.expanduser().is_dir()]
    if missing:
        raise ConfigError("embedding_folders", [f"{folder}: no such folder" for folder in missing])
    words: dict[str, list[Tensor]] = {}
    notes: list[str] = []
    unusable: list[str] = []
    whole = "\n".join(texts)
    by_name = _by_name(folders)
    files = {name: paths[0] for name, paths in by_name.items()}
    sources: dict[str, Source] = {**_by_token(folders), **of_adapters, **files}
    meant = _meant(sources, whole)
    for name, source in sources.items():
        if name not in meant:
            continue
        if others := _others(name, by_name.get(name, []), of_adapters):
            notes.append(f"'{name}' is {source}, the first of that name; not used: {first_few(others)}")
        try:
            embedding = read_embedding(source, name) if isinstance(source, Path) else source
            words[name] = embedding.for_widths(widths)
            if embedding.left_out:
                unused = f"{count(len(embedding.left_out), 'tensor')} of {name}"
                notes.append(f"{unused} not used, as no vectors of a word: {first_few(embedding.left_out)}")
        except AdapterError as error:
            notes.append(f"{error}: '{name}' is taken as words")
            unusable.append(name)
    notes += [
        f"{adapter} was trained with the new token {token}, but its embedding lies neither beside it nor in "
        f"embedding_folders: '{token}' is taken as words"
        for token, adapter in (expected or {}).items()
        if token not in sources and _meant([token], whole)
    ]
    tokens = NewTokens(words)
    return ChosenEmbeddings(
        tokens,
        tuple(words),
        tuple(notes),
        tuple(unusable),
        tuple((word, *tokens.signature(word)) for word in words),
    )


def _meant(names: Collection[str], text: str) -> set[str]:
    """Which of the names a text has, in small letters; as where it is encoded, the longest of those at one place."""
    return {match["word"].casefold() for match in word_pattern(names).finditer(text)} if names else set()


def _others(name: str, files: Sequence[Path], of_adapters: Mapping[str, Source]) -> list[str]:
    """What else has the name of the first of some files."""
    others = [str(path) for path in files[1:]]
    of_adapter = of_adapters.get(name)
    if files and of_adapter is not None and of_adapter not in files:
        others.append("that of an adapter")
    return others


def _by_name(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Files that may be embeddings, by name in small letters; the first of a name counts."""
    found: dict[str, list[Path]] = {}
    for path in _files(folders):
        paths = found.setdefault(path.stem.casefold(), [])
        if path not in paths:  # of folders that lie in each other
            paths.append(path)
    return found


def _by_token(folders: Sequence[Path]) -> dict[str, Path]:
    """Embeddings by the token that they tell, in small letters.

    Of one token the file that lies least deep counts, then the newest: a run's finished one, not those of checkpoints.
    """
    found: dict[str, Path] = {}
    for path in sorted(_files(folders), key=lambda path: (len(path.parts), -path.stat().st_mtime)):
        for token in tokens_in(path):
            found.setdefault(token.casefold(), path)
    return found


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        root = folder.expanduser()
        for path in sorted(root.rglob("*")):
            is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.suffix.lower() in SUFFIXES and not is_hidden and path.is_file():
                yield path
