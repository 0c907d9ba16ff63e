"""Files that are no weights though they are called so: each is named as what it is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdlora.adapters.files.reading import read
from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import SdloraError
from sdlora.models.detection import detect

DOWNLOADS = {
    b"": "is empty; download or copy it again",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 151112\n": "is a pointer of git-lfs",
    b"\n<!DOCTYPE html><html><head><title>Login</title></head></html>": "is a web page",
    b'{"error":"Unauthorized","message":"a token is needed"}': "is JSON, such as a server's error",
    b"GGUF" + bytes(60): "is a GGUF file",
    b"\x1f\x8b\x08" + bytes([200] * 60): "is a gzip archive; unpack it",
}


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("content", DOWNLOADS, ids=DOWNLOADS.values())
def test_what_a_download_is_instead_is_said(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(content)
    with pytest.raises(SdloraError, match=DOWNLOADS[content]):
        read(path)
    if ending == ".safetensors":
        with pytest.raises(SdloraError, match=DOWNLOADS[content]):
            detect(BaseModelConfig(model=str(path)))


@pytest.mark.parametrize("length", [0x8B1F, 0x227B])
def test_a_header_whose_length_begins_like_something_else_is_read(tmp_path: Path, length: int) -> None:
    name, path = "lora_unet_mid_block_attentions_0_proj_in", tmp_path / "x.safetensors"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 1280), f"{name}.lora_up.weight": torch.ones(1280, 2)}
    save_file(tensors, path)
    data = path.read_bytes()
    (own,) = struct.unpack("<Q", data[:8])
    path.write_bytes(struct.pack("<Q", length) + data[8 : 8 + own].ljust(length) + data[8 + own :])
    assert list(read(path).modules) == [name]


def test_a_header_that_is_too_long_is_not_called_damage(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"ss_training_comment": "x" * 17_000_000})
    with pytest.raises(SdloraError, match=r"its header is of 17,000,\d\d\d bytes; up to 16,777,216 are read"):
        read(tmp_path / "x.safetensors")
