"""How much memory a segmentation will take, and what to try when that is too much. No torch, so a face can ask.

What is counted: the scores at the model's spacing (classes x model voxels), the tiles in flight, and a few bytes per
input voxel for reading, the label map and its clean-up. Never classes x input voxels: scores are brought to the
input's lattice one layer at a time (`upsample.py`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Mapping, Sequence

from .tiling import tile_starts

if TYPE_CHECKING:
    from ..models.card import ModelCard

#: Numbers a network holds per tile voxel at its worst moment: features, plus a few copies of the class scores.
#: Measured at 96^3 with 20 classes in float32 on a CPU: MaskMed 110 numbers a voxel, UNETR with patch 16 310.
FEATURES_PER_VOXEL = 220
SCORE_COPIES = 5
#: Bytes per model voxel for the resampled image, the body mask and its filters.
MODEL_VOXEL_BYTES = 36
#: Bytes per input voxel: the label map, and the widest moment of cleaning it and of the statistics.
INPUT_VOXEL_BYTES = 8
#: Slabs, point lists, library workspaces.
FIXED_BYTES = 200_000_000
#: Share of what is free that a plan may use.
USABLE = 0.85
#: Scores are kept in float16 when float32 would take more than this share of what is free.
FLOAT32_SHARE = 0.25
MAX_TILE_BATCH = 8


@dataclass(frozen=True)
class Step:
    """One way to run the tiles. device: "cuda:0", "mps" or "cpu"; accumulate: where the scores are summed."""

    device: str
    tile_batch: int
    accumulate: str
    storage: str

    def instead_of(self, tried: Step) -> str:
        """What is done otherwise than in the step tried before, for the message that says so."""
        if self.device != tried.device:
            return "computing on the CPU"
        if self.accumulate != tried.accumulate:
            return "collecting the scores in main memory"
        if self.storage != tried.storage:
            return "keeping the scores in half precision"
        return "one tile at a time" if self.tile_batch == 1 else f"{self.tile_batch} tiles at a time"


@dataclass(frozen=True)
class MemoryPlan:
    """bytes_host, bytes_device: expected peaks on top of the input and the loaded model (device 0 on the CPU).

    tiles: at most, before air is skipped. tile_batch: tiles computed together in the first step. steps: what is tried
    in this order. host_bytes, device_bytes: what is free. fits: False when even the last step asks for more.
    """

    bytes_host: int
    bytes_device: int
    tiles: int
    tile_batch: int
    steps: tuple[Step, ...]
    sentence: str
    host_bytes: int
    device_bytes: int
    model_shape: tuple[int, int, int]
    fits: bool

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return {**asdict(self), "steps": [asdict(step) for step in self.steps], "model_shape": list(self.model_shape)}


def plan_memory(shape: Sequence[int], spacing: Sequence[float], card: ModelCard, device_kind: str, device_bytes: int,
                options: Mapping | None = None) -> MemoryPlan:
    """Plan one segmentation; computes only, allocates nothing, raises nothing.

    shape, spacing (mm): the input's, along R, A, S. device_kind: "cpu", "mps" or "cuda:N". device_bytes: free there
    (for the CPU: free main memory). options: "host_bytes" free main memory when the device is another one,
    "tile_batch" tiles at a time, "voxel_bytes" of the input (floats are checked for NaN, which takes a copy), "box"
    the edges in model voxels of the part whose scores are kept (a region of interest; default everything).
    """
    options = dict(options or {})
    on_cpu = device_kind == "cpu"
    host_free = int(device_bytes if on_cpu else options.get("host_bytes") or 0) or int(device_bytes)
    voxels = math.prod(int(n) for n in shape)
    model_shape = tuple(max(1, math.ceil(n * s / t - 1e-4)) for n, s, t in zip(shape, spacing, card.spacing))
    model_voxels = math.prod(model_shape)
    kept_voxels = math.prod(min(a, b) for a, b in zip(options.get("box") or model_shape, model_shape))
    classes = len(card.labels) + 1
    tile_voxels = math.prod(card.tile)
    tiles = len(tile_starts((0, 0, 0), model_shape, model_shape, card.tile, card.overlap))

    def host_need(step: Step) -> int:
        scores = kept_voxels * (4 + classes * (4 if step.storage == "float32" else 2))
        running = tile_bytes(card, 4) * step.tile_batch if step.device == "cpu" else tile_voxels * classes * 8
        resampling = 4 * max(n * model_voxels // m for n, m in zip(shape, model_shape))
        checking = 5 * voxels if options.get("voxel_bytes", 2) > 2 else 0
        during = max(resampling, model_voxels * MODEL_VOXEL_BYTES,
                     model_voxels * 6 + (scores if step.accumulate == "cpu" else 0) + running)
        return FIXED_BYTES + checking + max(during, voxels * INPUT_VOXEL_BYTES,
                                            voxels + model_voxels * 6 + scores)

    def device_need(step: Step) -> int:
        if step.device == "cpu":
            return 0
        scores = kept_voxels * (4 + 4 * classes) if step.accumulate != "cpu" else 0
        return scores + tile_bytes(card, 3) * step.tile_batch    # half precision for most, float32 for the rest

    scores32 = kept_voxels * 4 * (classes + 1)
    host_storage = "float32" if scores32 <= FLOAT32_SHARE * host_free else "float16"
    asked = int(options.get("tile_batch") or 0)
    steps: list[Step] = []
    if not on_cpu:
        room = USABLE * device_bytes
        batch = asked or min(MAX_TILE_BATCH, tiles, max(1, int((room - scores32) // max(1, tile_bytes(card, 3)))))
        batch = max(1, batch)
        if device_kind.startswith("cuda") and scores32 + tile_bytes(card, 3) <= room:
            while batch >= 1:
                steps.append(Step(device_kind, batch, "device", "float32"))
                batch //= 2
        steps.append(Step(device_kind, 1, "cpu", host_storage))
    batch = asked if on_cpu and asked else 1
    while batch >= 1:
        steps.append(Step("cpu", batch, "cpu", host_storage))
        batch //= 2
    if host_storage == "float32":
        steps.append(Step("cpu", 1, "cpu", "float16"))
    # What is known not to fit is not tried; the last step stays, so that a plan always has one to speak of.
    while len(steps) > 1 and (host_need(steps[0]) > USABLE * host_free
                              or device_need(steps[0]) > device_bytes and steps[0].device != "cpu"):
        steps.pop(0)
    first = steps[0]
    need, device_bytes_needed = host_need(first), device_need(first)
    sentence = (f"{' x '.join(str(int(n)) for n in shape)} voxels become {' x '.join(map(str, model_shape))} at "
                f"{_mm(card.spacing)} mm: at most {tiles} tile{'s' if tiles != 1 else ''}, "
                f"about {gigabytes(need)} of main memory ({gigabytes(host_free)} free)")
    if first.device != "cpu":
        sentence += f" and {gigabytes(device_bytes_needed)} on {first.device} ({gigabytes(device_bytes)} free)"
    elif not on_cpu:
        sentence += f"; {device_kind} has too little memory ({gigabytes(device_bytes)} free), so the CPU is used"
    return MemoryPlan(bytes_host=need, bytes_device=device_bytes_needed, tiles=tiles, tile_batch=first.tile_batch,
                      steps=tuple(steps), sentence=sentence + ".", host_bytes=host_free,
                      device_bytes=0 if on_cpu else int(device_bytes), model_shape=model_shape,
                      fits=need <= USABLE * host_free)


def tile_bytes(card: ModelCard, number_bytes: int) -> int:
    """What one tile in flight takes: input, features and class scores, at `number_bytes` a number."""
    numbers = len(card.windows) + FEATURES_PER_VOXEL + SCORE_COPIES * (len(card.labels) + 1)
    return math.prod(card.tile) * numbers * number_bytes


def gigabytes(count: float) -> str:
    """"1.3 GB"; below 0.1 GB in MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(1, round(count / 1e6))} MB"


def _mm(spacing: Sequence[float]) -> str:
    return f"{spacing[0]:g}" if len(set(spacing)) == 1 else " x ".join(f"{s:g}" for s in spacing)
