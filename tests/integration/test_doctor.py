"""`sdlora doctor`: what works is said to work, and each fault has the command that fixes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sdlora.cli import app
from sdlora.errors import how_to_install
from sdlora.training.preflight import doctor
from sdlora.training.preflight.doctor import Finding, examine


def of(topic: str) -> list[Finding]:
    return [finding for finding in examine(with_network=False) if finding.topic == topic]


def test_a_sound_installation_has_no_problems() -> None:
    found = list(examine(with_network=False))
    assert [finding for finding in found if finding.verdict == "problem"] == []
    topics = [finding.topic for finding in found]
    assert {"sdlora", "python", "packages", "device", "bf16", "fp16", "bitsandbytes", "memory", "cache"} <= set(topics)


def test_every_note_and_problem_says_what_to_do_or_needs_nothing() -> None:
    for finding in examine(with_network=False):
        assert finding.verdict == "ok" or finding.fix or finding.topic == "device"


def test_a_cpu_torch_beside_a_card_is_a_problem_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_card", lambda: "an NVIDIA card")
    monkeypatch.setattr("torch.version.cuda", None)
    (finding,) = of("device")
    assert finding.verdict == "problem"
    assert "is a build without CUDA" in finding.text
    assert finding.fix.startswith("pip install --force-reinstall torch --index-url ")


def test_a_card_whose_driver_is_missing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_card", lambda: "an NVIDIA card")
    monkeypatch.setattr("torch.version.cuda", "12.8")
    assert "driver" in of("device")[0].fix


def test_a_package_out_of_range_is_named_with_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.1" if name == "peft" else known(name))
    (finding,) = [each for each in of("packages") if each.verdict == "problem"]
    assert finding.text.startswith("peft 0.1, wanted is ")
    assert finding.fix.startswith("pip install 'peft")


def test_a_package_that_is_there_but_broken_is_tried_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(torch: object) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setitem(doctor._TRIALS, "bitsandbytes", fail)
    (finding,) = of("bitsandbytes")
    assert finding.verdict == "problem"
    assert "libcudart" in finding.text


def test_a_missing_extra_is_a_note_with_the_command_for_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor.util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "prodigyopt" else known(name))
    (finding,) = of("prodigyopt")
    assert (finding.verdict, finding.fix) == ("note", "pip install -e '.[prodigy]'")
    monkeypatch.setattr("sdlora.errors.__file__", "/usr/lib/python3/site-packages/sdlora/errors.py")
    assert how_to_install("8bit") == "pip install 'sdlora[8bit]'"


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDLORA_CACHE", str(tmp_path / "file" / "cache"))
    (finding,) = of("cache")
    assert finding.verdict == "problem"
    assert "$SDLORA_CACHE" in finding.fix


def test_wrong_numbers_of_a_number_type_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def ones(*size: int, **options: object) -> torch.Tensor:
        return torch.full(size, 3.0)

    lying = SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch) if not name.startswith("__")})
    lying.ones = ones
    assert {finding.verdict for finding in doctor._precisions(lying)} == {"problem"}


def test_the_command_prints_and_its_exit_code_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(with_network: bool) -> Iterator[Finding]:
        yield Finding("torch", "problem", "is [broken]", "pip install torch")

    monkeypatch.setattr(doctor, "examine", found)
    result = CliRunner().invoke(app, ["doctor", "--no-network"])
    assert result.exit_code == 1
    assert "is [broken]" in result.output
    assert "-> pip install torch" in result.output
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert json.loads(result.output)[0]["topic"] == "torch"
