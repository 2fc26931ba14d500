"""A segmentation node's shared images (layers) as one label map on a volume's lattice.

Segments that do not overlap share an image, each with its own value in it; overlapping ones lie in other images. So
two segments can only claim the same voxel from different layers, and a layer is read once for all of its segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import slicer

from ..errors import InputError
from .scene import check_node
from .volumes import (array_of_image, lattice_of, linear_between, matrix_to_numpy, matrix_to_vtk,
                      transform_between)

#: A layer's lattice is the volume's where, in voxels over its whole extent, the two differ by less than this.
_SAME = 1e-3


@dataclass(frozen=True)
class Overlap:
    """Voxels that two segments claim; `kept` is the id of the one that was read there."""

    first: str
    second: str
    kept: str
    voxels: int


@dataclass(frozen=True)
class SegmentReading:
    """array (I, J, K) uint8 on the volume's lattice, and what had to be decided to get it (segment ids)."""

    array: np.ndarray
    overlaps: list[Overlap]
    resampled: list[str]        # lay on another lattice or under another transform
    missing: list[str]          # asked for, and not in the segmentation


def read_segments(segmentation_node, volume_node, values: dict[str, int], *,
                  model: np.ndarray | None = None) -> SegmentReading:
    """The segments named in `values` (id -> label value 1..255) on the volume's lattice.

    Where two claim a voxel, the claim that differs from `model` (I, J, K), the answer the person was correcting, wins;
    between two such, or without a model, the one in the later layer (as Slicer's own export has it).
    Nothing in the scene is changed. Raises InputError: a node is missing or deleted, or the segmentation cannot be
    turned into voxels.
    """
    shape, matrix = lattice_of(volume_node)
    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    segmentation, representation = _voxels_of(segmentation_node, volume_node)
    present = {id_: value for id_, value in values.items() if segmentation.GetSegmentIndex(id_) >= 0}
    names = {value: id_ for id_, value in values.items()}
    result = np.zeros(shape, np.uint8, order="F")
    claims: dict[tuple[int, int, bool], int] = {}
    resampled = []
    for layer in range(segmentation.GetNumberOfLayers(representation)):
        ids = [i for i in segmentation.GetSegmentIDsForLayer(layer, representation) if i in present]
        if not ids:
            continue
        image = segmentation.GetLayerDataObject(layer, representation)
        if image is None or image.GetNumberOfPoints() == 0:
            continue
        table = {segmentation.GetSegment(i).GetLabelValue(): present[i] for i in ids}
        placed = _place(image, segmentation_node, volume_node, shape, matrix)
        if placed is None:
            resampled += ids
            placed = _resample(image, segmentation_node, volume_node, shape, matrix)
        source, target = placed
        _merge(result[target], _translate(source, table), None if model is None else model[target], claims)
    overlaps = [Overlap(names[a], names[b], names[b if new else a], n) for (a, b, new), n in sorted(claims.items())]
    return SegmentReading(result, overlaps, resampled, [i for i in values if i not in present])


def _voxels_of(node, volume_node):
    """The node's segmentation, or, where its truth is a surface, a converted copy; and the representation's name."""
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    segmentation = node.GetSegmentation()
    if segmentation is None:
        raise InputError(f'The segmentation "{node.GetName()}" holds no segments; choose another one.')
    if segmentation.GetNumberOfSegments() == 0 or segmentation.ContainsRepresentation(name):
        return segmentation, name
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    shape, matrix = lattice_of(volume_node)
    copy.SetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName(),
        slicer.vtkSegmentationConverter.SerializeImageGeometry(
            matrix_to_vtk(matrix), [x for n in shape for x in (0, n - 1)]))
    if not copy.CreateRepresentation(name):
        raise InputError(f'The segmentation "{node.GetName()}" cannot be turned into voxels; '
                         "create its binary labelmap representation in the Segmentations module.")
    return copy, name


