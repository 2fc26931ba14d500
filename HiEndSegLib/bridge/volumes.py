"""Volume nodes <-> `Volume`, and points and boxes between the world, a volume's own RAS and its voxel indices.

A volume node places its voxels in its own RAS by IJKToRAS; a parent transform moves that RAS in the world. Only the
first is in a `Volume`: a result carries the same parent, so it lies on the volume however that is moved, also by a
non-linear transform. The only place that knows that VTK's arrays are [k, j, i].
"""

from __future__ import annotations

import itertools

import numpy as np
import slicer
import vtk
from vtkmodules.util import numpy_support

from ..errors import InputError
from ..geometry.volume import Volume, check_matrix
from .scene import check_node, place_beside, same_parent, unique_name

#: VTK (or Slicer's file formats) cannot hold these; the value is what holds the same numbers.
_STORED_AS = {"bool": "uint8", "float16": "float32", "int64": "int32", "uint64": "uint32", "longdouble": "float64"}


def volume_from_node(node) -> Volume:
    """The voxels (copied, IJK) and own IJKToRAS of a vtkMRMLScalarVolumeNode; parent transforms are not baked in.

    meta: "source", "parent" ("none", "linear" or "nonlinear"), "notes" (a sentence for a non-linear parent),
    "modality" where the node came from DICOM.
    Raises InputError: no node, deleted, without voxels, colour/vector or 4D, or with an unusable matrix.
    """
    shape, matrix = lattice_of(node)
    array = array_of_image(node.GetImageData()).copy(order="K")
    parent = parent_kind(node)
    meta = {"source": "the scene", "parent": parent, **_modality_meta(node)}
    if parent == "nonlinear":
        transform = node.GetParentTransformNode().GetName()
        meta["notes"] = [f'"{node.GetName()}" lies under the non-linear transform "{transform}": it is segmented as it '
                         "was before the transform, and the result is put under the same one; to work on the "
                         "transformed voxels, harden the transform on a copy first."]
    return Volume(array, matrix, node.GetName() or "", meta)


def volume_view(node) -> Volume:
    """As `volume_from_node`, but the array is a view of the node's own voxels: look at it now, and do not keep it.

    meta: "modality" where the subject hierarchy knows the DICOM series' one.
    """
    _, matrix = lattice_of(node)
    return Volume(array_of_image(node.GetImageData()), matrix, node.GetName() or "", _modality_meta(node))


def lattice_of(node) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (I, J, K) and own ijk_to_ras (4, 4, mm) of a volume node, without touching voxels; InputError as above."""
    if node is not None and hasattr(node, "IsA") and node.IsA("vtkMRMLSequenceNode"):
        raise InputError(f'"{node.GetName()}" is a sequence (4D); choose the volume of one time point.')
    check_node(node, "vtkMRMLScalarVolumeNode")
    name = node.GetName() or "The volume"
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
        raise InputError(f'"{name}" holds no voxels; load it again or choose another volume.')
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        what = "a colour, vector or 4D volume" if not node.IsA("vtkMRMLDiffusionWeightedVolumeNode") else "4D"
        raise InputError(f'"{name}" has {components} values per voxel ({what}); choose a grey-scale 3D volume, '
                         "for example one component or one time point of it.")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    matrix = matrix_to_numpy(matrix)
    check_matrix(matrix, f'"{name}"')
    start = np.eye(4)       # a cropped image may count its indices from elsewhere; ours always start at 0
    start[:3, 3] = image.GetExtent()[::2]
    return image.GetDimensions(), matrix @ start


def node_from_volume(volume: Volume, scene, *, like=None, name: str | None = None, label_map: bool = False):
    """A new scalar volume node (label map node if asked) in `scene`, on the volume's lattice.

    like: a volume node whose parent transform and place in the subject hierarchy the new one shares.
    """
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode" if label_map else "vtkMRMLScalarVolumeNode",
                                   unique_name(scene, name or volume.name or "HiEndSeg volume"))
    update_node(node, volume)
    if not label_map:
        node.CreateDefaultDisplayNodes()
    if like is not None:
        same_parent(node, check_node(like, "vtkMRMLScalarVolumeNode"))
        place_beside(node, like)
    return node


def update_node(node, volume: Volume) -> None:
    """Replace voxels and geometry of a volume node at once (one Modified event); parent and display are kept."""
    check_matrix(volume.ijk_to_ras, volume.name or "The volume")
    image = image_of_array(volume.array)
    modified = node.StartModify()
    try:
        node.SetIJKToRASMatrix(matrix_to_vtk(volume.ijk_to_ras))
        node.SetAndObserveImageData(image)
    finally:
        node.EndModify(modified)


def hardened_copy(node):
    """A new node in the scene: the volume with its parent transform applied (resampled if that is non-linear)."""
    lattice_of(node)
    copy = slicer.vtkSlicerVolumesLogic.CloneVolume(node.GetScene(), node,
                                                    unique_name(node.GetScene(), f"{node.GetName()} hardened"))
    copy.HardenTransform()
    return copy


def parent_kind(node) -> str:
    """"none", "linear" or "nonlinear": all parent transforms up to the world together."""
    parent = node.GetParentTransformNode()
    if parent is None:
        return "none"
    return "linear" if parent.IsTransformToWorldLinear() else "nonlinear"


def world_to_volume_ras(node, points) -> np.ndarray:
    """World points (N, 3) or (3,), mm (markups, crosshair) in the volume's own RAS, through any parent transforms."""
    return _transform(None, node.GetParentTransformNode(), points)


def volume_ras_to_world(node, points) -> np.ndarray:
    """The inverse of `world_to_volume_ras`."""
    return _transform(node.GetParentTransformNode(), None, points)


