"""Scores on the model lattice: weighting, layers, and the step to the input's lattice against the plain way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from HiEndSegLib.errors import Cancelled
from HiEndSegLib.operations import upsample
from HiEndSegLib.operations.scores import ScoreGrid
from HiEndSegLib.operations.tiling import cut_tile, gaussian_weights, overlap_slices, tile_starts
from HiEndSegLib.operations.upsample import label_lattice
from HiEndSegLib.tasks import CancelToken


def random_scores(classes, shape, smooth=1.5, seed=0):
    rng = np.random.default_rng(seed)
    scores = ndimage.gaussian_filter(rng.random((classes, *shape)), (0, smooth, smooth, smooth)).astype(np.float32)
    scores = np.exp(8 * (scores - scores.mean()) / scores.std() / 2)
    return scores / scores.sum(0)


def grid_of(scores, dtype=torch.float32, weight=1.0):
    grid = ScoreGrid(scores.shape[0], (0, 0, 0), scores.shape[1:], dtype=dtype)
    tile = torch.from_numpy(scores.astype(np.float32))
    grid.add(tile, (0, 0, 0), torch.full(scores.shape[1:], weight))
    return grid


def plain_way(scores, scale, offset, shape):
    """Trilinear interpolation of every class everywhere, then argmax (scipy); also the winner's lead."""
    points = np.meshgrid(*(np.clip(s * np.arange(n) + o, 0, m - 1)
                           for s, o, n, m in zip(scale, offset, shape, scores.shape[1:])), indexing="ij")
    full = np.stack([ndimage.map_coordinates(c, points, order=1, mode="nearest", output=np.float64) for c in scores])
    two = np.sort(full, axis=0)[-2:]
    return full.argmax(0), two[1] - two[0]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape, scale", [((40, 37, 31), (0.3, 0.35, 0.4)), ((7, 6, 5), (1.7, 2.1, 2.4)),
                                          ((41, 1, 30), (0.3, 1.0, 0.35))])
def test_label_lattice_is_interpolation_then_argmax(order, shape, scale, monkeypatch):
    monkeypatch.setattr(upsample, "POINTS", 200)         # several pieces a layer
    monkeypatch.setattr(upsample, "LAYERS", 3)           # several blocks of layers
    scores = random_scores(5, (12, 13, 12) if shape[1] > 1 else (12, 1, 11))
    out = np.zeros(shape, dtype=np.uint8, order=order)
    label_lattice(grid_of(scores), np.ones(scores.shape[1:], dtype=bool), np.array(scale), np.array([-0.3, -0.2, 0.1]),
                  out)
    expected, lead = plain_way(scores, scale, (-0.3, -0.2, 0.1), shape)
    inside = np.ones(shape, dtype=bool)     # where the output leaves the box there is background
    for axis, (s, o) in enumerate(zip(scale, (-0.3, -0.2, 0.1))):
        position = s * np.arange(shape[axis]) + o
        window = [slice(None)] * 3
        window[axis] = (position <= -1) | (position >= scores.shape[axis + 1])
        inside[tuple(window)] = False
    clear = inside & (lead > 1e-5)
    assert clear.sum() > 0.99 * inside.sum() > 0
    assert np.array_equal(out[clear], expected[clear])
    assert not out[~inside].any()


def test_body_and_unwanted_classes():
    scores = random_scores(4, (10, 10, 10))
    keep = np.zeros((10, 10, 10), dtype=bool)
    keep[2:8, 2:8, 2:8] = True
    full, some = (np.zeros((10, 10, 10), dtype=np.uint8) for _ in range(2))
    label_lattice(grid_of(scores), keep, np.ones(3), np.zeros(3), full)
    label_lattice(grid_of(scores), keep, np.ones(3), np.zeros(3), some, table=np.array([0, 0, 2, 0]))
    assert np.array_equal(full, np.where(keep, scores.argmax(0), 0))
    assert np.array_equal(some, np.where(full == 2, 2, 0)) and some.any()


def test_cancel_inside_the_labelling():
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        label_lattice(grid_of(random_scores(3, (6, 6, 6))), np.ones((6, 6, 6), dtype=bool), np.ones(3) * 0.5,
                      np.zeros(3), np.zeros((10, 10, 10), dtype=np.uint8), cancel=token)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 5e-3)])
def test_grid_averages_tiles_by_weight(dtype, tolerance):
    tile, starts = (8, 8, 8), tile_starts((0, 0, 0), (14, 9, 5), (14, 9, 5), (8, 8, 8), 0.5)
    weights = torch.from_numpy(gaussian_weights(tile))
    grid = ScoreGrid(3, (1, 0, 0), (14, 9, 5), dtype=dtype)
    total, weight = np.zeros((3, 14, 9, 5)), np.zeros((14, 9, 5))
    for number, start in enumerate(starts):
        scores = random_scores(3, tile, seed=number)
        grid.add(torch.from_numpy(scores), start, weights)
        inside, target = overlap_slices(start, tile, (0, 0, 0), (14, 9, 5))
        total[(slice(None), *target)] += scores[(slice(None), *inside)] * weights.numpy()[inside]
        weight[target] += weights.numpy()[inside]
    layers = grid.layers(1, 0, 9, torch.ones(13, 9, 5, dtype=torch.bool))         # (9, 13, 5, 3)
    assert np.abs(layers.permute(3, 1, 0, 2).numpy() - (total / weight)[:, 1:]).max() < tolerance
    assert torch.allclose(layers.sum(-1), torch.ones(9, 13, 5), atol=tolerance)


@pytest.mark.parametrize("low, high, shape, tile, overlap", [
    ((0, 0, 0), (100, 50, 30), (100, 50, 30), (32, 32, 32), 0.5),
    ((11, 3, 20), (76, 34, 29), (100, 50, 64), (32, 32, 32), 0.25),
    ((0, 0, 0), (1, 1, 1), (1, 1, 1), (32, 32, 32), 0.5),
    ((90, 0, 5), (100, 2, 6), (100, 40, 40), (32, 16, 8), 0.75)])
def test_tiles_cover_the_box_and_stay_inside(low, high, shape, tile, overlap):
    starts = tile_starts(low, high, shape, tile, overlap)
    assert len(set(starts)) == len(starts)
    covered = np.zeros(shape, dtype=bool)
    for start in starts:
        covered[tuple(slice(max(0, s), s + t) for s, t in zip(start, tile))] = True
        for s, t, n in zip(start, tile, shape):
            assert (0 <= s <= n - t) if n >= t else s == -((t - n) // 2)
    assert covered[tuple(slice(a, b) for a, b in zip(low, high))].all()
    for axis in range(3):
        along = sorted({start[axis] for start in starts})
        assert all(b - a <= tile[axis] * (1 - overlap) + 1 for a, b in zip(along, along[1:]))


def test_cut_tile_windows_and_pads_with_air():
    volume = np.full((4, 5, 6), 100.0, np.float32)
    volume[0, 0, 0] = -5000
    tile = cut_tile(volume, (-2, -1, 0), (8, 8, 8), [(-1000, 1000), (0, 50)])
    assert tile.shape == (2, 8, 8, 8) and tile.dtype == np.float32
    assert tile[0, 3, 3, 3] == pytest.approx(0.55) and tile[1, 3, 3, 3] == 1
    assert tile[:, 2, 1, 0].tolist() == [0, 0]                    # clipped
    assert not tile[:, :2].any() and not tile[:, :, :, 6:].any()  # outside
    assert volume[0, 0, 0] == -5000
