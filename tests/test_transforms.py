import numpy as np
import pytest
import torch
from PIL import Image

from refseg.transforms import to_photograph, to_square


def test_a_square_holds_the_photograph_in_0_to_1():
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 1] = (255, 51, 0)
    square = to_square(Image.fromarray(pixels), 2)
    assert square.dtype == torch.float32 and square.shape == (3, 2, 2)
    assert square[:, 0, 1].tolist() == [1.0, pytest.approx(0.2), 0.0]
    assert square.sum().item() == pytest.approx(1.2)


@pytest.mark.parametrize("size", [(200, 31), (31, 200), (16, 16), (1, 1)])
def test_the_whole_photograph_is_squeezed_into_the_square(size):
    square = to_square(Image.new("RGB", size, (51, 102, 204)), 16)
    assert square.shape == (3, 16, 16)
    torch.testing.assert_close(square, torch.tensor([0.2, 0.4, 0.8]).view(3, 1, 1).expand(3, 16, 16))


def test_logits_are_mixed_before_the_sigmoid():
    """Bilinear with half-pixel centres: a quarter and three quarters of the way, by hand."""
    logits = torch.tensor([[0.0, 4.0]]).view(1, 1, 1, 2)
    expected = torch.tensor([0.0, 1.0, 3.0, 4.0]).sigmoid()
    torch.testing.assert_close(to_photograph(logits, (1, 4))[0, 0], expected)


def test_the_way_back_takes_any_size_and_number():
    back = to_photograph(torch.randn(3, 1, 8, 8).bfloat16(), (5, 90))
    assert back.shape == (3, 5, 90) and back.dtype == torch.float32
    assert back.min() >= 0 and back.max() <= 1
    assert to_photograph(torch.randn(1, 1, 8, 8), (7, 6)).shape == (1, 7, 6)


@pytest.mark.parametrize(("width", "height"), [(128, 64), (48, 160), (64, 64)])
def test_there_and_back_a_segment_stays_where_it_was(width, height):
    photo = np.zeros((height, width, 3), dtype=np.uint8)
    photo[height // 4 : height // 2, width // 2 : width * 7 // 8] = 255
    logits = (to_square(Image.fromarray(photo), 32)[:1].unsqueeze(0) - 0.5) * 20
    mask = to_photograph(logits, (height, width))[0].numpy() > 0.5
    truth = photo[..., 0] > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
