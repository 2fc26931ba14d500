"""What can be said about a drawing before a model learns from it. numpy only: a face asks it while nothing runs yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import numpy as np

from ..geometry.labels import Label

if TYPE_CHECKING:
    from ..models.card import ModelCard

#: A structure smaller than this many voxels of the model's lattice cannot be learned from.
TINY_VOXELS = 8
#: From this Dice on a drawing is the model's own answer.
SAME_DICE = 0.995
#: Left and right count as swapped when the other side's answer covers this share of the drawing, and twice its own's.
SWAPPED_SHARE = 0.2


@dataclass(frozen=True)
class Finding:
    """kind: "empty", "tiny", "swapped", "no-overlap", "unchanged" or "new". ids: of the structures it is about (left
    before right for "swapped"). sentence: for a person. blocking: nothing can be learned before it is put right."""

    kind: str
    ids: tuple[str, ...]
    sentence: str
    blocking: bool


def look_at_labels(labels: np.ndarray, answer: np.ndarray | None, legend: Sequence[Label], card: ModelCard,
                   spacing: Sequence[float], structures: Sequence[str]) -> list[Finding]:
    """Findings in the order of `structures`, swapped pairs last.

    labels: (I, J, K) uint8, values of `legend`, 255 = not annotated. answer: the model's own label map on the same
    lattice (values of the card), or None where it is not known yet. spacing: mm. structures: ids that are to be
    taught; an id that is not in the legend counts as empty.
    """
    if answer is None:
        return look_at_counts(value_counts(labels), None, legend, card, spacing, structures)
    together = pair_counts(labels, answer)
    return look_at_counts(together.sum(axis=1), together, legend, card, spacing, structures)


def look_at_counts(counts: np.ndarray, together: np.ndarray | None, legend: Sequence[Label], card: ModelCard,
                   spacing: Sequence[float], structures: Sequence[str]) -> list[Finding]:
    """As `look_at_labels`, of voxels counted before: counts (256,) of the labels, together of `pair_counts`."""
    drawn = {label.id: label for label in legend}
    known = {label.id: label for label in card.labels}
    voxel_ml = math.prod(float(s) for s in spacing) / 1000
    tiny_ml = TINY_VOXELS * math.prod(card.spacing) / 1000
    findings: list[Finding] = []
    for name in structures:
        label = drawn.get(name)
        voxels = int(counts[label.value]) if label is not None else 0
        said = label.name if label is not None else name
        if voxels == 0:
            findings.append(Finding("empty", (name,), f"{said} is to be taught and not one voxel of it is drawn; draw "
                                                      "it, or leave it out.", True))
            continue
        if voxels * voxel_ml < tiny_ml:
            findings.append(Finding("tiny", (name,), f"{said} is drawn in {voxels} voxel{'s' if voxels != 1 else ''} "
                                                     f"({voxels * voxel_ml:.2g} ml), too few to learn from (at least "
                                                     f"{tiny_ml:.2g} ml are needed); draw all of it, or leave it "
                                                     "out.", True))
        if name not in known:
            findings.append(Finding("new", (name,), f"{said} is new to this model; it will learn it from this case "
                                                    "alone.", False))
        elif together is not None:
            found = int(together[:, known[name].value].sum())
            both = int(together[label.value, known[name].value])
            if found and not both:
                findings.append(Finding("no-overlap", (name,), f"What is drawn as {said} and what the model calls "
                                                               f"{known[name].name} share no voxel: the model missed "
                                                               "it, or the segment has another one's name.", False))
            elif 2 * both >= SAME_DICE * (voxels + found):
                findings.append(Finding("unchanged", (name,), f"{said} is drawn just as the model answered (Dice "
                                                              f"{2 * both / (voxels + found):.3f}), so there is "
                                                              "nothing to learn from it.", False))
    if together is not None:
        findings += _swapped(together, counts, drawn, known, structures)
    return findings


def side_pairs(ids: Sequence[str]) -> list[tuple[str, str]]:
    """(left, right) ids that differ in just that word: ("kidney_left", "kidney_right")."""
    present = set(ids)
    pairs = []
    for name in ids:
        words = name.split("_")
        if "left" in words:
            other = "_".join("right" if word == "left" else word for word in words)
            if other in present:
                pairs.append((name, other))
    return pairs


def _swapped(together, counts, drawn, known, structures) -> list[Finding]:
    findings = []
    for left, right in side_pairs([name for name in known]):
        if not {left, right} & set(structures) or not {left, right} & set(drawn):
            continue
        own = cross = total = 0
        for name, other in ((left, right), (right, left)):
            if name in drawn:
                row = together[drawn[name].value]
                own += int(row[known[name].value])
                cross += int(row[known[other].value])
                total += int(counts[drawn[name].value])
        if total and cross > 2 * own and cross >= SWAPPED_SHARE * total:
            findings.append(Finding("swapped", (left, right), (
                f"{known[left].name} and {known[right].name} look swapped: {100 * cross / total:.0f} % of what is "
                "drawn as one the model calls the other; say whether to keep the sides as drawn or to swap them."),
                False))
    return findings


def value_counts(labels: np.ndarray) -> np.ndarray:
    """(256,): how many voxels have each value, layer by layer, without another full-size array."""
    counts = np.zeros(256, dtype=np.int64)
    for layer in _layers(labels):
        counts += np.bincount(layer[layer != 0], minlength=256)
    counts[0] = labels.size - counts.sum()
    return counts


def pair_counts(labels: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """(256, 256): how many voxels have this label and that answer. Fast where the two are mostly the same."""
    if labels.shape != answer.shape:
        raise ValueError(f"labels {labels.shape} and answer {answer.shape} must lie on one lattice")
    counts = np.zeros(65536, dtype=np.int64)
    axis = _slowest(labels)
    for one, other in zip(_layers(labels, axis), _layers(answer, axis)):
        differs = one != other
        if differs.any():
            counts += np.bincount(one[differs].astype(np.uint16) * np.uint16(256) + other[differs], minlength=65536)
    counts = counts.reshape(256, 256)
    counts[np.diag_indices(256)] = value_counts(labels) - counts.sum(axis=1)
    return counts


def _layers(array: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The array with its slowest axis first, so that a layer lies together in memory."""
    return np.moveaxis(array, _slowest(array) if axis is None else axis, 0)


def _slowest(array: np.ndarray) -> int:
    return int(np.argmax(np.abs(array.strides)))
