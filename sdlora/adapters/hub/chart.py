"""A bar chart by block, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora.adapters.files.container import refuse_target, write_atomically

_BAR_HEIGHT_PX, _GAP_PX, _MARGIN_PX = 18, 8, 24
_LABEL_WIDTH_PX, _BAR_WIDTH_PX, _VALUE_WIDTH_PX = 70, 520, 110
_TITLE_HEIGHT_PX = 40
_TEXT, _BAR, _NEGATIVE, _TRACK = "#222222", "#3b78c2", "#c2553b", "#eeeeee"


def draw_bars(bars: Sequence[tuple[str, float]], title: str) -> Image.Image:
    """One horizontal bar for each (label, value); the longest fills the width, negative values are red."""
    row = _BAR_HEIGHT_PX + _GAP_PX
    width = 2 * _MARGIN_PX + _LABEL_WIDTH_PX + _BAR_WIDTH_PX + _VALUE_WIDTH_PX
    image = Image.new("RGB", (width, 2 * _MARGIN_PX + _TITLE_HEIGHT_PX + row * len(bars)), "white")
    draw = ImageDraw.Draw(image)
    title_font, font = ImageFont.load_default(18), ImageFont.load_default(13)
    draw.text((_MARGIN_PX, _MARGIN_PX), title, _TEXT, title_font)
    longest = max((abs(value) for _, value in bars), default=0.0) or 1.0
    left = _MARGIN_PX + _LABEL_WIDTH_PX
    for index, (label, value) in enumerate(bars):
        top = _MARGIN_PX + _TITLE_HEIGHT_PX + index * row
        bottom = top + _BAR_HEIGHT_PX
        draw.text((_MARGIN_PX, top + 1), label, _TEXT, font)
        draw.rectangle((left, top, left + _BAR_WIDTH_PX, bottom), _TRACK)
        length = round(_BAR_WIDTH_PX * abs(value) / longest)
        if length:
            draw.rectangle((left, top, left + length, bottom), _BAR if value >= 0 else _NEGATIVE)
        draw.text((left + _BAR_WIDTH_PX + 10, top + 1), f"{value:.4g}", _TEXT, font)
    return image


def save_chart(bars: Sequence[tuple[str, float]], title: str, path: Path, *, force: bool = False) -> None:
    """Write the chart as PNG. Raises AdapterError when the file exists and not `force`, or can't be written."""
    refuse_target(path, force, ".png")
    content = BytesIO()
    draw_bars(bars, title).save(content, "PNG")
    write_atomically(path, content.getvalue())
