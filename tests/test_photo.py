"""Photographs of every mode and orientation arrive as displayed."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from refseg.photo import read_photo

# EXIF's own words for each orientation: where the stored row 0 and the stored column 0 are seen.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
UPRIGHT = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    row, column = SIDES[orientation]
    pixels = upright if row in ("top", "bottom") else upright.transpose(1, 0, 2)
    pixels = pixels[::-1] if row in ("bottom", "right") else pixels
    return np.ascontiguousarray(pixels[:, ::-1] if column in ("bottom", "right") else pixels)


def file_of(image: Image.Image, format: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def turned(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if format == "WEBP" else {}
    return file_of(Image.fromarray(stored(UPRIGHT, orientation)), format, exif=exif, **lossless)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SIDES)
def test_orientation_is_applied_to_the_pixel(orientation, format):
    np.testing.assert_array_equal(read_photo(turned(orientation, format)), UPRIGHT)


@pytest.mark.parametrize("orientation", SIDES)
def test_orientation_is_applied_once(orientation):
    opened = Image.open(io.BytesIO(turned(orientation, "PNG")))
    once = read_photo(opened)
    np.testing.assert_array_equal(once, UPRIGHT)
    np.testing.assert_array_equal(read_photo(once), UPRIGHT)


def test_broken_exif_does_not_cost_the_photograph():
    content = file_of(Image.fromarray(UPRIGHT), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_photo(content), UPRIGHT)


def plain(mode: str, value) -> Image.Image:
    return Image.new(mode, (4, 3), value)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    return file_of(image, "PNG", transparency=b"\xff\x00")


@pytest.mark.parametrize(
    ("source", "colour"),
    [
        (plain("1", 1), (255, 255, 255)),
        (plain("L", 77), (77, 77, 77)),
        (plain("LA", (10, 0)), (255, 255, 255)),
        (plain("LA", (10, 255)), (10, 10, 10)),
        (plain("RGBA", (0, 100, 200, 51)), (204, 224, 244)),  # 255 − 0.2 · (255 − colour)
        (plain("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (plain("YCbCr", (255, 128, 128)), (255, 255, 255)),
        (plain("HSV", (0, 255, 255)), (255, 0, 0)),
        (plain("I;16", 25700), (100, 100, 100)),
        (plain("I;16B", 65535), (255, 255, 255)),
        (plain("I", 40), (40, 40, 40)),
        (plain("I", 25700), (100, 100, 100)),
        (plain("F", 0.2), (51, 51, 51)),
        (plain("F", 200.0), (200, 200, 200)),
        (file_of(plain("I;16", 25700), "PNG"), (100, 100, 100)),
        (file_of(plain("I;16", 200), "PNG"), (1, 1, 1)),
        (file_of(plain("I;16", 25700), "TIFF"), (100, 100, 100)),
        (file_of(plain("F", 0.2), "TIFF"), (51, 51, 51)),
        (file_of(plain("CMYK", (0, 0, 0, 255)), "JPEG", quality=100), (0, 0, 0)),
        (file_of(plain("L", 90), "BMP"), (90, 90, 90)),
        (file_of(plain("RGB", (9, 8, 7)), "PNG", transparency=(9, 8, 7)), (255, 255, 255)),
        (palette_with_transparency(), (255, 255, 255)),
        (np.full((3, 4), 60, np.uint8), (60, 60, 60)),
        (np.full((3, 4, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
        (np.full((3, 4, 4), (1, 2, 3, 0), np.uint8), (255, 255, 255)),
        (np.full((6, 8, 3), (1, 2, 3), np.uint8)[::2, ::2], (1, 2, 3)),
    ],
)
def test_every_mode_becomes_the_rgb_that_is_seen(source, colour):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photo = read_photo(source)
    assert (photo.mode, photo.size) == ("RGB", (4, 3))
    assert np.abs(np.asarray(photo, int) - colour).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_first_frame_of_several(format):
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [plain("RGB", "red"), plain("RGB", "blue")]
    content = file_of(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert read_photo(content).getpixel((0, 0)) == (255, 0, 0)


def test_path_bytes_image_and_array_agree(tmp_path):
    file = tmp_path / "größe ü 写真.png"
    Image.fromarray(UPRIGHT).save(file)
    for source in (file, str(file), file.read_bytes(), Image.open(file), UPRIGHT):
        np.testing.assert_array_equal(read_photo(source), UPRIGHT)


def test_a_photograph_outlives_its_file(tmp_path):
    file = tmp_path / "photo.tiff"
    Image.fromarray(UPRIGHT).save(file)
    photo = read_photo(file)
    file.unlink()
    np.testing.assert_array_equal(photo.resize(photo.size), UPRIGHT)


def test_global_state_is_left_alone():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    read_photo(turned(6, "TIFF"))
    with pytest.raises(ValueError):
        read_photo(turned(6, "TIFF")[:-20])
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before
