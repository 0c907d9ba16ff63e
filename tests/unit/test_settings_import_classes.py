"""Every setting that another trainer documents ends in one of four classes: taken over, changed, without counterpart
(and then listed), or irrelevant. None is passed over by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sdlora.imports import ai_toolkit, kohya, onetrainer_config, simpletuner, simpletuner_data
from sdlora.imports.translation import Translation
from tests.support import settings_without_counterpart as without
from tests.support.foreign_keys import (
    AI_TOOLKIT_KEYS,
    KOHYA_KEYS,
    ONETRAINER_KEYS,
    SIMPLETUNER_BACKEND_KEYS,
    SIMPLETUNER_KEYS,
)
from tests.support.foreign_settings import AI_TOOLKIT, ONETRAINER

SIMPLETUNER = {"model_family": "sdxl", "data_backend_config": "x.json"}
BACKENDS = [{"id": "a", "instance_data_dir": "pictures", "caption_strategy": "textfile"}]


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, set[str]]]:
    """The names that an importer knows, by the prefix under which it lists the others."""
    found: dict[str, set[str]] = {}

    def note(
        self: Translation, source: Mapping[str, Any], known: set[str], prefix: str = "", *_: Any, **__: Any
    ) -> None:
        found.setdefault(prefix, set()).update(known)

    monkeypatch.setattr(Translation, "lose_rest", note)
    return found


def without_a_class(keys: list[str], known: set[str], listed: set[str], prefixes: tuple[str, ...] = ()) -> list[str]:
    return [key for key in keys if key not in known | listed and not key.startswith(prefixes or ("\0",))]


def test_every_setting_of_kohya_ss_has_a_class(handled: dict[str, set[str]]) -> None:
    kohya.from_gui({})
    elsewhere = {"use_8bit_adam", "dataset_config"}  # an old switch, and a file that is read beside the settings
    assert without_a_class(KOHYA_KEYS, handled[""] | elsewhere, without.KOHYA) == []


def test_every_setting_of_onetrainer_has_a_class(handled: dict[str, set[str]]) -> None:
    onetrainer_config.from_config({**ONETRAINER, "masked_training": True}, [], [])
    known = handled[""] | {"sample_definition_file_name"}
    prefixes = onetrainer_config._OTHER_PREFIXES
    assert without_a_class(ONETRAINER_KEYS, known, without.ONETRAINER, prefixes) == []
    assert not known & without.ONETRAINER


@pytest.mark.parametrize("section", AI_TOOLKIT_KEYS)
def test_every_setting_of_ai_toolkit_has_a_class(handled: dict[str, set[str]], section: str) -> None:
    ai_toolkit.from_job(AI_TOOLKIT)
    known = handled[f"{section}."]
    if section == "datasets":
        known |= {"mask_path", "mask_min_value"}
    listed = without.AI_TOOLKIT[section]
    assert without_a_class(AI_TOOLKIT_KEYS[section], known, listed) == []
    assert not known & listed - {"mask_path", "mask_min_value"}


def test_every_setting_of_simpletuner_has_a_class(handled: dict[str, set[str]]) -> None:
    simpletuner.from_config(SIMPLETUNER, lambda name: BACKENDS)
    backend = simpletuner_data.TAKEN | simpletuner_data.WITHOUT_EFFECT
    known = handled[""] - (backend - simpletuner.WITHOUT_EFFECT - set(simpletuner.SETTINGS))
    known |= {"resolution", "resolution_type"}
    assert without_a_class(SIMPLETUNER_KEYS, known, without.SIMPLETUNER) == []
    assert without_a_class(SIMPLETUNER_BACKEND_KEYS, backend, without.SIMPLETUNER_BACKEND) == []
    assert not simpletuner.WITHOUT_EFFECT & without.SIMPLETUNER
    assert not backend & without.SIMPLETUNER_BACKEND


@pytest.mark.parametrize("key", sorted(without.ONETRAINER))
def test_a_setting_of_onetrainer_without_counterpart_is_listed(key: str) -> None:
    lost = onetrainer_config.from_config({**ONETRAINER, key: 3}, [], []).lost
    assert any(sentence.startswith(f"{key}=") for sentence in lost)


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section, keys in without.AI_TOOLKIT.items() for key in sorted(keys)]
)
def test_a_setting_of_ai_toolkit_without_counterpart_is_listed(section: str, key: str) -> None:
    process = dict(AI_TOOLKIT["config"]["process"][0])  # type: ignore[index]
    if section == "datasets":
        process["datasets"] = [{"folder_path": "a", key: 3}]
    else:
        process[section] = {**process.get(section, {}), key: 3}
    lost = ai_toolkit.from_job({"config": {"name": "x", "process": [process]}}).lost
    assert any(sentence.startswith(f"{section}.{key}=") for sentence in lost)


@pytest.mark.parametrize("key", sorted(without.SIMPLETUNER - {"control"}))
def test_a_setting_of_simpletuner_without_counterpart_is_listed(key: str) -> None:
    lost = simpletuner.from_config({**SIMPLETUNER, key: 3}, lambda name: BACKENDS).lost
    assert any(sentence.startswith(f"{key}=") for sentence in lost)


@pytest.mark.parametrize("key", sorted(without.SIMPLETUNER_BACKEND))
def test_a_setting_of_a_data_backend_without_counterpart_is_listed(key: str) -> None:
    lost = simpletuner_data.from_backends([{**BACKENDS[0], key: 3}]).lost
    assert any(sentence.startswith(f"{key}=") for sentence in lost)


def test_the_lists_are_of_real_size(tmp_path: Path) -> None:
    assert len(KOHYA_KEYS) > 200
    assert len(ONETRAINER_KEYS) > 150
    assert sum(map(len, AI_TOOLKIT_KEYS.values())) > 150
    assert len(SIMPLETUNER_KEYS) > 140