def ijk_at_world(node, point) -> tuple[int, int, int]:
    """Index of the voxel that holds a world point (3,), mm; InputError where the point lies outside the volume."""
    shape, matrix = lattice_of(node)
    ras = world_to_volume_ras(node, point)
    with np.errstate(invalid="ignore"):
        index = np.floor((np.linalg.inv(matrix) @ [*ras, 1.0])[:3] + 0.5)
    if not all(0 <= x < n for x, n in zip(index, shape)):       # true for NaN too
        raise InputError("The point ({:.1f}, {:.1f}, {:.1f}) lies outside \"{}\"; choose a point inside the volume."
                         .format(*(float(x) for x in point), node.GetName()))
    return tuple(int(x) for x in index)


def world_at_ijk(node, ijk) -> np.ndarray:
    """World position (3,), mm, of the centre of voxel `ijk`."""
    _, matrix = lattice_of(node)
    return volume_ras_to_world(node, (matrix @ [*ijk, 1.0])[:3])


def box_of_roi(roi_node, volume_node) -> tuple[tuple[float, float], ...]:
    """((R0, R1), (A0, A1), (S0, S1)), mm, in the volume's own RAS: what holds a (possibly rotated) ROI's eight corners.

    InputError: no ROI, deleted, not drawn yet, or without volume.
    """
    check_node(roi_node, "vtkMRMLMarkupsROINode")
    size = np.array(roi_node.GetSize())
    if not (size > 0).all():
        raise InputError(f'The region of interest "{roi_node.GetName()}" has no extent; draw it or widen it.')
    to_world = matrix_to_numpy(roi_node.GetObjectToWorldMatrix())
    corners = np.array([[*(np.array(signs) * size / 2), 1.0] for signs in itertools.product((-1, 1), repeat=3)])
    ras = world_to_volume_ras(volume_node, (corners @ to_world.T)[:, :3])
    return tuple((float(lo), float(hi)) for lo, hi in zip(ras.min(axis=0), ras.max(axis=0)))


def roi_is_rotated(roi_node, volume_node) -> bool:
    """Whether `box_of_roi` is larger than the ROI, because its edges do not run along the volume's own R, A and S."""
    size = np.array(roi_node.GetSize())
    low, high = np.array(box_of_roi(roi_node, volume_node)).T
    return bool(np.abs(np.sort(high - low) - np.sort(size)).max() > 0.01 * size.max())


def array_of_image(image) -> np.ndarray:
    """A view (I, J, K) of a one-component vtkImageData's voxels; index 0 is the start of its extent."""
    scalars = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(image.GetDimensions()[::-1]).transpose(2, 1, 0)


def image_of_array(array: np.ndarray, image=None):
    """A vtkImageData (or `image`, for example a vtkOrientedImageData, filled) with a copy of `array` (I, J, K).

    Types that VTK or Slicer refuse are stored as the next that holds the same numbers; ValueError where none does.
    """
    array = np.asarray(array)
    stored = _STORED_AS.get(array.dtype.name)
    if stored in ("int32", "uint32") and array.size and not (
            np.iinfo(stored).min <= array.min() and array.max() <= np.iinfo(stored).max):
        raise ValueError(f"values beyond {stored} cannot be stored in a volume node")
    dtype = np.dtype(stored) if stored else array.dtype.newbyteorder("=")
    flat = np.ascontiguousarray(array.transpose(2, 1, 0), dtype=dtype).ravel()
    scalars = numpy_support.numpy_to_vtk(flat, deep=True)
    scalars.SetName("ImageScalars")
    image = vtk.vtkImageData() if image is None else image
    image.SetExtent(*(x for n in array.shape for x in (0, n - 1)))
    image.GetPointData().SetScalars(scalars)
    return image


def matrix_to_numpy(matrix) -> np.ndarray:
    """(4, 4) float64 of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def matrix_to_vtk(matrix: np.ndarray):
    """A vtkMatrix4x4 of (4, 4)."""
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(np.asarray(matrix, dtype=np.float64).ravel())
    return result


def transform_between(source_parent, target_parent):
    """vtkGeneralTransform from under one transform node to under another; None stands for the world."""
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source_parent, target_parent, general)
    return general


def linear_between(source, target) -> np.ndarray | None:
    """(4, 4) from the RAS that one node's data is in to another's, through both parents; None if it is not linear."""
    if source.GetTransformNodeID() == target.GetTransformNodeID():
        return np.eye(4)
    linear = vtk.vtkTransform()
    general = transform_between(source.GetParentTransformNode(), target.GetParentTransformNode())
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general, linear):
        return None
    return matrix_to_numpy(linear.GetMatrix())


def _modality_meta(node) -> dict:
    """{"modality": "CT"} as DICOM import writes it onto the series' item in the subject hierarchy, else {}."""
    # Not GetSubjectHierarchyNode(): that makes one where there is none, also in a sequence's own scene
    scene = node.GetScene()
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode") if scene is not None else None
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    modality = hierarchy.GetItemAttribute(item, "DICOM.Modality") if item else ""
    return {"modality": str(modality)} if modality else {}


def _transform(source_parent, target_parent, points) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if source_parent is target_parent:
        return points.copy()
    given, moved = vtk.vtkPoints(), vtk.vtkPoints()
    for store in (given, moved):
        store.SetDataTypeToDouble()     # the default, float, loses hundredths of a millimetre
    given.SetData(numpy_support.numpy_to_vtk(np.ascontiguousarray(points.reshape(-1, 3)), deep=True))
    transform_between(source_parent, target_parent).TransformPoints(given, moved)
    return numpy_support.vtk_to_numpy(moved.GetData()).reshape(points.shape).copy()
