"""A result (label map and legend) as a segmentation node, and into one that a person already works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import slicer
import vtk

from ..errors import InputError, OptionError, OutputError
from ..geometry.labels import Label, terminology_tag
from ..geometry.volume import Volume
from .layers import read_segments
from .scene import check_node, place_beside, prepare_scene, same_parent, temporary_node, unique_name
from .volumes import lattice_of, linear_between, update_node

#: A result is the volume's own where the matrices differ by less than this, mm.
_LATTICE_MM = 1e-4


@dataclass(frozen=True)
class Update:
    """What `update_segmentation` did. Ids of segments written; voxels per id that a neighbour kept; sentences."""

    written: list[str]
    withheld: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


def segmentation_from_labels(labels: Volume, legend: Sequence[Label], volume_node, *, name: str | None = None,
                             only_present: bool = False):
    """A new vtkMRMLSegmentationNode in the volume's scene, named "<volume> HiEndSeg".

    labels: (I, J, K) integer label map on the volume node's own lattice. Segment ids are the labels' ids, and all
    segments share one layer. The node has the volume's parent transform, its reference geometry and its place in the
    subject hierarchy. only_present: leave out structures without voxels, else they become empty segments.
    Raises InputError (no volume, another lattice, a value that the legend does not know) and OutputError; then nothing
    is left in the scene.
    """
    _check(labels, legend, volume_node)
    scene = volume_node.GetScene()
    prepare_scene(scene)
    if only_present:
        legend = _present(labels.array, legend)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode",
                                   unique_name(scene, name or f"{volume_node.GetName()} HiEndSeg"))
    try:
        node.SetSourceRepresentationToBinaryLabelmap()
        same_parent(node, volume_node)
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        _import(node, labels.array, legend, volume_node)
        place_beside(node, volume_node)
    except BaseException:
        for display in [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]:
            scene.RemoveNode(display)
        scene.RemoveNode(node)
        raise
    return node


def update_segmentation(node, labels: Volume, legend: Sequence[Label], volume_node, *,
                        only: Sequence[str] | None = None, region: np.ndarray | None = None,
                        only_present: bool = False, save_undo: Callable[[], object] | None = None) -> Update:
    """Replace the named structures of an existing segmentation node; everything else in it stays as it is.

    only: ids to write (None: all of the legend). region: (I, J, K) bool, see `region_of_box`; the named structures
    keep what they have outside of it. save_undo: called once before the first change (`editor.saveStateForUndo`, or
    `History.save`). only_present: make no new segments for structures without voxels.
    Structures of the legend that are not named keep their voxels: a new voxel on top of one is withheld and counted.
    Segments that the legend does not know (a tumour the person drew) may overlap the result. Names, colours and
    visibility of segments that exist are the person's and stay.
    Raises InputError and OptionError before anything is changed, OutputError where Slicer refuses.
    """
    check_node(node, "vtkMRMLSegmentationNode")
    _check(labels, legend, volume_node)
    known = {label.id: label for label in legend}
    unknown = [id_ for id_ in only or () if id_ not in known]
    if unknown:
        raise OptionError(f"The model has no structure {', '.join(unknown)}; it has {', '.join(known)}.")
    if region is not None and region.shape != labels.shape:
        raise ValueError(f"a region of shape {region.shape} does not fit the lattice {labels.shape}")
    named = [label for label in legend if only is None or label.id in set(only)]
    neighbours = {label.id: label.value for label in legend if label not in named}
    _lattice_in(node, volume_node)      # refuses here, before anything is changed
    prepare_scene(node.GetScene())

    values = np.zeros(256, np.uint8)
    values[[label.value for label in named]] = [label.value for label in named]
    array = values[labels.array]
    withheld, messages = {}, []
    if neighbours:
        taken = read_segments(node, volume_node, neighbours).array != 0
        if region is not None:
            taken &= region
        lost = np.bincount(array[taken], minlength=256)
        array[taken] = 0
        withheld = {label.id: int(lost[label.value]) for label in named if lost[label.value]}
        for id_, count in withheld.items():
            messages.append(f"{known[id_].name}: {count} voxels that belong to a structure that was not asked for "
                            "were left to it.")
    if region is not None:
        before = read_segments(node, volume_node, {label.id: label.value for label in named})
        array = np.where(region, array, before.array)
        if before.resampled:
            messages.append(f"{_names(before.resampled, known)}: lay on another lattice and were resampled onto that "
                            f'of "{volume_node.GetName()}" as a whole.')
    if only_present:
        present = {label.id for label in _present(array, named)}
        named = [label for label in named if label.id in present or node.GetSegmentation().GetSegment(label.id)]

    if save_undo is not None:
        save_undo()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    had_surface = node.GetSegmentation().ContainsRepresentation(surface)
    if node.GetSegmentation().GetNumberOfSegments() and not _has_voxels(node):
        node.CreateBinaryLabelmapRepresentation()
        node.SetSourceRepresentationToBinaryLabelmap()
    elif not node.GetSegmentation().GetNumberOfSegments():
        node.SetSourceRepresentationToBinaryLabelmap()
    _import(node, array, named, volume_node)
    if had_surface:
        node.CreateClosedSurfaceRepresentation()
    return Update([label.id for label in named], withheld, messages)


def describe_segment(segment, label: Label) -> None:
    """Name, colour and meaning of a label on a vtkSegment, marked as chosen so that Slicer does not replace them."""
    segment.SetName(label.name)
    segment.SetNameAutoGenerated(False)
    segment.SetColor(*(c / 255 for c in label.color))
    segment.SetColorAutoGenerated(False)
    # The tag, not SetTerminology(): that is missing before Slicer 5.10
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology_tag(label))


def region_of_box(volume_node, box) -> np.ndarray:
    """(I, J, K) bool: voxels whose centres lie in ((R0, R1), (A0, A1), (S0, S1)), mm, in the volume's own RAS."""
    shape, matrix = lattice_of(volume_node)
    axes = [np.arange(n, dtype=np.float64) for n in shape]
    inside = np.ones(shape, bool)
    for row, (low, high) in zip(matrix[:3], box):
        plane = (row[0] * axes[0])[:, None] + (row[1] * axes[1])[None, :] + row[3]
        for k in range(shape[2]):       # slice by slice: a full-size position map would be 8 bytes a voxel
            position = plane + row[2] * k
            inside[:, :, k] &= (position >= min(low, high)) & (position <= max(low, high))
    return inside


