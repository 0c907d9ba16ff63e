"""README and the guides: what they show exists, and the settings reference is what the program says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sdlora.cli import app
from sdlora.config import files
from sdlora.config.mix import MixConfig
from sdlora.config.sweep import SweepConfig
from sdlora.config.train import TrainConfig
from tests.support import settings_reference
from tests.support.documents import PAGES, PROJECT, blocks, commands, links, mentions

REPOSITORY = "https://github.com/sdlora/sdlora/blob/main/"
RAW = "https://raw.githubusercontent.com/sdlora/sdlora/main/"
MOST_README_LINES = 130


LACKS = ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage")
"""What the text may leave out: `sdlora mix` stands for the command, `sdlora mix --config` for an option of it."""


def problem(arguments: list[str]) -> str:
    """What is wrong with arguments, by the command line's own parser, which runs nothing; empty for nothing."""
    command: Any = typer.main.get_command(app)
    name, context, rest = "sdlora", None, list(arguments)
    try:
        while command is not None:
            context = command.make_context(name, rest, parent=context)
            rest = [*getattr(context, "_protected_args", ()), *context.args]
            is_group = hasattr(command, "commands")
            name, command, rest = command.resolve_command(context, rest) if is_group and rest else ("", None, [])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    except SystemExit:  # --version and --help end here
        pass
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_can_be_typed(page: Path) -> None:
    for arguments in commands(page):
        assert problem(arguments) == "", arguments
    for arguments in mentions(page):
        said = problem(arguments)
        assert not said or said.partition(":")[0] in LACKS, (arguments, said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_yaml_that_is_shown_is_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        kind = MixConfig if "adapters" in values else SweepConfig if "vary" in values else TrainConfig
        files.validate(values, page.name, kind)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for target in links(page):
        in_repository = target.removeprefix(REPOSITORY).removeprefix(RAW)
        if in_repository != target:
            assert (PROJECT / in_repository).is_file(), target
        elif not target.startswith(("https://", "http://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_links_of_the_readme_lead_somewhere_from_an_index_page_too() -> None:
    assert [target for target in links(PROJECT / "README.md") if not target.startswith("https://")] == []


def test_the_readme_is_short_and_begins_with_the_command_and_the_page() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_README_LINES
    start, tests = blocks(PROJECT / "README.md", "sh")
    assert start.endswith("sdlora train --preset demo.yaml\n")
    assert tests.endswith("python -m pytest -n 2\n")
    assert (
        text.index("sdlora train") < text.index("sdlora webui") < text.index("pytest") < text.index("## What it does")
    )


def test_the_settings_reference_is_what_the_program_says() -> None:
    assert settings_reference.PAGE.read_text(encoding="utf-8") == settings_reference.page(), (
        "run: python -m tests.support.settings_reference"
    )


def test_every_guide_is_in_the_contents() -> None:
    contents = yaml.safe_load((PROJECT / "docs" / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(contents) == sorted(page.name for page in PAGES if page.parent.name == "guides")
