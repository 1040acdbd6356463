"""Losses. They know logits and targets, but no network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mask_loss(mask_logits: Tensor, targets: Tensor, dice_weight: float) -> Tensor:
    """Pixel-wise binary cross-entropy (paper, section 3.4), and Dice if it has a weight.

    Both are (B, 1, h, w). Targets are the referent's share of each cell, 0..1. Dice gives a small referent as much
    weight as a large one (Milletari et al. 2016).
    """
    logits = mask_logits.float()
    loss = F.binary_cross_entropy_with_logits(logits, targets)
    if dice_weight:
        probabilities = logits.sigmoid()
        common = (probabilities * targets).sum(dim=(1, 2, 3))
        total = (probabilities + targets).sum(dim=(1, 2, 3))
        loss = loss + dice_weight * (1 - (2 * common + 1) / (total + 1)).mean()
    return loss


def choice_loss(mask_logits: Tensor, targets: Tensor, rivals: Tensor) -> Tensor:
    """Teaches choosing among similar things: cross-entropy on the referent and on its rivals only, with equal weight.

    All are (B, 1, h, w). `rivals` is the share of each cell that other segments with the referent's label cover, 0..1.
    A sentence without rivals adds nothing. Of two shoes side by side, Dice tolerates marking both, and this does not.
    """
    logits, rivals = mask_logits.float(), rivals * (1 - targets)
    missed = _weighted_mean(F.softplus(-logits), targets)
    taken = _weighted_mean(F.softplus(logits), rivals)
    return ((missed + taken) / 2 * rivals.flatten(1).any(dim=1)).mean()


def outline(targets: Tensor) -> Tensor:
    """Where the border of a mask is, (B, 1, h, w) in 0..1: within two cells of both inside and outside.

    Targets are (B, 1, h, w) in 0..1.
    """
    return F.max_pool2d(targets, 5, stride=1, padding=2) + F.max_pool2d(-targets, 5, stride=1, padding=2)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of each expression, (B,). Weights of less than a cell give hardly anything."""
    return (values * weights).sum(dim=(1, 2, 3)) / (weights.sum(dim=(1, 2, 3)) + 0.1)
