"""Before and after, on voxels kept out of training: the numbers of an adaptation and the sentence that sums them up."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from ..models.card import ModelCard
from .adapt_case import HELD_VOXELS, OPEN, Case
from .adapt_scores import dice, surface_distance

#: The mean Dice of the taught structures must gain this much to count as better.
GAIN = 0.005
#: A protected structure got worse when it lost this much Dice against the person's drawing, or, where it is not drawn,
#: when it agrees less than this with the parent's own answer.
LOSS, AGREEMENT = 0.01, 0.95
#: In fewer voxels than this of the parent's answer, agreement says nothing.
FEW = 100


def make_report(card: ModelCard, drawn: np.ndarray, case: Case, before: np.ndarray, after: np.ndarray,
                taught: Sequence[int], old_classes: int) -> dict:
    """The scores of a report. card: the new one. drawn: every structure the person drew, as classes, 255 = open.
    before, after: the parent's and the new model's answers on the model's lattice.
    """
    spacing = card.spacing
    annotated = case.drawn != OPEN
    held = annotated & case.held
    rows = []
    for number in taught:
        label = card.label(number)
        true = case.drawn == number
        new = number >= old_classes
        count = int(np.count_nonzero(true & held))
        row = {"id": label.id, "name": label.name, "new": new, "voxels": int(np.count_nonzero(true)),
               "held_out_voxels": count, "dice_before": None, "dice_after": None, "surface_before_mm": None,
               "surface_after_mm": None}
        if count >= HELD_VOXELS:
            row["dice_after"] = _round(dice(after == number, true, held))
            row["surface_after_mm"] = _round(surface_distance((after == number) & annotated, true, spacing, held), 2)
            if not new:
                row["dice_before"] = _round(dice(before == number, true, held))
                row["surface_before_mm"] = _round(
                    surface_distance((before == number) & annotated, true, spacing, held), 2)
        rows.append(row)
    protected = protected_rows(card, drawn, case, before, after, taught, old_classes)
    worse = [row["id"] for row in protected if _is_worse(row)]
    measured = [row for row in rows if row["dice_after"] is not None]
    result = {"taught": rows, "protected": protected, "worse": worse}
    if not measured:
        return {**result, "better": False, "sentence":
                "No structure reaches over enough slices to keep some of them out of training, so nobody can say "
                "whether the new version is better; look at it on another case."}
    old = float(np.mean([row["dice_before"] or 0.0 for row in measured]))
    now = float(np.mean([row["dice_after"] for row in measured]))
    lost = mean_loss(protected)
    better = now - old >= max(GAIN, lost)
    count = f" (mean of {len(measured)} structures)" if len(measured) > 1 else f" ({measured[0]['name']})"
    if better:
        sentence = f"On slices kept out of training Dice rose from {old:.2f} to {now:.2f}{count}. They show the " \
                   "same person; what the next person gains, only that person's scan can tell."
    elif now - old >= GAIN:
        sentence = (f"On slices kept out of training Dice rose from {old:.2f} to {now:.2f}{count}, but the structures "
                    f"that were not taught lost more ({lost:.2f} on average).")
    else:
        sentence = (f"Nothing got better on the slices kept out of training: Dice was {old:.3f} before and is "
                    f"{now:.3f} after{count}.")
    if worse:
        names = ", ".join(card.label(name).name for name in worse)
        sentence += f" Not taught and changed: {names}."
    return {**result, "better": better, "sentence": sentence}


def protected_rows(card: ModelCard, drawn: np.ndarray, case: Case, before: np.ndarray, after: np.ndarray,
                   taught: Sequence[int], old_classes: int) -> list[dict]:
    """Rows of the structures that were not taught, where the parent or the person sees them at all. Arguments as for
    `make_report`."""
    numbers = np.array(list(taught), dtype=np.uint8)
    # Where something was taught, or the parent named what the person says is not there, change is the aim.
    calm = ~np.isin(case.drawn, numbers) & (case.drawn != OPEN) & ~np.isin(before, numbers)
    known = drawn != OPEN
    rows = []
    for number in range(1, old_classes):
        if number in taught:
            continue
        was, now, true = before == number, after == number, drawn == number
        by_hand = bool(true.any())
        if not was.any() and not by_hand:
            continue
        label = card.label(number)
        rows.append({"id": label.id, "name": label.name, "agreement": _round(dice(now, was, calm)),
                     "voxels": int(np.count_nonzero(was & calm)),
                     "dice_before": _round(dice(before == number, true, known)) if by_hand else None,
                     "dice_after": _round(dice(now, true, known)) if by_hand else None})
    return rows


def mean_loss(rows: Sequence[dict]) -> float:
    """What the structures of `protected_rows` lost on average, 0 where they gained: Dice against the person's drawing,
    or, where one is not drawn, what is missing to the parent's own answer."""
    losses = [loss for loss in map(_loss, rows) if loss is not None]
    return max(0.0, float(np.mean(losses))) if losses else 0.0


def _loss(row: dict) -> float | None:
    if row["dice_before"] is not None and row["dice_after"] is not None:
        return row["dice_before"] - row["dice_after"]
    return None if row["agreement"] is None or row["voxels"] < FEW else 1 - row["agreement"]


def _is_worse(row: dict) -> bool:
    loss = _loss(row)
    return loss is not None and loss > (LOSS if row["dice_before"] is not None else 1 - AGREEMENT)


def _round(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
