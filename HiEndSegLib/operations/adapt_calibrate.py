"""Before a model learns anything: does it only see the wrong grey values?

Another scanner, dose or contrast phase shifts the grey values of all its patients alike. A curve of a few points in
front of the frozen network makes up for that, and because it has nothing to do with this one person it holds for the
next one, too. It is fitted through the network by what is drawn. The thought is that of arXiv 2004.04668 (adapting the
normalization of the image and leaving the segmentation alone); there a small network is adapted to every test image,
here one curve is learned from one labeled case and kept.

Chosen on three invented persons that no pair of training/adaptation.py has: one taught, the taught structures below 0.8
of the two others went from 0.25 to 0.50-0.52 under a cone beam's grey values and from 0.29 to 0.36-0.47 under MR-like
ones, untaught ones rose by 0.06 to 0.11. The more the parent's answer weighs (KEEP 0.2 or 0), the less is gained and
the less is lost. Training weights instead, without a curve, lost on other persons (training/RESULTS.md).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry.curve import apply_curve
from ..models.card import ModelCard
from ..networks.objective import asked_loss, sampled_scores, sublattice
from ..networks.stages import Stages, recompute_blocks
from ..tasks import CancelToken, Progress
from .adapt_case import HELD_VOXELS, OPEN, Case
from .adapt_crops import CropSampler, crop_size, in_windows
from .adapt_recipe import Recipe
from .adapt_scores import dice
from .augment import sample_codes

#: Points of a curve. Between even shares of the body's voxels (0) and evenly spaced (1).
POINTS, SPACED = 17, 0.3
#: A step of a point at first, and what bends cost, both with the first window's width as unit.
RATE, STIFF = 0.025, 10.0
#: Weight of the parent's answer for what is not taught.
KEEP = 0.05
#: Voxels of an image that are enough to know its grey values.
LOOK = 500_000
#: Known structures that are found this well on average need no other grey values; a curve must gain this much to stay.
WELL, CURVE_GAIN = 0.90, 0.02


def fit_curve(network: nn.Module, card: ModelCard, case: Case, asked: Sequence[int], *, recipe: Recipe,
              seed: int, device: torch.device, half: torch.dtype | None, checkpointing: bool = False,
              progress: Progress, cancel: CancelToken) -> list[list[float]]:
    """The points of a curve under which the network finds the classes `asked` best, starting from the card's own.
    case: the new one alone: earlier ones may come from other scanners, and what they taught is asked about afterwards.

    network: the card's, frozen here. checkpointing: blocks of the ViT are computed again on the way back, for less
    memory. `cancel.finishing` ends with what there is. Raises Cancelled.
    """
    points = torch.from_numpy(_points(case, seed)).float().to(device)
    before = torch.from_numpy(apply_curve(points.cpu().numpy(), card.curve)).to(device) - points
    change = nn.Parameter(before.clone())
    average = before.clone()
    width = float(card.windows[0][1] - card.windows[0][0])
    optimizer = torch.optim.Adam([change], lr=RATE * width, betas=(0.8, 0.95))
    stages = Stages(network, card.network)
    sampler = CropSampler([case], card, crop_size(card, stages, recipe.crop), seed, spread=0.0, bend=0.0, scale=0.05)
    network.to(device).eval().requires_grad_(False)
    recompute_blocks(network, checkpointing)
    steps = recipe.curve_steps
    for step in range(steps):
        progress(step / steps, f"Matching grey values, {step + 1} of {steps}")
        for group in optimizer.param_groups:
            group["lr"] = RATE * width * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        image, drawn, _, grid = sampler.place()
        offset = sampler.offset()
        cancel.check()
        x = in_windows(_curved(image.to(device), points, change), card.windows)[None]
        with torch.autocast(device.type, dtype=half) if half is not None else nullcontext():
            out = stages.whole(x)
        cancel.check()
        scores = sampled_scores(out, offset)[0][0].float()
        loss = asked_loss(scores, sublattice(drawn, offset).flatten().to(device), asked)
        parent = sublattice(sample_codes(case.answer, grid).to(torch.uint8), offset).flatten().to(device)
        loss = loss + KEEP * _kept(scores, parent, case.asked)
        del out
        bends = torch.diff(change - before, 2) / width
        optimizer.zero_grad()
        (loss + STIFF * (bends ** 2).mean()).backward()
        cancel.check()
        if bool(torch.isfinite(change.grad).all()):
            optimizer.step()
        if 2 * step >= steps:
            average.lerp_(change.detach(), 1.0 if 2 * step < steps + 2 else 0.05)
        if cancel.finishing:
            break
    recompute_blocks(network, False)
    if 2 * step < steps:
        average = change.detach()
    return [[float(f"{x:.6g}"), float(f"{x + y:.6g}")] for x, y in zip(points.tolist(), average.tolist())]


def _kept(scores: Tensor, parent: Tensor, asked: Sequence[int]) -> Tensor:
    """Cross-entropy against the parent's answer (V,) where it names a structure that is not taught: right or wrong, it
    is all that is known of those, and it keeps the curve from leaving grey values to themselves that only they have."""
    theirs = (parent > 0) & (parent < len(scores))
    for number in asked:
        theirs &= parent != number
    log = scores.clamp_min(1e-4).log().gather(0, (parent * theirs)[None].long())[0]
    return -(log * theirs).sum() / theirs.sum().clamp_min(1)


def mean_dice(case: Case, answer: np.ndarray, numbers: Sequence[int]) -> float | None:
    """Of these classes in an answer, on the held-out voxels that somebody annotated; None where those are too few."""
    where = (case.drawn != OPEN) & case.held
    found = [dice(answer == number, case.drawn == number, where) for number in numbers
             if np.count_nonzero((case.drawn == number) & where) >= HELD_VOXELS]
    return float(np.mean(found)) if found else None


def _points(case: Case, seed: int) -> np.ndarray:
    """Grey values at which the curve has points, rising."""
    lattice = case.lattice
    values = lattice.image[lattice.body]
    if len(values) > LOOK:
        values = np.random.default_rng(seed).choice(values, LOOK, replace=False)
    shares = np.percentile(values, np.linspace(0.5, 99.5, POINTS))
    points = (1 - SPACED) * shares + SPACED * np.linspace(shares[0], shares[-1], POINTS)
    least = max(1e-3, 1e-4 * float(abs(shares[-1] - shares[0])))            # an image of one value has no shares
    return points + least * np.arange(POINTS)


def _curved(image: Tensor, points: Tensor, change: Tensor) -> Tensor:
    """`geometry.curve.apply_curve` with a gradient to `change`, the curve's differences at the points."""
    left = (torch.searchsorted(points, image.contiguous(), right=True) - 1).clamp(0, len(points) - 2)
    part = ((image - points[left]) / (points[left + 1] - points[left])).clamp(0, 1)
    return image + change[left] * (1 - part) + change[left + 1] * part

