"""Who made what: the share that every object query of a masked head has in the answer of one window.

The head's score of class k at a voxel is the sum over queries of p(k | query) times the query's mask there
(arXiv 2107.06278); a query's share in a segment is its part of that sum over the segment's voxels. Sums are taken in
float64 by numpy: Apple's GPUs have no float64.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..models.card import ModelCard
from ..networks.head_trace import HeadTrace
from ..networks.mask_head import mask_logits

#: Layers of the stride-2 map that are opened to full resolution at a time.
SLAB = 4


@dataclass(frozen=True)
class Shares:
    """made: (K, Q) sums of the winning class's score by query; found: (K,) voxels a class wins; area: (Q,) voxels
    where a query's mask is above one half."""

    made: Tensor
    found: Tensor
    area: Tensor


_SHARES: weakref.WeakKeyDictionary[HeadTrace, Shares] = weakref.WeakKeyDictionary()


def class_probabilities(trace: HeadTrace) -> Tensor:
    """(Q, K + 1) float32; the last column is "no object"."""
    return trace.output.final.class_logits[0].float().softmax(-1)


@torch.no_grad()
def shares_of(trace: HeadTrace) -> Shares:
    """Shares of all queries in all segments of the window; computed once per trace."""
    if trace not in _SHARES:
        probability = class_probabilities(trace)[:, :-1]
        queries, classes = probability.shape
        made = np.zeros((classes, queries))
        found, area = torch.zeros(classes, dtype=torch.long), torch.zeros(queries, dtype=torch.long)
        for _, masks in _slabs(trace):
            flat = masks.flatten(1)                                             # (Q, V)
            winner = (probability.T @ flat).argmax(0)
            area += (flat > 0.5).sum(1).cpu()
            for value in torch.unique(winner).tolist():
                inside = winner == value
                found[value] += int(inside.sum())
                made[value] += (flat[:, inside].sum(1) * probability[:, value]).cpu().numpy()
        _SHARES[trace] = Shares(torch.from_numpy(made), found, area)
    return _SHARES[trace]


@torch.no_grad()
def queries_at(trace: HeadTrace, card: ModelCard, voxel: Sequence[int]) -> tuple[list[tuple[int, float]], str]:
    """Queries with their share of the winning class's score at a voxel of the window, the largest first; the winner's
    id."""
    features = trace.output.mask_features.at(*(torch.tensor([v]) for v in voxel))
    masks = mask_logits(trace.output.final.mask_embeddings, features)[0].float().sigmoid().reshape(-1)
    parts = class_probabilities(trace)[:, :-1] * masks[:, None]
    winner = int(parts.sum(0).argmax())
    return ranked(parts[:, winner]), class_name(card, winner)


def query_of_structure(trace: HeadTrace, card: ModelCard, structure: str) -> tuple[int, float]:
    """The query that made most of a structure's segment in the window, and its share. Raises OptionError."""
    value = next((label.value for label in card.labels if label.id == structure), None)
    if value is None:
        raise OptionError(f"Model {card.id} has no structure '{structure}'; it knows "
                          f"{', '.join(label.id for label in card.labels)}.")
    shares = shares_of(trace)
    if not int(shares.found[value]):
        raise OptionError(f"The model finds no '{structure}' in the window around this point; choose a point in it.")
    return ranked(shares.made[value])[0]


@torch.no_grad()
def query_of_mask(trace: HeadTrace, mask: Tensor) -> tuple[int, float]:
    """The query whose mask overlaps best with a mask of the window (I, J, K) in [0, 1], and their Dice."""
    common = total = np.zeros(1)
    for part, masks in _slabs(trace):
        wanted = mask[part].flatten()
        flat = masks.flatten(1)
        common = common + (flat @ wanted).cpu().numpy().astype(np.float64)
        total = total + (flat.sum(1) + wanted.sum()).cpu().numpy().astype(np.float64)
    dice = 2 * common / np.maximum(total, 1e-9)
    return int(dice.argmax()), float(dice.max())


def ranked(parts: Tensor) -> list[tuple[int, float]]:
    """(number, share of the sum), the largest first."""
    shares = parts.cpu().numpy().astype(np.float64)
    shares = shares / max(float(shares.sum()), 1e-12)
    return [(int(number), float(shares[number])) for number in np.argsort(-shares, kind="stable")]


def class_name(card: ModelCard, value: int) -> str:
    """Structure id of a class; "background" for 0."""
    return next((label.id for label in card.labels if label.value == value), "background")


def _slabs(trace: HeadTrace) -> Iterator[tuple[slice, Tensor]]:
    """Masks of all queries in [0, 1], slab by slab along i: (which rows of the window, (Q, i, J, K) float32)."""
    features, embeddings = trace.output.mask_features, trace.output.final.mask_embeddings
    for first in range(0, features.size[0] // 2, SLAB):
        last = min(first + SLAB, features.size[0] // 2)
        yield slice(2 * first, 2 * last), mask_logits(embeddings, features.slab(first, last))[0].float().sigmoid()
