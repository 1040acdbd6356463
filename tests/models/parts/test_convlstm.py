"""The ConvLSTM against its equations, place by place."""

import pytest
import torch
import torch.nn.functional as F

from refseg.models.parts.convlstm import ConvLSTM

B, C, S = 2, 4, 3


@pytest.fixture
def walk():
    torch.manual_seed(0)
    module = ConvLSTM(C, S).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def maps(side=S, count=3):
    torch.manual_seed(1)
    return [torch.randn(B, C, side, side).double() for _ in range(count)]


def whole_norm(x, norm):
    """Over all channels and places of each map, with gain and bias per channel."""
    flat = F.layer_norm(x.flatten(1), (x[0].numel(),)).view_as(x)
    return flat * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_it_is_its_equations(walk):
    of_write, of_keep, of_read = walk.peepholes
    hidden = cell = torch.zeros(B, C, S, S).double()
    for x in maps():
        mixed = torch.einsum("oc,bchw->bohw", walk.gates.weight[:, :, 0, 0], torch.cat([x, hidden], dim=1))
        j, i, f, o = mixed.split(C, dim=1)
        j, i, f = (
            whole_norm(j, walk.of_new),
            whole_norm(i + of_write * cell, walk.of_write),
            whole_norm(f + of_keep * cell, walk.of_keep),
        )
        cell = torch.sigmoid(f + 1) * cell + torch.sigmoid(i) * j.tanh()
        o = torch.sigmoid(whole_norm(o + of_read * cell, walk.of_read))
        cell = whole_norm(cell, walk.of_cell)
        hidden = o * cell.tanh()
    torch.testing.assert_close(walk(maps()), hidden)


def test_the_published_one_has_its_parameters():
    with torch.device("meta"):
        assert sum(weight.numel() for weight in ConvLSTM(500, 40).parameters()) == 4_405_000


def test_every_step_and_weight_takes_part(walk):
    seen = [x.requires_grad_() for x in maps()]
    result = walk(seen)
    (result * torch.randn_like(result)).sum().backward()
    assert all((x.grad.abs() > 0).all() for x in seen)
    assert all((weight.grad.abs() > 0).all() for weight in walk.parameters())


def test_an_answer_does_not_depend_on_its_company(walk):
    torch.testing.assert_close(walk([x[1:] for x in maps()]), walk(maps())[1:])


def test_another_grid_resizes_the_peepholes(walk):
    walk.peepholes.data = torch.rand(3, C, 1, 1).double().expand(3, C, S, S).contiguous()
    wide = maps(5)
    other = ConvLSTM(C, 5).double()
    other.load_state_dict(
        {**walk.state_dict(), "peepholes": walk.peepholes[:, :, :1, :1].expand(3, C, 5, 5).contiguous()}
    )
    torch.testing.assert_close(walk(wide), other(wide))


def test_equal_places_give_no_infinities(walk):
    """A normalisation over equal values divides by nothing."""
    flat = [torch.zeros(B, C, S, S).double().requires_grad_() for _ in range(3)]
    result = walk(flat)
    result.sum().backward()
    assert result.isfinite().all() and all(x.grad.isfinite().all() for x in flat)
