"""Targets, bipartite matching and losses of MaskMed, as pure functions that know about partial labels.

arXiv 2511.15603 trains with bipartite matching; costs and weights follow Mask2Former (arXiv 2112.01527) and are our
fill-in, and so is everything about partial labels.

Partial labels. `possible` is an integer map whose bit v says that a voxel may be class v (bit 0: background). One bit
set means the voxel is known. Class k at a voxel is then certainly yes (only bit k), certainly no (bit k unset) or open;
open voxels enter neither cost nor loss of that class. A complete annotation is the special case of one bit everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass
class Targets:
    """What one sample's annotation says, over V voxels.

    classes: (T,) classes with at least one certain voxel. positive, known: (T, V) float 0/1, certainly yes; certainly
    yes or no. open_classes: (K,) bool, classes that may be present without a certain voxel, or beyond their certain
    ones.
    """

    classes: Tensor
    positive: Tensor
    known: Tensor
    open_classes: Tensor


def targets_from_possible(possible: Tensor, num_classes: int, min_voxels: int = 1) -> Targets:
    """possible: (V,) int64 bit sets. Classes with fewer than `min_voxels` certain voxels count as open, not present."""
    shifts = torch.arange(num_classes, device=possible.device)
    may = (possible[None] >> shifts[:, None]) & 1                                   # (K, V)
    certain = may.bool() & (possible[None] == (1 << shifts)[:, None])
    counts = certain.sum(1)
    classes = (counts >= min_voxels).nonzero().flatten()
    open_classes = (may.bool() & ~certain).any(1) | ((counts > 0) & (counts < min_voxels))
    positive = certain[classes].float()
    known = (certain[classes] | (may[classes] == 0)).float()
    return Targets(classes, positive, known, open_classes)


def pairwise_mask_costs(logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice cost of every query against every target over known voxels.

    logits: (Q, V). Returns two (Q, T) tensors. BCE is the mean over the target's known voxels.
    """
    positive, known = targets.positive, targets.known
    negative = known - positive
    bce = F.softplus(-logits) @ positive.T + F.softplus(logits) @ negative.T
    bce = bce / known.sum(1).clamp_min(1)
    probability = logits.sigmoid()
    intersection = probability @ positive.T
    denominator = probability @ known.T + positive.sum(1)
    return bce, 1 - (2 * intersection + 1) / (denominator + 1)


def match(class_logits: Tensor, logits: Tensor, targets: Targets, *, class_weight: float = 2.0,
          bce_weight: float = 5.0, dice_weight: float = 5.0) -> tuple[Tensor, Tensor]:
    """Hungarian matching of queries to targets (arXiv 2112.01527, section 3.3); no gradient.

    class_logits: (Q, K + 1). logits: (Q, V). Returns query indices and target indices, both (T,) (T <= Q).
    """
    with torch.no_grad():
        bce, dice = pairwise_mask_costs(logits.float(), targets)
        probability = class_logits.float().softmax(-1)[:, targets.classes]
        cost = bce_weight * bce + dice_weight * dice - class_weight * probability
        query, target = linear_sum_assignment(cost.cpu().numpy())
    device = logits.device
    return torch.as_tensor(query, device=device), torch.as_tensor(target, device=device)


def fixed_assignment(targets: Targets) -> tuple[Tensor, Tensor]:
    """Query i answers for class i: the ablation without matching."""
    return targets.classes, torch.arange(len(targets.classes), device=targets.classes.device)


def query_loss(class_logits: Tensor, logits: Tensor, targets: Targets, assignment: tuple[Tensor, Tensor], *,
               class_weight: float = 2.0, bce_weight: float = 5.0, dice_weight: float = 5.0,
               no_object_weight: float = 0.1) -> Tensor:
    """Loss of one sample's queries after matching (arXiv 2112.01527): class cross-entropy, mask BCE, mask Dice.

    A query without a target should say "no object", or any class that is still open in this sample: for it the
    likelihood of that whole set counts.
    """
    query, target = assignment
    log_probability = class_logits.float().log_softmax(-1)                          # (Q, K + 1)
    weights = torch.full((len(class_logits),), no_object_weight, device=logits.device)
    weights[query] = 1.0
    allowed = torch.cat([targets.open_classes, targets.open_classes.new_ones(1)])
    loss = -log_probability.masked_fill(~allowed, float("-inf")).logsumexp(-1)
    loss = loss.index_put((query,), -log_probability[query, targets.classes[target]])
    total = class_weight * (loss * weights).sum() / weights.sum()
    if len(query) == 0:
        return total
    chosen = logits[query].float()
    positive, known = targets.positive[target], targets.known[target]
    bce = F.binary_cross_entropy_with_logits(chosen, positive, reduction="none")
    bce = ((bce * known).sum(1) / known.sum(1).clamp_min(1)).mean()
    probability = chosen.sigmoid() * known
    dice = 1 - (2 * (probability * positive).sum(1) + 1) / (probability.sum(1) + positive.sum(1) + 1)
    return total + bce_weight * bce + dice_weight * dice.mean()


def marginal_cross_entropy(scores: Tensor, possible: Tensor) -> Tensor:
    """-log of the score mass on the classes a voxel may be, mean over voxels that exclude something.

    scores: (K, V), sum 1. possible: (V,) int64. With one bit a voxel it is the ordinary cross-entropy.
    """
    shifts = torch.arange(len(scores), device=scores.device)
    may = ((possible[None] >> shifts[:, None]) & 1).to(scores.dtype)
    mass = (scores * may).sum(0).clamp_min(1e-6)
    informative = (may.sum(0) < len(scores)).to(scores.dtype)
    return -(mass.log() * informative).sum() / informative.sum().clamp_min(1)


def partial_dice_loss(scores: Tensor, targets: Targets) -> Tensor:
    """1 - soft Dice of every present class over the voxels where that class is known; mean over classes.

    scores: (K, V), sum 1.
    """
    if len(targets.classes) == 0:
        return scores.new_zeros(())
    chosen = scores[targets.classes] * targets.known
    intersection = (chosen * targets.positive).sum(1)
    return (1 - (2 * intersection + 1) / (chosen.sum(1) + targets.positive.sum(1) + 1)).mean()
