"""Each cheaper convolution against torch's own, in float64 where rounding cannot hide a mistake."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refseg.model.convolutions import Taps, ToLogits, UpsampledConv, Winograd, atrous, products_of_taps
from refseg.model.fast_encoder import Stride2, max_pool


def weights(outputs: int, inputs: int, *groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*groups, outputs, inputs, 3, 3).double(), torch.randn(*groups, outputs).double()


def first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("tile", [2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (12, 13)])
def test_winograd_is_the_convolution(tile: int, dilation: int, size: tuple[int, int]) -> None:
    weight, bias = weights(5, 3)
    x = torch.randn(2, *size, 3).double()
    plain = F.conv2d(first(x), weight, bias, padding=dilation, dilation=dilation)
    torch.testing.assert_close(Winograd(weight, bias, dilation, tile)(x), last(plain))


def test_winograd_takes_maps_side_by_side() -> None:
    weight, bias = weights(4, 3, 2)
    x = torch.randn(2, 1, 6, 6, 3).double()
    both = Winograd(weight, bias)(x)
    for group in range(2):
        torch.testing.assert_close(both[group], Winograd(weight[group], bias[group])(x[group]))


def test_winograd_rounds_little_in_float32() -> None:
    weight, x = torch.randn(64, 64, 3, 3), torch.randn(1, 20, 20, 64)
    exact = last(F.conv2d(first(x).double(), weight.double(), padding=1))
    error = (Winograd(weight, torch.zeros(64))(x) - exact).abs().max() / exact.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize("dilation", [1, 3, 6, 12, 24])
def test_taps_are_the_atrous_convolution(dilation: int) -> None:
    weight, bias = weights(4, 3)
    x = torch.randn(2, 10, 9, 3).double()
    plain = last(F.conv2d(first(x), weight, bias, padding=dilation, dilation=dilation))
    torch.testing.assert_close(Taps(weight, bias, dilation)(x), plain)
    torch.testing.assert_close(atrous(weight, bias, dilation, 10)(x), plain)


def test_taps_that_see_padding_alone_cost_nothing() -> None:
    assert products_of_taps(18, 24) == 18  # the middle tap alone
    assert products_of_taps(18, 12) == 18 + 2 * 6
    assert isinstance(atrous(*weights(2, 2), 24, 18), Taps)
    assert isinstance(atrous(*weights(2, 2), 6, 18), Winograd)


@pytest.mark.parametrize("size", [(2, 2), (5, 3), (8, 8)])
def test_a_convolution_moves_before_the_up_sampling(size: tuple[int, int]) -> None:
    weight, bias = weights(4, 3)
    x = torch.randn(2, *size, 3).double()
    up = F.interpolate(first(x), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(UpsampledConv(weight, bias)(x), last(F.conv2d(up, weight, bias, padding=1)))


def test_the_last_convolution_to_one_channel() -> None:
    weight, bias = weights(1, 6)
    x = torch.randn(2, 7, 5, 6).double()
    torch.testing.assert_close(ToLogits(weight, bias)(x), F.conv2d(first(x), weight, bias, padding=1))


def test_stride_two_as_one_product() -> None:
    weight, bias = weights(4, 3)
    x = torch.randn(2, 8, 6, 3).double()
    torch.testing.assert_close(Stride2(weight, bias)(x), last(F.conv2d(first(x), weight, bias, stride=2, padding=1)))


@pytest.mark.parametrize(("size", "side"), [((20, 20), 36), ((40, 40), 36), ((7, 12), 5), ((3, 3), 8), ((6, 6), 6)])
def test_max_pool_gathers_what_adaptive_pooling_does(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, *size, 3)
    assert torch.equal(max_pool(x, side), last(F.adaptive_max_pool2d(first(x), side)))
