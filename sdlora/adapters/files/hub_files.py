"""Where an adapter lies: a file, the folder of one as PEFT and diffusers save it, or `hf://owner/name[/file]`."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path, PurePosixPath

from sdlora.errors import AdapterError
from sdlora.models.hub import explained

_SPELLED = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>.+))?")
"""One slash is enough: that is what pathlib leaves of two."""


PEFT_CONFIG = "adapter_config.json"
"""PEFT keeps an adapter's scale in a file beside it."""
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_IN_FOLDERS = (*PEFT_FILES, "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
"""What PEFT and diffusers call the file in a folder that they save."""


def local_file(source: Path | str) -> Path:
    """The file itself, that of a folder, or a downloaded copy of `hf://owner/name/file` (or the repository's only one).

    Raises AdapterError (no adapter there, or several) and ModelError (no such repository, no network).
    """
    match = _SPELLED.fullmatch(Path(source).as_posix() if isinstance(source, Path) else source)
    if match is None:
        if str(source).startswith("hf:"):
            raise AdapterError(f"'{source}': write hf://owner/name or hf://owner/name/file.safetensors")
        path = Path(source).expanduser()
        return _file_in(path) if path.is_dir() else path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository = match["repo"]
    with explained(repository, None):
        try:
            name = match["file"] or _only_file(repository)
            path = Path(hf_hub_download(repository, name))
            if path.name in PEFT_FILES:
                # PEFT keeps the scale beside its tensors, and a lone file would be taken at the wrong strength.
                _download_beside(repository, name)
            return path
        # A kind of the next one that means no network: it must not be told as a missing file.
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise AdapterError(f"hub repository '{repository}' has no file {match['file']}") from error


def _file_in(folder: Path) -> Path:
    """The adapter of a folder. Raises AdapterError when there is none, or it isn't clear which."""
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if not found:
        below = [path.parent.name for path in sorted(folder.glob("*/adapter_model.*"))]
        does = "does: name that" if len(below) == 1 else "do: name one of them"
        hint = f"; {' and '.join(below)} in it {does}" if below else ""
        raise AdapterError(f"{folder}: this folder holds no adapter file{hint}")
    raise AdapterError(
        f"{folder}: this folder holds {len(found)} .safetensors files; name one, such as {found[0].name}"
    )


def _download_beside(repository: str, name: str) -> None:
    """PEFT's settings beside its file, into the same folder of the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    with suppress(EntryNotFoundError):
        hf_hub_download(repository, (PurePosixPath(name).parent / PEFT_CONFIG).as_posix())


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
