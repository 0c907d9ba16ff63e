"""`import sdlora`: what it names, that type checkers see the same, and where its version stands."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import sdlora
from sdlora.config.given import train_config

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


@pytest.mark.parametrize(
    "given",
    [
        "demo.yaml",
        Path("demo.yaml"),
        {"preset": "demo.yaml"},
        sdlora.load_config("demo.yaml"),
    ],
    ids=["name", "path", "values", "settings"],
)
def test_settings_are_taken_in_every_form(given: Any) -> None:
    assert train_config(given) == sdlora.load_config("demo.yaml")


def test_values_go_on_top_of_their_preset() -> None:
    config = train_config({"preset": "demo.yaml", "optimization": {"epochs": 2}})
    assert (config.optimization.epochs, config.optimization.steps) == (2, None)
    assert config.images.folder == sdlora.load_config("demo.yaml").images.folder


def test_wrong_values_are_all_told_without_a_traceback_of_another_kind(tmp_path: Path) -> None:
    wrong = {"adapter": {"rnak": 4}, "optimization": {"steps": "many"}}
    for action in (sdlora.train, sdlora.summarise, sdlora.check_dataset):
        with pytest.raises(sdlora.SdloraError, match=r"(?s)the configuration has 2 problems.*adapter\.rnak.*steps"):
            action(wrong)
    with pytest.raises(sdlora.SdloraError, match=r"(?s)the request.*promt: unknown setting; did you mean 'prompt'"):
        list(sdlora.generate({"promt": "a fox"}))
    with pytest.raises(sdlora.SdloraError, match=r"(?s)adapters\.0: .*'x=1' is not|'x' is not known here"):
        sdlora.mix_adapters({"adapters": ["ink.safetensors:x=1"]}, tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    "action",
    [
        lambda path: sdlora.resume(path),
        lambda path: sdlora.resize_adapter(path, f"{path}-4.safetensors", rank=4),
        lambda path: sdlora.convert_adapter(path, f"{path}-2.safetensors", "diffusers"),
        lambda path: sdlora.extract_adapter(path, path, f"{path}-2.safetensors"),
        lambda path: sdlora.merge_adapters(path, [f"{path}:0.5"], f"{path}-2"),
        lambda path: sdlora.mix_adapters({"adapters": [path]}, f"{path}-2.safetensors"),
        lambda path: sdlora.inspect_adapter(path),
        lambda path: sdlora.read_adapter(path),
        lambda path: sdlora.load_model(path),
        lambda path: sdlora.Generator(path),
        lambda path: sdlora.train(path),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_taken_as_text_and_a_missing_file_is_one_clear_error(action: Any, kind: type, tmp_path: Path) -> None:
    with pytest.raises(sdlora.SdloraError, match=r"nothing-here\.safetensors(?!-)"):
        action(kind(tmp_path / "nothing-here.safetensors"))


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
