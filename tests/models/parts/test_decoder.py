import pytest
import torch
import torch.nn.functional as F

from refseg.errors import RefsegError
from refseg.models.parts.decoder import ASPP, Decoder


def test_logits_have_four_times_the_grid():
    decoder = Decoder(ASPP(width=8, rates=[1, 2], dropout=0.1), width=8, widths=[6, 5, 4])
    for training in (True, False):
        assert decoder.train(training)(torch.randn(2, 8, 3, 5)).shape == (2, 1, 12, 20)


def test_each_branch_of_aspp_reaches_exactly_its_rate():
    aspp = ASPP(width=2, rates=[2, 5], dropout=0.0).eval()
    impulse = torch.zeros(1, 2, 13, 13)
    impulse[:, :, 6, 6] = 1
    for branch, rate in zip(aspp.branches, (0, 2, 5), strict=True):
        reached = branch(impulse).abs().sum(dim=1).squeeze() > 0
        rows, columns = reached.nonzero(as_tuple=True)
        assert set(rows.tolist()) == set(columns.tolist()) == {6 - rate, 6, 6 + rate}


def test_aspp_sees_the_mean_of_the_image():
    """Two maps that differ far from the corner: only the pooled image can tell the corner."""
    torch.manual_seed(0)
    aspp = ASPP(width=4, rates=[1], dropout=0.0).eval()
    dark = torch.randn(1, 4, 9, 9)
    bright = dark.clone()
    bright[:, :, 5:, 5:] += 5
    assert not torch.allclose(aspp(dark)[:, :, 0, 0], aspp(bright)[:, :, 0, 0])
    bright[:, :, 5:, 5:] = dark[:, :, 5:, 5:].flip(2, 3)
    torch.testing.assert_close(aspp(dark)[:, :, 0, 0], aspp(bright)[:, :, 0, 0])


def test_one_answer_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    decoder = Decoder(ASPP(width=8, rates=[1, 2], dropout=0.1), width=8, widths=[6, 5, 4]).eval()
    joint = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(decoder(joint)[1:2], decoder(joint[1:2]), rtol=1e-5, atol=1e-6)


def test_every_weight_is_used():
    decoder = Decoder(ASPP(width=8, rates=[1, 2], dropout=0.0), width=8, widths=[6, 5, 4])
    decoder(torch.randn(2, 8, 4, 4)).square().mean().backward()
    assert [name for name, p in decoder.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_widths_say_how_many_convolutions_there_are_and_the_last_are_at_4h():
    sides = []
    decoder = Decoder(ASPP(width=8, rates=[1], dropout=0.0), width=8, widths=[6, 5, 4, 3, 2])
    for refine in decoder.refine:
        refine.register_forward_hook(lambda module, given, made: sides.append(made.shape[1:]))
    assert decoder(torch.randn(2, 8, 3, 3)).shape == (2, 1, 12, 12)
    assert sides == [(6, 3, 3), (5, 6, 6), (4, 12, 12), (3, 12, 12), (2, 12, 12)]


def test_a_slope_of_zero_is_a_relu():
    torch.manual_seed(0)
    aspp = ASPP(width=4, rates=[1], dropout=0.0, slope=0.0).eval()
    mixed = aspp(torch.randn(2, 4, 5, 5))
    assert (mixed == 0).any() and (mixed >= 0).all()


def test_channels_are_dropped_whole_after_every_convolution_but_the_last():
    torch.manual_seed(0)
    decoder = Decoder(ASPP(8, [1], 0.5, whole_channels=True), width=8, widths=[6, 5, 4, 3], dropout=0.5).train()
    seen = []
    decoder.aspp.register_forward_hook(lambda module, given, made: seen.append(made))
    for refine in decoder.refine[1:]:
        refine.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    decoder.head.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    decoder(torch.randn(4, 8, 4, 4))
    for x in seen[:-1]:
        silent = (x == 0).all(dim=3).all(dim=2)
        assert silent.any() and not silent.all()
    assert not (seen[-1] == 0).all(dim=3).all(dim=2).any()


def test_the_mean_of_the_image_may_have_a_batch_norm():
    aspp = ASPP(width=4, rates=[1], dropout=0.0, image_norm=True).train()
    joint = torch.randn(6, 4, 3, 3)
    image = []
    aspp.image.register_forward_hook(lambda module, given, made: image.append(made))
    aspp(joint)
    torch.testing.assert_close(image[0].mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    assert aspp.image[0].bias is None
    with pytest.raises(RefsegError, match="raise photos or expressions, or set image_norm: false"):
        aspp(joint[:1])
    assert aspp.eval()(joint[:1]).shape == (1, 4, 3, 3)


def test_another_width_comes_in():
    decoder = Decoder(ASPP(width=4, rates=[1], dropout=0.0, inputs=10), width=4, widths=[3, 3, 3])
    assert decoder(torch.randn(2, 10, 3, 5)).shape == (2, 1, 12, 20)


def test_aligned_corners_stay_at_the_corners():
    torch.manual_seed(0)
    decoder = Decoder(ASPP(4, [1], 0.0), width=4, widths=[3, 3, 3], align_corners=True, cell=5.5).eval()
    plain = Decoder(decoder.aspp, width=4, widths=[3, 3, 3], align_corners=True).eval()
    plain.load_state_dict(decoder.state_dict())
    joint = torch.randn(2, 4, 4, 6)
    logits, fine = plain(joint), decoder(joint)
    assert fine.shape == (2, 1, 22, 33)
    torch.testing.assert_close(fine[..., [0, 0, -1, -1], [0, -1, 0, -1]], logits[..., [0, 0, -1, -1], [0, -1, 0, -1]])
    torch.testing.assert_close(fine, F.interpolate(logits, (22, 33), mode="bilinear", align_corners=True))
