"""Segment: from a CT on any lattice to a label map on exactly that lattice.

RAS axes -> the model's spacing -> body -> tiles -> scores at the model's spacing -> labels on the input's lattice,
layer by layer -> region of interest, largest parts -> volumes and mean HU. Memory is planned before (plan.py),
stepped down when a device has less (running.py), and bounded by the volume, never by classes x input voxels
(upsample.py).
"""

from __future__ import annotations

import difflib
import math
import time
from contextlib import contextmanager
from typing import Iterator, Sequence

import numpy as np
import torch

from .. import __version__
from ..errors import OptionError, OutOfMemoryError
from ..geometry.body import AIR_HU, body_mask
from ..geometry.labels import Label
from ..geometry.modality import guess_modality
from ..geometry.resample import resample_to_spacing, to_ras_axes
from ..geometry.statistics import structure_statistics
from ..geometry.volume import Volume, check_volume
from ..models.card import ModelCard
from ..models.loading import Model
from ..tasks import CancelToken, Progress, no_progress, subprogress
from .devices import choose_device, cpu_threads, free_bytes, is_out_of_memory
from .largest import keep_largest
from .peak import peak_memory
from .plan import MemoryPlan, gigabytes, plan_memory
from .result import SegmentResult
from .roi import check_roi, clear_outside_roi, extent_sentence, roi_box
from .running import TileJob
from .scores import ScoreGrid
from .tiling import overlap_slices, tile_starts
from .upsample import label_lattice

#: Share of the progress bar at which each stage ends.
STAGES = {"prepare": 0.08, "tiles": 0.75, "labels": 0.92, "clean": 0.97, "measure": 1.0}


def segment(model: Model, volume: Volume, *, device: str = "auto", only: Sequence[str] | None = None, roi=None,
            threads: int | None = None, precision: str = "auto", tile_batch: int | None = None,
            memory_limit: int | None = None, progress: Progress = no_progress,
            cancel: CancelToken | None = None) -> SegmentResult:
    """Name the organs of a volume. Returns labels (uint8) on the input's lattice with statistics, info and messages.

    device: "auto", "cuda", "cuda:N", "mps" or "cpu". only: ids of the structures wanted; others are dropped after the
    argmax, so that an organ's border does not depend on what else was asked for. roi: ((R0, R1), (A0, A1), (S0, S1))
    in mm; tiles that do not touch it are not run, and labels outside are 0; inside it the scores are the same as
    without it. threads: CPU threads (default: physical cores). precision: "float32", "half", or "auto" (half on a
    graphics card, and on a CPU where it was measured to be faster). tile_batch: tiles at a time (default: planned).
    memory_limit: main memory in bytes that the job may plan with (default: what is free).
    cancel is looked at before and after every tile and several times per layer of the result; a single tile cannot
    be interrupted here (the engine's client kills the process if that takes too long).

    Raises InputError (not a usable volume), OptionError (unknown structure, region outside), DeviceError,
    OutOfMemoryError (with the two numbers), ModelError, Cancelled.
    """
    job = SegmentJob(model.card, volume, only, roi, progress, cancel or CancelToken())
    job.parameters = {"device": device, "only": list(only) if only is not None else None,
                      "roi": [list(pair) for pair in job.roi] if job.roi else None, "precision": precision,
                      "overlap": model.card.overlap, "tile": list(model.card.tile),
                      "spacing": list(model.card.spacing)}
    if precision not in ("auto", "float32", "half"):
        raise OptionError(f"There is no precision '{precision}'; choose auto, float32 or half.")
    with cpu_threads(threads) as count, peak_memory() as peak, _memory_in_words(job):
        job.parameters["threads"] = count
        kind = choose_device(device).kind
        job.make_plan(kind, tile_batch, memory_limit)
        job.prepare()
        grid = job.run_tiles(model, precision) if job.starts else None
        labels = job.label(grid)
        del grid
        job.clean(labels)
        statistics = job.measure(labels)
    plan = job.plan
    info = {"hiendseg": __version__, "model": {"id": model.card.id, "version": model.card.version,
                                               "title": model.card.title, "sha256": model.card.checksum},
            "input": {"name": volume.name, "shape": list(volume.shape), "spacing": list(volume.spacing)},
            "parameters": job.parameters, "device": job.device, "precision": job.precision, "plan": plan.to_dict(),
            "tiles": {"run": len(job.starts), "planned": plan.tiles}, "removed_voxels": job.removed,
            "timings": {name: round(seconds, 3) for name, seconds in job.timings.items()},
            "peak_memory_bytes": peak.bytes, "peak_device_bytes": job.device_peak}
    job.report(1.0, "Done")
    return SegmentResult(labels, job.legend, statistics, info, job.messages)


