"""Pictures drawn for the tests of dataset checks: sharp, coloured, each different."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from PIL import Image, ImageDraw


def picture(seed: int, size: tuple[int, int] = (320, 320)) -> Image.Image:
    """Coloured shapes with hard edges on a coloured ground."""
    draws = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return draws.randint(0, 255), draws.randint(0, 255), draws.randint(0, 255)

    image = Image.new("RGB", size, colour())
    canvas = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = draws.randrange(size[0]), draws.randrange(size[1])
        width, height = draws.randrange(20, size[0] // 2), draws.randrange(20, size[1] // 2)
        shape = canvas.rectangle if draws.random() < 0.5 else canvas.ellipse
        shape((x - width // 2, y - height // 2, x + width // 2, y + height // 2), fill=colour())
    return image


def save_captioned(image: Image.Image, path: Path, caption: str | None, **options: object) -> Path:
    """Save a picture, and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
