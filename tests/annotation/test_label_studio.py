"""Label Studio's encodings and configuration: by hand, as properties, and against its own converter if installed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw

from refseg.annotation.label_studio import (
    Control,
    brush_region,
    encode_brush,
    find_photo,
    polygon_regions,
    read_config,
    simplify,
)
from refseg.errors import RefsegError
from refseg.segmentation import Segmentation

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans())
POLYGON = Control("shape", "photo", "image", "polygonlabels", {"bag": "the red bag"})


def block(height, width, top, left, bottom, right):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def decode_brush(rle):
    """The values that Label Studio reads from a brush's bytes, one bit after another."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    number, size = read(32), read(5) + 1
    run_sizes = [read(4) + 1 for _ in range(4)]
    values = []
    while len(values) < number:
        is_run = read(1)
        length = 1 + read(run_sizes[read(2)])
        values += [read(size)] * length if is_run else [read(size) for _ in range(length)]
    assert len(values) == number
    return np.array(values, np.uint8)


def test_brush_by_hand():
    # 8 values of 8 bits, lengths of 3, 4, 8 or 16 bits: 4 times 0, then 4 times 255.
    head = f"{8:032b}" + f"{7:05b}" + "0010" + "0011" + "0111" + "1111"
    runs = "1" + "00" + "011" + "00000000" + "1" + "00" + "011" + "11111111"
    text = head + runs
    text += "0" * (-len(text) % 8)
    assert encode_brush(np.array([[False, True]])) == list(int(text, 2).to_bytes(len(text) // 8, "big"))


@settings(deadline=None)
@given(MASKS)
def test_brush_reads_back_as_the_same_picture(mask):
    values = decode_brush(encode_brush(mask)).reshape(*mask.shape, 4)
    assert set(np.unique(values)) <= {0, 255}
    for channel in range(4):
        np.testing.assert_array_equal(values[..., channel] == 255, mask)


@pytest.mark.parametrize("width", [1, 2, 4, 64, 16_384, 16_385, 40_000])
def test_brush_of_runs_around_every_size(width):
    mask = np.zeros((2, width), bool)
    mask[1] = True
    np.testing.assert_array_equal(decode_brush(encode_brush(mask))[3::4].reshape(2, -1) == 255, mask)


@pytest.fixture(scope="module")
def brush():
    return pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")


@settings(deadline=None)
@given(mask=MASKS)
def test_brush_is_byte_for_byte_the_real_converter_s(brush, mask):
    assert encode_brush(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)
    image = brush.decode_rle(encode_brush(mask)).reshape(*mask.shape, 4)[:, :, 3]
    np.testing.assert_array_equal(image == 255, mask)


# Polygons


def rings(mask):
    photo = Image.new("RGB", mask.shape[::-1])
    return Segmentation(expression="x", mask=mask, score=0.5, photo=photo).to_polygons()


def drawn(regions, shape):
    """What Label Studio shows of polygon results: each filled."""
    height, width = shape
    picture = Image.new("1", (width * 4, height * 4))
    for region in regions:
        corners = np.array(region["value"]["points"]) / 100 * (width * 4, height * 4) - 0.5
        ImageDraw.Draw(picture).polygon([tuple(corner) for corner in corners], fill=1)
    return np.asarray(picture)[2::4, 2::4]


def test_polygons_by_hand():
    mask = block(20, 40, 5, 10, 15, 30)
    (region,) = polygon_regions(POLYGON, "bag", 0.75, rings(mask), mask.shape, "the red bag")
    assert region["value"] == {
        "points": [[25.0, 25.0], [75.0, 25.0], [75.0, 75.0], [25.0, 75.0]],
        "closed": True,
        "polygonlabels": ["bag"],
    }
    assert (region["original_width"], region["original_height"]) == (40, 20)
    assert (region["from_name"], region["to_name"], region["type"]) == ("shape", "photo", "polygonlabels")


def test_polygons_fill_holes_leave_specks_out_and_keep_parts():
    mask = block(60, 60, 5, 5, 25, 25) & ~block(60, 60, 10, 10, 15, 15) | block(60, 60, 30, 30, 50, 55)
    mask[2, 50] = True
    regions = list(polygon_regions(POLYGON, "bag", 0.5, rings(mask), mask.shape, "x"))
    assert len(regions) == 2 and len({region["id"] for region in regions}) == 2
    np.testing.assert_array_equal(
        drawn(regions, mask.shape), block(60, 60, 5, 5, 25, 25) | block(60, 60, 30, 30, 50, 55)
    )


def test_a_round_referent_has_few_corners_and_keeps_its_shape():
    y, x = np.mgrid[:400, :500]
    mask = np.hypot(x - 240, y - 200) < 150
    (region,) = polygon_regions(POLYGON, "bag", 0.5, rings(mask), mask.shape, "x")
    shown = drawn([region], mask.shape)
    assert len(region["value"]["points"]) < 60 < len(rings(mask)[0]) / 8
    assert (shown & mask).sum() / (shown | mask).sum() > 0.98


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=3, max_size=40), st.floats(0.5, 20))
def test_simplifying_moves_no_corner_farther_than_said(points, tolerance):
    corners = np.array(points, float)
    left = simplify(corners, tolerance)
    assert {tuple(corner) for corner in left} <= {tuple(corner) for corner in corners}
    if len(left) == 1:
        assert np.hypot(*(corners - left[0]).T).max() == 0
        return
    nearest = np.full(len(corners), np.inf)
    for start, end in zip(left, np.roll(left, -1, axis=0), strict=True):
        along = end - start
        share = np.clip((corners - start) @ along / max(along @ along, 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.hypot(*(corners - start - share[:, None] * along).T))
    assert nearest.max() <= tolerance + 1e-9


# The labelling configuration


CONFIG = """<View>
  <!-- a comment -->
  <Image name="photo" value="$picture"/>
  <BrushLabels name="what" toName="photo">
    <Label value="bag" expression="the red bag"/><Label value="the hat"/><Label value="Cup" alias="cup"/>
  </BrushLabels>
  <PolygonLabels name="outline" toName="photo"><Label value="dog"/></PolygonLabels>
  <BrushLabels name="elsewhere" toName="sound"><Label value="x"/></BrushLabels>
</View>"""


def test_config_says_what_is_looked_for():
    brush, polygon = read_config(CONFIG)
    labels = {"bag": "the red bag", "the hat": "the hat", "cup": "Cup"}
    assert brush == Control("what", "photo", "picture", "brushlabels", labels)
    assert polygon == Control("outline", "photo", "picture", "polygonlabels", {"dog": "dog"})


def test_predictions_pass_label_studio_s_own_check():
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    mask = block(40, 60, 5, 10, 30, 50)
    brush, polygon = read_config(CONFIG)
    regions = [brush_region(brush, "bag", 0.5, mask, "the red bag")]
    regions += polygon_regions(polygon, "dog", 0.5, rings(mask), mask.shape, "dog")
    config = interface.LabelInterface(CONFIG.replace('"sound"', '"photo"'))
    prediction = {"result": regions, "score": 0.5, "model_version": "x"}
    assert config.validate_prediction(prediction, return_errors=True) == []
    regions[0]["from_name"] = "nobody"
    assert config.validate_prediction(prediction, return_errors=True)


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        ("", "not XML"),
        ("<View>", "not XML"),
        ("<View/>", "takes no masks of an image; for example: <Image"),
        ('<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"/></View>', "takes no masks"),
        ('<!DOCTYPE v [<!ENTITY a "aaaa">]><View>&a;</View>', "leave that out"),
    ],
)
def test_config_without_masks_is_refused_with_a_cure(config, cure):
    with pytest.raises(RefsegError) as fault:
        read_config(config)
    assert cure in str(fault.value) and "\n" not in str(fault.value)


