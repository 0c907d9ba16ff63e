"""Files that are no weights though they are called so: each is named as what it is."""

from __future__ import annotations

import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdlora.adapters.files.embeddings import read_embedding
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


def test_a_file_of_pytorch_under_another_name_is_told_how_to_be_called(tmp_path: Path) -> None:
    torch.save({"emb_params": torch.ones(2, 768)}, tmp_path / "x.safetensors")
    for reader in (read, read_embedding):
        with pytest.raises(SdloraError, match=r"only plain tensors are read.* rename it to end in .pt"):
            reader(tmp_path / "x.safetensors")
    with pytest.raises(SdloraError, match=r"a pickle\) under another name; rename it to end in .ckpt"):
        detect(BaseModelConfig(model=str(tmp_path / "x.safetensors")))


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt"])
def test_a_safetensors_file_under_another_name_is_told_how_to_be_called(tmp_path: Path, ending: str) -> None:
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / f"x{ending}")
    words = r"is a safetensors file under another name; rename it to end in .safetensors"
    for reader in (read, read_embedding):
        with pytest.raises(SdloraError, match=words):
            reader(tmp_path / f"x{ending}")
    if ending == ".ckpt":
        with pytest.raises(SdloraError, match=words):
            detect(BaseModelConfig(model=str(tmp_path / "x.ckpt")))


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".zip"])
def test_an_archive_with_an_adapter_in_it_is_called_one(tmp_path: Path, ending: str) -> None:
    with zipfile.ZipFile(tmp_path / f"x{ending}", "w") as archive:
        archive.writestr("lora.safetensors", b"...")
    with pytest.raises(SdloraError, match="is a zip archive; unpack it"):
        read(tmp_path / f"x{ending}")


def changed(content: bytes, mark: bytes, at: int, value: bytes) -> bytes:
    """A zip archive with other bytes at a place of its first record of a kind."""
    place = content.index(mark) + at
    return content[:place] + value + content[place + len(value) :]


@pytest.mark.parametrize(
    ("mark", "at", "value"),
    [
        (b"PK\x01\x02", 6, b"\xff"),  # needs a version that doesn't exist
        (b"PK\x01\x02", 46, b"\x80"),  # a name that is no UTF-8
        (b"PK\x06\x07", 16, b"\x07"),  # spans several disks
        (b"PK\x05\x06", 12, b"\0\0\0\0"),  # a directory of no length
    ],
    ids=["version", "name", "disks", "directory"],
)
def test_a_damaged_archive_of_torch_is_read_or_refused_in_words(
    tmp_path: Path, mark: bytes, at: int, value: bytes
) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"emb_params": torch.ones(1, 768)}, path)
    content = path.read_bytes()
    # The flag for names in UTF-8, without which any byte is a name.
    content = changed(content, b"PK\x01\x02", 9, b"\x08") if value == b"\x80" else content
    path.write_bytes(changed(content, mark, at, value))
    path.with_suffix(".pt").write_bytes(path.read_bytes())
    for reader in (read, read_embedding):
        with suppress(SdloraError):  # torch's own reader overlooks some of it
            reader(path.with_suffix(".pt"))
    with pytest.raises(SdloraError, match=r"x\.ckpt"):
        detect(BaseModelConfig(model=str(path)))


def test_what_a_pickle_holds_instead_of_weights_is_said(tmp_path: Path) -> None:
    linear = {"linear.0.weight": torch.ones(4, 4)}
    contents = {
        "a hypernetwork of AUTOMATIC1111": {768: [linear, linear], "step": 1},
        "a list of tensors without names, as the first LoRA tool": [torch.ones(4, 2), torch.ones(2, 4)],
        "a single tensor without a name": torch.ones(1, 768),
        "an optimizer's state": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]},
    }
    for words, content in contents.items():
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(SdloraError, match=f"^x.pt is {words}"):
            read(tmp_path / "x.pt")


def test_a_cut_or_wrong_pickle_is_not_taken_for_one_that_runs_code(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(400)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-300])
    with pytest.raises(SdloraError, match=r"^cut.pt can't be read as a checkpoint: incomplete; download"):
        read(tmp_path / "cut.pt")
    (tmp_path / "zeros.bin").write_bytes(bytes(100))
    with pytest.raises(SdloraError, match=r"^zeros.bin is damaged or no file of PyTorch's"):
        read(tmp_path / "zeros.bin")
