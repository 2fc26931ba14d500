"""Labelled cases of the one-shot protocol: which may teach, which are scored, and what their labels say.

A case is what `training.cases` or `training.synthesis` prepared (.npz on an RAS+ lattice). Its labels become one map of
0 (background), 1, 2, ... (the classes asked for) and 255 (not annotated), so that annotations of different completeness
can be compared.

Real cases that carry comparable labels are few, and so are the rotations they allow: liver, spleen and kidneys of two
abdomens (one labelled by a program, one by thresholds and a watershed), lungs of two chests (one by thresholds, one
drawn for radiotherapy). Stomach and bowel of the second are left out: they were drawn near a tumour only, and
where nothing was drawn a false find could not be told from a true one.

Synthetic cases have expert organ shapes in invented images. A labelled map is scored on images of other maps alone.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from HiEndSegLib.errors import InputError

from .structures import VALUE, bit

UNKNOWN = 255
#: What numpy raises for an .npz that is damaged, cut off or another file.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
EXPERT_ORGANS = ("spleen", "pancreas", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "duodenum")
#: group -> (classes, cases that carry them); every case of a group teaches once and is scored otherwise.
REAL_GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "abdomen": (("spleen", "kidney_right", "kidney_left", "liver"), ("ct-abdomen-01", "ct-abdomen-02")),
    "lungs": (("lung_left", "lung_right"), ("ct-chest-01", "ct-abdomen-08")),
}
#: Where the labels of those cases come from, for the words under a table.
LABELS_FROM = {"ct-abdomen-01": "by a segmentation program", "ct-abdomen-02": "by thresholds and a watershed, not "
               "checked by a clinician", "ct-chest-01": "by thresholds (aerated lung), not checked by a clinician",
               "ct-abdomen-08": "drawn for radiotherapy, completed by thresholds"}
#: Certain voxels a class must have in the labelled case to be taught.
MIN_VOXELS = 50

_SYNTHETIC = re.compile(r"synthetic-([^-]+)-.+")


@dataclass(frozen=True)
class Task:
    """One labelled case and the others it is scored on."""

    data: str  # "real" or "synthetic"
    group: str
    labelled: str
    scored: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class LabelledCase:
    """image: float32 (I, J, K) in [0, 1]. labels: uint8 of that shape: 0 background, 1.. the classes, 255 unknown.
    box: the part that holds everything above the window's lower end; the network sees only that."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    box: tuple[slice, slice, slice]


