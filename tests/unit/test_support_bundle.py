"""What is packed for who helps with a run, and what is not."""

from __future__ import annotations

import json
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


def test_prompts_captions_and_triggers_are_taken_out_wherever_they_are_repeated(tmp_path: Path) -> None:
    values = {
        "images": {"folders": [{"folder": "cats", "trigger": "zorblax cat", "default": "a \u201esecret\u201c pose"}]},
        "captions": {"protected_tags": ["mysterious"]},
        "adapter": {"new_tokens": {"<quux>": {"init": "red fox"}}},
        "previews": {"prompts": ["an owl, zorblax cat"]},
    }
    run = prepare(TrainConfig.model_validate(values), tmp_path)
    events = [
        {"kind": "picture_drawn", "step": 1, "path": "a.png", "prompt": "what I alone asked for"},
        {"kind": "notice", "message": "advice: previews.prompts: none holds the trigger 'zorblax cat'"},
    ]
    run.files.events.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    run.files.log.write_text("step 1: drew 'what I alone asked for': a.png\nmysterious <quux>\n", encoding="utf-8")

    def content(*, with_prompts: bool) -> str:
        with zipfile.ZipFile(support_zip(run, tmp_path / "out", with_prompts=with_prompts)) as bundle:
            return "\n".join(bundle.read(name).decode() for name in bundle.namelist())

    written = ("zorblax cat", "secret", "mysterious", "<quux>", "red fox", "an owl", "what I alone asked for")
    assert [text for text in written if text in content(with_prompts=False)] == []
    assert [text for text in written if text not in content(with_prompts=True)] == []
    assert "step 1: drew '(taken out)': a.png" in content(with_prompts=False)
