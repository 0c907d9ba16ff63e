"""What a type checker says about a program that uses sdlora."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

PROJECT = Path(__file__).parents[2]
CONFIGURATION = """
[mypy]
strict = true
follow_imports = silent

[mypy-torch.*,diffusers.*,transformers.*,peft.*,accelerate.*,numpy.*,PIL.*]
follow_imports = skip
"""
RIGHT = """
from pathlib import Path
import sdlora

class Watcher:
    def emit(self, event: sdlora.Event) -> None: ...
    def close(self) -> None: ...

config: sdlora.TrainConfig = sdlora.load_config("demo.yaml", ["optimization.steps=100"])
result: sdlora.RunResult = sdlora.train(config, sinks=[Watcher()])
folder: Path = sdlora.resume(result.folder).folder
sdlora.train({"images": {"folder": "my_pictures"}})
file: sdlora.AdapterFile = sdlora.read_adapter(result.adapter)
images: list[sdlora.GeneratedImage] = list(sdlora.generate(sdlora.GenerateConfig(prompt="a fox")))
images += sdlora.Generator("builtin:emoji").generate("a fox")
"""
WRONG = """
import sdlora

sdlora.train(3)
sdlora.train(sdlora.load_config("demo.yaml")).adaptor
sdlora.trian
number: int = sdlora.load_config("demo.yaml")
"""


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Checks a program as its author would, strictly; gives what is said and the exit code."""
    monkeypatch.setenv("MYPYPATH", str(PROJECT))
    monkeypatch.chdir(tmp_path)

    def check(program: str) -> tuple[str, int]:
        (tmp_path / "program.py").write_text(program, encoding="utf-8")
        (tmp_path / "mypy.ini").write_text(CONFIGURATION, encoding="utf-8")
        said, failed, code = api.run(["program.py"])
        assert not failed
        return said, code

    return check


def test_a_program_is_checked_against_the_public_names(checked) -> None:
    assert checked(RIGHT) == ("Success: no issues found in 1 source file\n", 0)
    said, code = checked(WRONG)
    assert code == 1
    for line, message in (
        (4, 'Argument 1 to "train" has incompatible type "int"; expected "TrainConfig | Mapping'),
        (5, '"RunResult" has no attribute "adaptor"; maybe "adapter"?'),
        (6, 'Module has no attribute "trian"; maybe "train"?'),
        (7, 'expression has type "TrainConfig", variable has type "int"'),
    ):
        assert any(each.startswith(f"program.py:{line}: error: ") and message in each for each in said.splitlines()), (
            said
        )
    assert "Found 4 errors" in said
