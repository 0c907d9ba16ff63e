"""What a run's images were, and what of them is another now."""

from __future__ import annotations

from sdlora.training.inputs.fingerprint import differences


def test_moved_images_are_told_as_moved_alone_and_their_captions_are_compared() -> None:
    before = {"old/a.png": ["1", "cat", ""], "old/b.png": ["2", "dog", ""], "old/c.png": ["3", "fox", ""]}
    now = {"new/a.png": ["1", "cat", ""], "new/b.png": ["2", "wolf", ""], "new/d.png": ["4", "owl", ""]}
    assert [one.sentence for one in differences(before, now)] == [
        "1 images are gone: c.png",
        "1 images are new: d.png",
        "2 images were moved or renamed: a.png, b.png",
        "1 captions were changed: b.png",
    ]
