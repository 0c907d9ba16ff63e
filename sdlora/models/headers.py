"""What a weight file holds, read from its header alone: names, shapes, metadata. Milliseconds, no weights."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdlora.config.section import is_text
from sdlora.constants import MIB
from sdlora.errors import ModelError, SdloraError

LENGTH_BYTES = 8
"""A .safetensors file begins with its header's length, as 8 little-endian bytes."""
_WRAPPED = ("state_dict", "model", "module", "lora", "weights")
_ZIP = b"PK\x03\x04"
"""An archive, as torch.save makes them since 1.6."""
_BROKEN_ARCHIVE = (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error)
"""What zipfile says of a damaged one: by some of them that it can't decode a name, or doesn't know the version."""
PICKLE_STARTS = (_ZIP, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""That, and bare pickles of protocol 2 to 5."""
LONGEST_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`"),
    (b'{"', "JSON, such as a server's error or an index of several files, and holds no tensors"),
    (b"GGUF", "a GGUF file, whose quantised weights are not read; take the model or adapter as .safetensors"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a WebP picture"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
)


class HarmfulError(ModelError):
    """A pickle that holds more than plain tensors."""


@dataclass(frozen=True)
class Header:
    """Names and shapes of a file's tensors, and its metadata (empty for .ckpt)."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)

    def has(self, prefix: str) -> bool:
        """Whether any name begins with `prefix`."""
        return any(name.startswith(prefix) for name in self.shapes)


def read_header(path: Path, *, error: type[SdloraError] = ModelError, longest: int = LONGEST_HEADER_BYTES) -> Header:
    """The header of a .safetensors or .ckpt file.

    The safetensors library checks that the table makes sense and fits the file. `longest`: bytes that a header may
    have, refused before anything of it is read. Raises `error`, naming the file, when it can't be read.
    """
    if path.suffix.lower() in (".ckpt", ".pt"):
        return Header(path, {name: tuple(tensor.shape) for name, tensor in read_pickled(path).items()})
    if not is_text(str(path)):
        raise error(f"{path.name} can't be opened: its path isn't UTF-8, as safetensors wants it: rename it")
    try:
        size = path.stat().st_size
        length = header_length(path)
    except OSError as problem:
        raise error(f"{path.name} can't be opened: {problem.strerror or problem}") from problem
    # Before anything is read: a header that claims terabytes must not cost more than these eight bytes.
    if not 2 <= length <= min(size - LENGTH_BYTES, longest):
        # Only now: a true header's length may begin like anything.
        if what := looks_like(path):
            raise error(f"{path.name} is {what}")
        if _begins_like_pickle(path):
            raise error(f"{path.name} is a file of PyTorch's (a pickle) under another name; rename it to end in .ckpt")
        if longest < length <= min(size - LENGTH_BYTES, LONGEST_HEADER_BYTES):
            raise error(f"{path.name}: its header is of {length:,} bytes; up to {longest:,} are read")
        raise error(f"{path.name} is damaged or not a safetensors file: its header claims {length} of {size} bytes")
    try:
        # As numpy, since as torch the library would load torch; nothing is read but the header.
        with safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return Header(path, shapes, file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as problem:
        reason = str(problem).removeprefix("Error while deserializing header: ")
        if "not fully covered" in reason or "IncompleteBuffer" in reason:  # of today's library, and of that before 0.6
            reason = f"incomplete, {size:,} bytes are not what its header tells of; download or copy it again"
        raise error(f"{path.name} is damaged or not a safetensors file: {reason}") from problem


def read_table(path: Path) -> tuple[dict[str, Any], int]:
    """A .safetensors file's table of tensors as it stands, and where the data begin: to copy it byte by byte.

    Only for a file whose header `read_header` has accepted.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        table: dict[str, Any] = json.loads(file.read(length))
    table.pop("__metadata__", None)
    return table, LENGTH_BYTES + length


def looks_like(path: Path) -> str:
    """What a file is, by its first bytes, that people have under a weight file's name; empty for anything else."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "empty; download or copy it again"
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: its download was answered with one, as where a login is needed; download it again"
    if what := next((what for mark, what in _STARTS if start.startswith(mark)), ""):
        return what
    if start[LENGTH_BYTES:].startswith(b"{"):
        is_called_so = path.suffix.lower() == ".safetensors"
        return "" if is_called_so else "a safetensors file under another name; rename it to end in .safetensors"
    return "a zip archive; unpack it" if start.startswith(_ZIP) and _is_plain_archive(path) else ""


def _is_plain_archive(path: Path) -> bool:
    """Whether a file is a zip archive that torch.save did not make; False for a damaged one."""
    try:
        with zipfile.ZipFile(path) as opened:
            return all(name.rpartition("/")[2] != "data.pkl" for name in opened.namelist())
    except _BROKEN_ARCHIVE:
        return False


def _has_directory(path: Path) -> bool:
    """Whether a zip archive's directory, which stands at its end, is there and sound."""
    try:
        return zipfile.is_zipfile(path)
    except _BROKEN_ARCHIVE:
        return False


def header_length(path: Path) -> int:
    """Bytes that a .safetensors file's header takes, as the file's first 8 bytes claim."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(LENGTH_BYTES), "little")


def file_tensor_hash(path: Path) -> str:
    """sha256 of all bytes behind a .safetensors file's header: kohya's sshs_model_hash. Holds 1 MiB at a time."""
    with path.open("rb") as file:
        file.seek(LENGTH_BYTES + header_length(path))
        digest = hashlib.sha256()
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def unpickle(path: Path, *, mmap: bool = False) -> Any:
    """What torch.save wrote, on the CPU; nothing in it is executed. Raises whatever torch's reader stumbles over."""
    import torch

    # The first textual inversions keep their vectors in a ParameterDict, which holds parameters and does nothing.
    with warnings.catch_warnings(), torch.serialization.safe_globals([torch.nn.ParameterDict]):
        warnings.simplefilter("ignore", UserWarning)  # of pickle protocols, by number
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def read_pickled(path: Path) -> dict[str, Any]:
    """The tensors of a .ckpt file, mapped from disk where its format allows; nothing in it is executed.

    Raises HarmfulError where it holds more than plain tensors, ModelError where it holds none or is damaged.
    """
    import torch

    if path.is_file() and (what := looks_like(path)):
        raise ModelError(f"{path} is {what}")
    try:
        try:
            content = unpickle(path, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):  # files from before PyTorch 1.6 can't be mapped
                raise
            content = unpickle(path)
    except pickle.UnpicklingError as error:
        if not _begins_like_pickle(path):
            raise ModelError(f"{path}: is damaged or no file of PyTorch's; download or copy it again") from error
        raise HarmfulError(
            f"{path}: holds more than plain tensors, and loading it could run code; it is not opened. "
            "Convert it to .safetensors with a tool you trust, or get that version of the model."
        ) from error
    except Exception as error:
        # In bytes that are no checkpoint torch's reader stumbles wherever it happens to be: nothing to list.
        is_cut = path.is_file() and _begins_like_pickle(path, _ZIP) and not _has_directory(path)
        why = "incomplete; download or copy it again" if is_cut else error or type(error).__name__
        raise ModelError(f"{path}: can't be read as a checkpoint: {why}") from error
    what = _other_content(content)
    # Training scripts keep the weights one level down, beside the optimizer's.
    while isinstance(content, dict) and (inner := next((i for i in _WRAPPED if isinstance(content.get(i), dict)), "")):
        content = content[inner]
    content = {str(name): value for name, value in content.items()} if isinstance(content, dict) else {}
    if not any(isinstance(value, torch.Tensor) for value in content.values()):
        # by part of the model: {"unet": {...}, "text_encoder": {...}}
        parts = [(part, inner) for part, inner in content.items() if isinstance(inner, dict)]
        content = {f"{part}.{name}": value for part, inner in parts for name, value in inner.items()}
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    # A scale that stands there as a plain number is one all the same.
    for name, value in content.items() if tensors else ():
        if name.endswith(".alpha") and isinstance(value, (int, float)):
            tensors[name] = torch.tensor(float(value))
    if not tensors:
        raise ModelError(f"{path}: {what or 'holds no tensors'}")
    return tensors


def _begins_like_pickle(path: Path, *starts: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(LENGTH_BYTES).startswith(starts or PICKLE_STARTS)


def _other_content(content: Any) -> str:
    """What a file of PyTorch's is that has no tensors by name; empty where that isn't known."""
    import torch

    if isinstance(content, torch.Tensor):
        return "is a single tensor without a name, which is no adapter and no model (an aesthetic embedding is one)"
    if isinstance(content, list) and any(isinstance(one, torch.Tensor) for one in content):
        return "is a list of tensors without names, as the first LoRA tool wrote them, which is not read"
    if not isinstance(content, dict):
        return ""
    if any(isinstance(key, int) and isinstance(layers, (list, tuple)) for key, layers in content.items()):
        return "is a hypernetwork of AUTOMATIC1111, which is not read: it has layers of its own between the model's"
    return "is an optimizer's state and holds no weights" if "param_groups" in content else ""


def read_tensor(path: Path, name: str) -> Any:
    """One tensor of a file, on the CPU."""
    if path.suffix.lower() != ".safetensors":
        return read_pickled(path)[name]
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
