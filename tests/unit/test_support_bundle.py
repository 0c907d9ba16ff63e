"""What is packed for who helps with a run, and what is not."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from sdlora.config.train import TrainConfig
from sdlora.launch.runs import prepare
from sdlora.launch.support import redacted, support_zip


def test_a_bundle_holds_what_helps_and_neither_images_nor_secrets(tmp_path: Path) -> None:
    run = prepare(TrainConfig(), tmp_path)
    run.files.log.write_text("HF_TOKEN: hf_abcdefghijklmnop\nloss 0.1\n", encoding="utf-8")
    (run.folder / "00.png").write_bytes(b"a picture")

    path = support_zip(run, tmp_path, more={"doctor.json": "[]"})

    with zipfile.ZipFile(path) as bundle:
        names = set(bundle.namelist())
        assert names == {
            "config.yaml", "environment.json", "events.jsonl", "log.txt", "state.json", "files.txt", "doctor.json"
        }  # fmt: skip
        assert "00.png" in bundle.read("files.txt").decode()
        assert bundle.read("log.txt").decode().splitlines() == ["HF_TOKEN: [redacted]", "loss 0.1"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://me:hunter22@example.org/x", "https://[redacted]@example.org/x"),
        ("OPENAI_API_KEY=sk-proj-abc_def-123456", "OPENAI_API_KEY=[redacted]"),
        ('"api_key": "anything at all"', '"api_key": [redacted]'),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [redacted]"),
        ("GET /x?token=abcdef&size=2", "GET /x?token=[redacted]&size=2"),
        ("webhook: https://hooks.example.org/T0/B1", "webhook: [redacted]"),
        (f"{Path.home()}/pictures/a.png", "~/pictures/a.png"),
        ("adapter.new_tokens, captions.max_tokens: 75, keep_tokens: 1", None),
        ("the secret garden, a password on a note", None),
    ],
)
def test_secrets_are_taken_out_and_nothing_else(text: str, left: str | None) -> None:
    assert redacted(text) == (text if left is None else left)


@pytest.mark.parametrize(
    "text", ["curl --token SECRET x", "curl -u user:SECRET http", "x --password SECRET", "x --api-key=SECRET"]
)
def test_passwords_on_a_command_line_are_taken_out(text: str) -> None:
    assert "SECRET" not in redacted(text)
