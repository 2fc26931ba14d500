"""What a person made of a result: the corrected label map on the volume's lattice, and how it differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..geometry.labels import Label
from ..geometry.volume import Volume
from .layers import Overlap, read_segments
from .scene import check_node
from .volumes import lattice_of


@dataclass(frozen=True)
class Correction:
    """A segmentation node read back.

    labels: Volume uint8 (I, J, K) on the volume's lattice, values of the legend. overlaps: voxels that two structures
    claimed. resampled: ids that lay on another lattice. missing: ids of the legend without a segment. unknown: ids of
    segments that the legend does not name; they are not in `labels`. messages: the same for a person.
    """

    labels: Volume
    overlaps: list[Overlap]
    resampled: list[str]
    missing: list[str]
    unknown: list[str]
    messages: list[str]


@dataclass(frozen=True)
class Edit:
    """One structure's difference from the model's answer: voxels added and removed, and the box that holds them.

    box: ((i0, i1), (j0, j1), (k0, k1)), half-open voxel indices.
    """

    id: str
    added: int
    removed: int
    box: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Differences:
    """changed: (I, J, K) bool, voxels whose label is not the model's; edits: only structures that differ, by id."""

    changed: np.ndarray
    edits: dict[str, Edit]


def read_correction(segmentation_node, volume_node, legend: Sequence[Label], *,
                    model: Volume | None = None) -> Correction:
    """A segmentation node as a label map on the volume's lattice. Segment ids are the legend's ids; names may differ.

    model: the label map that the person was correcting; where two segments claim a voxel, the claim that is not the
    model's wins, because that is the one somebody drew. Nothing in the scene is changed.
    Raises InputError: a node is missing or deleted, `model` lies on another lattice, or no segment of the legend is
    there.
    """
    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    shape, matrix = lattice_of(volume_node)
    if model is not None and model.shape != shape:
        raise InputError(f'The model\'s own answer ({model.shape}) does not fit "{volume_node.GetName()}" ({shape}); '
                         "segment the volume again.")
    values = {label.id: label.value for label in legend}
    segmentation = segmentation_node.GetSegmentation()
    there = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    unknown = [id_ for id_ in there if id_ not in values]
    if len(unknown) == len(there):
        raise InputError(f'The segmentation "{segmentation_node.GetName()}" holds none of the model\'s structures; '
                         "choose the one that this model made.")
    reading = read_segments(segmentation_node, volume_node, values, model=None if model is None else model.array)
    names = {label.id: label.name for label in legend}
    messages = [f"{names[o.first]} and {names[o.second]} overlap in {o.voxels} voxels; they were read as "
                f"{names[o.kept]}." for o in reading.overlaps]
    if reading.resampled:
        messages.append(f"{', '.join(names[i] for i in reading.resampled)}: resampled onto the lattice of "
                        f'"{volume_node.GetName()}", so their borders may move by half a voxel.')
    if unknown:
        shown = ", ".join(segmentation.GetSegment(i).GetName() for i in unknown)
        messages.append(f"Not among the model's structures and left out: {shown}.")
    labels = Volume(reading.array, matrix, segmentation_node.GetName() or "")
    return Correction(labels, reading.overlaps, reading.resampled, reading.missing, unknown, messages)


def differences(correction: Correction, model: Volume, legend: Sequence[Label]) -> Differences:
    """Where and how the corrected label map differs from the model's own (same lattice).

    A structure whose whole segment was deleted does not count as corrected where it was: deleting says "not needed",
    an emptied segment says "not there". Raises ValueError where the shapes differ.
    """
    if model.shape != correction.labels.shape:
        raise ValueError(f"label maps of shapes {model.shape} and {correction.labels.shape} cannot be compared")
    after, before = correction.labels.array, model.array
    changed = after != before
    missing = [label.value for label in legend if label.id in set(correction.missing)]
    if missing:
        lookup = np.zeros(256, bool)
        lookup[missing] = True
        changed &= ~(lookup[before] & (after == 0))
    where = np.nonzero(changed)
    new, old = after[where], before[where]
    edits = {}
    for label in legend:
        added, removed = new == label.value, old == label.value
        touched = added | removed
        if label.id not in correction.missing and touched.any():
            box = tuple((int(axis[touched].min()), int(axis[touched].max()) + 1) for axis in where)
            edits[label.id] = Edit(label.id, int(added.sum()), int(removed.sum()), box)
    return Differences(changed, edits)
