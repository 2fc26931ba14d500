"""What looking into a model hands back, without torch, so that faces and the engine's client can hold it.

A token is a cube of voxels at the model's spacing; the first one of a window is centred (p - 1) / 2 voxels into it. All
matrices map cell *centres* to RAS millimetres, as a Volume's does, so every map can be shown where it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import OptionError
from ..geometry.volume import Volume

#: What can be asked for. "encoder": softmax attention of one block. "rollout": attention followed from one block down
#: to the image. "head": what an object query of the head looks at. "sensitivity": how much the answer at the point
#: depends on each cell; shown instead for networks without attention, and never asked for by default.
KINDS = ("encoder", "rollout", "head", "sensitivity")
#: Blocks that the Hi-End-MAE paper shows (its 3rd, 6th, 9th and 12th; arXiv 2502.08347).
PAPER_LAYERS = (2, 5, 8, 11)
#: Units of `AttentionResult.as_volume`: the share itself, how many times an even spread, or 0 to 1 as in the paper.
SCALES = ("share", "times", "unit")
#: A map whose strongest cell gets less than so many even shares says next to nothing.
EVEN = 1.5


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where one row of attention goes: one layer, one head or the mean over heads.

    layer: block index from 0; for kind "head" the head's layer, for "sensitivity" -1. head: None is the mean over all.
    weights: (gI, gJ, gK) float32, not negative, summing to 1 over the window's cells. ijk_to_ras: (4, 4), cell centres.
    sentence: what this map says, in words and numbers.
    """

    layer: int
    head: int | None
    weights: np.ndarray
    ijk_to_ras: np.ndarray
    sentence: str = ""

    def as_cells(self, scale: str = "share") -> Volume:
        """The map as a small volume of one voxel per cell (float32), in one of `SCALES`."""
        return Volume(scaled(self.weights, scale), self.ijk_to_ras, "Attention")

    @property
    def peak(self) -> tuple[float, float, float]:
        """Centre (R, A, S) in mm of the cell that gets the most."""
        return self.peak_of(np.ones(self.weights.shape, dtype=bool))

    def peak_of(self, cells: np.ndarray) -> tuple[float, float, float]:
        """The same among some cells, (gI, gJ, gK) bool."""
        index = np.unravel_index(int(np.argmax(np.where(cells, self.weights, -1.0))), self.weights.shape)
        return tuple(float(v) for v in (self.ijk_to_ras @ [*index, 1.0])[:3])

    @property
    def is_even(self) -> bool:
        """Whether no cell gets much more than an even share, so that the map says next to nothing."""
        return float(self.weights.max()) * self.weights.size < EVEN

    @property
    def spread(self) -> float:
        """exp of the entropy: over how many cells the attention is spread, from 1 to all of them."""
        shares = self.weights[self.weights > 0].astype(np.float64)
        return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True, eq=False)
class AttentionResult:
    """All maps of one query.

    kind: one of `KINDS`; another than was asked for where a sentence says so. maps: layer by layer, and within a layer
    head by head. point: (R, A, S) mm that was asked for, the middle of the structure for a mask.
    query: (gI, gJ, gK) float32 summing to 1, how much each token of the window counts as the query (one token for a
    point, all that a mask touches for a mask; empty for kind "head"). token_to_ras: (4, 4), centres of those tokens.
    window_to_ras, window_shape: the voxels that the network saw, at the model's spacing.
    layers, heads: how many of each there are to choose from in this kind. object_query: number of the head's query.
    info: model (id, version), device, seconds, "window_was_warm"; plain values. sentences: what a person should know,
    the first one says what the maps mean.
    """

    kind: str
    maps: list[AttentionMap]
    point: tuple[float, float, float]
    query: np.ndarray
    token_to_ras: np.ndarray
    window_to_ras: np.ndarray
    window_shape: tuple[int, int, int]
    layers: int
    heads: int
    object_query: int | None = None
    info: dict = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)

    def find(self, layer: int, head: int | None = None) -> AttentionMap:
        """The map of a layer and head (None: mean over heads). Raises OptionError where it was not asked for."""
        for one in self.maps:
            if (one.layer, one.head) == (layer, head):
                return one
        have = ", ".join(sorted({str(one.layer) for one in self.maps}, key=int))
        raise OptionError(f"There is no map of block {layer}{'' if head is None else f', head {head}'} in this result; "
                          f"it holds the blocks {have}.")

    def as_volume(self, one: AttentionMap, like: Volume, scale: str = "share") -> Volume:
        """A map on the lattice of `like` (float32): linear between cell centres, 0 outside the window.

        For the lattice of the volume that was looked at (any orientation) this takes the time of writing the result.
        """
        return on_lattice(one.as_cells(scale), like)

    @property
    def window(self) -> tuple[tuple[float, float], ...]:
        """((R0, R1), (A0, A1), (S0, S1)) mm, the box around the window's corners."""
        corners = box_corners(self.window_to_ras, (0, 0, 0), self.window_shape)
        return tuple((float(low), float(high)) for low, high in zip(corners.min(0), corners.max(0)))

    @property
    def query_corners(self) -> np.ndarray:
        """(8, 3) RAS corners of the box of tokens that are the query; (0, 3) where there is none."""
        marked = np.argwhere(self.query > 0)
        if not len(marked):
            return np.zeros((0, 3))
        return box_corners(self.token_to_ras, marked.min(0), marked.max(0) + 1)


