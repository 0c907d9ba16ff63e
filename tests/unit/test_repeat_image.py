"""Pictures as requests: their adapters and base model found on this machine."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdlora.errors import ConfigError
from sdlora.generation.restore.repeat import repeat_image

CONTENT = b"12345678"
HASH = hashlib.sha256(CONTENT).hexdigest()[:12]


def write_adapter(path: Path, content: bytes = CONTENT) -> Path:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    return path


def picture(path: Path, prompt: str = "a cat", model: str = "v1-5", **request: Any) -> Path:
    info = PngInfo()
    if request:
        info.add_text("sdlora", json.dumps(request))
    else:
        info.add_text(
            "parameters",
            f'{prompt}\nSteps: 5, Seed: 1, CFG scale: 2, Model hash: 45dee52b1c, Model: "{model}", RNG: CPU, '
            f'VAE: x, Lora hashes: "ink: {HASH}", Version: v1.10.1',
        )
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_picture_of_another_tool_needs_its_base_model_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"it was generated with 'v1-5' \(hash 45dee52b1c\); say which file that is"):
        repeat_image(path)
    repeated = repeat_image(path, base_is_given=True)
    assert repeated.notes == ("not taken over, for want of a counterpart: VAE x",)
    assert "base_model" not in repeated.values
    builtin = repeat_image(picture(tmp_path / "b.png", model="builtin:emoji"))
    assert builtin.values["base_model"] == {"model": "builtin:emoji"}


def test_tags_find_their_files_by_hash_also_when_renamed_and_by_name(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", prompt="a cat <lora:ink:0.8:0.5>")
    renamed = write_adapter(tmp_path / "loras" / "new name.safetensors")
    decoy = write_adapter(tmp_path / "loras" / "ink.safetensors", b"87654321")
    values = repeat_image(path, [tmp_path / "loras"], base_is_given=True).values
    assert values["prompt"] == "a cat"
    (adapter,) = values["adapters"]
    assert (adapter["file"], adapter["weight"], adapter["text_encoder"]) == (str(renamed), 0.5, 0.8)
    renamed.unlink()
    (adapter,) = repeat_image(path, [tmp_path / "loras"], base_is_given=True).values["adapters"]
    assert adapter["file"] == str(decoy)


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", prompt="a cat <lora:fog:1> <lora:rain:1>")
    (tmp_path / "loras").mkdir()
    with pytest.raises(ConfigError) as caught:
        repeat_image(path, [tmp_path / "loras"])
    assert len(caught.value.problems) == 3
    assert caught.value.problems[1].startswith("<lora:fog:1>: no adapter of that name is in")
    with pytest.raises(ConfigError, match="hypernetworks can't be used"):
        repeat_image(picture(tmp_path / "b.png", prompt="<hypernet:a:1>"), base_is_given=True)


def own_picture(tmp_path: Path, file: Path) -> Path:
    request = {"prompt": "a cat", "adapters": [{"file": str(file), "weight": 0.4}], "seed": 3}
    return picture(tmp_path / "own.png", request=request, adapter_hashes={"ink": HASH})


def test_our_own_picture_repeats_as_it_stands(tmp_path: Path) -> None:
    ink = write_adapter(tmp_path / "ink.safetensors")
    repeated = repeat_image(own_picture(tmp_path, ink))
    assert repeated.values == {"prompt": "a cat", "adapters": [{"file": str(ink), "weight": 0.4}], "seed": 3}
    assert repeated.notes == ()


def test_an_adapter_that_moved_is_found_and_one_that_changed_is_told(tmp_path: Path) -> None:
    path = own_picture(tmp_path, tmp_path / "ink.safetensors")
    with pytest.raises(ConfigError, match="ink.safetensors is not there any more, and no folder to search for it"):
        repeat_image(path)
    moved = write_adapter(tmp_path / "elsewhere" / "ink.safetensors")
    (adapter,) = repeat_image(path, [tmp_path / "elsewhere"]).values["adapters"]
    assert adapter == {"file": str(moved), "weight": 0.4}
    write_adapter(tmp_path / "ink.safetensors", b"87654321")
    repeated = repeat_image(path)
    assert repeated.notes == (
        f"{tmp_path / 'ink.safetensors'} is not the file the picture was generated with: its content differs",
    )
