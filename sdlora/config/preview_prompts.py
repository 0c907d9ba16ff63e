"""Preview prompts with options of their own, as sd-scripts writes them: one line a prompt, or a file.

    a fox in snow --n blurry --w 768 --h 512 --d 42 --l 6 --s 20 --ss euler_a --am 0.8

    --n  negative prompt     --w, --h  size in pixels     --d  seed      --l  guidance
    --s  sampling steps      --ss      sampler            --am  weight of the adapter

What a line doesn't say is taken from the `previews` settings. A file may be text (one prompt a line, # for comments),
TOML (`[prompt]` with `[[prompt.subset]]`) or JSON (a list of objects) with sd-scripts' names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sdlora.config.generate import Sampler
from sdlora.constants import LARGEST_EDGE_PX
from sdlora.text_files import UnreadableTextError, parse_toml, parse_written_json, read_text

# Only before a word of letters: "a -- b" and "--5" are prompt.
_OPTION = re.compile(r"\s--(?=[A-Za-z][\w-]*(?:[\s=]|$))")
_KOHYA_SAMPLERS: dict[str, Sampler] = {
    "ddim": "DDIM",
    "euler": "Euler",
    "k_euler": "Euler",
    "euler_a": "Euler a",
    "k_euler_a": "Euler a",
    "heun": "Heun",
    "dpmsolver++": "DPM++ 2M",
}
_BY_NAME: dict[str, Sampler] = {name.lower(): name for name in get_args(Sampler)} | _KOHYA_SAMPLERS
LETTERS = {
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "scale": "l",
    "sample_steps": "s",
    "sample_sampler": "ss",
}
"""sd-scripts' names in TOML and JSON, as options of a line."""


@dataclass(frozen=True)
class PreviewPrompt:
    """One prompt; None is left to the `previews` settings. Sizes in pixels."""

    prompt: str
    negative: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    seed: int | None = None
    guidance: float | None = None
    steps: int | None = None
    sampler: Sampler | None = None
    adapter_weight: float | None = None


def parse_preview(line: str) -> PreviewPrompt:
    """The prompt and its options. Raises ValueError that names every option that can't be read."""
    # With a blank in front, so that a line that begins with an option has an empty prompt.
    prompt, *options = _OPTION.split(f" {line.strip()}")
    values: dict[str, Any] = {}
    problems = []
    for option in options:
        name, text = re.fullmatch(r"([\w-]+)[\s=]?(.*)", option, re.DOTALL).groups()  # type: ignore[union-attr]
        if name not in _OPTIONS:
            problems.append(
                f"--{name} is no option of a preview; there are {', '.join(f'--{each}' for each in _OPTIONS)}"
            )
            continue
        setting, read = _OPTIONS[name]
        try:
            values[setting] = read(text.strip())
        except ValueError as error:
            problems.append(f"--{name} {text.strip()}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return PreviewPrompt(prompt.strip(), **values)


def read_preview_file(path: Path) -> list[str]:
    """The lines of a prompt file, as `parse_preview` takes them. Raises ValueError for a file that can't be read."""
    try:
        text = read_text(path.expanduser())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from None
    except UnreadableTextError as error:
        raise ValueError(f"{path} {error}") from None
    suffix = path.suffix.lower()
    try:
        if suffix in (".json", ".toml"):
            return [_line(entry, path) for entry in prompts_in(text, suffix)]
    except ValueError as error:
        # Our own sentences name the file already.
        if str(path) in str(error):
            raise
        if str(error).startswith("must hold"):
            raise ValueError(f"{path} {error}") from None
        raise ValueError(f"{path} is no valid {suffix[1:].upper()}: {' '.join(str(error).split())}") from None
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _whole(low: int, high: int, multiple: int = 1) -> Any:
    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
        if value is None or not low <= value <= high or value % multiple:
            wanted = f"a whole number from {low} to {high}" + (f", a multiple of {multiple}" if multiple > 1 else "")
            raise ValueError(f"must be {wanted}")
        return value

    return read


def _number(low: float, high: float) -> Any:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            # Compares as false with any bound, and so is refused with what is out of range.
            value = float("nan")
        if not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return value

    return read


def _sampler(text: str) -> Sampler:
    if text.lower() not in _BY_NAME:
        raise ValueError(f"no such sampler here; there are {', '.join(get_args(Sampler))}")
    return _BY_NAME[text.lower()]


_OPTIONS: dict[str, tuple[str, Any]] = {
    "n": ("negative", str),
    "w": ("width_px", _whole(64, LARGEST_EDGE_PX, 8)),
    "h": ("height_px", _whole(64, LARGEST_EDGE_PX, 8)),
    "d": ("seed", _whole(0, 2**32 - 1)),
    "l": ("guidance", _number(0, 50)),
    "s": ("steps", _whole(1, 200)),
    "ss": ("sampler", _sampler),
    "am": ("adapter_weight", _number(-10, 10)),
}


def prompts_in(text: str, suffix: str) -> list[Any]:
    """The entries of a .json or .toml prompt file as they stand there. Raises ValueError for another form."""
    if suffix == ".json":
        content = parse_written_json(text)
        if not isinstance(content, list):
            raise ValueError(f"must hold a list of prompts, holds {type(content).__name__}")
        return content
    shared = parse_toml(text).get("prompt")
    if not isinstance(shared, dict) or not isinstance(shared.get("subset"), list):
        raise ValueError("must hold [prompt] with one [[prompt.subset]] a prompt")
    subsets = shared.pop("subset")
    return [{**shared, **subset} for subset in subsets]


def _line(entry: Any, path: Path) -> str:
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f"{path}: expected an object with 'prompt', got {json.dumps(entry, default=str)[:80]}")
    if unknown := [name for name in entry if name not in ("prompt", *LETTERS)]:
        raise ValueError(f"{path}: '{unknown[0]}' is not known; a prompt has prompt, {', '.join(LETTERS)}")
    options = [f"--{letter} {entry[name]}" for name, letter in LETTERS.items() if entry.get(name) is not None]
    return " ".join([" ".join(entry["prompt"].split()), *options])
