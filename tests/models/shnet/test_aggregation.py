"""The fast forms of the network against the plain ones, written out here as the paper has them."""

import pytest
import torch
import torch.nn.functional as F

from refseg.models.parts.text_encoder import average_word
from refseg.models.shnet.aggregation import (
    HCAM,
    Affinity,
    Conv3DAggregation,
    ConvLSTMAggregation,
    ConvLSTMOfRRN,
    JoinConv3D,
    SumAggregation,
)

B, C, T = 3, 4, 5
GRIDS = [(2, 2), (2, 5), (4, 3), (6, 7)]
MASK = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])


def prepared(module, training=False):
    """Float64, no dropout, and batch norms that have seen something."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for tensor in (part.weight.data, part.bias.data, part.running_mean):
                tensor.normal_()
            part.running_var.uniform_(0.5, 2)
    return module.double().train(training)


def fused_levels(h, w):
    torch.manual_seed(1)
    return [(torch.randn(B, C, h, w).double(), torch.randn(B, T, C).double()) for _ in range(3)]


def plain_affinity(module, pixels, sentence):
    tiled = sentence[:, :, None, None].expand(-1, -1, *pixels.shape[2:])
    return module.norm(module.conv(torch.cat([pixels, tiled], dim=1))).sigmoid()


def plain_join(join, levels):
    return F.leaky_relu(join.norm(join.conv(torch.stack(levels, dim=2)).squeeze(2)), 0.1)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("training", [True, False])
def test_affinity_is_one_convolution_over_pixels_and_tiled_sentence(grid, training):
    module = prepared(Affinity(C, dropout=0.0), training)
    (pixels, _), *_ = fused_levels(*grid)
    sentences = [torch.randn(B, C).double() for _ in range(2)]
    for affinity, sentence in zip(module(pixels, sentences), sentences, strict=True):
        torch.testing.assert_close(affinity, plain_affinity(module, pixels, sentence), rtol=1e-9, atol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_join_is_one_3d_convolution(grid):
    join = prepared(JoinConv3D(C))
    levels = [pixels for pixels, _ in fused_levels(*grid)]
    torch.testing.assert_close(join(levels), plain_join(join, levels), rtol=1e-9, atol=1e-12)


def test_hcam_is_equations_2_and_3():
    hcam = prepared(HCAM(C, dropout=0.2))
    fused = fused_levels(3, 4)
    received = []
    for i, (pixels, _) in enumerate(fused):
        received.append(pixels)
        for j, (other, words) in enumerate(fused):
            if j != i:
                received[i] = received[i] + plain_affinity(hcam.gates[i], pixels, average_word(words, MASK)) * other
    torch.testing.assert_close(hcam(fused, MASK), plain_join(hcam.join, received), rtol=1e-9, atol=1e-12)


def test_words_past_the_end_do_not_reach_hcam():
    hcam = prepared(HCAM(C, dropout=0.0))
    fused = fused_levels(3, 3)
    garbage = [(pixels, torch.where(MASK.unsqueeze(-1), words, 1e6)) for pixels, words in fused]
    torch.testing.assert_close(hcam(garbage, MASK), hcam(fused, MASK))


def test_dropped_channels_of_an_affinity_are_whole():
    module = prepared(Affinity(C, dropout=0.5), training=True)
    (pixels, _), *_ = fused_levels(6, 6)
    (affinity,) = module(pixels, [torch.randn(B, C).double()])
    undecided = affinity == 0.5
    assert undecided.any() and not undecided.all()
    assert torch.equal(undecided.any(dim=(2, 3)), undecided.all(dim=(2, 3)))


def test_conv3d_and_sum_leave_the_words_alone():
    conv3d = prepared(Conv3DAggregation(C))
    fused = fused_levels(4, 3)
    levels = [pixels for pixels, _ in fused]
    torch.testing.assert_close(conv3d(fused, MASK), plain_join(conv3d.join, levels), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(SumAggregation()(fused, MASK), levels[0] + levels[1] + levels[2])


def test_convlstm_ends_at_the_shallowest_level():
    """With the past forgotten and unread, what is left is the step over the level that was read last."""
    walk = ConvLSTMAggregation(C).double()
    fused = fused_levels(4, 3)
    full = walk(fused, MASK)
    walk.gates.weight.data[:, C:] = 0
    walk.gates.bias.data[C : 2 * C] = -1e3
    write, _, read, new = F.conv2d(fused[0][0], walk.gates.weight[:, :C], walk.gates.bias, padding=1).chunk(4, dim=1)
    torch.testing.assert_close(walk(fused, MASK), read.sigmoid() * (write.sigmoid() * new.tanh()).tanh())
    assert not torch.allclose(walk(fused, MASK), full)


def test_the_convlstm_of_rrn_walks_from_the_deepest_level_to_the_shallowest():
    aggregation = ConvLSTMOfRRN(C, grid=4).double()
    fused = fused_levels(4, 4)
    expected = aggregation.walk([fused[2][0], fused[1][0], fused[0][0]])
    assert torch.equal(aggregation(fused, MASK), expected)
    assert not torch.allclose(aggregation(fused[::-1], MASK), expected)


def test_pixels_may_be_wider_than_words():
    """As in the baseline's levels, which carry the sentence."""
    hcam = prepared(HCAM(2 * C, dropout=0.0, words=C))
    fused = [(torch.cat([pixels, pixels.flip(1)], dim=1), words) for pixels, words in fused_levels(3, 4)]
    received = []
    for i, (pixels, _) in enumerate(fused):
        received.append(pixels)
        for j, (other, words) in enumerate(fused):
            if j != i:
                received[i] = received[i] + plain_affinity(hcam.gates[i], pixels, average_word(words, MASK)) * other
    torch.testing.assert_close(hcam(fused, MASK), plain_join(hcam.join, received), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_biases_before_the_batch_norms_count(training):
    fused = fused_levels(3, 4)
    hcam = prepared(HCAM(C, dropout=0.0, bias=True, slope=0.0), training)
    joint = hcam(fused, MASK)
    assert (joint >= 0).all() and (joint == 0).any()
    for conv in (*(gate.conv for gate in hcam.gates), hcam.join.conv):
        conv.bias.data += 1
    moved = hcam(fused, MASK)
    if training:  # the batch norm takes them away again
        torch.testing.assert_close(moved, joint)
    else:
        assert not torch.allclose(moved, joint)
