"""Adapter files on the Hugging Face hub: `hf://owner/name[/file]` to a local, cached file."""

from __future__ import annotations

import re
from pathlib import Path

from sdlora.errors import AdapterError
from sdlora.models.hub import explained

_SPELLED = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>.+))?")
"""One slash is enough: that is what pathlib leaves of two."""


def local_file(source: Path | str) -> Path:
    """The file itself, or the downloaded copy of `hf://owner/name/file`; without a file the repository's only one.

    Raises AdapterError (no .safetensors there, or several) and ModelError (no such repository, no network).
    """
    match = _SPELLED.fullmatch(Path(source).as_posix() if isinstance(source, Path) else source)
    if match is None:
        if str(source).startswith("hf:"):
            raise AdapterError(f"'{source}': write hf://owner/name or hf://owner/name/file.safetensors")
        return Path(source).expanduser()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = match["repo"]
    with explained(repository, None):
        try:
            return Path(hf_hub_download(repository, match["file"] or _only_file(repository)))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise AdapterError(f"hub repository '{repository}' has no file {match['file']}") from error


def _only_file(repository: str) -> str:
    from huggingface_hub import HfApi

    names = [name for name in HfApi().list_repo_files(repository) if name.endswith(".safetensors")]
    if len(names) == 1:
        return names[0]
    if not names:
        raise AdapterError(f"hub repository '{repository}' holds no .safetensors file")
    raise AdapterError(
        f"hub repository '{repository}' holds {len(names)} .safetensors files; name one, for example "
        f"hf://{repository}/{names[0]}"
    )
