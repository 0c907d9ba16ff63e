"""Text states of a run's captions: encoded once, and held in memory only as far as there is room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from sdlora.config.images import CaptionsConfig
from sdlora.data.cache import Cache
from sdlora.events import EventStream
from sdlora.models.bundle import Bundle, TextStates
from sdlora.training.inputs import texts
from sdlora.training.inputs.texts import TextSource


def test_states_there_is_no_room_for_come_from_the_cache_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    def encode_text(bundle: Bundle, captions: Sequence[str], **options: Any) -> TextStates:
        encoded.extend(captions)
        return TextStates(torch.tensor([[[float(len(caption))] * 8] * 77 for caption in captions]))

    bundle = SimpleNamespace(
        family=SimpleNamespace(encode_text=encode_text),
        text_encoders=[SimpleNamespace(dtype=torch.float32)],
        text_identity="",
        clip_skip=1,
        device=torch.device("cpu"),
    )
    monkeypatch.setattr(texts, "_HELD_BYTES", 3 * 77 * 8 * 4)
    source = TextSource(cast("Bundle", bundle), CaptionsConfig(), Cache(tmp_path), live=False)
    captions = ["x" * length for length in range(1, 10)]
    source.prepare(captions, EventStream([]))
    assert sorted(encoded) == ["", *captions]
    for caption in captions:
        assert source.states([caption]).states_BTD.unique().tolist() == [len(caption)]
    assert len(source._memory) <= 3
    assert len(encoded) == 10, "none was encoded again"
