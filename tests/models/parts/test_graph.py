import pytest
import torch
import torch.nn.functional as F

from refseg.models.interface import TokenBatch
from refseg.models.parts.graph import JointNorm, depths, edges, heads_of, masked_softmax

HEADS = torch.tensor([[0, 0, 4, 4, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4, [False] * 5])


def test_a_chain_stands_in_for_trees_that_are_not_given():
    ids = MASK.long()
    assert heads_of(TokenBatch(ids, MASK)).tolist() == [[0, 0, 1, 2, 3]] * 4
    assert heads_of(TokenBatch(ids, MASK, HEADS)) is HEADS


def test_depths_count_the_steps_to_the_root():
    assert depths(HEADS, MASK).tolist() == [[0, 1, 3, 3, 2], [1, 0, 1, -1, -1], [0] + [-1] * 4, [-1] * 5]
    assert depths(HEADS[2:3, :1], MASK[2:3, :1]).tolist() == [[0]]


def test_edges_lead_from_words_to_heads():
    found = edges(HEADS, MASK)
    assert {tuple(edge) for edge in found[0].nonzero().tolist()} == {(1, 0), (2, 4), (3, 4), (4, 1)}
    assert {tuple(edge) for edge in found[1].nonzero().tolist()} == {(0, 1), (2, 1)}
    assert not found[2:].any()


def test_shares_among_what_is_there():
    scores = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    shares = masked_softmax(scores, MASK.unsqueeze(1), dim=2)
    assert (shares[~MASK.unsqueeze(1).expand_as(shares)] == 0).all()
    torch.testing.assert_close(shares.sum(dim=2), torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None].expand(4, 3))
    torch.testing.assert_close(shares[1, :, :3], scores[1, :, :3].softmax(dim=1))
    shares.square().sum().backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("garbage", [0.0, 1e3])
def test_joint_norm_is_layer_norm_over_a_whole_sentence(garbage):
    norm = JointNorm(6).double()
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    nodes = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    normed = norm(nodes.where(MASK.unsqueeze(2), garbage), MASK)
    for row, length in enumerate(MASK.sum(dim=1).tolist()[:3]):
        plain = F.layer_norm(nodes[row, :length], (length, 6), eps=1e-12) * norm.weight + norm.bias
        torch.testing.assert_close(normed[row, :length], plain)
    assert (normed[~MASK] == 0).all()


def test_joint_norm_of_nothing_has_a_gradient():
    nodes = torch.zeros(2, 3, 4, requires_grad=True)
    JointNorm(4)(nodes, torch.tensor([[False] * 3, [True] * 3])).sum().backward()
    assert nodes.grad.isfinite().all()
