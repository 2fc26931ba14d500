"""The training loss of a MaskMed network: matched queries at every layer, and the fused scores at the end.

The fused term is ours: it trains the very scores that inference takes the argmax of. With few volumes it is what
makes the queries agree early; the matched terms keep mask and class decoupled (arXiv 2511.15603).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mask_head import HeadOutput, fuse, mask_logits
from .matching import (
    Targets,
    fixed_assignment,
    marginal_cross_entropy,
    match,
    partial_dice_loss,
    query_loss,
    targets_from_possible,
)


def wandering(size: Sequence[int], offset: tuple[int, int, int], stride: int = 2) -> list[Tensor]:
    """Indices along each axis, one in every block of `stride`, wandering within the block from one block to the next.

    Over all offsets every voxel is visited once; with any one offset every position within a block is, so that no
    sub-pixel channel is starved.
    """
    blocks = [torch.arange(n // stride) for n in size]
    return [block * stride + (block + start) % stride for block, start in zip(blocks, offset)]


def sublattice(volume: Tensor, offset: tuple[int, int, int], stride: int = 2) -> Tensor:
    """The voxels of (..., I, J, K) at the `wandering` indices."""
    for axis, index in zip((-3, -2, -1), wandering(volume.shape[-3:], offset, stride)):
        volume = volume.index_select(volume.dim() + axis, index.to(volume.device))
    return volume


def maskmed_loss(out: HeadOutput, possible: Tensor, *, offset: tuple[int, int, int] = (0, 0, 0),
                 matching: str = "hungarian", query_weight: float = 0.1,
                 dense_weight: float = 1.0) -> dict[str, Tensor]:
    """possible: (B, I, J, K) int64 bit sets on the mask features' lattice. Returns the terms and their sum `loss`.

    matching: "hungarian" or "fixed" (query i is class i), the ablation.
    """
    num_classes = out.final.class_logits.shape[-1] - 1
    query_terms = []
    for layer, prediction in enumerate(out.predictions):
        # Earlier layers are supervised on a coarser set of points: an eighth of the cost, the same expectation.
        stride = 2 if layer + 1 == len(out.predictions) else 4
        if layer in (0, len(out.predictions) - 1):
            features = out.mask_features.at(*wandering(out.mask_features.size, offset, stride))
            voxels = sublattice(possible, offset, stride).flatten(1)
            targets = [targets_from_possible(p, num_classes, min_voxels=4) for p in voxels]
        logits = mask_logits(prediction.mask_embeddings, features).flatten(2).float()
        for b, target in enumerate(targets):
            assignment = fixed_assignment(target) if matching == "fixed" else match(
                prediction.class_logits[b], logits[b], target)
            query_terms.append(query_loss(prediction.class_logits[b], logits[b], target, assignment))
    scores = fuse(out.final.class_logits, logits)
    cross_entropy, dice = _dense_terms(scores, voxels, targets)
    query = torch.stack(query_terms).sum() / len(possible)
    return {"loss": query_weight * query + dense_weight * (cross_entropy + dice),
            "query": query.detach(), "cross_entropy": cross_entropy.detach(), "dice": dice.detach()}


def _dense_terms(scores: Tensor, possible: Tensor, targets: list[Targets]) -> tuple[Tensor, Tensor]:
    """Marginal cross-entropy and partial Dice of (B, K, V) scores, (B, V) bit sets, a target a sample; batch means."""
    cross_entropy = torch.stack([marginal_cross_entropy(s, p) for s, p in zip(scores, possible)]).mean()
    dice = torch.stack([partial_dice_loss(s, t) for s, t in zip(scores, targets)]).mean()
    return cross_entropy, dice


def pointwise_loss(logits: Tensor, possible: Tensor, *, offset: tuple[int, int, int] = (0, 0, 0)) -> dict[str, Tensor]:
    """The same dense terms for the ordinary head: softmax scores, marginal cross-entropy and partial Dice."""
    scores = sublattice(logits, offset).flatten(2).float().softmax(1)
    possible = sublattice(possible, offset).flatten(1)
    targets = [targets_from_possible(p, scores.shape[1], min_voxels=4) for p in possible]
    cross_entropy, dice = _dense_terms(scores, possible, targets)
    return {"loss": cross_entropy + dice, "cross_entropy": cross_entropy.detach(), "dice": dice.detach()}
