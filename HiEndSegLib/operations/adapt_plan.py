"""How long adapting a model to one case will take, and how much memory. No torch, so a face can ask.

Memory counted: the parent's answer for the case, the weights with their copies, gradients and moments, one crop on its
way forward and back, and in quick mode what the frozen part and the parent gave for all crops that are kept.
Time counted: that answer before and after, the curve of grey values, the kept crops, the steps, and the
looks at the held-out slabs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Mapping, Sequence

from .plan import USABLE, gigabytes
from .tiling import tile_starts

if TYPE_CHECKING:
    from ..models.card import ModelCard

SPEEDS = ("quick", "full")
#: As in `adapt_loop.RECIPES`: steps, edge of a crop in voxels, crops that are kept, steps between two scores.
STEPS = {"quick": 400, "full": 300}
CROP, CROPS, EVERY = 72, 160, 50
#: Steps of the curve of grey values that is fitted first (`adapt_calibrate`); as costly as full ones. New structures
#: alone do without.
CURVE_STEPS = 200
#: The same where a model starts from an encoder: steps, and steps between two scores.
FRESH_STEPS, FRESH_EVERY = 1200, 100
#: Fewer kept crops than this teach too little.
FEWEST_CROPS = 32
#: Kinds of networks that take crops smaller than their tile.
ANY_SIZE = ("maskmed", "pointwise")

#: Bytes a crop's voxel takes forward and back. Measured at 72^3 with 20 classes on a CPU, MaskMed: quick 990 in
#: bfloat16, full 1070; at 96^3 in float32 890 and 1130, pointwise 980 and 1310. A whole adaptation of the default model
#: (122 x 101 x 112 voxels of 3 mm) took 824 MB after 40 quick steps, 760 MB in full; planned for that: 1.0 and 0.9 GB.
STEP_BYTES = {"quick": 1050, "full": 1300}
#: Bytes of a kept crop's voxel: the frozen part's maps in bfloat16 and the drawing; per class, the parent's scores at
#: an eighth of the voxels in float16.
KEPT_BYTES, KEPT_CLASS_BYTES = 11.5, 0.25
#: Bytes a tile's voxel takes in a forward pass, by kind of network (measured: 300; UNETR with patch 16 1240).
FORWARD_BYTES, LARGE_FORWARD_BYTES = 400, 1300
#: Bytes a parameter takes: the copy that learns, its average, the best so far; full adds gradient and two moments.
PARAMETER_BYTES = {"quick": 10, "full": 24}
#: Bytes a voxel of the model's lattice takes while the loop runs: image, drawing, answers, codes, masks.
LATTICE_BYTES = 16
#: Bytes a voxel of the input takes while the case is prepared: drawings brought to its lattice, one resampled axis.
INPUT_BYTES = 6
FIXED_BYTES, DEVICE_FIXED_BYTES = 250_000_000, 150_000_000
#: Layers of a case, as a share, that are held out in slabs and looked at between steps.
HELD_SHARE, SLABS = 0.25, 1.5

#: Seconds of a tile's voxel forward, where no segmentation was timed. A CPU core: 0.84e-6 with bfloat16 instructions,
#: 1.3e-6 without (measured); a graphics card and Apple's: estimated.
VOXEL_SECONDS = {"cpu": 1.1e-6, "cuda": 1.5e-8, "mps": 1.5e-7}
#: For larger networks: this many parameters cost as much again as a voxel's features (a token has 1728 voxels).
USUAL_PARAMETERS, PARAMETER_VOXELS = 6_000_000, 36_000_000
#: What things cost in units of a forward pass over as many voxels, measured for the default model on one core: a step,
#: a look at a held-out tile, a crop that is kept (the frozen part, and the parent's word on it).
STEP, SCORE, KEEP = {"quick": 1.55, "full": 3.05}, {"quick": 0.7, "full": 0.9}, 0.8
#: Seconds of drawing one crop of a million voxels, on the CPU.
DRAW = 0.25
#: Of the tiles that are planned, the share that is not air.
BODY_SHARE = 0.85


@dataclass(frozen=True)
class AdaptPlan:
    """One way to adapt. steps: training steps. crops: how many the frozen part's results are kept of, 0 in full mode.

    minutes: expected, about. bytes_host, bytes_device: expected peaks on top of the input and the loaded model
    (device 0 on the CPU); host_bytes, device_bytes: what is free. fits: False when more is needed than is free, even
    with the fewest crops.
    """

    speed: str
    device: str
    steps: int
    crops: int
    minutes: float
    bytes_host: int
    bytes_device: int
    host_bytes: int
    device_bytes: int
    fits: bool
    sentence: str

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return asdict(self)


def default_speed(device_kind: str) -> str:
    """What "auto" means: quick on a CPU, full on an accelerator."""
    return "quick" if device_kind == "cpu" else "full"


def plan_adapt(shape: Sequence[int], spacing: Sequence[float], card: ModelCard, device_kind: str, device_bytes: int,
               speed: str, options: Mapping | None = None) -> AdaptPlan:
    """Plan one adaptation; computes only, allocates nothing, raises nothing.

    shape, spacing (mm): the case's, along R, A, S. device_kind: "cpu", "mps" or "cuda:N"; device_bytes: free there.
    speed: "quick" or "full". options: "host_bytes" free main memory when the device is another one, "steps" instead
    of the recipe's, "parameters" of the network (default: by the size of the weights; say it for a version, whose
    weights are changes only), "tile_seconds" that a tile took in a segmentation here, "threads", "teaching" earlier
    cases, "known" whether the model knows any of what is taught (default True).
    """
    options = dict(options or {})
    on_cpu = device_kind == "cpu"
    host_free = int(device_bytes if on_cpu else options.get("host_bytes") or 0) or int(device_bytes)
    fresh = not card.labels                              # made from an encoder: more learns, and for longer
    steps = int(options.get("steps") or (FRESH_STEPS if fresh else STEPS[speed]))
    tile, crop = math.prod(card.tile), crop_voxels(card)
    model_shape = tuple(max(1, math.ceil(n * s / t - 1e-4)) for n, s, t in zip(shape, spacing, card.spacing))
    cases = 1 + int(options.get("teaching") or 0)
    parameters = int(options.get("parameters") or card.weights.get("bytes", 0) // _WIDTH.get(
        card.weights.get("dtype"), 4))
    model_voxels, classes = math.prod(model_shape), len(card.labels) + 1
    forward = tile * (FORWARD_BYTES if card.network.get("kind") in ANY_SIZE else LARGE_FORWARD_BYTES)
    answer = forward + model_voxels * 4 * (classes + 1)
    held = _held_tiles(model_shape, card)

    step = PARAMETER_BYTES[speed] * parameters + STEP_BYTES["full" if fresh else speed] * crop
    lattices = LATTICE_BYTES * model_voxels * cases + FIXED_BYTES
    kept = crop * (KEPT_BYTES + KEPT_CLASS_BYTES * classes)
    kept_held = held * tile * KEPT_BYTES if speed == "quick" else 0
    prepare = INPUT_BYTES * math.prod(int(n) for n in shape) + lattices
    device_need = 0 if on_cpu else 4 * parameters + max(step, answer) + DEVICE_FIXED_BYTES
    crops = CROPS if speed == "quick" else 0

    def host_need() -> int:
        during = lattices + kept_held + min(crops, steps) * kept + (step if on_cpu else 0)
        return int(max(prepare, during, lattices + 8 * parameters + (answer if on_cpu else model_voxels * 4)))

    while crops > FEWEST_CROPS and host_need() > USABLE * host_free:
        crops = max(FEWEST_CROPS, crops // 2)   # in few steps: what is free changes all the time, the result should not
    need = host_need()
    fits = need <= USABLE * host_free and (on_cpu or device_need <= device_bytes)
    tiles = BODY_SHARE * len(tile_starts((0, 0, 0), model_shape, model_shape, card.tile, card.overlap))
    minutes = _seconds(speed, steps, min(crops, steps), cases, tiles, held, crop, tile, device_kind, fresh,
                       parameters, options) / 60
    plan = AdaptPlan(speed, device_kind, steps, crops, round(minutes, 1), int(need), int(device_need), host_free,
                     0 if on_cpu else int(device_bytes), fits, "")
    return replace(plan, sentence=plan_sentence(plan, minutes))


def plan_sentence(plan: AdaptPlan, minutes: float) -> str:
    """What a plan comes to, where it is expected to take so long."""
    sentence = (f"{plan.speed.capitalize()}: about {_time(minutes)}, {plan.steps} steps, {gigabytes(plan.bytes_host)} "
                f"of main memory ({gigabytes(plan.host_bytes)} free)")
    if plan.device != "cpu":
        sentence += f" and {gigabytes(plan.bytes_device)} on {plan.device} ({gigabytes(plan.device_bytes)} free)"
    if 0 < plan.crops < CROPS:
        sentence += f"; memory is short, so {plan.crops} varied crops are kept instead of {CROPS}"
    return sentence + "."


def too_large(plan: AdaptPlan, quick: AdaptPlan | None = None) -> str:
    """The sentence for a plan that does not fit. quick: the plan of the other speed, if that one might."""
    short = f"{gigabytes(plan.bytes_host)} of main memory and {gigabytes(plan.host_bytes)} are free"
    if plan.bytes_host <= USABLE * plan.host_bytes:
        short = f"{gigabytes(plan.bytes_device)} on {plan.device} and {gigabytes(plan.device_bytes)} are free"
    instead = "adapt quickly instead of fully, or " if quick is not None and quick.fits else ""
    return f"Adapting to this case needs about {short}; {instead}close other programs, or crop the volume."


def crop_voxels(card: ModelCard) -> int:
    """Voxels of a training crop, about."""
    if card.network.get("kind") not in ANY_SIZE:
        return math.prod(card.tile)
    return math.prod(min(CROP, edge) for edge in card.tile)


_WIDTH = {"float16": 2, "bfloat16": 2, "float32": 4}


def _held_tiles(model_shape: Sequence[int], card: ModelCard) -> int:
    """Tiles over the held-out slabs."""
    layers = max(1, round(HELD_SHARE / SLABS * model_shape[2]))
    each = len(tile_starts((0, 0, 0), (*model_shape[:2], layers), tuple(model_shape), card.tile,
                           min(card.overlap, 0.25)))
    return max(1, round(SLABS * BODY_SHARE * each))


def _seconds(speed: str, steps: int, crops: int, cases: int, tiles: float, held: int, crop: int, tile: int, kind: str,
             fresh: bool, parameters: int, options: Mapping) -> float:
    base = kind.partition(":")[0]
    threads = max(1, int(options.get("threads") or 1)) if base == "cpu" else 1
    forward = float(options.get("tile_seconds") or 0)
    if not forward:
        more = max(0, parameters - USUAL_PARAMETERS) * tile / PARAMETER_VOXELS
        forward = VOXEL_SECONDS.get(base, 1e-7) * (tile + more) / threads ** 0.8
    scores = math.ceil(steps / (FRESH_EVERY if fresh else EVERY)) + 1
    learned = steps * STEP["full" if fresh else speed] * crop / tile
    if not fresh and options.get("known", True):
        learned += min(CURVE_STEPS, steps) * STEP["full"] * crop / tile + tiles
    drawn = crops if speed == "quick" else steps
    return (forward * (tiles * (cases + 1) + scores * held * SCORE[speed] + learned + crops * KEEP * crop / tile)
            + DRAW * drawn * crop / 1e6)


def _time(minutes: float) -> str:
    """"40 seconds", "3 minutes"."""
    if minutes < 0.75:
        return f"{max(5, round(minutes * 12) * 5)} seconds"
    whole = max(1, round(minutes))
    return f"{whole} minute{'s' if whole != 1 else ''}"