def _place(image, segmentation_node, volume_node, shape, matrix):
    """(voxels, slices of the volume they fill) where only whole-voxel shifts are between the two, else None."""
    between = linear_between(segmentation_node, volume_node)
    if between is None:
        return None
    array = array_of_image(image)
    start = np.array(image.GetExtent()[::2])
    own = np.eye(4)
    own[:3, 3] = start
    shift = np.linalg.inv(matrix) @ between @ image_matrix(image) @ own      # of the array's indices in the volume's
    whole = np.round(shift[:3, 3]).astype(int)
    corners = np.array([np.zeros(3), np.array(array.shape) - 1])
    if np.abs(corners @ (shift[:3, :3] - np.eye(3)).T + shift[:3, 3] - whole).max() > _SAME:
        return None
    if np.abs(np.diag(shift[:3, :3]) - 1).max() > 0.1:      # one voxel along an axis hides its direction
        return None
    low, high = np.maximum(whole, 0), np.minimum(whole + array.shape, shape)
    if (high <= low).any():
        low = high = np.zeros(3, int)
    return (array[tuple(slice(a, b) for a, b in zip(low - whole, high - whole))] if (high > low).all()
            else array[:0, :0, :0]), tuple(slice(a, b) for a, b in zip(low, high))


def _resample(image, segmentation_node, volume_node, shape, matrix):
    """The same by nearest neighbour, through both nodes' parent transforms."""
    reference, result = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    reference.SetExtent(*(x for n in shape for x in (0, n - 1)))
    reference.SetImageToWorldMatrix(matrix_to_vtk(matrix))
    between = transform_between(segmentation_node.GetParentTransformNode(), volume_node.GetParentTransformNode())
    if not slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
            image, reference, result, False, False, between):
        raise InputError(f'The segmentation "{segmentation_node.GetName()}" cannot be brought onto the lattice of '
                         f'"{volume_node.GetName()}"; check the transforms of both.')
    low = np.array(result.GetExtent()[::2])
    array = array_of_image(result)
    return array, tuple(slice(a, a + n) for a, n in zip(low, array.shape))


def _translate(array: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """Layer values to label values; values of segments that were not asked for become 0."""
    if array.size == 0:
        return np.zeros(array.shape, np.uint8)
    if array.dtype.kind in "iu":
        top = max(int(array.max()), 0)
        lookup = np.zeros(top + 1, np.uint8)
        for value, label in table.items():
            if 0 <= value <= top:
                lookup[value] = label
        return lookup[np.maximum(array, 0) if array.dtype.kind == "i" else array]
    result = np.zeros(array.shape, np.uint8)
    for value, label in table.items():
        result[array == value] = label
    return result


def _merge(target: np.ndarray, new: np.ndarray, model: np.ndarray | None, claims: dict) -> None:
    """Put `new` onto `target` in place; count contested voxels by (earlier, later, later was taken)."""
    if not target.any():        # the first layer, which is nearly always the only one
        target[...] = new
        return
    there = new != 0
    clash = there & (target != 0)
    clash &= target != new
    if not clash.any():
        np.copyto(target, new, where=there)
        return
    contested = np.nonzero(clash)
    old, wanted = target[contested], new[contested]
    take = np.ones(len(old), bool) if model is None else wanted != model[contested]
    np.copyto(target, new, where=there)
    target[contested] = np.where(take, wanted, old)
    key, counts = np.unique(np.stack([old, wanted, take.astype(np.uint8)], axis=1), axis=0, return_counts=True)
    for (a, b, taken), count in zip(key.tolist(), counts.tolist()):
        claims[a, b, bool(taken)] = claims.get((a, b, bool(taken)), 0) + count


def image_matrix(image) -> np.ndarray:
    """(4, 4): of a vtkOrientedImageData, from its own indices (that start at its extent) to mm."""
    matrix = matrix_to_vtk(np.eye(4))
    image.GetImageToWorldMatrix(matrix)
    return matrix_to_numpy(matrix)
