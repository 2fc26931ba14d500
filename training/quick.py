"""Quick whole-volume scores at the model's own spacing, for development curves and self-training.

The real operation (`HiEndSegLib.operations.segment`) resamples, plans and reports; none of that matters between two
training steps.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer

from .evaluate import dice


@torch.no_grad()
def dense_scores(network: torch.nn.Module, image: np.ndarray, windows, *, overlap: float = 0.35, tile: int = 96,
                 bf16: bool = True) -> np.ndarray:
    """(I, J, K) HU at the model's spacing -> scores (K, I, J, K) float32, sum 1."""
    device = next(network.parameters()).device
    volume = torch.from_numpy(image.astype(np.float32))
    x = torch.stack([((volume - lo) / (hi - lo)).clamp(0, 1) for lo, hi in windows])[None].to(device)
    inferer = SlidingWindowInferer((tile,) * 3, sw_batch_size=1, overlap=overlap, mode="gaussian")
    was_training = network.training
    network.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        scores = inferer(x, lambda t: network.scores(t).float())
    network.train(was_training)
    return scores[0].cpu().numpy()


def confident_bits(possible: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Replace open bit sets by the winning class where it is allowed and its score reaches `threshold`."""
    winner = scores.argmax(0)
    bit = (1 << winner).astype(possible.dtype)
    sure = (scores.max(0) >= threshold) & ((possible & bit) != 0)
    return np.where(sure, bit, possible)


def quick_dice(prediction: np.ndarray, labels: np.ndarray, ignore: int = 255) -> dict[int, float]:
    """Dice of every label in `labels` (0 and `ignore` left out); voxels marked `ignore` do not count."""
    return {int(value): dice(prediction == value, labels == value, labels == ignore)
            for value in np.unique(labels) if value not in (0, ignore)}
