"""The page's style sheets, as Gradio hands them on: it writes every rule anew, and some it breaks in silence."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("gradio", reason="the page needs gradio")

from webui.theme import STYLES

TEXT = re.sub(r"/\*.*?\*/", "", "\n".join(path.read_text(encoding="utf-8") for path in STYLES), flags=re.DOTALL)


def test_no_rule_sets_a_variable_side_apart() -> None:
    # `border: 1px solid var(--x); border-left-width: 5px` comes out as six empty lines: no border at all.
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", TEXT):
        for short in ("border", "padding", "margin", "background", "font"):
            parts = re.split(rf"(?:^|[;\s]){short}:[^;]*var\(", body, maxsplit=1)
            apart = len(parts) == 2 and re.search(rf"[;\s]{short}-(?!radius|collapse|spacing)[a-z-]+:", parts[1])
            assert not apart, f"{selector.strip()}: {short} with a variable, and a part of it"


def test_rules_for_some_widths_reach_what_they_name() -> None:
    # Within @media only the copy with Gradio's container in front is left, and it splits at each comma, in :is() too.
    for condition, rules in re.findall(r"@media ([^{]+)\{((?:[^{}]*\{[^{}]*\})*)\s*\}", TEXT):
        for selector in re.findall(r"([^{}]+)\{", rules):
            assert not re.search(r":\w+\([^()]*,[^()]*\)", selector), f"{condition}: {selector.strip()}"
            assert ".gradio-container" not in selector, f"{condition}: {selector.strip()}"


def test_there_are_four_sizes_of_type() -> None:
    without_charts = re.sub(r"[^{}]*(?:loss-chart|trade-off) text[^{}]*\{[^{}]*\}", "", TEXT)
    assert set(re.findall(r"font(?:-size)?:\s*([\d.]+\w+)", without_charts)) - {"1em"} <= {
        "0.85rem",
        "0.95rem",
        "1.1rem",
        "1.4rem",
    }


def test_distances_are_of_one_scale() -> None:
    distances = re.findall(r"(?:padding|margin|gap)(?:-\w+)?:([^;}]*)", TEXT)
    assert {size for each in distances for size in re.findall(r"(\d+)px", each)} <= {
        "0",
        "1",
        "2",
        "4",
        "8",
        "12",
        "16",
        "24",
    }
