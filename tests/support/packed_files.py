"""Packed datasets made by hand, and what becomes of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.support.dataset_pictures import picture


def image_bytes(seed: int, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    picture(seed, (96, 96)).save(content, kind)
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}
