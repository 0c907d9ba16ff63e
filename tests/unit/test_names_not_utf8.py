"""Bytes that are no UTF-8, in what is typed and in the names of files: said or written down, and nothing breaks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from sdlora import atomic
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.config.train import TrainConfig
from sdlora.data.fix.edit import plan_edit
from sdlora.errors import AdapterError, ConfigError
from sdlora.events import WarningRaised
from sdlora.generation.class_images import generate_class_images
from sdlora.generation.grid.axes import parse_axis
from sdlora.models.headers import read_header
from sdlora.sinks.jsonl import JsonlSink
from sdlora.text_files import model_as_json
from sdlora.training.preflight.checks import _check_folders

ODD = "caf\udce9"
"""As Python has the bytes `caf\\xe9` of a command line or a folder."""

names_of_bytes = pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")


def test_text_that_is_none_is_refused_by_the_name_of_its_setting() -> None:
    with pytest.raises(ValueError, match="is no valid text: your terminal may not send UTF-8"):
        GenerateConfig(prompt=ODD)
    with pytest.raises(ValueError, match=r"(?s)captions.trigger.*is no valid text"):
        TrainConfig.model_validate({"captions": {"trigger": ODD}})
    with pytest.raises(ValueError, match=r"(?s)previews.prompts.*is no valid text"):
        TrainConfig.model_validate({"previews": {"prompts": ["a fox", ODD]}})


def test_an_edit_an_axis_and_a_class_prompt_are_refused_alike(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pattern or replacement is no valid text"):
        plan_edit(tmp_path, "cat", ODD)
    with pytest.raises(ValueError, match="is no valid text"):
        parse_axis(f"replace=fox,{ODD}", GenerateConfig(prompt="a fox"))
    with pytest.raises(ConfigError, match="prompt is no valid text"):
        generate_class_images(GenerateConfig(), [ODD], 1, tmp_path / "out")


def test_a_report_names_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "report.html", f"<b>{ODD}.png</b>")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "<b>caf\\udce9.png</b>"


def test_an_event_that_names_such_a_file_is_written_and_read_again(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "events.jsonl")
    sink.emit(WarningRaised(message=f"{ODD}.png can't be read"))
    sink.close()
    line = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    assert json.loads(line)["message"] == f"{ODD}.png can't be read"
    request = GenerateConfig(adapters=[UsedAdapter(file=f"{ODD}.safetensors")])
    assert json.loads(model_as_json(request))["adapters"][0]["file"] == f"{ODD}.safetensors"


@names_of_bytes
def test_an_adapter_and_a_run_at_such_a_path_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.safetensors"))
    path.write_bytes(b"0" * 100)
    with pytest.raises(AdapterError, match=r"can't be opened: its path isn't UTF-8.*rename it"):
        read_header(path, error=AdapterError)
    config = TrainConfig.model_validate({"outputs": {"folder": os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")}})
    with pytest.raises(ConfigError, match=r"outputs.folder: its path isn't UTF-8"):
        _check_folders(config)
