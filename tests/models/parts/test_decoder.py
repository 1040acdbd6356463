import torch

from refseg.models.parts.decoder import ASPP, Decoder


def test_logits_have_four_times_the_grid():
    decoder = Decoder(width=8, rates=[1, 2], widths=[6, 5, 4], dropout=0.1)
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
    decoder = Decoder(width=8, rates=[1, 2], widths=[6, 5, 4], dropout=0.1).eval()
    joint = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(decoder(joint)[1:2], decoder(joint[1:2]), rtol=1e-5, atol=1e-6)


def test_every_weight_is_used():
    decoder = Decoder(width=8, rates=[1, 2], widths=[6, 5, 4], dropout=0.0)
    decoder(torch.randn(2, 8, 4, 4)).square().mean().backward()
    assert [name for name, p in decoder.named_parameters() if not p.grad.abs().sum() > 0] == []
