"""`--help`: commands in the order of use, each with an example that can be typed."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from sdlora.cli import app
from sdlora.cli.help import EXAMPLES, PANELS


def commands() -> dict[str, Any]:
    """Every command by its path, groups left out."""
    root: Any = typer.main.get_command(app)
    found = {}
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {each}": one for each, one in inner.items()} if inner else {name: command}
    return found


def test_every_command_has_a_panel_and_an_example() -> None:
    assert {path.split()[0] for path in commands()} == {name for names in PANELS.values() for name in names}
    assert commands().keys() == EXAMPLES.keys()


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_is_accepted_as_it_stands(path: str) -> None:
    words = shlex.split(EXAMPLES[path].partition(" > ")[0])
    assert words[: 1 + len(path.split())] == ["sdlora", *path.split()]
    command = commands()[path]
    command.make_context(path, words[1 + len(path.split()) :])  # parses, and runs nothing


@pytest.mark.parametrize("path", ["train --preset a --preset b", "dataset check p -p a -p b", "mix a --out x --out y"])
def test_an_option_of_which_one_would_be_lost_is_refused(cli: Any, path: str) -> None:
    shown = cli(*path.split())
    assert shown.code == 2
    assert "is given twice" in shown.errors


def test_help_shows_order_example_and_defaults(cli: Any) -> None:
    shown = cli("--help").output
    names = [name for names in PANELS.values() for name in names]
    places = [shown.index(f"│ {name} ") for name in names]
    assert places == sorted(places)
    shown = cli("generate", "--help").output
    assert "Example: sdlora generate" in shown
    assert "[default: 25]" in shown
    assert "<bool>" not in cli("dataset", "edit", "--help").output.partition("--help")[0]
