"""Losses: they know logits and targets, and no model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mask_loss(mask_logits: Tensor, targets: Tensor, dice_weight: float) -> Tensor:
    """Pixel-wise binary cross-entropy (paper, section 3.4), and Dice where it has a weight.

    Both are (B, 1, h, w); targets in 0..1, the referent's share of each cell. Dice weighs a small
    referent as much as a large one (Milletari et al. 2016).
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
    """Which of several alike is meant: cross-entropy on the referent and on its rivals alone, half the weight each.

    All are (B, 1, h, w); rivals in 0..1, the share of each cell that others of the referent's label cover. A sentence
    without rivals adds nothing. Where two shoes stand side by side, Dice forgives whoever marks both; this does not.
    """
    logits, rivals = mask_logits.float(), rivals * (1 - targets)
    missed = _weighted_mean(F.softplus(-logits), targets)
    taken = _weighted_mean(F.softplus(logits), rivals)
    return ((missed + taken) / 2 * rivals.flatten(1).any(dim=1)).mean()


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """(B,); of one cell and less hardly anything."""
    return (values * weights).sum(dim=(1, 2, 3)) / (weights.sum(dim=(1, 2, 3)) + 0.1)
