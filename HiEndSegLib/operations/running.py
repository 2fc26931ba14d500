"""The network over the tiles: half precision, progress, cancellation, and stepping down when memory runs out."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError, OutOfMemoryError
from ..models.card import ModelCard
from ..tasks import CancelToken, Progress
from .devices import free_bytes, half_pays_on_cpu, half_type, is_out_of_memory
from .plan import MemoryPlan, Step, gigabytes
from .scores import ScoreGrid
from .tiling import Index, cut_tile, gaussian_weights

#: On a CPU, half precision is tried out only where there is enough to gain: from this many tiles on.
HALF_TILES = 6
STORAGE = {"float32": torch.float32, "float16": torch.float16}


@dataclass
class TileJob:
    """One network over the tiles of one image.

    image: (I, J, K) float32 on the model lattice, the card's unit. starts: first voxels of the tiles. low, high: the
    box of the model lattice whose scores are kept. precision: "auto", "float32" or "half". say: called with a sentence
    whenever something was done otherwise than planned.
    """

    network: nn.Module
    card: ModelCard
    image: np.ndarray
    starts: Sequence[Index]
    low: Sequence[int]
    high: Sequence[int]
    plan: MemoryPlan
    precision: str
    say: Callable[[str], None]
    progress: Progress
    cancel: CancelToken

    def run(self) -> ScoreGrid:
        """All tiles; the summed scores. `device` and `precision` say afterwards how it went.

        On a device without memory left the tiles still to do are done another way (the plan's steps); those done are
        kept. The network is back on its own device afterwards, whatever happened.
        Raises OutOfMemoryError after the last step, ModelError for scores that are no numbers, Cancelled.
        """
        home = next((p.device for p in self.network.parameters()), None)
        steps = list(self.plan.steps)
        self.device = steps[0].device
        self.used_half = False
        self.weights = torch.from_numpy(gaussian_weights(self.card.tile))
        try:
            with torch.inference_mode():
                return self._all_tiles(steps)
        finally:
            if home is not None and self._moved(home):
                self.network.to(home)

    def _moved(self, home: torch.device) -> bool:
        return next(self.network.parameters()).device != home

    def _all_tiles(self, steps: list[Step]) -> ScoreGrid:
        grid: ScoreGrid | None = None
        done, count = 0, len(self.starts)
        while done < count:
            failure = None
            try:
                if grid is None:
                    grid = self._new_grid(steps[0])
                self._enter(steps[0], grid)
                while done < count:
                    batch = self.starts[done:done + steps[0].tile_batch]
                    self.progress(done / count, f"Tile {done + 1} of {count}")
                    self.cancel.check()
                    scores = self._scores(batch, steps[0])
                    for one, start in zip(scores, batch):
                        grid.add(one, start, self.weights)
                        done += 1
                        self.cancel.check()
                    del scores, one
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error)
            if failure is not None:     # outside the handler, whose traceback would keep the failed call's tensors
                steps = self._step_down(steps, done, grid is None)
        self.progress(1.0, f"{count} tile{'s' if count != 1 else ''} done")
        return grid

    def _new_grid(self, step: Step) -> ScoreGrid:
        device = "cpu" if step.accumulate == "cpu" else place(step.device)
        return ScoreGrid(len(self.card.labels) + 1, self.low, self.high, device=device, dtype=STORAGE[step.storage])

    def _enter(self, step: Step, grid: ScoreGrid) -> None:
        """Put network and scores where the step wants them."""
        self.device = step.device
        self.network.to(place(step.device))
        if step.accumulate == "cpu" and grid.device.type != "cpu":
            grid.move("cpu")
        self.weights = self.weights.to(grid.device)

    def _step_down(self, steps: list[Step], done: int, no_grid: bool) -> list[Step]:
        tried, rest = steps[0], steps[1:]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not no_grid:     # the scores are there already: another number type for them changes nothing
            rest = [step for step in rest if step.storage == tried.storage or step.device != tried.device]
        if not rest:
            raise OutOfMemoryError(
                f"There is not enough memory on {tried.device}: about {gigabytes(self.plan.bytes_host)} are needed and "
                f"{gigabytes(free_bytes('cpu'))} are free; close other programs, or give a region of interest.")
        self.say(f"{tried.device} ran out of memory at tile {done + 1} of {len(self.starts)}; going on with "
                 f"{rest[0].instead_of(tried)}.")
        return rest

    def _scores(self, batch: Sequence[Index], step: Step) -> Tensor:
        """(B, K, I, J, K') float32 scores of tiles, on the step's device."""
        x = torch.from_numpy(np.stack([self._tile(start) for start in batch])).to(place(step.device))
        half = self._half(step, x)
        self.used_half |= half is not None
        with torch.autocast(x.device.type, dtype=half) if half is not None else nullcontext():
            scores = self.network.scores(x).float()
        if half is not None and not _finite(scores):
            self.say(f"The model overflowed in half precision on {step.device}; going on in full precision.")
            self.precision = "float32"
            scores = self.network.scores(x).float()
        self._check(scores, x)
        return scores

    def _half(self, step: Step, x: Tensor) -> torch.dtype | None:
        if self.precision == "float32":
            return None
        if step.device != "cpu":
            return half_type(step.device)
        if self.precision == "half" or len(self.starts) >= HALF_TILES and half_pays_on_cpu(self.network, self._typical):
            return torch.bfloat16
        return None

    def _typical(self) -> Tensor:
        """A tile from the middle of the order, (1, C, I, J, K): the first ones often hold air."""
        start = self.starts[len(self.starts) // 2]
        return torch.from_numpy(self._tile(start)[None])

    def _tile(self, start: Index) -> np.ndarray:
        return cut_tile(self.image, start, self.card.tile, self.card.windows, self.card.curve)

    def _check(self, scores: Tensor, x: Tensor) -> None:
        wanted = (x.shape[0], len(self.card.labels) + 1, *x.shape[2:])
        if tuple(scores.shape) != wanted:
            raise ModelError(f"Model {self.card.id} gave scores of shape {tuple(scores.shape)} where {wanted} was "
                             "expected; its card and its network do not belong together.")
        if not _finite(scores):
            raise ModelError(f"Model {self.card.id} gave scores that are not numbers; its weights are damaged or were "
                             "trained for other intensities.")


def _finite(scores: Tensor) -> bool:
    return bool(torch.isfinite(scores.sum()))       # a NaN or infinity survives the sum; ten times faster than a mask


def place(kind: str) -> torch.device:
    """The torch device of a step; the one place to put a stand-in for a card that is not here."""
    return torch.device(kind)
