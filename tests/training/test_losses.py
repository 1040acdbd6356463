import math

import pytest
import torch

from refseg.training.losses import choice_loss, mask_loss, outline

HALF = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)


def test_cross_entropy_by_hand():
    logits = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)  # probabilities 1/2 and 3/4
    expected = -(math.log(1 / 2) + math.log(1 / 4)) / 2
    assert mask_loss(logits, HALF, 0.0).item() == pytest.approx(expected)


def test_dice_by_hand():
    logits = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)
    dice = 1 - (2 * 0.5 + 1) / (0.5 + 0.75 + 1 + 1)
    assert (mask_loss(logits, HALF, 2.0) - mask_loss(logits, HALF, 0.0)).item() == pytest.approx(2 * dice)


def test_dice_weighs_a_small_referent_as_a_large_one():
    """One missed referent of 100 cells costs hardly more than one of 10; for cross-entropy it is ten times."""
    costs = []
    for cells in (10, 100):
        targets = torch.zeros(1, 1, 20, 20)
        targets.view(-1)[:cells] = 1
        nothing = torch.full_like(targets, -20.0)
        entropy = mask_loss(nothing, targets, 0.0)
        costs.append((entropy.item(), (mask_loss(nothing, targets, 1.0) - entropy).item()))
    (small_entropy, small_dice), (large_entropy, large_dice) = costs
    assert large_entropy == pytest.approx(10 * small_entropy, rel=1e-3)
    assert 0.9 < small_dice < large_dice <= 1


def test_each_expression_counts_alike():
    logits, targets = torch.randn(3, 1, 4, 4), (torch.rand(3, 1, 4, 4) > 0.5).float()
    apart = [mask_loss(logits[i : i + 1], targets[i : i + 1], 1.0).item() for i in range(3)]
    assert mask_loss(logits, targets, 1.0).item() == pytest.approx(sum(apart) / 3)


def test_a_perfect_answer_costs_nothing():
    for targets in (torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4), torch.eye(4).expand(2, 1, 4, 4)):
        assert mask_loss((targets - 0.5) * 80, targets, 1.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extreme", [-1e4, 0.0, 1e4])
def test_gradients_stay_finite(extreme, dtype):
    logits = torch.full((1, 1, 2, 2), extreme, dtype=dtype, requires_grad=True)
    loss = mask_loss(logits, torch.eye(2).view(1, 1, 2, 2), 1.0)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 0].diagonal() <= 0).all()


RIVAL = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)


def test_choice_by_hand():
    """Probability 3/4 on the referent and 1/4 on its rival; each weighs a cell in 1.1."""
    logits = torch.tensor([math.log(3), -math.log(3)]).view(1, 1, 1, 2)
    assert choice_loss(logits, HALF, RIVAL).item() == pytest.approx(-math.log(3 / 4) / 1.1)


def test_marking_both_costs_the_choice_more_than_dice():
    both, right = torch.full((1, 1, 1, 2), 9.0), torch.tensor([9.0, -9.0]).view(1, 1, 1, 2)
    assert mask_loss(both, HALF, 1.0) - mask_loss(both, HALF, 0.0) < 0.3
    assert choice_loss(both, HALF, RIVAL) > 4 and choice_loss(right, HALF, RIVAL) < 1e-3


def test_the_choice_looks_at_referent_and_rivals_alone():
    logits, targets, rivals = torch.randn(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    targets[:, :, 0], rivals[:, :, 1] = 1, 1
    elsewhere = logits.clone()
    elsewhere[:, :, 2:] += 5
    assert torch.equal(choice_loss(elsewhere, targets, rivals), choice_loss(logits, targets, rivals))


def test_without_rivals_there_is_no_choice():
    logits = torch.randn(2, 1, 1, 2, requires_grad=True)
    choice_loss(logits, HALF.expand(2, 1, 1, 2), torch.stack([RIVAL[0], torch.zeros(1, 1, 2)])).backward()
    assert logits.grad[0].abs().sum() > 0 and not logits.grad[1].any()


def test_what_a_rival_shares_with_the_referent_is_the_referents():
    logits = torch.randn(1, 1, 1, 2)
    assert choice_loss(logits, HALF, torch.ones(1, 1, 1, 2)) == choice_loss(logits, HALF, RIVAL)
    assert choice_loss(logits, HALF, HALF) == 0


def test_an_outline_is_what_lies_near_both_inside_and_outside():
    row = torch.tensor([0.0] * 4 + [1.0] * 6).expand(5, -1)[None, None]
    assert outline(row)[0, 0, 2].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert not outline(torch.ones(1, 1, 4, 4)).any() and not outline(torch.zeros(1, 1, 4, 4)).any()
    assert outline(row * 0.5).max() == 0.5
