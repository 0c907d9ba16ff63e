"""A contact sheet: every image with the crop and caption it is trained with, masks tinted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdlora.config.train import TrainConfig
from sdlora.data.buckets import BucketedImage, assign
from sdlora.data.crops import crop_image, crop_mask
from sdlora.data.images import scan
from sdlora.data.sheet_cells import paste_into, wrap_text
from sdlora.data.thumbnails import tint_left_out

_MARGIN_PX = 12
_FONT_PX = 12
_CAPTION_LINES = 4
_LINE_PX = 15


def draw_sheet(
    config: TrainConfig, folders: Sequence[Path] = (), *, columns: int = 6, cell_px: int = 192, most: int = 200
) -> Image.Image:
    """The sheet in mode RGB: up to `most` images in the order of their files, at the first resolution.

    Each is cut exactly as in training (centre crop, not mirrored) and then scaled into a cell; below it stand file,
    bucket and the caption as trained, with nothing shuffled or dropped. Unreadable files are left out.
    Raises DataError for a folder without usable images.
    """
    images = config.images.model_copy(update={"max_unreadable": 1.0, "resolution": config.images.resolutions[0]})
    captions = config.captions.model_copy(update={"default": config.captions.default or ""})
    records = scan(images, captions, folders=folders or None).records
    placed = assign(records[:most], images)
    columns = min(columns, len(placed))
    rows = -(-len(placed) // columns)
    cell_height = cell_px + _LINE_PX * (_CAPTION_LINES + 2) + _MARGIN_PX
    sheet = Image.new(
        "RGB", (columns * (cell_px + _MARGIN_PX) + _MARGIN_PX, rows * cell_height + 2 * _MARGIN_PX), "white"
    )
    for index, item in enumerate(placed):
        row, column = divmod(index, columns)
        corner = _MARGIN_PX + column * (cell_px + _MARGIN_PX), _MARGIN_PX + row * cell_height
        _draw_cell(sheet, corner, cell_px, item, config)
    return sheet


def _draw_cell(
    sheet: Image.Image, corner: tuple[int, int], cell_px: int, item: BucketedImage, config: TrainConfig
) -> None:
    left, top = corner
    paste_into(sheet, (left, top, left + cell_px, top + cell_px), trained_picture(item, config), enlarge=True)
    bucket = item.placement.bucket
    enlarged = f", enlarged {item.placement.scale:.2g} times" if item.placement.upscaled else ""
    repeats = f" x{item.record.repeats}" if item.record.repeats > 1 else ""
    caption = item.record.plain_caption()
    font = ImageFont.load_default(_FONT_PX)
    lines = [
        wrap_text(font, f"{item.record.path.name}{repeats}", cell_px, most_lines=1)[0],
        wrap_text(font, f"{bucket.width_px}x{bucket.height_px}{enlarged}", cell_px, most_lines=1)[0],
        *wrap_text(font, caption or "(no caption)", cell_px, _CAPTION_LINES),
    ]
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((left, top + cell_px + 2 + number * _LINE_PX), line, "black" if number > 1 else "gray", font=font)


def trained_picture(item: BucketedImage, config: TrainConfig) -> Image.Image:
    """The image as cut for training, in mode RGB at its bucket's size; what a mask leaves out is tinted red."""
    picture = crop_image(item.record, item.placement, flip=False, crop_xy=None, background=config.images.background)
    if not item.record.has_mask:
        return picture
    mask = crop_mask(item.record, item.placement, flip=False, crop_xy=None)
    return tint_left_out(picture, mask)
