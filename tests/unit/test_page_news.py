"""What pages hear of what is new, and what they send of the form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdlora import events
from sdlora.config import fields
from sdlora.config.train import TrainConfig
from sdlora.errors import RunError
from sdlora.launch import runs
from sdlora.runs import changes
from tests.support.told_runs import made, started, step, told
from webui.news import News, Told
from webui.train.report import OTHER_YAML, changed_settings
from webui.train.sheet import Sheet


def test_news_change_with_their_stamps_and_never_fail(caplog: pytest.LogCaptureFixture) -> None:
    number = iter(range(9))
    news = News(status=lambda: Told("cats: 5 %", "cats: 0 %"))
    news.stamps["runs"] = [lambda: next(number)]
    first, second = news.now("runs"), news.now("runs")
    assert first["status"] == Told("cats: 5 %", "cats: 0 %")
    assert first["stamp"] != second["stamp"]
    assert news.now("nobody")["stamp"] == news.now("nobody")["stamp"]

    def fail() -> None:
        raise AttributeError("gone")

    news.stamps["mix"] = [fail]
    news.always.append(fail)
    assert news.now("mix")["stamp"] == news.now("mix")["stamp"]
    assert "could not be found out" in caplog.text


def test_a_sheet_tells_of_what_is_under_way() -> None:
    page = {"adapter.rank": 4, "preset": "demo.yaml", "standing": "demo.yaml", "yaml": "a", "yaml_base": "a ",
            "asked": "2", "filled": "1", "pressed": {"act": "undo"}}  # fmt: skip
    sheet = Sheet.read(json.dumps(page))
    assert sheet.settings == {"adapter.rank": 4}
    assert sheet.is_stale
    assert not sheet.has_other_yaml
    assert not Sheet.read(json.dumps({**page, "filled": "2"})).is_stale
    assert Sheet.read(json.dumps({**page, "yaml": "b"})).has_other_yaml
    assert "not applied" in OTHER_YAML


def test_a_preset_takes_what_a_person_changed_but_not_name_dataset_and_trigger() -> None:
    among = fields.fields(TrainConfig)
    preset = fields.show_all(TrainConfig(), among)
    shown = {**preset, "name": "mine", "captions.trigger": "zwx", "adapter.rank": 3}
    assert [field.name for field in changed_settings(among, preset, shown)] == ["adapter.rank"]


def test_a_finished_run_goes_on_once_its_settings_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    ending = events.RunFinished(step=2, reason="completed", adapter_path=None, seconds=1.0)
    told(run, started(2), step(1), step(2), ending)
    begun: list[list[str]] = []
    monkeypatch.setattr(runs, "spawn", lambda command, record, log: begun.append(command))
    with pytest.raises(RunError, match="is complete"):
        run.resume()
    changes.apply(run.files, *changes.planned(run.folder, ["optimization.steps=600"]))
    run.resume()
    assert len(begun) == 1
