"""The numbers on the axes of the page's charts."""

from __future__ import annotations

import pytest

from webui.runs import chart


@pytest.mark.parametrize(
    ("low", "high", "is_log", "texts"),
    [
        (0.0, 0.9, False, ["0", "0.2", "0.4", "0.6", "0.8"]),
        (0.103012, 0.103056, False, ["0.10302", "0.10303", "0.10304", "0.10305"]),
        (0.06, 0.09, True, ["0.06", "0.07", "0.08", "0.09"]),
        (0.011, 0.3, True, ["0.02", "0.05", "0.1", "0.2"]),
    ],
)
def test_numbers_on_the_axis_differ_and_there_are_some(low: float, high: float, is_log: bool, texts: list[str]) -> None:
    scale = chart._Scale(0, 2_000_000, low, high, is_log)
    assert [text for _, text in scale.row_ticks()] == texts
    assert [text for _, text in scale.column_ticks()][-1] == "2000000"


def test_percentages_on_an_axis_differ_too() -> None:
    assert chart.tick_texts([97.2, 97.4, 97.6], "%") == ["97.2%", "97.4%", "97.6%"]


def test_rounding_is_no_height_of_a_curve() -> None:
    points = [(0.0, 0.1), (1.0, 0.1 + 1e-16)]
    scale = chart._Scale.around([points], [], chart.ChartOptions(), 1)
    assert scale.high - scale.low > 0.01


def test_ticks_are_round_numbers() -> None:
    assert chart.ticks(0.0, 0.9) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert chart.log_ticks(0.011, 0.3) == pytest.approx([0.02, 0.05, 0.1, 0.2])
