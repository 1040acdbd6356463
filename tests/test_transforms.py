import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from refseg.transforms import shown_at, to_photograph, to_square


def test_a_square_holds_the_photograph_in_0_to_1():
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 1] = (255, 51, 0)
    square = to_square(Image.fromarray(pixels), 2)
    assert square.dtype == np.float32 and square.shape == (3, 2, 2)
    assert square[:, 0, 1].tolist() == [1.0, pytest.approx(0.2), 0.0]
    assert square.sum().item() == pytest.approx(1.2)


@pytest.mark.parametrize("size", [(200, 31), (31, 200), (16, 16), (1, 1)])
def test_the_whole_photograph_is_squeezed_into_the_square(size):
    square = to_square(Image.new("RGB", size, (51, 102, 204)), 16)
    assert square.shape == (3, 16, 16)
    np.testing.assert_allclose(square, np.broadcast_to([[[0.2]], [[0.4]], [[0.8]]], (3, 16, 16)), rtol=1e-6)


def test_logits_are_mixed_before_the_sigmoid():
    """Bilinear with half-pixel centres: a quarter and three quarters of the way, by hand."""
    logits = np.array([[[[0.0, 4.0]]]], dtype=np.float32)
    expected = 1 / (1 + np.exp(-np.array([0.0, 1.0, 3.0, 4.0])))
    np.testing.assert_allclose(to_photograph(logits, (1, 4))[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(480, 640), (37, 301), (50, 60), (16, 200), (1, 1), (80, 80)])
def test_the_way_back_is_that_of_pytorch_s_bilinear_interpolation(size):
    logits = torch.randn(2, 1, 80, 80, generator=torch.Generator().manual_seed(0)) * 4
    expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).squeeze(1).sigmoid()
    found = to_photograph(logits.numpy(), size)
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-5)  # places round differently
    assert ((found > 0.5) != (expected.numpy() > 0.5)).mean() < 1e-4


def test_certainty_stays_within_0_and_1():
    logits = np.array([[[[-1e9, -90.0, 90.0, 1e9]]]], dtype=np.float32)
    assert to_photograph(logits, (1, 4))[0, 0].tolist() == [0.0, pytest.approx(0, abs=1e-30), 1.0, 1.0]


def test_the_way_back_takes_any_size_and_number():
    draw = np.random.default_rng(0)
    back = to_photograph(draw.normal(size=(3, 1, 8, 8)).astype(np.float16), (5, 90))
    assert back.shape == (3, 5, 90) and back.dtype == np.float32
    assert back.min() >= 0 and back.max() <= 1
    assert to_photograph(draw.normal(size=(1, 1, 8, 8)), (7, 6)).shape == (1, 7, 6)


def test_a_letterboxed_photograph_keeps_its_aspect_on_black():
    square = to_square(Image.new("RGB", (100, 51), (255, 255, 255)), 32, letterbox=True)
    assert shown_at((51, 100), 32) == ((8, 16), (0, 32))
    assert (square[:, 8:24] == 1).all() and not square[:, :8].any() and not square[:, 24:].any()
    for size in ((500, 2), (2, 500), (1, 1)):
        assert to_square(Image.new("RGB", size, (255, 255, 255)), 8, letterbox=True).any()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    np.testing.assert_array_equal(to_square(photo, 32, letterbox=True), to_square(photo, 32))


def test_the_way_back_leaves_the_border_out():
    """Two by two logits, of which a wide photograph covers the middle half of the rows."""
    logits = np.array([[[[-1.0, -3.0], [1.0, 3.0]]]], dtype=np.float32)
    back = to_photograph(logits, (2, 4), letterbox=8)[0]
    np.testing.assert_allclose(np.log(back / (1 - back))[:, [0, 3]], [[-0.5, -1.5], [0.5, 1.5]], rtol=1e-5)


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize(("width", "height"), [(128, 64), (48, 160), (64, 64)])
def test_there_and_back_a_segment_stays_where_it_was(width, height, letterbox):
    photo = np.zeros((height, width, 3), dtype=np.uint8)
    photo[height // 4 : height // 2, width // 2 : width * 7 // 8] = 255
    logits = (to_square(Image.fromarray(photo), 32, letterbox=letterbox)[None, :1] - 0.5) * 20
    mask = to_photograph(logits, (height, width), letterbox=32 if letterbox else None)[0] > 0.5
    truth = photo[..., 0] > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
