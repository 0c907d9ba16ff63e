"""Writes docs/guides/settings.md from the settings' own declarations:

python -m tests.support.settings_reference
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sdlora.config.captioning import CaptioningConfig
from sdlora.config.evaluate import EvaluateConfig
from sdlora.config.generate import GenerateConfig
from sdlora.config.mix import MixConfig
from sdlora.config.schema import Setting, settings
from sdlora.config.serve import ServeConfig
from sdlora.config.sweep import SweepConfig
from sdlora.config.train import TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "settings.md"
PARTS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("Training", "`sdlora train --preset FILE --set NAME=VALUE`", TrainConfig),
    ("Generating", "`sdlora generate REQUEST.yaml --set NAME=VALUE`", GenerateConfig),
    ("Sweeping", "`sdlora sweep FILE`", SweepConfig),
    ("Evaluating", "`sdlora evaluate RUN --set NAME=VALUE`, or `--config FILE`", EvaluateConfig),
    ("Mixing", "`sdlora mix --config FILE`", MixConfig),
    ("Serving", "`sdlora serve FILE.yaml --set NAME=VALUE`", ServeConfig),
    ("Captioning", "`sdlora dataset caption`, which has an option for each", CaptioningConfig),
)
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
_PLURALS = {"text": "texts", "integer": "integers", "number": "numbers", "path": "paths"}
_HEAD = """# Settings

Every setting there is, with its default. This page is written from the program; `sdlora explain NAME` says the same,
and `sdlora explain WORD` searches. A YAML file names what differs from the defaults, sections as nested keys:

```yaml
adapter:
  rank: 32
```
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(line for part in PARTS for line in _part(*part))]).rstrip() + "\n"


def _part(title: str, command: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {title}\n\nFor {command}.\n"
    sections: dict[str, list[Setting]] = {}
    for setting in settings(model):
        sections.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    entries: dict[str, type[BaseModel]] = {}
    for name, found in sections.items():
        yield from _table(name or "At the top level", found)
        entries |= {setting.name: entry for setting in found for entry in _entries(setting)}
    for name, entry in entries.items():
        yield from _table(f"An entry of {name}", list(settings(entry)))


def _table(title: str, found: list[Setting]) -> Iterator[str]:
    yield f"### {title}\n\n| setting | takes | default | |\n|---|---|---|---|"
    for setting in found:
        bounds = [
            f"{BOUNDS[name]} {int(value) if value == int(value) else value:,}" for name, value in setting.bounds.items()
        ]
        takes = ", ".join([_kind(setting), *bounds])
        yield f"| `{setting.name}` | {_cell(takes)} | {_default(setting)} | {_cell(setting.description)} |"
    yield ""


def _kind(setting: Setting) -> str:
    kinds = [kind for kind in setting.kind.split(" | ") if kind != "null"]
    return ", ".join(f"a list of {_plural(kind[8:])}" if kind.startswith("list of ") else kind for kind in kinds)


def _plural(kind: str) -> str:
    if kind.startswith("list of "):
        return f"lists of {_plural(kind[8:])}"
    return _PLURALS.get(kind, "entries, see below")


def _entries(setting: Setting) -> Iterator[type[BaseModel]]:
    """The types of a list's entries that have settings of their own."""
    for kind in setting.kinds:
        for entry in typing.get_args(kind):
            if isinstance(entry, type) and issubclass(entry, BaseModel):
                yield entry


def _default(setting: Setting) -> str:
    default: Any = setting.default
    if default is PydanticUndefined:
        return "required"
    if default is None or default in ("", (), [], {}):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{', '.join(map(str, default)) if isinstance(default, tuple) else default}`"


def _cell(text: str) -> str:
    """Text for one cell: nothing in it is markup but what stands between backticks."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    plain = [part if part.startswith("`") else _escaped(part) for part in parts]
    return "".join(plain).replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"[<*]", r"\\\g<0>", text).replace("__", r"\_\_")


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
