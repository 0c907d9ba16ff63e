"""An import leaves nothing behind: the next one in the same process says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdlora.imports.names import settings_called
from tests.support.foreign_settings import AI_TOOLKIT, CONCEPTS, DATASET, KOHYA, ONETRAINER
from tests.support.imported_settings import imported

SIMPLETUNER = {"model_family": "sdxl", "pretrained_model_name_or_path": "a/b", "learning_rate": 1e-4}
TRAINING = (
    'network_module = "networks.lora"\nnetwork_dim = 8\ntrain_data_dir = "x"\npretrained_model_name_or_path = "b"\n'
)
FILES: list[tuple[str, object]] = [
    ("kohya.json", KOHYA),
    ("dataset.toml", DATASET),
    ("train.toml", TRAINING),
    ("onetrainer.json", ONETRAINER),
    ("concepts.json", CONCEPTS),
    ("job.yaml", AI_TOOLKIT),
    ("simpletuner.json", SIMPLETUNER),
]


@pytest.mark.parametrize(("name", "content"), FILES, ids=[name for name, _ in FILES])
def test_a_second_import_says_the_same_as_the_first(tmp_path: Path, name: str, content: object) -> None:
    first = imported(tmp_path, name, content)
    assert imported(tmp_path, name, content) == first


def test_a_name_that_is_asked_for_twice_is_answered_alike() -> None:
    settings_called("network_dim").append("changed")
    assert settings_called("network_dim") == ["adapter.rank"]
