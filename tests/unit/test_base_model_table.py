"""The table of docs/guides/base-models.md: each kind of base model is detected as it says."""

from __future__ import annotations

import pytest

from tests.support.base_model_table import CASES, PAGE, Case, detected, page


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_base_model_is_detected_as_the_guide_says(case: Case) -> None:
    found = detected(case)
    if case.expected.startswith("refused: "):
        assert found.startswith("refused: ")
        assert case.expected.removeprefix("refused: ") in found
    else:
        assert found == case.expected


def test_the_guides_table_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.support.base_model_table"
