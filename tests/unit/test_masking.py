"""Masks made beside images: from transparency, and by networks in the forms in which rembg keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw

from sdlora.config import files
from sdlora.data.fix.changes import undo
from sdlora.data.masking import load_mask_maker, make_masks
from sdlora.errors import DataError, ModelError
from sdlora.training.inputs.images import find_images


def build_subject_finder(path: Path, *, gain: float = 1.0, edge_px: int | str = 32) -> Path:
    """A network whose map is the red of its normalised input, times a gain."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy.zeros((1, 3, 1, 1), numpy.float32)
    weight[0, 0] = gain
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input.1", "weight"], ["map"])],
        "subject",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, edge_px, edge_px])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 1, edge_px, edge_px])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A red square on black, a transparent picture and one without anything in it."""
    folder = tmp_path / "set"
    folder.mkdir()
    square = Image.new("RGB", (96, 64))
    ImageDraw.Draw(square).rectangle((60, 0, 95, 63), fill=(255, 0, 0))
    square.save(folder / "square.png")
    cut_out = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(cut_out).rectangle((0, 0, 31, 63), fill=(0, 0, 0, 255))
    cut_out.save(folder / "cut_out.png")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / "empty.png")
    return folder


def test_masks_come_from_transparency(pictures: Path) -> None:
    masked = make_masks(pictures, load_mask_maker("alpha"))
    assert (masked.made, sorted(path.name for path in masked.without)) == (1, ["empty.png", "square.png"])
    with Image.open(pictures / "cut_out-masklabel.png") as mask:
        assert (mask.mode, mask.getpixel((5, 5)), mask.getpixel((60, 5))) == ("L", 255, 0)


@pytest.mark.parametrize("name", ["u2net.onnx", "isnet-general-use.onnx"])
@pytest.mark.parametrize("gain", [1.0, 9.0])
def test_a_network_finds_the_subject_and_training_uses_its_mask(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, gain: float
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "rembg"))
    build_subject_finder(tmp_path / "rembg" / name, gain=gain)
    masked = make_masks(pictures, load_mask_maker(name.removesuffix(".onnx")))
    assert masked.made == 2
    assert [path.name for path in masked.without] == ["empty.png"]
    with Image.open(pictures / "square-masklabel.png") as mask:
        assert mask.size == (96, 64)
        assert mask.getpixel((90, 30)) > 240
        assert mask.getpixel((5, 30)) < 15
    settings = [f"images.folder={pictures}", "images.mask=file", "captions.default=x", "images.resolution=64"]
    images = find_images(files.load(overrides=settings))
    assert sorted(one.path.name for one in images.trained if one.has_mask) == ["cut_out.png", "square.png"]


def test_masks_that_are_there_stay_unless_they_are_to_be_made_anew_and_undo_gives_them_back(pictures: Path) -> None:
    own = pictures / "cut_out-masklabel.png"
    Image.new("L", (64, 64), 7).save(own)
    before = own.read_bytes()
    assert make_masks(pictures, load_mask_maker("alpha")).there == 1
    assert own.read_bytes() == before
    assert not (pictures / ".sdlora-trash").exists(), "nothing was changed, so there is nothing to undo"
    assert make_masks(pictures, load_mask_maker("alpha"), overwrite=True).made == 1
    assert own.read_bytes() != before
    undo(pictures)
    assert own.read_bytes() == before


def test_what_is_no_mask_model_says_what_there_is_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"'u2net' was not found: .*rembg d u2net.*--model alpha"):
        load_mask_maker("u2net")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"can't be loaded by onnxruntime"):
        load_mask_maker(str(tmp_path / "bad.onnx"))
    with pytest.raises(DataError, match="doesn't exist"):
        make_masks(tmp_path / "gone", load_mask_maker("alpha"))


def test_the_command_makes_masks_and_says_what_has_none(pictures: Path, cli: Callable) -> None:
    (pictures / "bad.png").write_bytes(b"no picture")
    outcome = cli("dataset", "mask", pictures, "--model", "alpha")
    assert outcome.code == 0
    said = " ".join((outcome.output + outcome.errors).split())
    assert "1 mask made, 2 without a subject, 1 left out, since they can't be read" in said
    assert "left out: bad.png: not a JPEG" in said
    assert "--set images.mask=file" in said
    again = json.loads(cli("dataset", "mask", pictures, "--model", "alpha", "--json").output)
    assert (again["words"], again["made"], again["there"], len(again["without"])) == (
        "1 with one before, left alone, 2 without a subject, 1 left out, since they can't be read", 0, 1, 2,
    )  # fmt: skip
