"""`import sdlora`: what it names, that type checkers see the same, and where its version stands."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import sdlora

PROJECT = Path(__file__).parents[2]


def for_type_checkers() -> dict[str, tuple[str, str]]:
    """Name to module and name there, of the imports that only type checkers make."""
    tree = ast.parse(Path(sdlora.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in imports for alias in node.names}


def test_type_checkers_are_told_of_what_runs() -> None:
    assert for_type_checkers() == sdlora._PUBLIC
    assert sorted(sdlora.__all__) == sorted(["__version__", *sdlora._PUBLIC]) == dir(sdlora)


@pytest.mark.parametrize("name", sdlora.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sdlora, name) is not None


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'sdlora' has no attribute 'nothing'"):
        sdlora.nothing  # noqa: B018


def test_the_version_stands_in_one_place(cli: Any) -> None:
    assert cli("--version").output == f"sdlora {sdlora.__version__}\n"
    project = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[tool.hatch.version]\npath = "sdlora/version.py"' in project
    assert sdlora.__version__ not in project
    sources = [path for folder in ("sdlora", "webui") for path in (PROJECT / folder).rglob("*.py")]
    holding = [path.name for path in sources if f'"{sdlora.__version__}"' in path.read_text(encoding="utf-8")]
    assert holding == ["version.py"]
