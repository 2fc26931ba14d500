"""The training loop of adaptation: a few hundred steps, looked at on held-out slabs, the best of them kept.

quick: the network's front (ViT and convolutional pyramid) is frozen, and what it gives for augmented crops is kept and
used again; the middle learns through low-rank adapters, the head whole. full: everything learns on fresh crops.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..models.card import ModelCard
from ..networks import low_rank
from ..networks.mask_head import HeadOutput, QueryPrediction
from ..networks.objective import maskmed_loss, sampled_scores, sublattice, teaching_loss, teaching_mask_loss
from ..networks.stages import Stages, recompute_blocks
from ..tasks import CancelToken, Progress, Record
from .adapt_case import OPEN, Case, runs, winners
from .adapt_crops import CropSampler, crop_size
from .adapt_recipe import Recipe
from .scores import ScoreGrid
from .tiling import cut_tile, gaussian_weights, overlap_slices, tile_starts

#: Seconds between two "step" records.
RECORD_EVERY = 0.3
#: Dice from which a new structure has appeared.
BORN = 0.3


@dataclass
class Score:
    """On the held-out voxels of the case. dice: class -> Dice or None. agreement: of protected structures with the
    parent, mean. value: what steps are compared by."""

    step: int
    dice: dict[int, float | None]
    mean: float | None
    agreement: float | None
    value: float


@dataclass
class Outcome:
    """best_step 0: nothing was learned that helps. steps: done. stopped: "end", "early" or "asked"."""

    best_step: int
    steps: int
    stopped: str
    replaced: dict[str, Tensor]
    factors: dict[str, tuple[Tensor, Tensor]]
    scores: list[Score]


@dataclass
class _Kept:
    """A crop ready for training. given: what the part that learns takes. parent: the parent's scores, (K', V).
    drawn: (V,) at those voxels. whole: everywhere, where the loss wants it."""

    given: list[Tensor]
    drawn: Tensor
    parent: Tensor
    case: Case
    offset: tuple[int, int, int]
    whole: Tensor | None


class Training:
    """One adaptation of `network` (changed in place; merged and frozen after `run`). parent: what it started from."""

    def __init__(self, network: nn.Module, config: Mapping, card: ModelCard, cases: Sequence[Case],
                 parent: nn.Module, parent_config: Mapping, *, speed: str, recipe: Recipe, changed: Sequence[str],
                 taught: Sequence[int], ids: Mapping[int, str], device: torch.device, half: torch.dtype | None,
                 seed: int, checkpointing: bool, record: Record, progress: Progress, cancel: CancelToken,
                 clock: Callable[[], float] = time.monotonic):
        self.network, self.card, self.case, self.recipe = network, card, cases[0], recipe
        self.quick, self.taught, self.ids, self.device, self.half = speed == "quick", taught, ids, device, half
        self.record, self.progress, self.cancel, self.clock = record, progress, cancel, clock
        self.classes = int(network.num_classes)
        self.new = [number for number in taught if number >= int(parent.num_classes)]
        self.fresh = int(parent.num_classes) == 1               # made from an encoder: it knew the background alone
        self.stages = Stages(network, config, fresh=self.fresh)
        self.parent = Stages(parent, parent_config, fresh=self.fresh)
        self.sampler = CropSampler(cases, card, crop_size(card, self.stages, recipe.crop), seed,
                                   spread=recipe.spread, bend=recipe.bend, scale=recipe.scale)
        self.rng = np.random.default_rng(seed + 1)
        self.kept: list[_Kept] = []
        self.scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
        network.to(device).train()
        parent.to(device).eval()
        self._choose_parameters(changed, torch.Generator().manual_seed(seed))
        recompute_blocks(network, checkpointing)
        self.start = [parameter.detach().clone() for _, parameter in self.trained]
        self.average = [parameter.detach().clone() for _, parameter in self.trained]
        self.updates = 0
        self.held = self._held_tiles()

    # -------------------------------------------------------------------------------------------- what learns

    def _choose_parameters(self, changed: Sequence[str], generator: torch.Generator) -> None:
        recipe, stages = self.recipe, self.stages
        self.network.requires_grad_(False)
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        self.trained: list[tuple[str, nn.Parameter]] = []
        if self.quick:
            low_rank.attach(self.network, low_rank.adaptable(self.network, stages.middle), recipe.rank,
                            generator=generator)
        for name, parameter in self.network.named_parameters():
            if _inside(name, stages.last):
                place = "last"
            elif _inside(name, (stages.vit_part,)):
                place = "vit"
            else:
                place = "middle"
            if name.endswith("parametrizations.weight.original") or (
                    self.quick and _inside(name, stages.front_parts) and name not in changed):
                continue
            parameter.requires_grad_(True)
            self.trained.append((name, parameter))
            groups.setdefault((place, parameter.dim() > 1), []).append(parameter)
        rates = {"last": recipe.lr, "middle": recipe.lr_middle, "vit": recipe.lr_middle * recipe.lr_vit}
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rates[place], "peak": rates[place], "weight_decay": 0.02 if decayed else 0.0}
             for (place, decayed), parameters in groups.items()], betas=(0.9, 0.98))

    # -------------------------------------------------------------------------------------------- steps

    def run(self) -> Outcome:
        """Train, keep the best, merge. Raises Cancelled."""
        recipe, begin, told = self.recipe, self.clock(), 0.0
        scores = [self.score(0)]
        best, best_state, stopped, step = scores[0], self._state(), "end", 0
        self._tell(scores[0], not self.fresh)
        while step < recipe.steps:
            self.progress(step / recipe.steps, f"Step {step + 1} of {recipe.steps}")
            loss = self._step(step)
            step += 1
            if self.clock() - told >= RECORD_EVERY or step == recipe.steps:
                told = self.clock()
                self.record({"kind": "step", "step": step, "of": recipe.steps, "loss": loss,
                             "seconds": round(told - begin, 2)})
            asked = self.cancel.finishing
            if asked or step % recipe.every == 0 or step == recipe.steps:
                scores.append(self.score(step))
                if scores[-1].value > best.value or scores[-1].mean is None:
                    best, best_state = scores[-1], self._state()
                self._tell(scores[-1], scores[-1] is best)
                if asked or self._no_gain(scores, best):
                    stopped = "asked" if asked else "early"
                    break
        self.kept.clear()
        return self._finish(best.step, step, stopped, best_state, scores)

    def _no_gain(self, scores: list[Score], best: Score) -> bool:
        """Whether the last scores say that more steps are in vain; a new structure takes its time to appear at all."""
        since = sum(1 for score in scores if score.step > best.step)
        unborn = any((scores[-1].dice[number] or 0.0) < BORN and scores[0].dice[number] is not None
                     for number in self.new)
        return since >= self.recipe.patience * (3 if unborn else 1)

    def _step(self, step: int) -> float:
        recipe = self.recipe
        share = min(1.0, (step + 1) / recipe.warmup) * (
            0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        chosen = [self._crop() for _ in range(recipe.batch)]
        given = self._placed([torch.cat(parts) for parts in zip(*(crop.given for crop in chosen))])
        self.cancel.check()
        with self._autocast():
            out = self.stages.rest(given) if self.quick else self.stages.whole(given[0])
        self.cancel.check()
        loss = self._loss(out, chosen)
        del out
        self.optimizer.zero_grad(set_to_none=True)
        self.cancel.check()
        self.scaler.scale(loss).backward()
        self.cancel.check()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.trained], 1.0)
        if self.scaler.is_enabled() or bool(torch.isfinite(norm)):
            self.scaler.step(self.optimizer)
            self._update_average()
        self.scaler.update()
        return float(loss.detach())

    def _loss(self, out, chosen: list[_Kept]) -> Tensor:
        losses = []
        if self.fresh and isinstance(out, HeadOutput):
            # From scratch the queries first have to agree who is who.
            return maskmed_loss(out, torch.stack([self._possible(crop.whole) for crop in chosen]),
                                offset=chosen[0].offset)["loss"]
        for row, crop in enumerate(chosen):
            one = _row(out, row)
            scores, logits = sampled_scores(one, crop.offset)
            drawn = crop.drawn.to(self.device)
            silent = [number for number in self.taught if number not in crop.case.asked]
            loss = teaching_loss(scores[0], drawn, crop.parent.to(self.device).float(), crop.case.asked, silent,
                                 hold=self.recipe.hold)
            if logits is not None and self.recipe.masks:
                loss = loss + self.recipe.masks * teaching_mask_loss(one.final.class_logits[0], logits[0], drawn,
                                                                     crop.case.asked)
            losses.append(loss)
        return torch.stack(losses).mean()

    def _possible(self, drawn: Tensor) -> Tensor:
        """Bit sets of a drawing that is complete but for what is open."""
        drawn = drawn.to(self.device).long()
        return torch.where(drawn == OPEN, (1 << self.classes) - 1, 1 << drawn.clamp_max(self.classes - 1))

    def _crop(self) -> _Kept:
        """A crop with what the parent says of it; one of those kept as soon as there are enough (quick)."""
        if self.quick and len(self.kept) >= self.recipe.crops:
            return self.kept[int(self.rng.integers(len(self.kept)))]
        crop = self.sampler.draw()
        self.cancel.check()
        x = crop.x[None].to(self.device)
        with torch.no_grad(), self._autocast():
            if self.quick:
                given = self.stages.front(x)
                self.cancel.check()
                said = self.parent.rest(given)
                given = [t.to("cpu", torch.bfloat16) for t in given]        # half the memory, in main memory
            else:
                given, said = [x], self.parent.whole(x)
            parent = sampled_scores(said, crop.offset)[0][0].to("cpu", torch.float16)
        kept = _Kept(given, sublattice(crop.drawn, crop.offset).flatten(), parent, crop.case, crop.offset,
                     crop.drawn if self.fresh else None)
        if self.quick:
            self.kept.append(kept)
        return kept

    @torch.no_grad()
    def _front(self, x: Tensor) -> list[Tensor]:
        """The frozen front's maps, as they are kept."""
        with self._autocast():
            return [t.to("cpu", torch.bfloat16) for t in self.stages.front(x)]

    def _placed(self, given: Sequence[Tensor]) -> list[Tensor]:
        """On the device, in the number type that the front's results would have had there."""
        return [t.to(self.device, self.half or torch.float32) for t in given]

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=self.half) if self.half is not None else nullcontext()

    @torch.no_grad()
    def _update_average(self) -> None:
        self.updates += 1
        decay = min(self.recipe.ema, (1 + self.updates) / (10 + self.updates))
        for mine, (_, theirs) in zip(self.average, self.trained):
            mine.lerp_(theirs, 1 - decay)

    def _state(self) -> list[Tensor]:
        """What would be kept now: between the weights at the start and their average (`Recipe.blend`)."""
        blend = 1.0 if self.new or self.fresh else self.recipe.blend
        # Of the two factors of an adapter one carries the blend; the other alone changes nothing.
        return [mine.clone() if name.endswith("weight.0.a") else start.lerp(mine, blend)
                for mine, start, (name, _) in zip(self.average, self.start, self.trained)]

    @contextmanager
    def _in_use(self, state: list[Tensor]) -> Iterator[None]:
        """These weights instead of those that learn."""
        keep = [parameter.detach().clone() for _, parameter in self.trained]
        try:
            self._put(state)
            yield
        finally:
            self._put(keep)

    @torch.no_grad()
    def _put(self, state: list[Tensor]) -> None:
        for value, (_, parameter) in zip(state, self.trained):
            parameter.copy_(value)

    # -------------------------------------------------------------------------------------------- scores

    def _held_tiles(self) -> list[tuple[tuple, tuple, list]]:
        """(low, high, [(start, what the trained part takes)]) of every held-out slab."""
        lattice, tile, slabs = self.case.lattice, self.card.tile, []
        for first, last in runs(self.case.held):
            low, high = (*lattice.low[:2], first), (*lattice.high[:2], last)
            tiles = []
            for start in tile_starts(low, high, lattice.image.shape, tile, min(self.card.overlap, 0.25)):
                shared = overlap_slices(start, tile, low, high)
                if shared is None or not lattice.body[tuple(
                        slice(s.start + a, s.stop + a) for s, a in zip(shared[1], low))].any():
                    continue
                self.cancel.check()
                x = torch.from_numpy(cut_tile(lattice.image, start, tile, self.card.windows, self.card.curve)[None])
                tiles.append((start, self._front(x.to(self.device)) if self.quick else [x]))
            slabs.append((low, high, tiles))
        return slabs

    @torch.no_grad()
    def score(self, step: int) -> Score:
        """Dice and agreement on the held-out slabs of what would be kept now."""
        case, counts = self.case, np.zeros((3, self.classes))
        agree = np.zeros((3, self.classes))
        weights = torch.from_numpy(gaussian_weights(self.card.tile)).to(self.device)
        self.network.eval()
        with self._in_use(self._state()):
            for low, high, tiles in self.held:
                grid = ScoreGrid(self.classes, low, high, device=self.device)
                for start, given in tiles:
                    self.cancel.check()
                    given = self._placed(given)
                    with self._autocast():
                        out = self.stages.rest(given) if self.quick else self.stages.whole(given[0])
                        scores = self.stages.scores(out)
                    grid.add(scores[0].float(), start, weights)
                box = tuple(slice(a, b) for a, b in zip(low, high))
                found = winners(grid, case.lattice.body[box])
                drawn, parent = case.drawn[box], case.answer[box]
                known = drawn != OPEN
                protected = known & ~np.isin(drawn, self.taught) & ~np.isin(parent, self.taught)
                counts += _overlaps(found, drawn, known, self.classes)
                agree += _overlaps(found, parent, protected, self.classes)
        self.network.train()
        taught = {number: _dice(counts[:, number], counts[1, number]) for number in self.taught}
        measured = [value for value in taught.values() if value is not None]
        others = [_dice(agree[:, n], agree[1, n]) for n in range(1, self.classes) if n not in self.taught]
        others = [value for value in others if value is not None]
        mean = float(np.mean(measured)) if measured else None
        agreement = float(np.mean(others)) if others else None
        value = (mean or 0.0) - self.recipe.protect * (1 - (1.0 if agreement is None else agreement))
        if self.fresh and step == 0:
            value = float("-inf")                       # random weights are nothing to fall back on
        return Score(step, taught, mean, agreement, value)

    def _tell(self, score: Score, best: bool) -> None:
        self.record({"kind": "score", "step": score.step, "mean": score.mean, "agreement": score.agreement,
                     "best": best, "dice": {self.ids[number]: value for number, value in score.dice.items()}})

    # -------------------------------------------------------------------------------------------- the end

    @torch.no_grad()
    def _finish(self, best_step: int, steps: int, stopped: str, state: list[Tensor], scores: list[Score]) -> Outcome:
        self._put(state)
        factors = {name: (a.cpu(), b.cpu()) for name, (a, b) in low_rank.factors(self.network).items()}
        replaced = {name: parameter.detach().cpu().clone() for name, parameter in self.trained
                    if ".parametrizations." not in name}
        low_rank.merge(self.network)
        recompute_blocks(self.network, False)
        self.network.eval().requires_grad_(False)
        if best_step == 0:
            factors = {}
        return Outcome(best_step, steps, stopped, replaced, factors, scores)


def _overlaps(found: np.ndarray, true: np.ndarray, where: np.ndarray, classes: int) -> np.ndarray:
    """(3, classes): voxels found, true and both, of every class, over `where`."""
    found, true = found[where].astype(np.int64), true[where].astype(np.int64)
    true = np.minimum(true, classes - 1) if true.size and true.max() >= classes else true
    count = [np.bincount(values, minlength=classes)[:classes] for values in (found, true, found[found == true])]
    return np.array(count, dtype=float)


def _dice(counts: np.ndarray, true: float, least: int = 20) -> float | None:
    return float(2 * counts[2] / (counts[0] + counts[1])) if true >= least else None


def _row(out, row: int):
    """One sample of an answer, as a batch of one."""
    if isinstance(out, HeadOutput):
        return HeadOutput([QueryPrediction(p.class_logits[row:row + 1], p.mask_embeddings[row:row + 1])
                           for p in out.predictions[-1:]], out.mask_features.sample(row), out.queries[row:row + 1])
    return out[row:row + 1]


def _inside(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)
