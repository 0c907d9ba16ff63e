"""Errors of the API name its arguments and calls, not the command line's options and commands."""

from __future__ import annotations

import pytest

from webui.api_words import in_words_of_the_api


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("--set name: write it as section.name=value", "name: write it as section.name=value"),
        ("no image folder is set: use --set images.folder=F", "no image folder is set: use images.folder=F"),
        ("--memory has 1 problem:\n  0.1 GiB is not enough", "memory_gib has 1 problem:\n  0.1 GiB is not enough"),
        (
            "'-1' is no amount of memory: write it as 8GB or 8000MB",
            "'-1' is no amount of memory: give a number of GiB, as 8",
        ),
        ("--for has 1 problem", "subject has 1 problem"),
        ("--trigger has 1 problem", "trigger has 1 problem"),
        ("there is no such folder; `sdlora runs` lists the runs", "there is no such folder; /runs lists the runs"),
        ("(`sdlora runs /a b` lists all runs)", "(/runs lists all runs)"),
        ("nmae: unknown setting; `sdlora explain a` knows other programs' names, `sdlora explain` lists all settings",
         "nmae: unknown setting"),
        ("go on with `sdlora resume /studio/runs/my-fox`", "go on with /resume of 'my-fox'"),
        ("`sdlora stop /studio/runs/fox` asks it to save", "/stop of 'fox' asks it to save"),
        ("`sdlora dataset fix F --rules a --set b=c` fixes it", "`sdlora dataset fix F --rules a --set b=c` fixes it"),
        ("--num_seeds: unknown setting", "--num_seeds: unknown setting"),
    ],
)  # fmt: skip
def test_commands_and_options_become_calls_and_arguments(said: str, told: str) -> None:
    assert in_words_of_the_api(said) == told
