"""A labelled sheet of images in columns, rows and blocks, with Pillow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from sdlora.data.sheet_cells import paste_into, text_width, wrap_text

GridPosition = tuple[int, int, int]
"""Column, row and block of an image."""

_MARGIN_PX = 8
_NARROWEST_COLUMN_PX = 96
_LARGEST_SHEET_PX = 64e6
_INK, _TITLE_INK, _MISSING = "#111111", "#5a5a5a", "#e4e4e4"


@dataclass(frozen=True)
class SheetAxis:
    """What stands beside columns, rows or blocks: the axis' title and a label for each."""

    title: str = ""
    labels: tuple[str, ...] = ("",)


def draw_contact_sheet(
    images: Mapping[GridPosition, Image.Image], x: SheetAxis, y: SheetAxis = SheetAxis(), z: SheetAxis = SheetAxis()
) -> Image.Image:
    """The sheet in mode RGB: x from left to right, y downwards, one block below the other for z.

    A place without an image stays grey. Images are made smaller where the sheet would pass 64 megapixels.
    """
    layout = _Layout.fit(images, x, y, z)
    sheet = Image.new("RGB", (layout.width_px, layout.block_px * len(z.labels)), "white")
    draw = ImageDraw.Draw(sheet)
    for block in range(len(z.labels)):
        _draw_block(sheet, draw, layout, (x, y, z), images, block)
    return sheet


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels that all blocks share."""

    cell_width_px: int
    cell_height_px: int
    left_px: int
    head_px: int
    heading_px: int
    font_px: int
    columns: int
    rows: int

    @property
    def width_px(self) -> int:
        return self.left_px + self.columns * (self.cell_width_px + _MARGIN_PX)

    @property
    def block_px(self) -> int:
        return self.heading_px + self.head_px + self.rows * (self.cell_height_px + _MARGIN_PX) + _MARGIN_PX

    @classmethod
    def fit(cls, images: Mapping[GridPosition, Image.Image], x: SheetAxis, y: SheetAxis, z: SheetAxis) -> _Layout:
        width = max((image.width for image in images.values()), default=_NARROWEST_COLUMN_PX)
        height = max((image.height for image in images.values()), default=_NARROWEST_COLUMN_PX)
        cells = len(x.labels) * len(y.labels) * len(z.labels)
        scale = min(1.0, (_LARGEST_SHEET_PX / (width * height * cells)) ** 0.5)
        column = max(_NARROWEST_COLUMN_PX, round(width * scale))
        font_px = min(32, max(12, column // 18))
        font = ImageFont.load_default(font_px)
        left_limit = max(160, min(column, 30 * font_px))
        labels = [line for label in (y.title, *y.labels) for line in wrap_text(font, label, left_limit)]
        left = max(text_width(font, line) for line in labels)
        lines = max(len(wrap_text(font, label, column)) for label in x.labels)
        head = (bool(x.title or y.title) + lines * any(x.labels)) * _line_px(font_px) + _MARGIN_PX
        return cls(
            cell_width_px=column,
            cell_height_px=max(1, round(height * scale)),
            left_px=left + 2 * _MARGIN_PX if left else _MARGIN_PX,
            head_px=head,
            heading_px=2 * _line_px(font_px) if any(z.labels) else 0,
            font_px=font_px,
            columns=len(x.labels),
            rows=len(y.labels),
        )


def _draw_block(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    axes: tuple[SheetAxis, SheetAxis, SheetAxis],
    images: Mapping[GridPosition, Image.Image],
    block: int,
) -> None:
    x, y, z = axes
    font = ImageFont.load_default(layout.font_px)
    line_px = _line_px(layout.font_px)
    top = block * layout.block_px + _MARGIN_PX
    if layout.heading_px:
        heading = wrap_text(font, f"{z.title}: {z.labels[block]}", layout.width_px - 2 * _MARGIN_PX)[0]
        draw.text((_MARGIN_PX, top + line_px // 2), heading, _INK, font=font)
        top += layout.heading_px
    if x.title or y.title:
        draw.text((layout.left_px, top), wrap_text(font, x.title, layout.width_px)[0], _TITLE_INK, font=font)
        draw.text((_MARGIN_PX, top), wrap_text(font, y.title, layout.left_px)[0], _TITLE_INK, font=font)
    title_px = line_px * bool(x.title or y.title)
    for column, label in enumerate(x.labels):
        left = layout.left_px + column * (layout.cell_width_px + _MARGIN_PX)
        for number, line in enumerate(wrap_text(font, label, layout.cell_width_px)):
            indent = (layout.cell_width_px - text_width(font, line)) // 2
            draw.text((left + indent, top + title_px + number * line_px), line, _INK, font=font)
    top += layout.head_px
    for row, label in enumerate(y.labels):
        upper = top + row * (layout.cell_height_px + _MARGIN_PX)
        lines = wrap_text(font, label, layout.left_px - 2 * _MARGIN_PX) if label else []
        start = upper + max(0, (layout.cell_height_px - len(lines) * line_px) // 2)
        for number, line in enumerate(lines):
            draw.text((_MARGIN_PX, start + number * line_px), line, _INK, font=font)
        for column in range(layout.columns):
            left = layout.left_px + column * (layout.cell_width_px + _MARGIN_PX)
            cell = (left, upper, left + layout.cell_width_px, upper + layout.cell_height_px)
            image = images.get((column, row, block))
            if image is None:
                sheet.paste(_MISSING, cell)
            else:
                paste_into(sheet, cell, image)


def _line_px(font_px: int) -> int:
    return round(font_px * 1.3)
