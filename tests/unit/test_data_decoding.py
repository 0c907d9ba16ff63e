"""Every kind of image file comes out upright, in 8-bit sRGB, on the chosen background."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageCms

from sdlora.data.decoding import UnreadableImageError, load_alpha, load_rgb, open_image

WHITE = "#ffffff"


def corner_marked() -> Image.Image:
    """Red with a blue top left quarter, 60x40."""
    image = Image.new("RGB", (60, 40), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 30, 20))
    return image


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corner_marked().transpose(undo[orientation]) if orientation in undo else corner_marked()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert load_rgb(tmp_path / "a.png", WHITE).tobytes() == corner_marked().tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_get_the_background(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (200, 200, 200, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "a.png")
    loaded = load_rgb(tmp_path / "a.png", "#10ff20")
    assert pixel(loaded) == (0x10, 0xFF, 0x20)
    assert max(abs(channel - 200) for channel in pixel(loaded, 7)) <= 2
    alpha = load_alpha(tmp_path / "a.png")
    assert alpha is not None
    assert alpha.getpixel((0, 0)) == 0
    assert alpha.getpixel((7, 0)) == 255


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.png")
    red, green, blue = pixel(load_rgb(tmp_path / "a.png", "#0000ff"))
    assert red == pytest.approx(128, abs=1)
    assert (green, blue) == (0, pytest.approx(127, abs=1))


def test_a_transparent_colour_of_a_plain_png_counts_as_alpha(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert pixel(load_rgb(tmp_path / "a.png", WHITE)) == (255, 255, 255)


def test_an_image_without_alpha_has_none(tmp_path: Path) -> None:
    corner_marked().save(tmp_path / "a.png")
    assert load_alpha(tmp_path / "a.png") is None


def test_grey_palette_and_two_colour_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "1"):
        corner_marked().convert(mode).save(tmp_path / f"{mode}.png")
        loaded = load_rgb(tmp_path / f"{mode}.png", WHITE)
        assert (loaded.mode, loaded.size) == ("RGB", (60, 40))
    assert pixel(load_rgb(tmp_path / "P.png", WHITE)) == (0, 0, 255)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    values = numpy.full((4, 4), 257 * 100, dtype=numpy.uint16)
    values[0, 0] = 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    loaded = load_rgb(tmp_path / "a.png", WHITE)
    assert pixel(loaded) == (255, 255, 255)
    assert pixel(loaded, 3, 3) == (100, 100, 100)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = pixel(load_rgb(tmp_path / "a.jpg", WHITE), 8, 8)
    assert red > 220
    assert max(green, blue) < 60


def test_colour_profiles_are_converted_to_srgb(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    rgb = Image.new("RGB", (4, 4), (200, 60, 60))
    rgb.save(tmp_path / "wrong.png", icc_profile=lab)
    assert pixel(load_rgb(tmp_path / "wrong.png", WHITE)) == (200, 60, 60), "a profile that doesn't fit is ignored"
    rgb.save(tmp_path / "broken.png", icc_profile=b"nonsense")
    assert pixel(load_rgb(tmp_path / "broken.png", WHITE)) == (200, 60, 60)
    rgb.save(tmp_path / "swapped.png", icc_profile=swapped_profile())
    red, green, blue = pixel(load_rgb(tmp_path / "swapped.png", WHITE))
    assert green > red, "the profile says that its first channel is green"
    rgb.convert("RGBA").save(tmp_path / "alpha.png", icc_profile=swapped_profile())
    assert pixel(load_rgb(tmp_path / "alpha.png", WHITE)) == (red, green, blue)


def swapped_profile() -> bytes:
    """An sRGB profile whose red and green primaries are exchanged, so that a conversion can't go unnoticed."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(content).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def test_the_first_frame_of_a_gif_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(load_rgb(tmp_path / "a.gif", WHITE)) == (255, 0, 0)


def test_the_content_decides_not_the_ending(tmp_path: Path) -> None:
    corner_marked().save(tmp_path / "a.jpg", format="PNG")
    assert load_rgb(tmp_path / "a.jpg", WHITE).size == (60, 40)


def test_pillows_size_limit_is_replaced_by_ours_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corner_marked().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with open_image(tmp_path / "a.png", max_megapixels=1) as image:
        assert image.size == (60, 40)
    assert Image.MAX_IMAGE_PIXELS == 100
    with (
        pytest.raises(UnreadableImageError, match=r"0\.0024 megapixels, more than images\.max_megapixels=0\.001"),
        open_image(tmp_path / "a.png", max_megapixels=0.001),
    ):
        pass
