"""Keep the largest connected part of structures in a label map at full resolution, in place and in bounded memory.

Labelling connected parts costs about 10 ns a voxel, and a few stray voxels are enough to make a structure's bounding
box the whole volume. So parts are first looked for among blocks of 4 x 4 x 4 voxels: what is apart there is apart in
the voxels too (blocks that touch include every pair of voxels that touch), and only the block part that can hold the
largest voxel part is labelled voxel by voxel. The answer is the same.
"""

from __future__ import annotations

from typing import Iterable

import numpy as np
from scipy import ndimage

from ..tasks import CancelToken, Progress, no_progress

BLOCK = 4
_TOUCH = np.ones((3, 3, 3), dtype=bool)     # 26 neighbours


def keep_largest(array: np.ndarray, values: Iterable[int], *, progress: Progress = no_progress,
                 cancel: CancelToken | None = None) -> dict[int, int]:
    """Set all but the largest part (26 neighbours) of each of `values` to 0; returns value -> voxels removed.

    array: (I, J, K) uint8, changed in place. Beside it, memory for one byte per block and value, and five bytes a
    voxel of the bounding box of a structure's largest block part.
    """
    values = list(values)
    # Work along memory: the last axis is the contiguous one.
    array = array.transpose(np.argsort([-abs(s) for s in array.strides], kind="stable"))
    counts = _block_counts(array, max(values, default=0), cancel) if values else {}
    removed = {}
    for done, value in enumerate(values):
        progress(done / len(values), "Keeping the largest part of each structure")
        if cancel is not None:
            cancel.check()
        gone = _keep_largest_of(array, value, counts[value], cancel)
        if gone:
            removed[value] = gone
    return removed


def _block_counts(array: np.ndarray, highest: int, cancel: CancelToken | None) -> np.ndarray:
    """(highest + 1, blocks...) uint8: how many voxels of each value a block holds (row 0 is not filled)."""
    blocks = [-(-n // BLOCK) for n in array.shape]
    counts = np.zeros((highest + 1, *blocks), dtype=np.uint8)
    width = highest + 1
    j, k = (np.arange(n) // BLOCK for n in array.shape[1:])
    address = (j[:, None] * blocks[2] + k[None, :]) * width
    for block in range(blocks[0]):
        if cancel is not None:
            cancel.check()
        slab = array[block * BLOCK:(block + 1) * BLOCK]
        layer, row, column = np.nonzero((slab > 0) & (slab <= highest))
        if len(layer):
            found = np.bincount(address[row, column] + slab[layer, row, column],
                                minlength=blocks[1] * blocks[2] * width)
            counts[:, block] = np.moveaxis(found.reshape(blocks[1], blocks[2], width), 2, 0)
    return counts


def _keep_largest_of(array: np.ndarray, value: int, counts: np.ndarray, cancel: CancelToken | None) -> int:
    parts, count = ndimage.label(counts > 0, structure=_TOUCH)
    if count == 0:
        return 0
    sizes = np.zeros(count + 1, dtype=np.int64)
    np.add.at(sizes, parts[counts > 0], counts[counts > 0])
    boxes = ndimage.find_objects(parts)
    best_size, best_part, best_drop, removed = 0, 0, None, 0
    for part in np.argsort(-sizes[1:], kind="stable") + 1:
        if sizes[part] <= best_size:
            break
        if cancel is not None:
            cancel.check()
        fine, fine_sizes = _voxel_parts(array, value, parts, part, boxes[part - 1])
        if fine_sizes.max() > best_size:
            best_size, best_part = int(fine_sizes.max()), part
            best_drop = (fine, fine_sizes) if len(fine_sizes) > 2 else None
    removed = int(sizes.sum()) - best_size
    if not removed:
        return 0
    if best_drop is not None:
        fine, fine_sizes = best_drop
        drop = np.ones(len(fine_sizes), dtype=bool)
        drop[[0, int(fine_sizes.argmax())]] = False
        for layer, target in zip(fine, array[_voxels(boxes[best_part - 1])]):
            target[drop[layer]] = 0
    for part, box in enumerate(boxes, start=1):
        if part != best_part:
            target = array[_voxels(box)]
            target[_blow_up(parts[box] == part, target.shape) & (target == value)] = 0
    return removed


def _voxel_parts(array, value, parts, part, box) -> tuple[np.ndarray, np.ndarray]:
    """Voxel parts inside one block part's box, and their sizes (that of the background is 0)."""
    inner = array[_voxels(box)] == value
    inner &= _blow_up(parts[box] == part, inner.shape)
    fine, count = ndimage.label(inner, structure=_TOUCH)
    sizes = np.zeros(count + 1, dtype=np.int64)
    for layer in fine:                                      # bincount turns its input into int64
        sizes += np.bincount(layer.ravel(), minlength=count + 1)
    sizes[0] = 0
    return fine, sizes


def _voxels(box: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(s.start * BLOCK, s.stop * BLOCK) for s in box)


def _blow_up(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Blocks as voxels, cut to `shape` (the last block of an axis may be incomplete)."""
    for axis in range(3):
        blocks = np.repeat(blocks, BLOCK, axis=axis)
    return blocks[tuple(slice(0, n) for n in shape)]
