"""What a person made of a result: the corrected label map on the volume's lattice, and how it differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from ..geometry.labels import Label
from ..geometry.volume import Volume
from .layers import Overlap, read_segments
from .scene import check_node
from .structures import Drawn, drawn_structures
from .volumes import lattice_of


@dataclass(frozen=True)
class Correction:
    """A segmentation node read back.

    labels: Volume uint8 (I, J, K) on the volume's lattice, values of the structures that were read. legend: those
    structures, new ones too. overlaps: voxels that two of them claimed. resampled: ids that lay on another lattice.
    missing: ids of the model's structures that were not read or have no segment. unknown: segment ids that were not
    read; their voxels are not in `labels`. messages: the same for a person.
    """

    labels: Volume
    overlaps: list[Overlap]
    resampled: list[str]
    missing: list[str]
    unknown: list[str]
    messages: list[str]
    legend: list[Label] = field(default_factory=list)


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


def read_correction(segmentation_node, volume_node, legend: Sequence[Label], *, model: Volume | None = None,
                    drawn: Sequence[Drawn] | None = None) -> Correction:
    """A segmentation node as a label map on the volume's lattice.

    legend: what the model knows. drawn: the segments to read, of `drawn_structures` (default: those that the model
    knows), new structures among them if they are wanted. model: the label map that the person was correcting; where
    two segments claim a voxel, the claim that is not the model's wins, because that is the one somebody drew.
    Nothing in the scene is changed.
    Raises InputError: a node is missing or deleted, `model` lies on another lattice, or there is nothing to read.
    """
    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    shape, matrix = lattice_of(volume_node)
    if model is not None and model.shape != shape:
        raise InputError(f'The model\'s own answer ({model.shape}) does not fit "{volume_node.GetName()}" ({shape}); '
                         "segment the volume again.")
    if drawn is None:
        drawn = [one for one in drawn_structures(segmentation_node, legend) if not one.is_new]
    if not drawn:
        raise InputError(f'The segmentation "{segmentation_node.GetName()}" holds none of the model\'s structures; '
                         "choose the one that this model made.")
    segmentation = segmentation_node.GetSegmentation()
    there = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    labels = {one.segment_id: one.label for one in drawn}
    unknown = [id_ for id_ in there if id_ not in labels]
    reading = read_segments(segmentation_node, volume_node, {id_: label.value for id_, label in labels.items()},
                            model=None if model is None else model.array)
    overlaps = [Overlap(labels[o.first].id, labels[o.second].id, labels[o.kept].id, o.voxels)
                for o in reading.overlaps]
    names = {label.id: label.name for label in labels.values()}
    messages = [f"{names[o.first]} and {names[o.second]} overlap in {o.voxels} voxels; they were read as "
                f"{names[o.kept]}." for o in overlaps]
    resampled = [labels[id_].id for id_ in reading.resampled]
    if resampled:
        messages.append(f"{', '.join(names[i] for i in resampled)}: resampled onto the lattice of "
                        f'"{volume_node.GetName()}", so their borders may move by half a voxel.')
    if unknown:
        shown = ", ".join(segmentation.GetSegment(i).GetName() for i in unknown)
        messages.append(f"Not among the model's structures and left out: {shown}.")
    read = {labels[id_].id for id_ in labels if id_ not in reading.missing}
    return Correction(Volume(reading.array, matrix, segmentation_node.GetName() or ""), overlaps, resampled,
                      [label.id for label in legend if label.id not in read], unknown, messages,
                      list(labels.values()))


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
