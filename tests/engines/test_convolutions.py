"""Each cheaper convolution against torch's own, in float64 where rounding cannot hide a mistake."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from refseg.engines import convolutions
from refseg.engines.convolutions import (
    Conv,
    ConvThenUpsample,
    ToLogits,
    UpsampleThenConv,
    Winograd,
    products_of_direct,
    products_of_winograd,
)
from refseg.engines.fast_encoder import max_pool
from refseg.engines.packed import LEAKY, Activation, Geometry


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


def test_winograd_rounds_little_in_float32() -> None:
    weight, x = torch.randn(64, 64, 3, 3), torch.randn(1, 20, 20, 64)
    exact = last(F.conv2d(first(x).double(), weight.double(), padding=1))
    error = (Winograd(weight, torch.zeros(64))(x) - exact).abs().max() / exact.abs().max()
    assert error < 1e-5


def test_products_are_counted_as_they_are_formed() -> None:
    assert products_of_direct(18, 24) == 18**2  # the middle tap alone
    assert products_of_direct(18, 12) == (18 + 2 * 6) ** 2
    assert products_of_winograd(18, 1, 3) == 6**2 * 25  # tiles times products of a tile
    assert products_of_winograd(18, 6, 3) == 6**2 * 25  # a sub-grid of 3×3 pixels is one tile
    assert products_of_winograd(20, 1, 3) == 7**2 * 25  # the last tile is not filled


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("dilation", [1, 2, 12])
def test_every_form_is_the_convolution(capability: str, dilation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "wide_registers", lambda: capability == "AVX512")
    weight, bias = torch.randn(128, 144, 3, 3), torch.randn(128)
    conv = Conv(weight, bias, Geometry(padding=dilation, dilation=dilation), LEAKY)
    for side in (12, 5):
        x = torch.randn(2, side, side, 144)
        plain = F.leaky_relu(F.conv2d(first(x), weight, bias, padding=dilation, dilation=dilation), 0.1)
        torch.testing.assert_close(conv(x), last(plain), rtol=1e-4, atol=1e-3)
    assert bool(conv.tiled) == (capability == "AVX2" and dilation < 12)


def test_wide_products_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WIDE", 4)
    test_winograd_is_the_convolution(3, 2, (7, 5))


@pytest.mark.parametrize("size", [(2, 2), (5, 3), (8, 8)])
def test_a_convolution_before_the_up_sampling_or_after_it(size: tuple[int, int]) -> None:
    weight, bias = weights(4, 3)
    x = torch.randn(2, *size, 3).double()
    up = F.interpolate(first(x), scale_factor=2, mode="bilinear", align_corners=False)
    plain = last(F.relu(F.conv2d(up, weight, bias, padding=1)))
    for order in (ConvThenUpsample, UpsampleThenConv):
        torch.testing.assert_close(order(weight, bias, Activation("relu"))(x), plain)


def test_the_last_convolution_to_one_channel() -> None:
    weight, bias = weights(1, 6)
    x = torch.randn(2, 7, 5, 6).double()
    torch.testing.assert_close(ToLogits(weight, bias)(x), F.conv2d(first(x), weight, bias, padding=1))


@pytest.mark.parametrize(("size", "side"), [((20, 20), 36), ((40, 40), 36), ((7, 12), 5), ((3, 3), 8), ((6, 6), 6)])
def test_max_pool_gathers_what_adaptive_pooling_does(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, *size, 3)
    assert torch.equal(max_pool(x, side), last(F.adaptive_max_pool2d(first(x), side)))
