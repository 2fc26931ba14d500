"""Small real networks whose answers are known, and phantoms to feed them: what the segment tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.card import ModelCard
from HiEndSegLib.models.loading import Model

WINDOW = (-1000.0, 1000.0)
#: Lower HU limits of the structures 1, 2, 3 of `BandNetwork`; below the first is background.
LIMITS = (150.0, 450.0, 750.0)
NAMES = ("stone", "metal", "tooth")


class BandNetwork(nn.Module):
    """Scores 1 for the HU band a voxel lies in: the answer is the thresholded image. Counts its calls."""

    def __init__(self, limits=LIMITS):
        super().__init__()
        self.num_classes = len(limits) + 1
        self.register_buffer("limits", torch.tensor(limits))
        self.home = nn.Parameter(torch.zeros(1))        # so that it has a device, as real networks do
        self.calls = []

    def scores(self, x):
        self.calls.append(tuple(x.shape))
        hu = x[:, 0] * (WINDOW[1] - WINDOW[0]) + WINDOW[0]
        band = torch.bucketize(hu.contiguous(), self.limits, right=True)
        return nn.functional.one_hot(band, self.num_classes).permute(0, 4, 1, 2, 3).float()


class RampNetwork(BandNetwork):
    """Structure 1 wins above 150 HU, and its score falls linearly from 300 to 0 HU: borders finer than a voxel."""

    def scores(self, x):
        self.calls.append(tuple(x.shape))
        hu = x[:, 0] * (WINDOW[1] - WINDOW[0]) + WINDOW[0]
        stone = (hu / 300.0).clamp(0, 1)
        nothing = torch.zeros_like(stone)
        return torch.stack([1 - stone, stone, nothing, nothing], dim=1)


class HungryNetwork(BandNetwork):
    """Stand-in for a card with little memory: refuses more than `most` tiles at a time, and any tile while its home
    is `away` and `away_fails`. Raises what torch raises; no graphics card is involved."""

    def __init__(self, most=1, fails_until_moved=False):
        super().__init__()
        self.most, self.fails_until_moved, self.moves = most, fails_until_moved, []

    def to(self, device, *args, **kwargs):
        self.moves.append(str(device))
        return super().to(device, *args, **kwargs)

    def scores(self, x):
        if x.shape[0] > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory (stand-in): {x.shape[0]} tiles")
        if self.fails_until_moved and self.moves[-1] != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory (stand-in): no tile fits")
        return super().scores(x)


def make_card(structures=3, *, tile=32, spacing=3.0, overlap=0.5, largest=False, modality="CT", windows=(WINDOW,)):
    names = NAMES if structures == 3 else [f"structure_{n}" for n in range(1, structures + 1)]
    labels = [Label(n, name, name.capitalize(), (200, 10 * (n % 25), 30), None, largest)
              for n, name in enumerate(names, start=1)]
    return ModelCard(id="test-bands", version="1.0", title="Bands", modality=modality, network={"kind": "bands"},
                     spacing=(spacing,) * 3, tile=(tile,) * 3, overlap=overlap, windows=[list(w) for w in windows],
                     labels=labels, licence="CC0-1.0", provenance="made by a test",
                     weights={"file": "weights.safetensors", "sha256": "0" * 64, "bytes": 0, "dtype": "float16"})


def make_model(network=None, **card):
    return Model(make_card(**card), network or BandNetwork(), torch.device("cpu"))


def rotation(x_degrees, y_degrees, z_degrees):
    """(3, 3) rotation matrix, about z first."""
    result = np.eye(3)
    for axis, degrees in ((0, x_degrees), (1, y_degrees), (2, z_degrees)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = c
        turn[a, b], turn[b, a] = -s, s
        result = result @ turn
    return result


def lattice(shape, spacing, directions=None, origin=(12.5, -7.25, 40.0)):
    """A 4x4 matrix; directions: (3, 3), its columns where i, j and k point to in RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if directions is None else np.asarray(directions, dtype=float)) * np.asarray(spacing)
    matrix[:3, 3] = origin
    return matrix


def phantom(shape, matrix, blocks, margin=4, dtype=np.int16, noise=8):
    """Water with a little noise in room air, with blocks in it.

    blocks: list of (low, high, HU) in voxel indices. margin: voxels of air around (0 where an axis is short).
    """
    array = np.full(shape, -1000.0)
    body = tuple(slice(margin, n - margin) if n > 4 * margin else slice(None) for n in shape)
    array[body] = 0
    for low, high, hu in blocks:
        array[tuple(slice(a, b) for a, b in zip(low, high))] = hu
    array += np.random.default_rng(0).normal(0, noise, shape)
    return Volume(np.clip(array, -1024, 3071).astype(dtype), matrix, "phantom", {"modality": "CT"})


def centre_mm(mask, matrix):
    """Centre of mass of a mask in RAS mm."""
    return (matrix @ np.append(np.argwhere(mask).mean(0), 1.0))[:3]
