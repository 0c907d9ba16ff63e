"""Wrong paths told at once: the commands that need them would first load torch, which takes eight seconds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sdlora import disk
from sdlora.errors import AdapterError, ConfigError
from sdlora.words import wrong_ending

_MODEL_SUFFIXES = (".safetensors", ".ckpt")


def require_files(
    adapters: Iterable[str | None],
    models: Iterable[str | None] = (),
    *,
    out: Path | None = None,
    suffix: str | None = None,
    force: bool = False,
) -> None:
    """Raise AdapterError, or a ConfigError that lists several, for what the library would refuse after loading.

    adapters, models: as they were given; names on the hub are left to it. out: where a new file goes, whose name must
    end in `suffix`.
    """
    problems = [
        _missing(name)
        for name in adapters
        if name is not None and not name.startswith("hf:") and not Path(name).expanduser().exists()
    ]
    for name in models:
        # A hub name looks like a folder's, so only what can be nothing but a file is judged here.
        if name is not None and name.endswith(_MODEL_SUFFIXES) and not Path(name).expanduser().exists():
            problems.append(f"{name}: no such file")
    if out is not None and suffix is not None and (wrong := wrong_ending(out, suffix)):
        problems.append(wrong)
    elif out is not None and out.exists() and not force:
        problems.append(f"{out} exists already; choose another name, or give --force to replace it")
    elif out is not None and (why := disk.why_not_writable(Path(os.path.realpath(out)).parent)):
        problems.append(f"{out}: {why}")
    if len(problems) == 1:
        raise AdapterError(problems[0])
    if problems:
        raise ConfigError("the command line", problems)


def _missing(name: str) -> str:
    """What to say of an adapter that isn't there; of one with something behind a colon, that this is no weight."""
    file, colon, rest = name.rpartition(":")
    if colon and Path(file).expanduser().exists():
        return f"{file}:{rest}: '{rest}' is no weight: write a number, with a point and no comma, such as {file}:0.8"
    return f"{name}: there is no such file"