def _import(node, array: np.ndarray, legend: Sequence[Label], volume_node) -> None:
    """Write the legend's structures of `array` into the node: one layer, segment ids as given, new ones described."""
    if not legend:
        return
    existing = {label.id for label in legend if node.GetSegmentation().GetSegmentIndex(label.id) >= 0}
    # Slicer gives value n + 1 to entry n of the list, so the values are made 1..K without gaps
    values = np.zeros(256, np.uint8)
    values[[label.value for label in legend]] = np.arange(1, len(legend) + 1)
    ids = vtk.vtkStringArray()
    for label in legend:
        ids.InsertNextValue(label.id)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    with temporary_node(node.GetScene(), "vtkMRMLLabelMapVolumeNode") as labelmap:
        update_node(labelmap, Volume(values[array], _lattice_in(node, volume_node)))
        same_parent(labelmap, node)
        if not logic.ImportLabelmapToSegmentationNode(labelmap, node, ids):
            raise OutputError(f'Slicer could not put the result into the segmentation "{node.GetName()}"; '
                              "see its error log, and try a new segmentation.")
    for label in legend:
        if label.id not in existing:
            describe_segment(node.GetSegmentation().GetSegment(label.id), label)


def _lattice_in(node, volume_node) -> np.ndarray:
    """The volume's ijk_to_ras as seen under the segmentation's parent, so that no voxel has to be resampled.

    The import would resample under different parents, and loses voxels at it (measured on 5.11: all of them for a
    rotation by 20 degrees). Raises InputError where the two parents differ by more than a rigid motion.
    """
    between = linear_between(volume_node, node)
    if between is None or not np.allclose(between[:3, :3].T @ between[:3, :3], np.eye(3), atol=1e-6):
        raise InputError(f'"{volume_node.GetName()}" and the segmentation "{node.GetName()}" are under different '
                         "transforms; put both under the same one, or choose a new segmentation.")
    return between @ lattice_of(volume_node)[1]


def _check(labels: Volume, legend: Sequence[Label], volume_node) -> None:
    shape, matrix = lattice_of(volume_node)
    if labels.shape != shape or not np.allclose(labels.ijk_to_ras, matrix, rtol=0, atol=_LATTICE_MM):
        raise InputError(f'The result ({_by(labels.shape)} voxels) does not lie on the lattice of '
                         f'"{volume_node.GetName()}" ({_by(shape)}), which was changed or replaced meanwhile; '
                         "segment it again.")
    if labels.array.dtype != np.uint8:
        raise InputError(f"The label map holds {labels.array.dtype} values; give whole numbers 0 to 255 as uint8.")
    ids, values = [label.id for label in legend], [label.value for label in legend]
    if len(set(ids)) < len(ids) or len(set(values)) < len(values) or not all(1 <= v <= 255 for v in values):
        raise InputError("The legend names an id or a label value twice, or a value outside 1 to 255; "
                         "check the model's card.")
    strangers = sorted(set(_occurring(labels.array)) - set(values))
    if strangers:
        raise InputError(f"The label map holds the values {', '.join(map(str, strangers))}, which the legend "
                         "does not name; use the legend of the model that made it.")


def _occurring(array: np.ndarray) -> list[int]:
    """Label values above 0 that occur in a uint8 array, without another full-size array of integers."""
    flat = array.ravel(order="K")
    counts = sum(np.bincount(flat[start:start + (1 << 24)], minlength=256) for start in range(0, flat.size, 1 << 24))
    return [int(value) for value in np.flatnonzero(counts) if value]


def _present(array: np.ndarray, legend: Sequence[Label]) -> list[Label]:
    occurring = set(_occurring(array))
    return [label for label in legend if label.value in occurring]


def _has_voxels(node) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    return node.GetSegmentation().ContainsRepresentation(name)


def _names(ids: Sequence[str], known: dict[str, Label]) -> str:
    return ", ".join(known[i].name for i in ids)


def _by(shape) -> str:
    return "x".join(str(n) for n in shape)
