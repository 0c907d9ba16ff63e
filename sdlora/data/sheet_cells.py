"""Pictures and text in the cells of a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def paste_into(
    sheet: Image.Image, cell: tuple[int, int, int, int], image: Image.Image, *, enlarge: bool = False
) -> None:
    """Put an image into the middle of a cell (left, top, right, bottom), made smaller where it would not fit."""
    left, top, right, bottom = cell
    width, height = right - left, bottom - top
    if enlarge or image.width > width or image.height > height:
        scale = min(width / image.width, height / image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))


def text_width(font: Font, text: str) -> int:
    """Width of a line in pixels, rounded up."""
    return int(font.getlength(text) + 0.999)


def wrap_text(font: Font, text: str, width_px: int, most_lines: int = 5) -> list[str]:
    """The text in lines of at most that width, broken at blanks where there are any; cut after `most_lines`."""
    lines = [""]
    for word in _pieces(font, " ".join(text.split()), width_px, 20 * most_lines):
        joined = f"{lines[-1]} {word}".strip()
        if text_width(font, joined) <= width_px:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > most_lines:
        last = lines[most_lines - 1]
        while last and text_width(font, f"{last}...") > width_px:
            last = last[:-1]
        lines = [*lines[: most_lines - 1], f"{last}..."]
    return lines


def _pieces(font: Font, text: str, width_px: int, most: int) -> Sequence[str]:
    """The words, those wider than a line in several parts; ends after about `most`."""
    pieces: list[str] = []
    for word in text.split(" "):
        while len(word) > 1 and text_width(font, word) > width_px:
            end = len(word) - 1
            while end > 1 and text_width(font, word[:end]) > width_px:
                end -= 1
            pieces.append(word[:end])
            word = word[end:]
        pieces.append(word)
        if len(pieces) > most:
            break
    return pieces
