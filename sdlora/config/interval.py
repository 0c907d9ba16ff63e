"""How often something happens: a number of steps, or of epochs."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_EPOCHS = re.compile(r"\s*(\d+\.?\d*|\.\d+)?\s*epochs?\s*", re.IGNORECASE)


def _checked(value: Any) -> int | str:
    """Steps as a number, epochs as "1 epoch"; 0 for never. Raises ValueError for anything else."""
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d+", text):
            return int(text)
        match = _EPOCHS.fullmatch(text)
        if match and float(match[1] or 1) > 0:
            number = float(match[1] or 1)
            return f"{number:g} epoch" + ("" if number == 1 else "s")
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"must be a number of steps, or epochs as in '1 epoch'; got {value!r}")


Interval = Annotated[int | str, BeforeValidator(_checked)]


def _checked_or_auto(value: Any) -> int | str:
    return value if value == "auto" else _checked(value)


IntervalOrAuto = Annotated[int | str, BeforeValidator(_checked_or_auto)]


def length(interval: int | str, steps_per_epoch: float) -> float:
    """An interval in steps, which an epoch need not be a whole number of; 0 for never."""
    if isinstance(interval, int):
        return float(interval)
    match = _EPOCHS.fullmatch(interval)
    assert match is not None
    return float(match[1] or 1) * steps_per_epoch


def is_due(interval: int | str, step: int, steps_per_epoch: float) -> bool:
    """Whether an interval ends with this step (1 for the first): the first step at or past each multiple of it."""
    steps = length(interval, steps_per_epoch)
    # A hair is added so that 3 x (1/3) counts as 1.
    return steps > 0 and step > 0 and int(step / steps + 1e-9) > int((step - 1) / steps + 1e-9)
