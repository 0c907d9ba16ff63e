"""OneTrainer's settings as its code reads them: what it trains by, how it counts, and nothing dropped in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdlora.imports.read import Imported
from tests.support.foreign_settings import ONETRAINER
from tests.support.imported_settings import imported, read_back, told

UNFILTERED = {name: value for name, value in ONETRAINER.items() if not name.startswith("layer_filter")}


def onetrainer(tmp_path: Path, changes: dict[str, Any], base: dict[str, Any] = ONETRAINER) -> Imported:
    return imported(tmp_path, "mine.json", {**base, "concept_file_name": "", **changes})


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, "all+conv"),
        ({"layer_filter": ""}, "all+conv"),
        ({"layer_filter": "attn"}, "attention"),
        ({"layer_filter": "attentions", "layer_filter_preset": "full"}, "all"),
        ({"layer_filter": "attn1, up_blocks.1"}, r"regex:attn1|up_blocks\.1"),
        ({"layer_filter": "attn[12],ff.net", "layer_filter_regex": True}, "regex:attn[12]|ff.net"),
        ({"lora_layers": "down_blocks", "lora_layer_preset": "full"}, "regex:down_blocks"),
        ({"lora_layer_preset": "attn-only"}, "attention"),
    ],
)
def test_layers_are_those_of_the_filter(tmp_path: Path, changes: dict[str, Any], layers: str) -> None:
    """Its ModuleFilter searches each part between commas in a layer's path; the preset only fills the window."""
    result = onetrainer(tmp_path, changes, UNFILTERED)
    assert result.config.adapter.layers == layers
    assert ("layer_filter_preset=full" in result.assumed) == (not changes)
    read_back(result, tmp_path)


def test_a_filter_that_is_not_the_presets_is_said(tmp_path: Path) -> None:
    said = told(onetrainer(tmp_path, {"layer_filter": "down", "layer_filter_preset": "full"}))
    assert "layer_filter=down: taken, as there; the preset full is only for its window" in said
    assert "layer_filter" not in told(onetrainer(tmp_path, {}))
    said = told(onetrainer(tmp_path, {"layer_filter": "attn(", "layer_filter_regex": True}))
    assert "layer_filter=attn(: no regular expression" in said
