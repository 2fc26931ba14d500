"""Where a model is unsure: entropy of its class scores, voxel by voxel, and how sure it is of each structure.

The scores are those of a segmentation (same tiles, same blending); instead of the winner their entropy is kept. What
this cannot show: a model may be sure and wrong, above all on images unlike those it was trained on.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ..geometry.resample import resample_like
from ..geometry.volume import Volume
from ..models.loading import Model
from ..tasks import CancelToken, Progress, no_progress
from .attend_result import UncertaintyResult
from .attend_session import shifted
from .devices import choose_device, cpu_threads
from .scores import ScoreGrid
from .segment import SegmentJob

#: Layers of the model lattice that are looked at at a time.
LAYERS = 8
MEANING = ("Brighter means less sure: 0 where one structure takes all of the score, 1 where all are alike. A model can "
           "also be sure and wrong.")


def uncertainty(model: Model, volume: Volume, *, device: str = "auto", roi=None, threads: int | None = None,
                precision: str = "auto", tile_batch: int | None = None, memory_limit: int | None = None,
                progress: Progress = no_progress, cancel: CancelToken | None = None) -> UncertaintyResult:
    """Entropy on the input's lattice and the confidence of each structure found. Arguments as for `segment`.

    The structures are those before their largest parts are chosen, at the model's spacing.
    Raises what `segment` raises.
    """
    job = SegmentJob(model.card, volume, None, roi, progress, cancel or CancelToken())
    with cpu_threads(threads):
        job.make_plan(choose_device(device).kind, tile_batch, memory_limit)
        job.prepare()
        matrix = job.model_matrix
        if not job.starts:
            empty = Volume(np.zeros(volume.shape, np.float32), volume.ijk_to_ras, volume.name)
            return UncertaintyResult(empty, [], _info(job), job.messages)
        grid = job.run_tiles(model, precision)
        entropy, rows = entropy_of(grid, job.body, job.cancel)
    job.report(0.9, "Bringing the result to the volume's resolution")
    cells = Volume(entropy, shifted(matrix, grid.low))
    full = resample_like(cells, Volume(np.broadcast_to(np.uint8(0), volume.shape), volume.ijk_to_ras), order=1)
    voxel_ml = abs(float(np.linalg.det(matrix[:3, :3]))) / 1000.0
    structures = [{"id": label.id, "name": label.name, "voxels": rows[label.value][0],
                   "volume_ml": rows[label.value][0] * voxel_ml, "confidence": rows[label.value][1],
                   "unsure": rows[label.value][2], "entropy": rows[label.value][3]}
                  for label in model.card.labels if label.value in rows]
    job.report(1.0, "Done")
    sentences = [MEANING]
    if structures:
        least = min(structures, key=lambda row: row["confidence"])
        sentences.append(f"Least sure of {least['name']}: its mean score is {least['confidence']:.2f}, and "
                         f"{100 * least['unsure']:.0f} % of it scores below one half.")
    return UncertaintyResult(Volume(full.array, volume.ijk_to_ras, volume.name), structures, _info(job),
                             sentences + job.messages)


@torch.inference_mode()
def entropy_of(grid: ScoreGrid, keep: np.ndarray, cancel: CancelToken) -> tuple[np.ndarray, dict[int, tuple]]:
    """Normalized entropy (I, J, K) float32 of the grid's box, and per class that wins somewhere: (voxels, mean score
    of the class there, share of voxels where it is below one half, mean entropy). keep: (*box) bool, the body."""
    kept = torch.from_numpy(np.ascontiguousarray(keep)).to(grid.device)
    entropy = np.empty(grid.shape, dtype=np.float32)
    sums = np.zeros((4, grid.classes))
    for first in range(0, grid.shape[0], LAYERS):
        cancel.check()
        last = min(first + LAYERS, grid.shape[0])
        scores = grid.layers(0, first, last, kept)                                  # (n, J, K, classes)
        scores = scores / scores.sum(-1, keepdim=True).clamp_min(1e-6)
        chaos = torch.special.entr(scores).sum(-1) / math.log(max(grid.classes, 2))
        entropy[first:last] = chaos.cpu().numpy()
        best, winner = scores.max(-1)
        number = winner.cpu().numpy().ravel()           # summed in float64, which Apple's GPUs do not have
        for row, values in enumerate((torch.ones_like(best), best, (best < 0.5).float(), chaos)):
            sums[row] += np.bincount(number, weights=values.cpu().numpy().ravel(), minlength=grid.classes)
    rows = {}
    for value in range(1, grid.classes):
        count = float(sums[0, value])
        if count:
            rows[value] = (int(count), *(float(sums[row, value]) / count for row in (1, 2, 3)))
    return entropy, rows


def _info(job: SegmentJob) -> dict:
    return {"model": {"id": job.card.id, "version": job.card.version, "title": job.card.title}, "device": job.device,
            "precision": job.precision, "timings": {name: round(s, 3) for name, s in job.timings.items()}}
