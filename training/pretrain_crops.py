"""Crops for pre-training: what sample number g looks like is decided by (seed, g) alone.

So the same samples come whatever the number of processes, workers or restarts: crop, augmentation and mask are drawn
from a generator of their own. Steps take samples in order, `batch` at a time.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose, RandFlip, RandRotate90, RandScaleIntensity, RandShiftIntensity
from torch import Tensor

from .pretrain_data import LEVELS, Prepared

# Streams of random numbers that must not coincide.
_ORDER, _SAMPLE, _HELD_OUT = 1, 2, 3
#: Opened volumes kept at hand by each process.
_OPEN = 4096


@dataclass(frozen=True)
class Augmentation:
    """Every probability and size of the paper's recipe in one place. foreground: share of crops centred on voxels above
    the threshold. flip: per axis. rotate: by 90, 180 or 270 degrees in the plane of the first two axes. scale and shift:
    by up to `amount` of the intensity or of the whole range."""

    foreground: float = 0.75
    flip: float = 0.5
    rotate: float = 0.3
    scale: float = 0.1
    shift: float = 0.1
    amount: float = 0.1

    def transforms(self) -> Compose:
        """MONAI's transforms for arrays (1, I, J, K)."""
        return Compose([
            *(RandFlip(prob=self.flip, spatial_axis=axis) for axis in range(3)),
            RandRotate90(prob=self.rotate, max_k=3, spatial_axes=(0, 1)),
            RandScaleIntensity(factors=self.amount, prob=self.scale),
            RandShiftIntensity(offsets=self.amount, prob=self.shift)])


class Crops(torch.utils.data.Dataset):
    """Sample g -> (crop (1, S, S, S) float32 in about [0, 1], shuffle (N,) int64).

    volumes: in a fixed order. size: S, voxels. patches: N. per_volume: crops taken from a volume in a row. weights: how
    often to draw each volume; without them every volume comes once per epoch, in an order of its own.
    """

    def __init__(self, volumes: Sequence[Prepared], *, seed: int, size: int, patches: int, per_volume: int = 8,
                 augmentation: Augmentation = Augmentation(), weights: Sequence[float] | None = None):
        self.volumes, self.seed, self.size, self.patches = list(volumes), seed, size, patches
        self.per_volume, self.augmentation = per_volume, augmentation
        self.transforms = augmentation.transforms()
        self.bounds = None if weights is None else np.cumsum(np.asarray(weights, float) / np.sum(weights)).tolist()
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()

    def volume_of(self, index: int) -> int:
        """Which volume sample `index` is cut from."""
        turn = index // self.per_volume
        if self.bounds is not None:
            return min(bisect_right(self.bounds, _generator(self.seed, _ORDER, turn).random()), len(self.volumes) - 1)
        epoch, place = divmod(turn, len(self.volumes))
        if epoch not in self._orders:
            self._orders[epoch] = _generator(self.seed, _ORDER, epoch).permutation(len(self.volumes))
            _shorten(self._orders, 4)
        return int(self._orders[epoch][place])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        which = self.volume_of(index)
        random = _generator(self.seed, _SAMPLE, index)
        crop = self._cut(which, random, self.augmentation.foreground)
        self.transforms.set_random_state(seed=int(random.integers(2 ** 32)))
        with _plain_tensors():
            crop = self.transforms(crop)
        return crop.contiguous(), torch.from_numpy(random.permutation(self.patches))

    def held_out(self, which: int, number: int) -> tuple[Tensor, Tensor]:
        """Crop `number` of volume `which` for a validation loss: the same in every run, not augmented."""
        random = _generator(zlib.crc32(self.volumes[which].name.encode()), _HELD_OUT, number)
        return (self._cut(which, random, Augmentation.foreground),
                torch.from_numpy(random.permutation(self.patches)))

    def _cut(self, which: int, random: np.random.Generator, foreground: float) -> Tensor:
        if which not in self._open:
            self._open[which] = self.volumes[which].open()
            _shorten(self._open, _OPEN)
        array, size = self._open[which], self.size
        centre = self._centre(array, self.volumes[which], random, foreground)
        source, target = [], []
        for c, n in zip(centre, array.shape):
            start, length = min(max(int(c) - size // 2, 0), max(n - size, 0)), min(n, size)
            pad = (size - length) // 2
            source.append(slice(start, start + length))
            target.append(slice(pad, pad + length))
        crop = np.zeros((1, size, size, size), np.float32)      # padding is what the window's lower end became: air
        np.multiply(array[tuple(source)], np.float32(1.0 / LEVELS), out=crop[(0, *target)])
        return torch.from_numpy(crop)

    def _centre(self, array: np.ndarray, volume: Prepared, random: np.random.Generator,
                foreground: float) -> tuple[int, ...]:
        wanted = bool(random.random() < foreground)
        if volume.foreground in (0.0, 1.0):
            wanted = volume.foreground == 1.0
        # Drawing until it fits is as uniform as drawing from a list of all such voxels, and needs no list.
        for count in (8, 64, 512, 4096, 32768):
            voxels = tuple(random.integers(0, n, count) for n in array.shape)
            fits = np.flatnonzero((array[voxels] > volume.threshold) == wanted)
            if len(fits):
                return tuple(int(axis[fits[0]]) for axis in voxels)
        every = np.flatnonzero((np.asarray(array) > volume.threshold) == wanted)
        return tuple(int(axis) for axis in np.unravel_index(every[random.integers(len(every))], array.shape))


class Batches:
    """Sample numbers of this process's micro-batches, step after step; for a DataLoader's `batch_sampler`.

    Of step s's samples s * batch … s * batch + batch - 1, micro-batch k gets `micro` in a row, and process r takes the
    micro-batches r, r + processes, …: however many processes there are, the micro-batches are the same.
    """

    def __init__(self, *, batch: int, micro: int, first_step: int, steps: int, rank: int = 0, processes: int = 1):
        if batch % (micro * processes):
            raise ValueError(f"{processes} processes with {micro} samples each do not divide a batch of {batch}")
        self.batch, self.micro, self.rank, self.processes = batch, micro, rank, processes
        self.first_step, self.steps = first_step, steps
        self.per_step = batch // (micro * processes)

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step) * self.per_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            for turn in range(self.per_step):
                start = step * self.batch + (turn * self.processes + self.rank) * self.micro
                yield list(range(start, start + self.micro))


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _shorten(kept: OrderedDict, limit: int) -> None:
    while len(kept) > limit:
        kept.popitem(last=False)


@contextmanager
def _plain_tensors():
    """MONAI without its record of what was done to a tensor: a third of the time, and nobody reads it here."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
