"""The page's suggestions come from a process of their own: they tell what `sdlora.suggest` does, and leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import sdlora
from sdlora.errors import RunError
from sdlora.launch import suggestions


def test_the_process_tells_what_the_call_does(tmp_path: Path) -> None:
    given = {"base": "builtin:emoji", "trigger": "-o, ünï"}
    asked = suggestions.suggest("builtin:mascot", "concept", memory_gib=None, jobs=tmp_path, **given)
    assert asked == sdlora.suggest("builtin:mascot", "concept", **given)
    assert asked.config().captions.trigger == "-o, ünï"
    assert not list(tmp_path.iterdir())


def test_what_it_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)--memory has 1 problem:.*0\.001 GiB is not enough for builtin:emoji"):
        suggestions.suggest(
            "builtin:mascot", "style", base="builtin:emoji", memory_gib=0.001, trigger=None, jobs=tmp_path
        )
    assert not list(tmp_path.iterdir())
