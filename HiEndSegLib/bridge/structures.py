"""Which structure each segment of a segmentation stands for: one that a model knows, or a new one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import slicer
import vtk

from ..geometry.labels import Label, parse_terminology_tag, structure_id, terminology_name
from .layers import image_matrix
from .scene import check_node
from .volumes import array_of_image

#: Codes that Slicer gives a segment of which nobody has said what it is: tissue, and mass of any kind.
_UNSPECIFIC = frozenset({"85756007"})
#: Names that Slicer gives by itself.
_AUTOMATIC = re.compile(r"(Segment|Label)(_\d+)+$")
#: Label maps are uint8, and 255 stands for "not annotated".
_LAST_VALUE = 254
_LONGEST = 100


@dataclass(frozen=True)
class Drawn:
    """One segment and the structure it stands for.

    label: the model's own, or a new one whose id fits a model's card and whose value is free. how: it was recognized
    by its segment "id", its "terminology" or its "name", or is "new". milliliters: of its voxels on their own lattice;
    None where it is a surface and has no voxels yet.
    """

    segment_id: str
    segment_name: str
    label: Label
    how: str
    milliliters: float | None = None

    @property
    def empty(self) -> bool:
        """Nothing is drawn in it."""
        return self.milliliters == 0

    @property
    def is_new(self) -> bool:
        return self.how == "new"


def drawn_structures(segmentation_node, legend: Sequence[Label]) -> list[Drawn]:
    """All segments in their order, as far as a label map has values for them (254 structures in all).

    A segment is a structure of the legend where its id says so (as in a result made here), else where its terminology
    or its name does and no other segment is that structure already. All others are new structures.
    Raises InputError where there is no such node.
    """
    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    segmentation = segmentation_node.GetSegmentation()
    if segmentation is None:
        return []
    ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
    terms = {id_: _terminology(segmentation.GetSegment(id_)) for id_ in ids}
    names = {id_: segmentation.GetSegment(id_).GetName() or "" for id_ in ids}
    known: dict[str, tuple[Label, str]] = {}
    taken: set[str] = set()
    for how, match in (("id", lambda label, id_: label.id == id_),
                       ("terminology", lambda label, id_: _same_meaning(label.terminology, terms[id_])),
                       ("name", lambda label, id_: structure_id(names[id_]) in (label.id, structure_id(label.name)))):
        for id_ in ids:
            found = [label for label in legend if id_ not in known and label.id not in taken and match(label, id_)]
            if len(found) == 1:
                known[id_] = found[0], how
                taken.add(found[0].id)
    values = iter(sorted(set(range(1, _LAST_VALUE + 1)) - {label.value for label in legend}))
    forbidden = {label.id for label in legend}
    volumes = segment_volumes(segmentation)
    result = []
    for id_ in ids:
        if id_ in known:
            label, how = known[id_]
        else:
            value = next(values, None)
            if value is None:
                continue
            label, how = _new_label(segmentation.GetSegment(id_), terms[id_], value, forbidden), "new"
            forbidden.add(label.id)
        result.append(Drawn(id_, names[id_], label, how, volumes.get(id_)))
    return result


def segment_volumes(segmentation) -> dict[str, float]:
    """Milliliters of every segment of a vtkSegmentation that has voxels, by id; each shared image is counted once."""
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    volumes: dict[str, float] = {}
    if not segmentation.GetNumberOfSegments() or not segmentation.ContainsRepresentation(name):
        return volumes
    for layer in range(segmentation.GetNumberOfLayers(name)):
        ids = segmentation.GetSegmentIDsForLayer(layer, name)
        image = segmentation.GetLayerDataObject(layer, name)
        if image is None or image.GetNumberOfPoints() == 0:
            volumes.update(dict.fromkeys(ids, 0.0))
            continue
        array = array_of_image(image)
        voxel_ml = abs(np.linalg.det(image_matrix(image)[:3, :3])) / 1000
        if array.dtype.kind in "iu" and 0 <= array.min() and array.max() < 1 << 16:
            total = np.zeros(1 << 16, np.int64)
            for part in array.transpose(2, 0, 1):           # a layer lies together in memory
                found = np.bincount(part.ravel(order="K"))
                total[:len(found)] += found
            counts = dict(enumerate(total.tolist()))
        else:
            values, numbers = np.unique(array, return_counts=True)
            counts = dict(zip(values.tolist(), numbers.tolist()))
        for id_ in ids:
            volumes[id_] = counts.get(segmentation.GetSegment(id_).GetLabelValue(), 0) * voxel_ml
    return volumes


def _new_label(segment, terminology: dict | None, value: int, taken: set[str]) -> Label:
    name = " ".join((segment.GetName() or "").split())
    meaning = terminology_name(terminology) if _is_specific(terminology) else ""
    if meaning and (not name or _AUTOMATIC.match(name)):
        name = meaning
    name = (name or "Structure")[:_LONGEST]
    color = tuple(min(255, max(0, round(255 * part))) for part in segment.GetColor())
    return Label(value, structure_id(name, terminology, taken), name, color, terminology)


def _terminology(segment) -> dict | None:
    """What the segment's tag says, or None where it says nothing that a model's card could hold."""
    tag = slicer.vtkSegment.GetTerminologyEntryTagName()
    text = vtk.reference("")
    segment.GetTag(tag, text)       # not GetTerminology(): that is missing before Slicer 5.10
    found = parse_terminology_tag(str(text))
    if found is None:
        return None
    codes = [code for code in found.values() if code is not None]
    return found if all(0 < len(part) <= _LONGEST and not set(part) & set("~^|")
                        for code in codes for part in code) else None


def _is_specific(terminology: dict | None) -> bool:
    return terminology is not None and terminology["type"][1] not in _UNSPECIFIC


def _same_meaning(one: dict | None, other: dict | None) -> bool:
    """Same type and same side; the words may differ."""
    if not (_is_specific(one) and _is_specific(other)):
        return False
    sides = [tuple((terms.get("modifier") or ("", ""))[:2]) for terms in (one, other)]
    return tuple(one["type"][:2]) == tuple(other["type"][:2]) and sides[0] == sides[1]