# Paths


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files" / "upload" / "1").mkdir(parents=True)
    (tmp_path / "files" / "a photo.jpg").write_bytes(b"a")
    (tmp_path / "files" / "upload" / "1" / "b.jpg").write_bytes(b"b")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "files" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return tmp_path / "files"


@pytest.mark.parametrize(
    "said",
    [
        "/data/local-files/?d=a%20photo.jpg",
        "a%20photo.jpg",
        "a photo.jpg",
        "/data/upload/1/b.jpg",
        "upload/1/../1/b.jpg",
    ],
)
def test_photographs_of_the_folder_are_found(folder, said):
    assert find_photo(said, folder).read_bytes() in (b"a", b"b")


@pytest.mark.parametrize(
    "said",
    [
        "../secret.jpg",
        "/data/../secret.jpg",
        "/data/local-files/?d=../secret.jpg",
        "/data/local-files/?d=%2e%2e%2fsecret.jpg",
        "/data/upload/%2e%2e/%2e%2e/secret.jpg",
        "link.jpg",
        "/etc/passwd",
        "/data//etc/passwd",
        "/data/local-files/?d=/etc/passwd",
        "a\0.jpg",
        "a" * 5000,
        "",
        "upload",
        "missing.jpg",
        "http://example.org/data/upload/1/b.jpg",
        "//example.org/a.jpg",
        "s3://bucket/a.jpg",
        "file:///etc/passwd",
    ],
)
def test_nothing_outside_the_folder_is_read_and_nothing_is_fetched(folder, said):
    with pytest.raises(RefsegError) as fault:
        find_photo(said, folder)
    assert ";" in str(fault.value) and "secret" not in str(fault.value)
