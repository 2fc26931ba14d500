"""Adapt: one labeled case teaches a model; what changed comes back, beside scores on voxels kept out of training.

Only the structures asked for are taught; of all others the model's own answer is the target. The model given is never
changed and nothing is written here: `models.versions` keeps the result.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from typing import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, OptionError, OutOfMemoryError
from ..geometry.body import AIR_HU
from ..geometry.labels import Label
from ..geometry.resample import resample_like
from ..geometry.volume import Volume, check_volume
from ..models.card import ModelCard
from ..models.loading import Model
from ..models.teaching import TeachingCase, case_fingerprint, without
from ..networks.grow import grow
from ..tasks import CancelToken, Progress, Record, no_progress, no_record, subprogress
from .adapt_case import (
    OPEN,
    Case,
    Lattice,
    answer_of,
    class_map,
    held_out_layers,
    labels_on,
    on_model_lattice,
    runs,
    whole_scores,
)
from .adapt_calibrate import CURVE_GAIN, WELL, fit_curve, mean_dice
from .adapt_checks import look_at_labels
from .adapt_loop import Outcome, Training
from .adapt_recipe import Recipe, recipe_for, with_steps
from .adapt_report import make_report, mean_loss, protected_rows
from .devices import choose_device, cpu_has_bfloat16, cpu_threads, free_bytes, half_type, is_out_of_memory
from .peak import peak_memory
from .plan import gigabytes

#: Bit sets (`networks.matching`) hold no more structures.
FIRST_CLASSES = 61
#: Share of the progress bar at which each stage ends.
STAGES = {"prepare": 0.02, "parent": 0.07, "curve": 0.33, "curve's answer": 0.37, "teach": 0.93, "after": 0.99}


@dataclass
class Adapted:
    """What an adaptation gives.

    network_config, labels: for the new card. replaced, low_rank: changes relative to the model given: whole tensors,
    and factors (a, b) with W + (b @ a).reshape(W.shape). network: the new one, merged, in eval mode, where the model
    was. report: scores before and after (see `adapt_report`), ready for JSON. better: whether the taught structures
    gained on voxels kept out of training. curve: of the new card, see `geometry.curve`. teaching_case: this case as
    the next adaptation may meet it again.
    """

    network_config: dict
    labels: list[Label]
    replaced: dict[str, Tensor]
    low_rank: dict[str, tuple[Tensor, Tensor]]
    network: nn.Module
    report: dict
    messages: list[str]
    better: bool
    curve: list[list[float]]
    teaching_case: TeachingCase


def adapt(model: Model, volume: Volume, labels: Volume, legend: Sequence[Label], *, structures: Sequence[str],
          device: str = "auto", speed: str = "auto", steps: int | None = None, seed: int = 0, precision: str = "auto",
          threads: int | None = None, memory_limit: int | None = None, sides: str = "ask",
          teaching: Sequence[TeachingCase] = (), record: Record = no_record, progress: Progress = no_progress,
          cancel: CancelToken | None = None, recipe: Recipe | None = None) -> Adapted:
    """Teach `structures` (ids of the legend; those the model does not know are new) from one case.

    labels: uint8 values of the legend on any lattice, 255 = not annotated. speed: "quick", "full" or "auto" (quick on
    a CPU). steps: at most (default: the recipe's). sides: what to do where left and right look swapped against the
    model's own answer: "keep" as drawn, "swap", or "ask". precision: "auto", "float32" or "half". teaching: earlier
    cases, so that they are not forgotten. record: gets {"kind": "step", …} and {"kind": "score", …}. recipe: instead
    of the speed's own. The same seed gives the same result on the same CPU with the same number of threads.
    `cancel.finish()` ends with the best so far.

    Raises InputError, OptionError (with code "swapped-sides" where `sides` asks), DeviceError, OutOfMemoryError,
    Cancelled.
    """
    begin = time.monotonic()
    job = _Job(model, progress, record, cancel or CancelToken())
    job.check_options(structures, legend, speed, sides, precision, steps)
    volume, labels = job.check_input(volume, labels)
    with cpu_threads(threads) as count, peak_memory() as peak, torch.random.fork_rng(devices=[]), job.memory_in_words():
        torch.manual_seed(seed)
        kind = choose_device(device).kind
        speed = ("quick" if kind == "cpu" else "full") if speed == "auto" else speed
        job.set_device(kind, precision, memory_limit)
        job.prepare(volume, labels, sides)
        job.see_parent()
        recipe = with_steps(recipe or recipe_for(speed, job.old_classes == 1), steps)
        job.make_cases(teaching, volume)
        job.match_grey_values(recipe, seed)
        outcome = job.teach(speed, recipe, seed)
        after = job.see_after()
    report = make_report(job.new_card, job.drawn_all, job.case, job.answer, after, job.taught, job.old_classes)
    report = {"speed": speed, "device": kind, "precision": "half" if job.half is not None else "float32", "seed": seed,
              "threads": count, "steps": outcome.steps, "best_step": outcome.best_step,
              "seconds": round(time.monotonic() - begin, 1), "stopped": outcome.stopped, **report,
              "held_out_mm": job.held_out_mm(), "peak_memory_bytes": peak.bytes,
              "peak_device_bytes": job.peak_device_bytes(), "parameters": recipe.to_dict(),
              "grey_values": job.grey_values, "teaching_cases": len(job.cases) - 1}
    if outcome.best_step == 0 and not job.curved:
        report["better"] = False
    job.say(report["sentence"])
    job.report(1.0, "Done")
    return Adapted(job.config, list(job.new_card.labels), outcome.replaced if outcome.best_step else job.grown_only(),
                   outcome.factors, job.network.to(model.device), report, job.messages, report["better"],
                   job.new_card.curve, job.teaching_case(volume))


@dataclass
class _Job:
    """One call of `adapt`: the stages in order, and what they say."""

    model: Model
    progress: Progress
    record: Record
    cancel: CancelToken
    messages: list[str] = field(default_factory=list)
    _fraction: float = 0.0

    # ------------------------------------------------------------------------------------------ saying

    def say(self, sentence: str) -> None:
        if sentence not in self.messages:
            self.messages.append(sentence)

    def report(self, fraction: float, message: str) -> None:
        self._fraction = max(self._fraction, min(fraction, 1.0))
        self.progress(self._fraction, message)

    def stage(self, name: str) -> Progress:
        names = list(STAGES)
        before = STAGES[names[names.index(name) - 1]] if name != names[0] else 0.0
        return subprogress(self.report, before, STAGES[name])

    def memory_in_words(self):
        return _MemoryInWords(self)

    # ------------------------------------------------------------------------------------------ checks

    def check_options(self, structures, legend, speed, sides, precision, steps) -> None:
        card = self.model.card
        if isinstance(structures, str):
            structures = [structures]
        self.legend = {label.id: label for label in legend}
        self.structures = list(dict.fromkeys(structures))
        if not self.structures:
            raise OptionError("No structure was chosen to be taught; choose at least one.")
        for name in self.structures:
            if name not in self.legend:
                raise OptionError(f"The labels have no structure '{name}'; they have {', '.join(self.legend)}.")
        for value, choices, what in ((speed, ("auto", "quick", "full"), "speed"), (sides, ("ask", "keep", "swap"),
                                     "way to treat sides"), (precision, ("auto", "float32", "half"), "precision")):
            if value not in choices:
                raise OptionError(f"There is no {what} '{value}'; choose {', '.join(choices[:-1])} or {choices[-1]}.")
        if steps is not None and steps < 1:
            raise OptionError(f"The number of steps must be 1 or more, and it is {steps}.")
        known = {label.id: label.value for label in card.labels}
        new = [name for name in self.structures if name not in known]
        self.old_classes = len(card.labels) + 1
        if self.old_classes == 1 and len(new) > FIRST_CLASSES:
            raise OptionError(f"A model made from an encoder can start with up to {FIRST_CLASSES} structures, and "
                              f"{len(new)} are chosen; leave some out.")
        if self.old_classes + len(new) > OPEN:
            raise OptionError(f"The model would have {self.old_classes + len(new) - 1} structures, and a label map "
                              f"holds {OPEN - 1}; teach fewer new ones.")
        grown = [replace(self.legend[name], value=self.old_classes + row) for row, name in enumerate(new)]
        self.new_card: ModelCard = replace(card, labels=[*card.labels, *grown])
        self.numbers = {label.id: label.value for label in self.new_card.labels}
        self.taught = [self.numbers[name] for name in self.structures]

    def check_input(self, volume: Volume, labels: Volume) -> tuple[Volume, Volume]:
        known = len(volume.notes)
        volume = check_volume(volume)
        for note in volume.notes[known:]:
            self.say(note)
        labels = check_volume(labels)
        if labels.array.dtype != np.uint8:
            if labels.array.dtype.kind == "f" and (labels.array % 1).any() or labels.array.min() < 0 \
                    or labels.array.max() > OPEN:
                raise InputError(f"{labels.name or 'The label map'} does not hold whole numbers from 0 to 255; give a "
                                 "label map, not an image.")
            labels = labels.with_array(labels.array.astype(np.uint8))
        if not volume.same_lattice(labels, 1e-3):
            self.say(f"The labels lie on another lattice ({' x '.join(map(str, labels.shape))}) than the volume "
                     f"({' x '.join(map(str, volume.shape))}) and were brought to the volume's.")
            beyond = int(labels.meta.get("beyond", OPEN))
            labels = resample_like(labels, volume, order=0, fill=beyond)
            if not np.isin(labels.array, (0, OPEN), invert=True).any():
                raise InputError("What is drawn lies outside the volume; choose the volume that it was drawn on.")
        for finding in look_at_labels(labels.array, None, list(self.legend.values()), self.model.card,
                                      volume.spacing, self.structures):
            if finding.blocking:
                raise OptionError(finding.sentence)
        return volume, labels

    def set_device(self, kind: str, precision: str, memory_limit: int | None) -> None:
        self.kind = kind
        self.host_bytes = min(free_bytes("cpu"), memory_limit or 1 << 62)
        self.device_bytes = self.host_bytes if kind == "cpu" else free_bytes(kind)
        self.half = None
        if precision != "float32":
            if kind == "cpu":
                # By what the processor has, not by a stopwatch: the same seed must give the same result.
                self.half = torch.bfloat16 if cpu_has_bfloat16() or precision == "half" else None
            else:
                self.half = half_type(kind)
        if kind.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(torch.device(kind))

    # ------------------------------------------------------------------------------------------ stages

    def prepare(self, volume: Volume, labels: Volume, sides: str) -> None:
        progress, card = self.stage("prepare"), self.model.card
        progress(0.0, "Preparing the case")
        self.cancel.check()
        self.lattice = on_model_lattice(volume, card)
        if card.modality == "CT" and not self.lattice.is_hu:
            self.say("The volume does not look like a CT in Hounsfield units, which this model was made for.")
        if not self.lattice.body.any():
            raise InputError(f"There is no body in this volume: nothing in it is heavier than air ({AIR_HU:g} HU); "
                             "give the volume that the labels were drawn on.")
        self.cancel.check()
        self.labels = labels_on(self.lattice, labels)
        self.sides = sides
        self.cancel.check()

    def see_parent(self) -> None:
        """The parent's own answer on the case; swapped sides are found by it."""
        grid = self._scores(self.model.network, self.model.card, self.lattice, "parent")
        self.answer = answer_of(grid, self.lattice)
        del grid
        found = [f for f in look_at_labels(self.labels, self.answer, list(self.legend.values()), self.model.card,
                                           self.model.card.spacing, self.structures)
                 if f.kind in ("swapped", "no-overlap", "unchanged")]
        swapped: set[str] = set()
        for finding in sorted(found, key=lambda finding: finding.kind != "swapped"):
            if finding.kind != "swapped":
                if not swapped & set(finding.ids):          # was said of them before they were swapped
                    self.say(finding.sentence)
            elif self.sides == "ask":
                raise OptionError(finding.sentence, code="swapped-sides")
            elif self.sides == "swap":
                self._swap_sides(*finding.ids)
                swapped |= set(finding.ids)
        values = {label.value: self.numbers[name] for name, label in self.legend.items() if name in self.numbers}
        self.drawn_all = class_map(self.labels, values)             # every structure that the new model knows
        drawn = class_map(self.labels, {self.legend[name].value: self.numbers[name] for name in self.structures})
        self.drawn = np.where((drawn == 0) & (self.drawn_all == OPEN), OPEN, drawn).astype(np.uint8)
        for name in self.structures:
            if not (self.drawn == self.numbers[name]).any():
                raise OptionError(f"{self.legend[name].name} is too thin to be seen at the model's spacing of "
                                  f"{self.model.card.spacing[0]:g} mm; leave it out, or draw more of it.")

    def _swap_sides(self, left: str, right: str) -> None:
        pair = [self.legend[name].value if name in self.legend else None for name in (left, right)]
        if None in pair:
            have, lack = (left, right) if pair[1] is None else (right, left)
            raise OptionError(f"{self.legend[have].name} is to become the other side, and the labels have no {lack}; "
                              "name the segment after the side it is on.")
        table = np.arange(256, dtype=np.uint8)
        table[pair] = pair[::-1]
        self.labels = table[self.labels]
        self.say(f"{self.legend[left].name} and {self.legend[right].name} were swapped, as asked.")

    def make_cases(self, teaching: Sequence[TeachingCase], volume: Volume) -> None:
        card = self.model.card
        earlier = [case for case in teaching if np.allclose(case.spacing, card.spacing, rtol=0.01)]
        if len(earlier) < len(teaching):
            self.say(f"{len(teaching) - len(earlier)} earlier case(s) have another spacing than the model and were "
                     "left out.")
        self.fingerprint = case_fingerprint(volume)
        same = [case for case in earlier if case.fingerprint == self.fingerprint]
        earlier = [case for case in earlier if case.fingerprint != self.fingerprint] + \
            [rest for rest in (without(case, self.structures) for case in same) if rest is not None]
        held = held_out_layers(np.where(self.drawn == OPEN, 0, self.drawn), self.taught)
        for case in same:                                   # what was kept out once must not be trained on now
            if case.image.shape == self.lattice.image.shape:
                for first, last in case.held_out:
                    held[first:last] = True
        self.case = Case(self.lattice, self.drawn, self.answer, held, tuple(self.taught))
        self.cases: list[Case] = [self.case]
        for case in earlier:
            made = self._earlier_case(case)
            if made is not None:
                self.cases.append(made)
        for case in self.cases[1:]:
            case.weight = 1.0 / (len(self.cases) - 1)       # as often all together as the new one

    def _earlier_case(self, case: TeachingCase) -> Case | None:
        values = {value: self.numbers[name] for value, name in case.ids.items() if name in self.numbers}
        if not values:
            return None
        matrix = np.diag([*self.model.card.spacing, 1.0])
        lattice = on_model_lattice(Volume(case.image, matrix, "earlier case", {"modality": self.model.card.modality}),
                                   self.model.card)
        if lattice.image.shape != case.image.shape or not lattice.body.any():
            return None
        held = np.zeros(case.image.shape[2], dtype=bool)
        for first, last in case.held_out:
            held[first:last] = True
        drawn = class_map(case.labels, values)
        return Case(lattice, drawn, np.zeros_like(drawn), held, tuple(sorted(set(values.values()))))

    def match_grey_values(self, recipe: Recipe, seed: int) -> None:
        """A curve for the card, if with it the parent finds what it knows better on layers kept out of training, by
        more than what is not taught (or was taught by earlier cases) loses."""
        self.grey_values, self.curved = None, False
        known = [number for number in self.taught if number < self.old_classes]
        before = mean_dice(self.case, self.answer, known)
        if not recipe.curve_steps or before is None or before >= WELL:
            return
        network = copy.deepcopy(self.model.network).float()
        points = fit_curve(network, self.model.card, self.case, known, recipe=recipe, seed=seed,
                           device=torch.device(self.kind), half=self.half, checkpointing=self._memory_is_short(),
                           progress=self.stage("curve"), cancel=self.cancel)
        tried = replace(self.model.card, curve=points)
        answer = answer_of(self._scores(network, tried, self.lattice, "curve's answer"), self.lattice)
        after = mean_dice(self.case, answer, known)
        lost = mean_loss(protected_rows(self.new_card, self.drawn_all, self.case, self.answer, answer, self.taught,
                                        self.old_classes)) + self._lost_of_earlier(network, tried)
        self.curved = after - before - recipe.protect * lost >= CURVE_GAIN
        self.grey_values = {"points": points, "dice_before": round(before, 4), "dice_after": round(after, 4),
                            "others_lost": round(lost, 4), "kept": self.curved}
        if not self.curved and after - before >= CURVE_GAIN:
            self.say("Matching the grey values of this scan would have helped what is taught, and other structures "
                     "would have lost more by it, so it was left out.")
        if self.curved:
            self.say("The grey values of this scan are now matched to those that the model knows; that alone changed "
                     f"Dice on slices kept out of training from {before:.2f} to {after:.2f}.")
            self.new_card = replace(self.new_card, curve=points)
            self.case = self.cases[0] = replace(self.case, answer=answer)

    def _lost_of_earlier(self, network: nn.Module, tried: ModelCard) -> float:
        """Mean Dice that structures of earlier cases lose by a curve on what was held out of those."""
        losses = []
        for case in self.cases[1:]:
            asked = [number for number in case.asked if number < self.old_classes]
            found = [mean_dice(case, answer_of(self._scores(network, card, case.lattice, "curve's answer"),
                                               case.lattice), asked) for card in (self.model.card, tried)]
            if None not in found:
                losses.append(found[0] - found[1])
        return max(0.0, float(np.mean(losses))) if losses else 0.0

    def teach(self, speed: str, recipe: Recipe, seed: int) -> Outcome:
        generator = torch.Generator().manual_seed(seed)
        parent = copy.deepcopy(self.model.network).float()
        self.network, self.config, self.changed = grow(parent, self.model.card.network, self._seeds(),
                                                       generator=generator)
        ids = {label.value: label.id for label in self.new_card.labels}
        training = Training(
            self.network, self.config, self.new_card, self.cases, parent, self.model.card.network, speed=speed,
            recipe=recipe, changed=self.changed, taught=self.taught, ids=ids, device=torch.device(self.kind),
            half=self.half, seed=seed, checkpointing=self._memory_is_short(), record=self.record,
            progress=self.stage("teach"), cancel=self.cancel)
        return training.run()

    def _seeds(self) -> list[int]:
        """For each new class the class the parent sees most in its place."""
        seeds = []
        for number in range(self.old_classes, len(self.new_card.labels) + 1):
            seeds.append(int(np.bincount(self.answer[self.drawn == number], minlength=1).argmax()))
        return seeds

    def _memory_is_short(self) -> bool:
        return self.device_bytes < 4_000_000_000

    def see_after(self) -> np.ndarray:
        grid = self._scores(self.network, self.new_card, self.lattice, "after")
        return answer_of(grid, self.lattice)

    def _scores(self, network: nn.Module, card: ModelCard, lattice: Lattice, stage: str):
        return whole_scores(network, card, lattice, self.kind, self.device_bytes, self.host_bytes,
                            "half" if self.half is not None else "float32", self.say, self.stage(stage), self.cancel)

    # ------------------------------------------------------------------------------------------ the result

    def grown_only(self) -> dict[str, Tensor]:
        """What a model with new classes that learned nothing is: the tensors whose shape changed."""
        state = self.network.state_dict()
        return {name: state[name].detach().cpu().clone() for name in self.changed}

    def held_out_mm(self) -> list[list[float]]:
        """Where the held-out slabs lie along S, mm."""
        matrix = self.lattice.ijk_to_ras
        return [[round(float(matrix[2, 2] * (k - 0.5) + matrix[2, 3]), 1) for k in run] for run in runs(self.case.held)]

    def peak_device_bytes(self) -> int:
        return int(torch.cuda.max_memory_allocated(torch.device(self.kind))) if self.kind.startswith("cuda") else 0

    def teaching_case(self, volume: Volume) -> TeachingCase:
        image = np.clip(np.rint(self.lattice.image), -32768, 32767).astype(np.int16)
        ids = {self.numbers[name]: name for name in self.structures}
        return TeachingCase(self.fingerprint, image, self.drawn, ids, tuple(self.model.card.spacing),
                            tuple(runs(self.case.held)))


class _MemoryInWords:
    """Memory that runs out becomes a sentence."""

    def __init__(self, job: _Job):
        self.job = job

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and isinstance(error, (MemoryError, RuntimeError)) and is_out_of_memory(error):
            where = getattr(self.job, "kind", "cpu")
            raise OutOfMemoryError(
                f"Memory ran out on {where} ({gigabytes(free_bytes(where))} are free now); close other programs, adapt "
                "quickly instead of fully, or choose the device cpu.") from error
