"""Draw the sample images and write their captions: python -m tests.sample_images [FOLDER]

Needs Pillow only. The same version of Pillow gives the same files, byte for byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from tests.sample_images import blueprint, mascot


def main(folder: Path) -> None:
    """Write both sets into subfolders of `folder`."""
    for name in blueprint.OBJECTS:
        stem = name.split(" ", 1)[1].replace(" ", "-")
        _write(blueprint.draw(name), blueprint.caption(name), folder / "blueprint" / stem)
    for name in mascot.POSES:
        _write(mascot.draw(name), mascot.caption(name), folder / "mascot" / name)


def _write(image: Image.Image, caption: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path.with_suffix(".png"), optimize=True)
    path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "sample_images")
