"""Rules of the house that no linter knows, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def _moves_by_hand(source: str) -> Iterator[int]:
    """Lines that put a file in place by themselves: os.replace and its kin, Path.replace, Path.rename."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
        if of_os and node.func.attr in ("replace", "rename", "renames", "link"):
            yield node.lineno
        # str.replace takes two values, dataclasses.replace and datetime.replace take names: one plain value is a Path's
        if node.func.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords:
            yield node.lineno


def _sources(*roots: str) -> list[Path]:
    return [path for root in roots for path in sorted((_ROOT / root).rglob("*.py"))]


@pytest.mark.parametrize("line", ["os.replace(a, b)", "os.rename(a, b)", "beside.replace(path)", "a.rename(b)"])
def test_a_move_by_hand_is_noticed(line: str) -> None:
    assert list(_moves_by_hand(line)) == [1]


@pytest.mark.parametrize("line", ["'a'.replace('b', 'c')", "replace(self, b=1)", "time.replace(hour=2)"])
def test_other_replacing_is_not_taken_for_a_move(line: str) -> None:
    assert list(_moves_by_hand(line)) == []


def test_only_atomic_puts_files_in_place() -> None:
    found = [
        f"{path.relative_to(_ROOT)}:{line}"
        for path in _sources("sdlora")
        if path != _ROOT / "sdlora/atomic.py"
        for line in _moves_by_hand(path.read_text("utf-8"))
    ]

    assert found == []
