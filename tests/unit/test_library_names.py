"""One rule by which a name means an adapter, whoever asks: the command line, the API, the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdlora.config.generate import GenerateConfig
from sdlora.errors import ConfigError
from sdlora.generation.grid.axes import parse_axes
from sdlora.library.names import find_adapter, list_adapters, unique_names
from sdlora.library.prompt_tags import take_tags
from sdlora.library.rows import apply_tags
from sdlora.library.scan import Library
from tests.support.emoji_adapters import random_adapter

Find = Callable[[str, Path], Path]


def by_folders(name: str, folder: Path) -> Path:
    """As the command line finds it."""
    return find_adapter(name, [folder])


def by_tag(name: str, folder: Path) -> Path:
    """As a prompt names it."""
    config = take_tags(GenerateConfig(prompt=f"<lora:{name}:1>", adapter_folders=(folder,)))
    return Path(config.adapters[0].file)


def by_axis(name: str, folder: Path) -> Path:
    """As a grid names it."""
    config = GenerateConfig(adapter_folders=(folder,))
    (axis,) = parse_axes([f"adapter.file={name}"], config)
    return Path(axis.values[0].apply(config).adapters[0].file)


def by_library(name: str, folder: Path) -> Path:
    """As the page and its API find it."""
    return Library([folder], folder.parent / "library.json").scan().find(name).path


def by_rows(name: str, folder: Path) -> Path:
    """As the text of the page's rows names it."""
    scan = Library([folder], folder.parent / "library.json").scan()
    return Path(apply_tags((), f"<lora:{name}:1>", scan)[0].file)


@pytest.fixture(params=[by_folders, by_tag, by_axis, by_library, by_rows])
def find(request: pytest.FixtureRequest) -> Find:
    found: Find = request.param
    return found


def test_an_own_name_and_a_file_name_that_meet_are_ambiguous(tmp_path: Path, find: Find) -> None:
    folder = tmp_path / "adapters"
    upper = random_adapter(folder / "Ink.safetensors", 1)
    pen = random_adapter(folder / "pen.safetensors", 2, ss_output_name="ink")
    with pytest.raises(ConfigError) as caught:
        find("ink", folder)
    (problem,) = caught.value.problems
    assert f"2 files may be meant: Ink ({upper}), pen ({pen}, which calls itself ink); write one of" in problem
    assert (find("Ink", folder), find("pen", folder)) == (upper, pen)


def test_equal_names_in_two_folders_are_ambiguous(tmp_path: Path, find: Find) -> None:
    folder = tmp_path / "adapters"
    one, two = (random_adapter(folder / place / "fox.safetensors", 1) for place in "ab")
    with pytest.raises(ConfigError, match="2 files may be meant: a/fox .*, b/fox .*; write one of these names"):
        find("fox", folder)
    assert (find("a/fox", folder), find("b/fox", folder)) == (one, two)


def test_a_file_name_to_the_letter_comes_before_the_names_in_files(tmp_path: Path, find: Find) -> None:
    folder = tmp_path / "runs"
    final = random_adapter(folder / "ink.safetensors", 1, ss_output_name="ink")
    random_adapter(folder / "ink-step_000100.safetensors", 2, ss_output_name="ink")
    titled = random_adapter(folder / "x1.safetensors", 3, **{"modelspec.title": "Soft Chalk"})
    assert find("ink", folder) == final
    assert find("soft chalk", folder) == titled


def test_each_file_has_a_name_that_means_it_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one / "ink", one / "sub" / "ink", other / "ink", one / "a" / "fox", one / "b" / "fox", one / "pen"):
        random_adapter(path.with_suffix(".safetensors"), 1, ss_output_name="pen")
    names = unique_names(list_adapters([one, other]))
    assert len(set(names.values())) == len(names) == 6
    assert all(find_adapter(name, [one, other]) == path for path, name in names.items())
    assert {names[one / "pen.safetensors"], names[one / "sub" / "ink.safetensors"]} == {"pen", "sub/ink"}


def test_hidden_folders_and_what_is_linked_twice_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    ink = random_adapter(folder / "ink.safetensors", 1)
    random_adapter(folder / ".trash" / "ink.safetensors", 1)
    (folder / "linked").mkdir()
    (folder / "linked" / "ink.safetensors").symlink_to(ink)
    assert [each.path for each in list_adapters([folder, folder / "linked"])] == [ink]


def test_typed_tags_set_the_order_too(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        random_adapter(tmp_path / f"{name}.safetensors", 1)
    scan = Library((tmp_path,), tmp_path / "library.json").scan()
    rows = apply_tags((), "<lora:a:1> <lora:b:1> <lora:c:1>", scan)
    again = apply_tags(rows, "<lora:c:0.5> <lora:a:0.25>", scan)
    assert [(row.name, row.weight, row.enabled) for row in again] == [
        ("c", 0.5, True),
        ("b", 1, False),
        ("a", 0.25, True),
    ]
