"""A mask leaves unchanged in every form, and the overlay shows it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco_mask

from refseg.errors import RefsegError
from refseg.segmentation import Segmentation, overlay

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans())


def answer(mask, expression="the red bag", score=0.75, **more) -> Segmentation:
    mask = np.asarray(mask, bool)
    photo = Image.new("RGB", mask.shape[::-1], (90, 120, 90))
    return Segmentation(expression=expression, mask=mask, score=score, photo=photo, **more)


def block(height, width, top, left, bottom, right) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def even_odd(rings, shape) -> np.ndarray:
    """Pixels whose centre has an odd number of ring edges to its left."""
    inside = np.zeros(shape, bool)
    for ring in rings:
        corners = np.reshape(ring, (-1, 2))
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1), "edges run along pixel edges and have a length"
            if x0 == x1:
                inside[min(y0, y1) : max(y0, y1), x0:] ^= True
    return inside


def area(ring) -> float:
    """Positive where the ring runs clockwise as displayed (y points down)."""
    x, y = np.reshape(ring, (-1, 2)).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


@given(MASKS)
def test_polygons_rasterise_to_the_same_mask(mask):
    np.testing.assert_array_equal(even_odd(answer(mask).to_polygons(), mask.shape), mask)


@given(MASKS)
def test_signed_areas_of_the_rings_add_up_to_the_mask(mask):
    assert sum(map(area, answer(mask).to_polygons())) == mask.sum()


@given(MASKS)
def test_run_lengths_are_coco_s(mask):
    rle = answer(mask).to_rle()
    assert isinstance(rle["counts"], str) and rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)


@given(MASKS)
def test_box_is_the_tightest(mask):
    box = answer(mask).box
    assert (box is None) == (not mask.any())
    if box:
        left, top, right, bottom = box
        inside = mask[top:bottom, left:right]
        assert inside.sum() == mask.sum()
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_polygons_by_hand():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert answer(ring).to_polygons() == [[0, 0, 3, 0, 3, 3, 0, 3], [2, 1, 1, 1, 1, 2, 2, 2]]
    assert answer([[1, 0], [0, 1]]).to_polygons() == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]
    assert answer([[0, 1], [1, 0]]).to_polygons() == [[1, 0, 2, 0, 2, 1, 1, 1], [0, 1, 1, 1, 1, 2, 0, 2]]
    assert answer(block(9, 9, 2, 1, 4, 7)).to_polygons() == [[1, 2, 7, 2, 7, 4, 1, 4]]
    assert answer(np.zeros((4, 4))).to_polygons() == []


def test_polygons_without_holes_are_what_coco_reads():
    mask = block(20, 30, 3, 4, 11, 17) | block(20, 30, 8, 15, 18, 29)
    runs = coco_mask.frPyObjects([list(map(float, p)) for p in answer(mask).to_polygons()], 20, 30)
    np.testing.assert_array_equal(coco_mask.decode(coco_mask.merge(runs)), mask)


def test_dict_is_json_and_complete():
    result = answer(block(6, 8, 1, 2, 4, 7), "der rote Beutel 🐈", 0.5, unknown_words=("🐈",), truncated=True)
    record = json.loads(json.dumps(result.to_dict()))
    assert record.pop("rle") == result.to_rle()
    assert record == {
        "expression": "der rote Beutel 🐈",
        "score": 0.5,
        "found": None,
        "box": [2, 1, 7, 4],
        "size": [6, 8],
        "unknown_words": ["🐈"],
        "truncated": True,
    }
    assert answer(np.zeros((2, 2))).to_dict()["box"] is None


def test_saved_files_hold_the_answer(tmp_path):
    result = answer(block(6, 8, 1, 2, 4, 7))
    with Image.open(result.save(tmp_path / "mask.PNG")) as image:
        np.testing.assert_array_equal(np.asarray(image), result.mask * 255)
    assert json.loads(result.save(str(tmp_path / "a.json")).read_text()) == result.to_dict()
    with Image.open(result.save(tmp_path / "a.jpg")) as image:
        assert image.size == result.overlay().size


def test_files_that_cannot_be_written_name_the_cure(tmp_path):
    result = answer(block(6, 8, 1, 2, 4, 7))
    for name in ("a.gif", "a", "a.npy"):
        with pytest.raises(RefsegError, match=r"\.png.*\.jpg.*\.json"):
            result.save(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "missing" / "a.png", tmp_path / "folder.png", "a\0b.png"):
        with pytest.raises(RefsegError, match="cannot be written"):
            result.save(path)


@pytest.mark.parametrize("mask", [np.zeros((8, 6), bool), np.zeros((6, 8), np.uint8), np.zeros((1, 6, 8), bool)])
def test_a_mask_that_does_not_fit_the_photograph_is_refused(mask):
    with pytest.raises(RefsegError, match=r"\(6, 8\)"):
        Segmentation(expression="x", mask=mask, score=0.0, photo=Image.new("RGB", (8, 6)))


@pytest.mark.parametrize(("height", "width"), [(75, 100), (400, 800)])
def test_overlay_without_caption_changes_the_referent_and_nothing_far_from_it(height, width):
    mask = block(height, width, height // 2, width // 2, height * 3 // 4, width * 3 // 4)
    result = answer(mask)
    picture = np.asarray(result.overlay(caption=False), int)
    changed = (picture != np.asarray(result.photo, int)).any(axis=2)
    assert changed.shape == mask.shape
    assert changed[mask].all()
    assert not changed[: height // 4].any() and not changed[:, : width // 4].any()
    middle = picture[height * 5 // 8, width * 5 // 8]
    assert middle[0] > 120 > middle[1], "tinted red, the photograph still showing through"


def test_overlay_shows_a_speck_and_leaves_the_photograph_itself_alone():
    result = answer(block(1000, 1500, 500, 700, 501, 701))
    before = result.photo.tobytes()
    picture = np.asarray(result.overlay(caption=False), int)
    assert (picture != (90, 120, 90)).any(axis=2).sum() > 9
    assert result.photo.tobytes() == before


def test_overlay_of_nothing_is_the_photograph():
    result = answer(np.zeros((40, 50), bool))
    assert result.overlay(caption=False).tobytes() == result.photo.tobytes()
    assert result.overlay().height > 40


@pytest.mark.parametrize(("height", "width"), [(1, 1), (75, 100), (600, 60), (3, 900), (900, 1200)])
@pytest.mark.parametrize("expression", ["hat", "w" * 1000, "left " * 200])
def test_caption_fits_under_a_photograph_of_any_size(height, width, expression):
    result = answer(block(height, width, 0, 0, height, width), expression)
    picture = result.overlay()
    assert min(picture.width, max(picture.size) // 2) >= 320
    caption = np.asarray(picture)[round(height * max(1, 640 / max(height, width))) :]
    assert (caption[:, :4] == caption[0, 0]).all() and (caption[:, -4:] == caption[0, 0]).all(), "clear margins"
    assert (caption.min(axis=2) > 200).any(), "text"


def test_every_segmentation_has_its_own_colour_in_picture_and_legend():
    masks = [block(600, 800, 40, 100 * n + 10, 560, 100 * n + 80) for n in range(8)]
    results = [answer(mask, f"number {n}") for n, mask in enumerate(masks)]
    picture = np.asarray(overlay(results[0].photo, results), int)
    tints = [tuple(picture[300, 100 * n + 45]) for n in range(8)]
    distances = [np.abs(np.subtract(a, b)).max() for k, a in enumerate(tints) for b in tints[:k]]
    assert min(distances) > 10
    legend = picture[600:].reshape(-1, 3)
    vivid = {tuple(c) for c in legend if c.max() == 255 and c.min() < 60}
    assert len(vivid) >= 8
