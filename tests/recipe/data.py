"""Emoji sets as training data: icons.json files -> one array of 128x128 images, with captions.

Reads the npm packages `@iconify-json/{noto,twemoji,fluent-emoji-flat,noto-v1,fxemoji}`. Never reads `openmoji`
or `fluent-emoji-high-contrast`: they stay unseen, as styles for a LoRA to learn.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import write_array, write_json

IMAGE_PX = 128
SUPERSAMPLING = 4
NUM_HELD_OUT = 200
STYLES = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent-emoji-flat": "fluent",
    "noto-v1": "blob",
    "fxemoji": "fxemoji",
}
"""Icon set -> the word that names its style in captions (noto-v1 holds Google's "blob" emoji)."""
BENCHMARK_STYLES = ("noto", "twemoji", "fluent")
LEFT_OUT = re.compile(r"skin-tone")


@dataclass(frozen=True)
class Name:
    """One line of names.txt: an icon, its captions (without style words), and its tier."""

    icon: str
    captions: tuple[str, ...]
    tier: str


@dataclass(frozen=True)
class EmojiImage:
    """One drawing. `captions` is empty for images that only the VAE sees; `held_out` ones it never sees."""

    style: str
    name: str
    captions: tuple[str, ...]
    tier: str
    held_out: bool


def caption(words: str, style: str) -> str:
    """The caption that training and evaluation use: "a cat face, noto style emoji"."""
    return f"{words}, {style} style emoji"


def read_names(path: Path | None = None) -> list[Name]:
    """The curated names of `names.txt`, in order."""
    names, tier = [], ""
    for line in (path or Path(__file__).parent / "names.txt").read_text().splitlines():
        if line.startswith("["):
            tier = line.strip("[]")
        elif line and not line.startswith("#"):
            icon, _, captions = line.partition(" = ")
            names.append(Name(icon, tuple(captions.split(" ; ")) if captions else (f"a {icon}",), tier))
    return names


def read_images(work: Path) -> tuple[np.ndarray, list[EmojiImage]]:
    """What `rasterise` wrote: uint8 pixels [N, 128, 128, 3] and one record for each."""
    records = json.loads((work / "images.json").read_text())
    images = [EmojiImage(**{**record, "captions": tuple(record["captions"])}) for record in records]
    return np.load(work / "images.npy", mmap_mode="r"), images


def rasterise(icons_folder: Path, work: Path) -> None:
    """Draw every icon of the five sets on white and write `images.npy` and `images.json`."""
    if (work / "images.json").exists():
        return
    names = {name.icon: name for name in read_names()}
    noto_name_of = _read(icons_folder / "noto" / "chars.json")
    svgs: list[str] = []
    images: list[tuple[str, str]] = []
    for icon_set, style in STYLES.items():
        for icon, svg in _drawings(icons_folder / icon_set, noto_name_of):
            svgs.append(svg)
            images.append((style, icon))
    with ProcessPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(draw, svgs, chunksize=64)))
    held_out = _held_out([name for _, name in images])
    records = []
    for style, icon in images:
        name = names.get(icon)
        captions, tier = (name.captions, name.tier) if name else ((), "")
        records.append(asdict(EmojiImage(style, icon, captions, tier, icon in held_out)))
    write_array(work / "images.npy", pixels)
    write_json(work / "images.json", records)


def draw(svg: str) -> np.ndarray:
    """An SVG as uint8 [128, 128, 3] on white, drawn four times larger and averaged down."""
    import resvg_py
    from PIL import Image

    size = IMAGE_PX * SUPERSAMPLING
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff")
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if image.size != (size, size):
        canvas = Image.new("RGB", (size, size), "white")
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    return np.asarray(image.reduce(SUPERSAMPLING))


def _drawings(folder: Path, noto_name_of: dict[str, str]) -> list[tuple[str, str]]:
    """(name, svg) of each icon of one set; names are Noto's where the code point is the same."""
    icons = _read(folder / "icons.json")
    code_of = {name: code for code, name in _read(folder / "chars.json").items()}
    joined = {name.replace("-", ""): name for name in noto_name_of.values()}  # fxemoji: "alarmclock", no code points
    drawings = {}
    for icon, entry in icons["icons"].items():
        name = noto_name_of.get(code_of.get(icon, ""), joined.get(icon, icon))
        if entry.get("hidden") or LEFT_OUT.search(icon) or LEFT_OUT.search(name):
            continue
        width = entry.get("width", icons.get("width", 16))
        height = entry.get("height", icons.get("height", 16))
        drawings[name] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{entry["body"]}</svg>'
        )
    return sorted(drawings.items())


def _held_out(names: list[str]) -> set[str]:
    """Names, chosen by hash, that together have about 200 images; whole names: no sibling drawing leaks."""
    chosen: set[str] = set()
    count = 0
    for name in sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if count >= NUM_HELD_OUT:
            break
        chosen.add(name)
        count += names.count(name)
    return chosen


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
