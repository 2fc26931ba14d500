"""The training losses: of a MaskMed network from scratch, of an ordinary head, and of teaching a trained network.

From scratch: matched queries at every layer, and the fused scores at the end.

The fused term is ours: it trains the very scores that inference takes the argmax of. With few volumes it is what
makes the queries agree early; the matched terms keep mask and class decoupled (arXiv 2511.15603).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


def sampled_scores(out: HeadOutput | Tensor, offset: tuple[int, int, int],
                   stride: int = 2) -> tuple[Tensor, Tensor | None]:
    """Scores (B, K, V) float32 of an answer (or of logits) at the `wandering` voxels, and the queries' mask logits
    (B, Q, V) there (None for an ordinary head)."""
    if isinstance(out, HeadOutput):
        features = out.mask_features.at(*wandering(out.mask_features.size, offset, stride))
        logits = mask_logits(out.final.mask_embeddings, features).flatten(2).float()
        return fuse(out.final.class_logits, logits), logits
    return sublattice(out, offset, stride).flatten(2).float().softmax(1), None


def teaching_mask_loss(class_logits: Tensor, logits: Tensor, drawn: Tensor, asked: Sequence[int], *,
                       open_value: int = 255) -> Tensor:
    """Teach the queries' own masks: of one sample, class_logits (Q, K + 1), logits (Q, V), drawn (V,).

    The query that speaks for a taught class gets its drawing as a target, and where it is drawn every other query is
    to be silent. Both by cross-entropy of the logits: a mask that is sure and wrong has no gradient left in the scores,
    so a new structure would hardly ever be carved out of the background.
    """
    known = drawn != open_value
    log_probability = class_logits.float().log_softmax(-1)
    terms = []
    for number in asked:
        positive = drawn == number
        count = int(positive.sum())
        if count < 4:
            continue
        query = int(log_probability[:, number].argmax())
        own = F.binary_cross_entropy_with_logits(logits[query], positive.float(), reduction="none")
        others = F.softplus(logits[:, positive]).sum() - F.softplus(logits[query][positive]).sum()
        terms.append((own * known).sum() / known.sum() + others / known.sum() - 0.2 * log_probability[query, number])
    return torch.stack(terms).sum() if terms else logits.new_zeros(())


def _overlap_loss(found: Tensor, positive: Tensor) -> Tensor:
    """1 - soft Dice."""
    return 1 - (2 * (found * positive).sum() + 1) / (found.sum() + positive.sum() + 1)


def asked_loss(scores: Tensor, drawn: Tensor, asked: Sequence[int], *, open_value: int = 255) -> Tensor:
    """Only what is asked for: cross-entropy of the classes `asked` and "none of them", and 1 - soft Dice of each.

    scores: (K, V), sum 1. drawn: (V,) class of an asked structure, 0 where there is none, `open_value` where anything
    may be.
    """
    known = drawn != open_value
    mine = scores[list(asked)]
    mine = torch.cat([mine, (1 - mine.sum(0, keepdim=True)).clamp_min(0)])
    target = torch.full_like(drawn, len(asked), dtype=torch.long)
    for row, number in enumerate(asked):
        target[drawn == number] = row
    loss = -(mine.clamp_min(1e-4).log().gather(0, target[None])[0] * known).sum() / known.sum().clamp_min(1)
    dices = []
    for row in range(len(asked)):
        positive = ((target == row) & known).float()
        if positive.sum() >= 8:
            dices.append(_overlap_loss(mine[row] * known, positive))
    return loss + torch.stack(dices).mean() if dices else loss


def teaching_loss(scores: Tensor, drawn: Tensor, parent: Tensor, asked: Sequence[int], silent: Sequence[int] = (), *,
                  open_value: int = 255, hold: float = 1.0) -> Tensor:
    """Teach what is drawn, and hold everything else to what the parent says of the same crop.

    scores: (K, V), sum 1, of the network that learns. drawn: (V,) class of a drawn taught structure, 0 where none of
    `asked` is, `open_value` where anything may be. parent: (K', V) the parent's scores, K' <= K (new classes last).
    asked: taught classes that the case speaks of. silent: classes taught now that nobody drew in this case; they may
    take a voxel from any class the parent names, and what they take counts as the parent's own shares of it. hold:
    weight of the overlap term of what is held.

    Drawn voxels: cross-entropy (a mean over structures beside it was tried once and lost 7 points of Dice). Others: the
    parent's scores of the classes not asked for are the targets, and the share that the parent gave to asked ones may
    go to any of the others. Both vanish where the network does what is wanted, so the first step from the parent moves
    nothing but the taught. Added: 1 - soft Dice of each taught class, and of each held class against the parent's
    scores (squared, so that it vanishes at equality); without it small organs would weigh nothing.
    """
    known = drawn != open_value
    elsewhere = drawn == 0
    log = scores.clamp_min(1e-6).log()
    certain = known & ~elsewhere
    losses = -(log.gather(0, (drawn * certain)[None].long())[0] * certain)
    held = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    held[list(asked)] = False
    kept = held[:len(parent)]
    target, mass = parent[kept], scores[:len(parent)][kept]
    if len(silent):
        more = (scores - F.pad(parent, (0, 0, 0, len(scores) - len(parent)))).clamp_min(0)
        taken = torch.zeros_like(more)
        taken[list(silent)] = more[list(silent)]
        # Shared out: added to every class whole, each would be blamed for what was taken from another one.
        mass = mass - taken[:len(parent)][kept] + taken.sum(0) * target / target.sum(0).clamp_min(1e-6)
    mass = mass.clamp_min(1e-6)
    entropy = (target * target.clamp_min(1e-6).log()).sum(0)
    rest = (1 - target.sum(0)).clamp_min(0)
    away = -(target * mass.log()).sum(0) + entropy - rest * scores[held].sum(0).clamp_min(1e-6).log()
    losses = losses + max(hold, 1.0) * torch.where(elsewhere, away, torch.zeros_like(away))
    total = losses.sum() / known.sum().clamp_min(1)
    dices = []
    for number in asked:
        positive = (drawn == number).float()
        if positive.sum() >= 4:
            dices.append(_overlap_loss(scores[number] * known, positive))
    if dices:
        total = total + torch.stack(dices).mean()
    if hold and elsewhere.any():
        there, mine = parent[kept] * elsewhere, mass * elsewhere
        weight = (there.sum(1) >= 4).float()
        overlap = 1 - (2 * (mine * there).sum(1) + 1) / ((mine ** 2).sum(1) + (there ** 2).sum(1) + 1)
        total = total + hold * (overlap * weight).sum() / weight.sum().clamp_min(1)
    return total
