"""What a run's images were, and what of them is another now."""

from __future__ import annotations

from sdlora.training.inputs.fingerprint import differences


def test_moved_images_are_told_as_moved_alone_and_their_captions_are_compared() -> None:
    before = {"old/a.png": ["1", "cat", ""], "old/b.png": ["2", "dog", ""], "old/c.png": ["3", "fox", ""]}
    now = {"new/a.png": ["1", "cat", ""], "new/b.png": ["2", "wolf", ""], "new/d.png": ["4", "owl", ""]}
    assert [one.sentence for one in differences(before, now)] == [
        "1 image is gone: c.png",
        "1 image is new: d.png",
        "2 images were moved or renamed: a.png, b.png",
        "1 caption was changed: b.png",
    ]


def test_masks_that_a_setting_begins_or_ceases_to_use_are_no_changed_files() -> None:
    without = {"a.png": ["1", "cat", ""], "b.png": ["2", "dog", ""]}
    masked = {"a.png": ["1", "cat", "m"], "b.png": ["2", "dog", ""]}
    other = {"a.png": ["1", "cat", "n"], "b.png": ["2", "dog", ""]}
    ways = ((without, masked, "switched on"), (masked, without, "switched off"), (masked, other, "changed"))
    for before, now, how in ways:
        (found,) = differences(before, now)
        assert (found.sentence, found.by_setting) == (f"1 mask was {how}: a.png", how != "changed")