@dataclass(frozen=True)
class LayerRank:
    """How many directions the attention values of one block use. rank: effective rank (arXiv 2502.08347), of at most
    `limit`. shares: singular values as shares of their sum, largest first."""

    layer: int
    rank: float
    limit: int
    shares: list[float]


@dataclass(frozen=True)
class QueryView:
    """One object query of the head in one window.

    classes: (structure id or "background" or "no object", probability), the likeliest first. voxels: where its mask is
    above one half. made: structure ids whose segment it contributed the most to here. similar_classes,
    similar_masks: other queries by the cosine of their class and of their mask embeddings, (number, cosine), the
    nearest first. place: (class x, class y, mask x, mask y) of the two embeddings, projected onto their two main axes.
    """

    number: int
    classes: list[tuple[str, float]]
    voxels: int
    made: list[str]
    similar_classes: list[tuple[int, float]]
    similar_masks: list[tuple[int, float]]
    place: tuple[float, float, float, float]


@dataclass(frozen=True)
class QueriesResult:
    """All object queries in the window around a point.

    at_point: (query number, its share of the winning class's score there), the largest first. winner: structure id or
    "background" at the point. shares: per structure found, which queries made it, [(number, share)].
    """

    queries: list[QueryView]
    at_point: list[tuple[int, float]]
    winner: str
    shares: dict[str, list[tuple[int, float]]]
    point: tuple[float, float, float]
    info: dict = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class UncertaintyResult:
    """Where the model is unsure.

    entropy: of the class scores, on the input's lattice, float32 from 0 (sure) to 1 (all classes alike); 0 where
    nothing was computed. structures: one dict per structure found: id, name, voxels, confidence (mean score of the
    class within it), unsure (share of its voxels whose score is below one half), entropy (mean).
    """

    entropy: Volume
    structures: list[dict]
    info: dict = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)


def box_corners(matrix: np.ndarray, low, high) -> np.ndarray:
    """(8, 3) RAS corners of the cells [low, high) of a lattice, half a cell beyond their centres."""
    return np.array([(matrix @ [i - 0.5, j - 0.5, k - 0.5, 1.0])[:3] for i in (low[0], high[0])
                     for j in (low[1], high[1]) for k in (low[2], high[2])])


def on_lattice(cells: Volume, like: Volume) -> Volume:
    """A few large cells on the lattice of `like`, float32: linear between their centres, as far as they reach (half a
    cell beyond the outermost centres), 0 elsewhere. The same numbers as `resample_like`, several times as fast where
    the axes of both run along each other, as those of a volume and its tokens do."""
    step = cells.ras_to_ijk @ like.ijk_to_ras
    reach = np.abs(step[:3, :3]) * np.maximum(np.asarray(like.shape) - 1, 1)
    axes = [int(a) for a in reach.argmax(axis=0)]                      # of the cells, for every axis of `like`
    rest = reach.copy()
    rest[axes, range(3)] = 0.0
    if sorted(axes) != [0, 1, 2] or rest.max() > 1e-3:
        from ..geometry.resample import resample_like      # brings nibabel, which a Slicer lacks before it was set up

        return resample_like(cells, like, order=1, fill=0.0)
    array = np.zeros(like.shape, dtype=np.float32, order="F")
    rows = [_rows(step[a, b], step[a, 3], like.shape[b], cells.shape[a]) for b, a in enumerate(axes)]
    (i, wi), (j, wj), (k, wk) = rows
    if not min(len(wi), len(wj), len(wk)):
        return Volume(array, like.ijk_to_ras, cells.name)
    small = np.einsum("abc,ia,kc->kbi", cells.array.transpose(axes), wi, wk, optimize=True)
    for plane, index in zip(small, range(k.start, k.stop)):             # plane (cells along j, I)
        array[i, j, index] = (wj @ plane).T
    return Volume(array, like.ijk_to_ras, cells.name)


def _rows(scale: float, offset: float, size: int, cells: int) -> tuple[slice, np.ndarray]:
    """Which of `size` samples fall onto the cells, and (samples, cells) weights that interpolate there."""
    place = scale * np.arange(size) + offset
    hit = np.flatnonzero((place >= -0.5 - 1e-5) & (place <= cells - 0.5 + 1e-5))
    if not len(hit):
        return slice(0, 0), np.zeros((0, cells), dtype=np.float32)
    place = np.clip(place[hit], 0.0, cells - 1.0)
    low = np.minimum(place.astype(np.intp), max(cells - 2, 0))
    weights = np.zeros((len(hit), cells), dtype=np.float32)
    weights[np.arange(len(hit)), low] = 1.0 - (place - low)
    weights[np.arange(len(hit)), np.minimum(low + 1, cells - 1)] += place - low
    return slice(int(hit[0]), int(hit[-1]) + 1), weights


def scaled(weights: np.ndarray, scale: str) -> np.ndarray:
    """Shares in another unit, float32. Raises OptionError for a name that is not in `SCALES`."""
    weights = np.asarray(weights, dtype=np.float32)
    if scale == "share":
        return weights
    if scale == "times":
        return weights * np.float32(weights.size)
    if scale == "unit":
        low, high = float(weights.min()), float(weights.max())
        return (weights - low) / np.float32(high - low) if high > low else np.zeros_like(weights)
    raise OptionError(f"There is no unit '{scale}' for attention; choose {', '.join(SCALES)}.")
