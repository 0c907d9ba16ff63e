"""What README and the guides show: their fenced blocks, the commands in them, their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGES = [
    *sorted((PROJECT / "docs" / "guides").glob("*.md")),
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
]
_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages, in their order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        for indent, language, text in found
        if language in languages
    ]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `sdlora` command in a page's blocks."""
    lines = [line for block in blocks(page, "console", "sh") for line in block.splitlines()]
    in_sh = {line for block in blocks(page, "sh") for line in block.splitlines()}
    return list(_arguments(line.removeprefix("$ ") for line in lines if line.startswith("$ ") or line in in_sh))


def mentions(page: Path) -> list[list[str]]:
    """The same for commands named in the text, which may lack arguments."""
    return list(_arguments(re.findall(r"(?<!`)`(sdlora [^`]+)`(?!`)", _BLOCK.sub("", page.read_text("utf-8")))))


def _arguments(lines: Iterable[str]) -> Iterator[list[str]]:
    for line in lines:
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["sdlora"]:
                yield words[1:]
            elif "sdlora" in words and "-m" in words:  # torchrun ... -m sdlora train
                yield words[words.index("sdlora") + 1 :]


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8")))
