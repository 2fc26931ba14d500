"""From scores at the model's spacing to labels on the input's lattice, one model layer at a time.

Trilinear interpolation of all class scores, then argmax; done only where it can change the answer. If the corners of a
cell of the model lattice agree on the winning class, every point between them has that winner too, because a
trilinear mixture keeps `score_c >= score_k`. Only cells on borders between classes are interpolated, usually some
percent of the voxels, and the result is the same. At no time are there classes x input voxels in memory: it takes a
few model layers and a list of points of one cell layer.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tasks import CancelToken, Progress, no_progress
from .scores import ScoreGrid

#: Points interpolated at once.
POINTS = 131_072
#: Model layers read from the scores at once.
LAYERS = 8


@torch.inference_mode()
def label_lattice(grid: ScoreGrid, keep: np.ndarray, scale: np.ndarray, offset: np.ndarray, out: np.ndarray, *,
                  table: np.ndarray | None = None, progress: Progress = no_progress,
                  cancel: CancelToken | None = None) -> None:
    """Write the winning class of every voxel of `out` (uint8, zeros, same axes as the model lattice) in place.

    scale, offset: (3,), model index = scale * output index + offset, along each axis. keep: bool, shape of the grid's
    box; False is background whatever the scores say. table: (K,) uint8, what each class is written as (all as they
    are by default; a class that is not wanted becomes 0 here, after the argmax, so its neighbours keep their border).
    Runs on the grid's device. Raises Cancelled, and whatever the device raises when it has no memory.
    """
    device = grid.device
    axis = int(np.argmax(np.abs(out.strides)))       # the slowest in memory: whole layers are written
    others = [a for a in range(3) if a != axis]
    table = np.arange(grid.classes, dtype=np.uint8) if table is None else np.asarray(table, dtype=np.uint8)
    reach = [_Axis(scale[a], offset[a] - grid.low[a], out.shape[a], grid.shape[a]) for a in range(3)]
    if any(r.count == 0 for r in reach):
        return
    kept = torch.from_numpy(np.ascontiguousarray(keep)).to(device)
    layered = np.moveaxis(out, axis, 0)[reach[axis].first:, reach[others[0]].window, reach[others[1]].window]
    plane = _Plane(reach[others[0]], reach[others[1]], device)
    along = reach[axis]
    cells = int(along.cell.max()) + 1
    scores = winners = None
    for begin in range(0, cells, LAYERS):
        end = min(begin + LAYERS, cells)
        last = min(end + 1, along.size)
        scores = grid.layers(axis, begin, last, kept)                                       # (n, A, B, K)
        winners = scores.argmax(-1).to(torch.uint8)
        for cell in range(begin, end):
            rows = np.flatnonzero(along.cell == cell)
            if len(rows) == 0:
                continue
            here, above = cell - begin, min(cell - begin + 1, last - begin - 1)
            pieces = plane.label(scores[here], scores[above], winners[here], winners[above], along.part[rows], cancel)
            for row, labels in zip(rows, pieces):
                layered[row] = table[labels]
            progress((cell + 1) / cells, "Bringing the result to the volume's resolution")


class _Axis:
    """Which output indices along one axis fall onto the box, in which cell, and how far into it."""

    def __init__(self, scale: float, offset: float, out_size: int, size: int):
        position = scale * np.arange(out_size) + offset
        # Beyond the outermost centres the nearest layer counts; a box that ends inside the volume ends in background.
        hit = np.flatnonzero((position > -1.0) & (position < size))
        self.size, self.count = size, len(hit)
        self.first = int(hit[0]) if len(hit) else 0
        self.window = slice(self.first, self.first + len(hit))
        position = np.clip(position[hit], 0, size - 1)
        self.cell = np.clip(np.floor(position).astype(np.int64), 0, max(size - 2, 0))
        self.part = (position - self.cell).astype(np.float32)


class _Plane:
    """The two axes inside a layer: expands cells to output voxels and interpolates where it is needed."""

    def __init__(self, a: _Axis, b: _Axis, device: torch.device):
        self.sizes, self.out_shape = (a.size, b.size), (a.count, b.count)
        self.cells = [torch.from_numpy(axis.cell).to(device) for axis in (a, b)]
        self.parts = [torch.from_numpy(axis.part).to(device) for axis in (a, b)]
        steps = (b.size if a.size > 1 else 0, 1 if b.size > 1 else 0)
        self.corners = torch.tensor([0, steps[1], steps[0], steps[0] + steps[1]], device=device)

    def label(self, low: Tensor, high: Tensor, win_low: Tensor, win_high: Tensor, parts: np.ndarray,
              cancel: CancelToken | None) -> list[np.ndarray]:
        """Labels (A', B') uint8 for each of `parts`, the depths between the layers `low` and `high` (A, B, K)."""
        least = _corner(torch.minimum, torch.minimum(win_low, win_high))
        most = _corner(torch.maximum, torch.maximum(win_low, win_high))
        expand = (self.cells[0][:, None], self.cells[1][None, :])
        base = least[expand].contiguous()
        if cancel is not None:
            cancel.check()
        results = [base.clone().view(-1) for _ in parts]
        points = torch.nonzero((least != most)[expand].view(-1)).squeeze(1)
        low, high = low.flatten(0, 1), high.flatten(0, 1)
        for chunk in points.split(POINTS):
            if cancel is not None:
                cancel.check()
            row, column = chunk // self.out_shape[1], chunk % self.out_shape[1]
            index = (self.cells[0][row] * self.sizes[1] + self.cells[1][column])[:, None] + self.corners
            u, v = self.parts[0][row], self.parts[1][column]
            weights = torch.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v], dim=1)
            below = F.embedding_bag(index, low, mode="sum", per_sample_weights=weights)
            above = F.embedding_bag(index, high, mode="sum", per_sample_weights=weights)
            for result, part in zip(results, parts):
                result[chunk] = torch.lerp(below, above, float(part)).argmax(1).to(torch.uint8)
        return [result.view(self.out_shape).cpu().numpy() for result in results]


def _corner(choose, layer: Tensor) -> Tensor:
    """`choose` over the four corners of every cell of (A, B); an axis of length one has one cell."""
    if layer.shape[0] > 1:
        layer = choose(layer[:-1], layer[1:])
    if layer.shape[1] > 1:
        layer = choose(layer[:, :-1], layer[:, 1:])
    return layer