class SegmentJob:
    """One call of `segment`: the stages in order, and what they say and measure."""

    def __init__(self, card: ModelCard, volume: Volume, only, roi, progress: Progress, cancel: CancelToken):
        self.card, self.cancel = card, cancel
        self.messages: list[str] = []
        self.timings: dict[str, float] = {}
        self.parameters: dict = {}
        self.removed: dict[str, int] = {}
        self.device, self.precision, self.device_peak = "cpu", "float32", 0
        self.plan: MemoryPlan | None = None
        self._progress, self._fraction = progress, 0.0
        self.legend = wanted_labels(card, only)
        self.roi = check_roi(roi) if roi is not None else None
        known = len(volume.notes)
        self.volume = check_volume(volume)
        for note in self.volume.notes[known:]:
            self.say(note)
        if self.roi is not None:
            low, high = roi_box(self.roi, self.volume.ras_to_ijk, self.volume.shape)
            if (high <= low).any():
                raise OptionError(f"The region of interest {self.roi} holds no voxel of the volume, which covers "
                                  f"{extent_sentence(self.volume)} mm; choose a region inside it.")
        self.ras = to_ras_axes(self.volume)

    # ------------------------------------------------------------------------------------------ saying

    def say(self, sentence: str) -> None:
        if sentence not in self.messages:
            self.messages.append(sentence)

    def report(self, fraction: float, message: str) -> None:
        """Progress that never falls, whatever the stages report."""
        self._fraction = max(self._fraction, min(fraction, 1.0))
        self._progress(self._fraction, message)

    def stage(self, name: str) -> Progress:
        names = list(STAGES)
        before = STAGES[names[names.index(name) - 1]] if name != names[0] else 0.0
        return subprogress(self.report, before, STAGES[name])

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - begin

    # ------------------------------------------------------------------------------------------ stages

    def make_plan(self, kind: str, tile_batch: int | None, memory_limit: int | None) -> None:
        """Plan, say it as the first message, and refuse what cannot fit."""
        host = min(free_bytes("cpu"), memory_limit or 1 << 62)
        box = None
        if self.roi is not None:
            low, high = roi_box(self.roi, self.ras.ras_to_ijk, self.ras.shape)
            box = [math.ceil(n * s / t) + 4 for n, s, t in zip(high - low, self.ras.spacing, self.card.spacing)]
        self.plan = plan = plan_memory(self.ras.shape, self.ras.spacing, self.card, kind, host if kind == "cpu" else
                           free_bytes(kind), {"host_bytes": host, "tile_batch": tile_batch,
                                              "voxel_bytes": self.volume.array.dtype.itemsize, "box": box})
        self.report(0.0, plan.sentence)
        if not plan.fits:
            raise OutOfMemoryError(
                f"This volume needs about {gigabytes(plan.bytes_host)} of memory and {gigabytes(host)} are free; close "
                "other programs, or give a region of interest.")
        if plan.steps[0].device != kind:
            self.say(f"{kind} has too little free memory for this volume; the CPU is used.")

    def prepare(self) -> None:
        """The image on the model lattice, the body in it, and the tiles that touch it."""
        progress = self.stage("prepare")
        with self.timed("prepare"):
            self.cancel.check()
            guess = guess_modality(self.volume)
            self.is_hu = guess.is_hu
            if self.card.modality == "CT" and not (guess.kind == "CT" and guess.is_hu):
                self.say(f"{guess.sentence.rstrip('.')}; this model was made for CT in Hounsfield units, so do not "
                         "rely on the result.")
            progress(0.1, "Resampling to the model's spacing")
            self.cancel.check()
            image = resample_to_spacing(self.ras, self.card.spacing)
            self.model_image, self.model_matrix = image.array, image.ijk_to_ras
            progress(0.7, "Finding the body")
            self.cancel.check()
            body = body_mask(image) if guess.is_hu else np.ones(image.shape, dtype=bool)
            self.starts, self.low, self.high, self.body = self._place(body)
        if not self.starts:
            self.say(f"There is no body in this volume{' inside the region' if self.roi else ''}: nothing in it is "
                     f"heavier than air ({AIR_HU:g} HU), so the result is empty.")
        elif any(2 * n < t for n, t in zip(image.shape, self.card.tile)):
            self.say(f"The volume is small ({' x '.join(map(str, image.shape))} voxels at the model's spacing, a tile "
                     f"has {' x '.join(map(str, self.card.tile))}); it was surrounded with air, and the result may be "
                     "poorer for it.")

    def _place(self, body: np.ndarray):
        """Tiles over the body's bounding box, and the box of scores to keep: body and region, one voxel wider."""
        shape = body.shape
        found = [np.flatnonzero(body.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        if not all(len(f) for f in found):
            return [], None, None, None
        low, high = np.array([f[0] for f in found]), np.array([f[-1] + 1 for f in found])
        starts = tile_starts(low, high, shape, self.card.tile, self.card.overlap)
        keep_low, keep_high = np.maximum(low - 1, 0), np.minimum(high + 1, shape)
        if self.roi is not None:
            roi_low, roi_high = roi_box(self.roi, np.linalg.inv(self.model_matrix), shape, margin=1)
            keep_low, keep_high = np.maximum(keep_low, roi_low), np.minimum(keep_high, roi_high)
            if (keep_high <= keep_low).any():
                return [], None, None, None
        kept_body = body[tuple(slice(a, b) for a, b in zip(keep_low, keep_high))]
        used = []
        for start in starts:
            shared = overlap_slices(start, self.card.tile, keep_low, keep_high)
            if shared is not None and kept_body[shared[1]].any():
                used.append(start)
        return used, keep_low, keep_high, kept_body

    def run_tiles(self, model: Model, precision: str) -> ScoreGrid:
        cuda = self.plan.steps[0].device.startswith("cuda") and torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with self.timed("tiles"):
            tiles = TileJob(model.network, self.card, self.model_image, self.starts, self.low, self.high,
                            self.plan, precision, self.say, self.stage("tiles"), self.cancel)
            grid = tiles.run()
        self.device = tiles.device
        self.precision = "half" if tiles.used_half else "float32"
        if cuda:
            self.device_peak = int(torch.cuda.max_memory_allocated())
        del self.model_image
        return grid

    def label(self, grid: ScoreGrid | None) -> Volume:
        """The label map on the input's lattice, structures that were not asked for left out."""
        array = np.zeros_like(self.volume.array, dtype=np.uint8, subok=False)       # keeps the order in memory
        labels = Volume(array, self.volume.ijk_to_ras, self.volume.name)
        if grid is None:
            return labels
        out = to_ras_axes(labels).array
        if not np.may_share_memory(out, array):
            raise AssertionError("to_ras_axes must give a view")
        table = np.zeros(grid.classes, dtype=np.uint8)
        table[[label.value for label in self.legend]] = [label.value for label in self.legend]
        step = np.linalg.inv(self.model_matrix) @ self.ras.ijk_to_ras      # diagonal: the directions are the same
        with self.timed("labels"):
            try:
                label_lattice(grid, self.body, np.diag(step)[:3], step[:3, 3], out, table=table,
                              progress=self.stage("labels"), cancel=self.cancel)
            except (MemoryError, RuntimeError) as error:
                if grid.device.type == "cpu" or not is_out_of_memory(error):
                    raise
                again = True
            else:
                again = False
            if again:
                self.say(f"{grid.device} ran out of memory; the result was brought to the volume's resolution on the "
                         "CPU.")
                grid.move("cpu")
                label_lattice(grid, self.body, np.diag(step)[:3], step[:3, 3], out, table=table,
                              progress=self.stage("labels"), cancel=self.cancel)
        return labels

    def clean(self, labels: Volume) -> None:
        with self.timed("clean"):
            if self.roi is not None:
                clear_outside_roi(labels, self.roi, self.cancel)
            single = {label.value: label.id for label in self.legend if label.largest_component}
            removed = keep_largest(labels.array, single, progress=self.stage("clean"), cancel=self.cancel)
            self.removed = {single[value]: count for value, count in removed.items()}

    def measure(self, labels: Volume) -> list[dict]:
        with self.timed("measure"):
            self.stage("measure")(0.0, "Measuring volumes")
            self.cancel.check()
            statistics = structure_statistics(labels, self.volume, self.legend)
        missing = [row["name"] for row in statistics if not row["voxels"]]
        if self.starts and len(missing) == len(statistics):
            self.say("None of the structures was found.")
        elif self.starts and missing:
            self.say(f"Not found: {', '.join(missing)}.")
        return statistics


def wanted_labels(card: ModelCard, only: Sequence[str] | None) -> list[Label]:
    """The card's labels, or those with the ids in `only`, in the card's order. Raises OptionError for an unknown id."""
    if only is None:
        return list(card.labels)
    known = {label.id: label for label in card.labels}
    if isinstance(only, str):
        only = [only]
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise OptionError(f"Model {card.id} has no structure '{name}'{hint}; it knows {', '.join(known)}.")
    if not only:
        raise OptionError(f"No structure was asked for; choose from {', '.join(known)}.")
    return [label for label in card.labels if label.id in set(only)]


@contextmanager
def _memory_in_words(job: SegmentJob) -> Iterator[None]:
    """Main memory that runs out in any stage becomes a sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Main memory ran out: about {gigabytes(job.plan.bytes_host)} are needed and "
            f"{gigabytes(free_bytes('cpu'))} are free; close other programs, or give a region of interest.") from error
