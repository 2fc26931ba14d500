"""One labeled case as adaptation sees it: the image, the drawing and the parent's own answer on the model's lattice,
with axial slabs kept out of training.

A drawn voxel of a taught structure is that class for certain. Elsewhere the taught classes are excluded, and of the
others the parent's own scores are the target (`networks.objective.teaching_loss`). Voxels that nobody annotated and
those of held-out slabs may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Sequence

import numpy as np
import torch

from ..geometry.body import body_mask
from ..geometry.modality import guess_modality
from ..geometry.resample import resample_like, resample_to_spacing, to_ras_axes
from ..geometry.volume import Volume
from ..models.card import ModelCard
from ..tasks import CancelToken, Progress
from .plan import plan_memory
from .running import TileJob
from .scores import ScoreGrid
from .tiling import overlap_slices, tile_starts

OPEN = 255
#: A slab holds out at least this share of a structure; no structure loses more than the second.
HELD_SHARE, HELD_MOST = 0.22, 0.42
#: Layers that a structure must span to be held out in part.
HELD_LAYERS = 5
#: Fewer held-out voxels than this say nothing.
HELD_VOXELS = 20
LAYERS = 8


@dataclass(eq=False)
class Lattice:
    """A volume on the model's lattice. image: (I, J, K) float32. body: bool. low, high: box of the body."""

    image: np.ndarray
    ijk_to_ras: np.ndarray
    body: np.ndarray
    is_hu: bool
    low: tuple[int, int, int] = (0, 0, 0)
    high: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        found = [np.flatnonzero(self.body.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        if all(len(f) for f in found):
            shape = self.image.shape
            self.low = tuple(max(0, int(f[0]) - 1) for f in found)
            self.high = tuple(min(n, int(f[-1]) + 2) for f, n in zip(found, shape))

    @property
    def volume(self) -> Volume:
        return Volume(self.image, self.ijk_to_ras)


def on_model_lattice(volume: Volume, card: ModelCard) -> Lattice:
    """The volume as `segment` would resample it."""
    guess = guess_modality(volume)
    image = resample_to_spacing(to_ras_axes(volume), card.spacing)
    body = body_mask(image) if guess.is_hu else np.ones(image.shape, dtype=bool)
    return Lattice(image.array, image.ijk_to_ras, body, guess.is_hu)


def labels_on(lattice: Lattice, labels: Volume) -> np.ndarray:
    """A label map on any lattice, nearest neighbor; outside of it nothing is annotated."""
    return resample_like(labels, lattice.volume, order=0, fill=OPEN).array


def whole_scores(network: torch.nn.Module, card: ModelCard, lattice: Lattice, device: str, device_bytes: int,
                 host_bytes: int, precision: str, say, progress: Progress, cancel: CancelToken) -> ScoreGrid:
    """The network's scores over the body's box; precision "float32" or "half"."""
    plan = plan_memory(lattice.image.shape, card.spacing, card, device, device_bytes,
                       {"host_bytes": host_bytes, "voxel_bytes": 2})
    starts = [start for start in tile_starts(lattice.low, lattice.high, lattice.image.shape, card.tile, card.overlap)
              if _touches(lattice, start, card.tile)]
    return TileJob(network, card, lattice.image, starts, lattice.low, lattice.high, plan, precision, say, progress,
                   cancel).run()


def _touches(lattice: Lattice, start, tile) -> bool:
    shared = overlap_slices(start, tile, (0, 0, 0), lattice.image.shape)
    return shared is not None and bool(lattice.body[shared[1]].any())


def answer_of(grid: ScoreGrid, lattice: Lattice) -> np.ndarray:
    """The winning class, (I, J, K) uint8; background outside the body."""
    answer = np.zeros(lattice.image.shape, dtype=np.uint8)
    box = tuple(slice(a, b) for a, b in zip(lattice.low, lattice.high))
    answer[box] = winners(grid, lattice.body[box])
    return answer


def winners(grid: ScoreGrid, body: np.ndarray) -> np.ndarray:
    """(box) uint8: the class with the highest score, background outside the body."""
    keep = torch.from_numpy(np.ascontiguousarray(body)).to(grid.device)
    found = np.zeros(grid.shape, dtype=np.uint8)
    for first in range(0, grid.shape[2], LAYERS):
        last = min(first + LAYERS, grid.shape[2])
        found[:, :, first:last] = grid.layers(2, first, last, keep).argmax(-1).permute(1, 2, 0).cpu().numpy()
    return found


@dataclass(eq=False)
class Case:
    """What training draws crops from.

    drawn: class of the taught structure drawn at a voxel, 0 for none, 255 not annotated. answer: the parent's class.
    held: (K,) bool, layers kept out. asked: taught classes that this case speaks of. weight: how often it is drawn
    from. targets: `drawn` as training sees it, held-out layers open. structures: what is
    where as far as anybody knows. centres: voxels of each class in `targets`.
    """

    lattice: Lattice
    drawn: np.ndarray
    answer: np.ndarray
    held: np.ndarray
    asked: tuple[int, ...]
    weight: float = 1.0
    targets: np.ndarray = field(init=False)
    structures: np.ndarray = field(init=False)
    centres: dict[int, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.targets = self.drawn.copy()
        self.targets[:, :, self.held] = OPEN
        self.structures = np.where((self.drawn == 0) | (self.drawn == OPEN), self.answer, self.drawn)
        self.centres, rng = {}, np.random.default_rng(0)
        for number in self.asked:
            voxels = np.flatnonzero(self.targets == number)
            if len(voxels):
                chosen = rng.choice(voxels, min(4000, len(voxels)), replace=False)
                self.centres[number] = np.stack(np.unravel_index(chosen, self.drawn.shape), 1)


def held_out_layers(drawn: np.ndarray, asked: Sequence[int]) -> np.ndarray:
    """(K,) bool: layers of the slabs to keep out of training, about HELD_SHARE of every structure that allows it.

    The shortest structures choose first; a slab that one put down serves the others too. Each slab lies within the
    structure, with something left above and below, where it takes least from the others.
    """
    layers = drawn.shape[2]
    profile = {number: np.count_nonzero(drawn == number, axis=(0, 1)).astype(float) for number in asked}
    profile = {number: counts / counts.sum() for number, counts in profile.items() if counts.sum()}
    held = np.zeros(layers, dtype=bool)
    spans = {number: np.flatnonzero(share) for number, share in profile.items()}
    for number in sorted(profile, key=lambda n: (spans[n][-1] - spans[n][0], n)):
        share, span = profile[number], spans[number]
        if span[-1] - span[0] + 1 < HELD_LAYERS or share[held].sum() >= 0.6 * HELD_SHARE:
            continue
        cumulated = np.concatenate([[0.0], np.cumsum(share)])
        best = None
        for first in range(span[0] + 1, span[-1]):
            last = int(np.searchsorted(cumulated, cumulated[first] + HELD_SHARE - 1e-9))
            last = max(last, first + 1)
            if last > span[-1] or cumulated[first] < 0.1 or cumulated[last] > 0.9:
                continue
            after = held.copy()
            after[first:last] = True
            most = max(float(s[after].sum()) for s in profile.values())
            if most > HELD_MOST:
                continue
            middle = abs((cumulated[first] + cumulated[last]) / 2 - 0.5)
            if best is None or (round(most, 2), middle) < best[0]:
                best = (round(most, 2), middle), first, last
        if best is not None:
            held[best[1]:best[2]] = True
    return held


def runs(held: np.ndarray) -> list[tuple[int, int]]:
    """[first, last) of every run of held layers."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], held.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]


def class_map(labels: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """Label values -> class numbers; values that are not in the map become 0, 255 stays."""
    table = np.zeros(256, dtype=np.uint8)
    table[OPEN] = OPEN
    for value, number in values.items():
        table[value] = number
    return table[labels]