def labels_from_bits(possible: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Bit sets -> 0 where no class of `classes` is possible, 1.. where only that one is, 255 elsewhere."""
    masks = [bit(name) for name in classes]
    labels = np.full(possible.shape, UNKNOWN, np.uint8)
    labels[(possible & np.bitwise_or.reduce(masks)) == 0] = 0
    for number, mask in enumerate(masks, 1):
        labels[possible == mask] = number
    return labels


def case_path(cache: Path, name: str) -> Path:
    """The prepared file of a case, CACHE/NAME.npz or CACHE/dev/NAME.npz."""
    for path in (cache / f"{name}.npz", cache / "dev" / f"{name}.npz"):
        if path.is_file():
            return path
    raise InputError(f"There is no prepared case {name} in {cache}; run training.cases and training.synthesis, or name "
                     "the folder they wrote to.")


@lru_cache(maxsize=64)
def read_case(cache: Path, name: str, classes: tuple[str, ...], window: tuple[float, float]) -> LabelledCase:
    """A prepared case with the labels of `classes`, scaled by `window` (HU).

    Raises InputError: no such case, damaged, or a class that it does not annotate at all.
    """
    image, labels, spacing = _read(case_path(cache, name), classes)
    low, high = window
    body = image > low
    if not body.any():
        raise InputError(f"{name} has no voxel above {low:g} HU, so there is nothing to see in it.")
    box = tuple(slice(int(hit[0]), int(hit[-1]) + 1)
                for hit in (np.flatnonzero(body.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)))
    scaled = np.clip((image.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    return LabelledCase(name, scaled, labels, spacing, box)


def _read(path: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    try:
        with np.load(path, allow_pickle=False) as data:
            image = data["image"]
            spacing = tuple(float(v) for v in data["spacing"])
            if "possible" in data:
                labels = labels_from_bits(data["possible"], classes)
                annotated = set(classes)
            else:
                stored = data["labels"]
                annotated = {name for name in classes if VALUE[name] in data["classes"]}
                table = np.zeros(256, np.uint8)
                table[UNKNOWN] = UNKNOWN
                for number, name in enumerate(classes, 1):
                    table[VALUE[name]] = number
                labels = table[stored]
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged or no prepared case with labels; prepare it again.") from error
    missing = [name for name in classes if name not in annotated]
    if missing:
        raise InputError(f"{path.stem} has no labels of {', '.join(missing)}; take a case that has, or leave "
                         "them out.")
    if image.shape != labels.shape or image.ndim != 3:
        raise InputError(f"{path} holds an image of {image.shape} and labels of {labels.shape} voxels; prepare it "
                         "again.")
    return image, labels, spacing


def taught_classes(case: LabelledCase, classes: Sequence[str], minimum: int = MIN_VOXELS) -> tuple[str, ...]:
    """The classes with at least `minimum` certain voxels in a case: what it can teach."""
    counts = np.bincount(case.labels.ravel(), minlength=256)
    return tuple(name for number, name in enumerate(classes, 1) if counts[number] >= minimum)


# -------------------------------------------------------------------------------------------------------- rotations


def real_tasks(groups: Iterable[str] = tuple(REAL_GROUPS)) -> list[Task]:
    """Every case of every group as the labelled one, scored on the others of its group."""
    return [Task("real", group, name, tuple(other for other in REAL_GROUPS[group][1] if other != name),
                 REAL_GROUPS[group][0])
            for group in groups for name in REAL_GROUPS[group][1]]


def map_of(name: str) -> str | None:
    """The organ map a synthetic image was drawn from: synthetic-07-0-2 -> "07"; None for any other case."""
    match = _SYNTHETIC.fullmatch(name)
    return match.group(1) if match else None


def synthetic_images(cache: Path, window: tuple[float, float], organs: tuple[str, ...] = EXPERT_ORGANS
                     ) -> dict[str, tuple[str, tuple[str, ...]]]:
    """One image a map: {map: (case name, the organs it shows)}: the first, by name, of those that show the most."""
    best: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path in sorted(Path(cache).glob("synthetic-*.npz")):
        number = map_of(path.stem)
        if number is None or len(best.get(number, ("", ()))[1]) == len(organs):
            continue
        shown = taught_classes(read_case(cache, path.stem, organs, window), organs)
        if number not in best or len(shown) > len(best[number][1]):
            best[number] = (path.stem, shown)
    return best


def synthetic_task(images: dict[str, tuple[str, tuple[str, ...]]], turn: int, scored: int | None = None) -> Task:
    """The task of one turn of the rotation: another labelled map each turn, the next `scored` maps (default all
    others) in that order score it. Its classes are those that its image shows."""
    maps = sorted(images)
    if len(maps) < 2:
        raise InputError(f"The synthetic protocol needs images of two organ maps or more, and there are {len(maps)}; "
                         "run training.synthesis.")
    # Neighbours come from one source: strides of about a third of the list visit all of them early.
    order = _spread(len(maps))
    first = order[turn % len(maps)]
    others = [maps[order[(turn + k) % len(maps)]] for k in range(1, len(maps))]
    name, shown = images[maps[first]]
    return Task("synthetic", "organs", name, tuple(images[m][0] for m in others[:scored]), shown)


def _spread(count: int) -> list[int]:
    """0 .. count - 1, each once, in strides of about a third of the count."""
    stride = next(s for s in range(max(1, count // 3), count + 1) if np.gcd(s, count) == 1)
    return [(k * stride) % count for k in range(count)]
