"""Rules of the house that no linter knows, read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
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
        for path in _sources("sdlora", "webui")
        if path != _ROOT / "sdlora/atomic.py"
        for line in _moves_by_hand(path.read_text("utf-8"))
    ]

    assert found == []


# ---- no circles


def _imports(path: Path, modules: Set[str]) -> set[str]:
    """The modules that a file imports, those for type checkers and those inside functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found & modules


def _circle(imports: Mapping[str, Set[str]]) -> list[str]:
    """The modules of one circle, in the order in which they import each other; empty if there is none."""
    done: set[str] = set()

    def follow(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(imports[module]):
            if circle := follow(imported, [*way, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := follow(module, []))), [])


def test_a_circle_is_found_and_a_diamond_is_none() -> None:
    diamond = {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}

    assert _circle(diamond) == []
    assert _circle({**diamond, "d": {"b"}}) == ["b", "d", "b"]


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {
        ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in _sources("sdlora", "webui")
    }
    # The package itself hands out the public names by a lazy look-up, so everything may ask it for its version.
    imports = {name: _imports(path, names.keys()) - {"sdlora", name} for name, path in names.items()}

    assert _circle(imports) == []


_COMMAND = re.compile(
    r"\bsdlora (resume|stop|save|preview|train|sweep|evaluate|runs|queue|dataset|mix|merge)\b[a-z -]*\{"
)


@pytest.mark.parametrize("path", _sources("sdlora", "webui"), ids=lambda path: path.relative_to(_ROOT).as_posix())
def test_commands_to_paste_are_quoted_by_the_one_that_can(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if _COMMAND.search(line)]
    assert not found, f"lines {found}: a folder may have a space in its name; use words.as_typed"
