"""Packed products against PyTorch's own calls: in float32, under autocast, and where oneDNN is not there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refseg.engines import packed
from refseg.engines.packed import (
    LEAKY,
    NOTHING,
    Activation,
    DirectConv,
    Geometry,
    Linear,
    activation_of,
    attention,
    pack_linears,
)

ACTIVATIONS = {
    NOTHING: lambda x: x,
    LEAKY: lambda x: F.leaky_relu(x, 0.1),
    Activation("relu"): F.relu,
    Activation("hardtanh", (0.0, 6.0)): F.relu6,
}
GEOMETRIES = [Geometry(), Geometry(padding=1, stride=2), Geometry(padding=2, dilation=2), Geometry(padding=1, groups=6)]


@pytest.fixture(params=["oneDNN", "none"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "none":
        monkeypatch.setattr(packed, "packs", lambda dtype: False)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@torch.inference_mode()
def test_a_product_and_what_follows_it(activation: Activation) -> None:
    weight, bias, x = torch.randn(5, 7), torch.randn(5), 4 * torch.randn(2, 3, 7)
    follows = ACTIVATIONS[activation]
    torch.testing.assert_close(Linear(weight, bias, activation)(x), follows(F.linear(x, weight, bias)))
    torch.testing.assert_close(Linear(weight, None, activation)(x), follows(F.linear(x, weight)))
    # A part of a wider map, whose rows do not follow one another in memory.
    torch.testing.assert_close(Linear(weight)(torch.cat([x, x], -1)[..., :7]), F.linear(x, weight))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
@torch.inference_mode()
def test_a_convolution_and_what_follows_it(geometry: Geometry, activation: Activation) -> None:
    padding, stride, dilation, groups = geometry
    weight, bias = torch.randn(12, 6 // groups, 3, 3), torch.randn(12)
    conv = DirectConv(weight, bias, geometry, activation)
    for side in (8, 9):  # one weight serves maps of every size
        x = torch.randn(2, side, side, 6)
        plain = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, groups)
        torch.testing.assert_close(conv(x).permute(0, 3, 1, 2), ACTIVATIONS[activation](plain), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("library")
@torch.inference_mode()
def test_autocast_says_in_what_they_compute() -> None:
    linear, conv = Linear(torch.randn(5, 7)), DirectConv(torch.randn(5, 7, 3, 3), torch.zeros(5), Geometry(padding=1))
    x = torch.randn(1, 4, 4, 7)
    for layer in (linear, conv):
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = layer(x)
        assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
        assert 0 < (exact - rounded).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.usefixtures("library")
@torch.inference_mode()
def test_attention_head_by_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "wide_registers", lambda: True)
    query, key, value = (torch.randn(3, 5, 2, 8).transpose(1, 2) for _ in range(3))  # laid out as projections are
    exact = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attention(query, key, value), exact)


@torch.inference_mode()
def test_a_network_keeps_its_answers_when_its_products_are_packed() -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU()).eval()
    x = torch.randn(3, 4)
    before = plain(x)
    torch.testing.assert_close(pack_linears(plain)(x), before)
    assert not any(isinstance(module, nn.Linear) for module in plain.modules())


def test_what_can_follow_a_product() -> None:
    assert activation_of(None) == activation_of(nn.Identity()) == NOTHING
    assert activation_of(nn.ReLU()) == Activation("relu")
    assert activation_of(nn.ReLU6()) == Activation("hardtanh", (0.0, 6.0))
    assert activation_of(nn.GELU()) is None
