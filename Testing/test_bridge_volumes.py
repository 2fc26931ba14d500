"""Volume nodes to `Volume` and back, points through parent transforms, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bridge_scene import (LATTICES, affine, ct, ct_volume, grid_transform, linear_transform, rotation,  # noqa: F401
                          scene, slicer)

import vtk

from HiEndSegLib.bridge import volumes
from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.volume import Volume


@pytest.mark.parametrize("lattice", LATTICES)
def test_round_trip_is_exact(scene, lattice):
    given = ct_volume(lattice)
    back = volumes.volume_from_node(volumes.node_from_volume(given, scene))
    assert back.array.dtype == np.int16 and np.array_equal(back.array, given.array)
    assert np.abs(back.ijk_to_ras - given.ijk_to_ras).max() < 1e-12
    assert back.name == "CT" and back.meta["parent"] == "none" and back.notes == []


def test_the_array_is_a_copy_and_the_axes_are_those_of_slicer(scene):
    given = ct_volume("oblique")
    node = volumes.node_from_volume(given, scene)
    assert node.GetImageData().GetScalarComponentAsFloat(3, 5, 2, 0) == given.array[3, 5, 2]
    volumes.volume_from_node(node).array[:] = 0
    assert node.GetImageData().GetScalarComponentAsFloat(3, 5, 2, 0) == given.array[3, 5, 2]


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", ">i2"])
def test_every_common_type_keeps_its_numbers(scene, dtype):
    array = np.array([0, 1, 1, 0, 1, 0, 0, 1], dtype).reshape(2, 2, 2)
    back = volumes.volume_from_node(volumes.node_from_volume(Volume(array, np.eye(4)), scene))
    assert np.array_equal(back.array.astype(float), array.astype(float))


def test_numbers_that_no_voxel_type_holds_are_refused():
    with pytest.raises(ValueError, match="int32"):
        volumes.image_of_array(np.full((1, 1, 1), 2 ** 40, np.int64))


@pytest.mark.parametrize("lattice", ["axis-aligned", "oblique", "left-handed"])
@pytest.mark.parametrize("parent", [None, "linear", "nested", "nonlinear"])
def test_a_parent_moves_points_and_not_the_lattice(scene, lattice, parent):
    given = ct_volume(lattice)
    node = volumes.node_from_volume(given, scene)
    if parent:
        transform = linear_transform(scene) if parent != "nonlinear" else grid_transform(scene)
        if parent == "nested":
            transform.SetAndObserveTransformNodeID(linear_transform(scene, turn=(0, 0, 90)).GetID())
        node.SetAndObserveTransformNodeID(transform.GetID())
    volume = volumes.volume_from_node(node)
    assert np.abs(volume.ijk_to_ras - given.ijk_to_ras).max() < 1e-12
    kind = {None: "none", "nested": "linear"}.get(parent, parent)
    assert volume.meta["parent"] == volumes.parent_kind(node) == kind
    assert bool(volume.notes) == (kind == "nonlinear")
    for ijk in [(0, 0, 0), (3, 7, 5), (13, 11, 8)]:
        world = volumes.world_at_ijk(node, ijk)
        assert volumes.ijk_at_world(node, world) == ijk
        ras = (given.ijk_to_ras @ [*ijk, 1])[:3]
        assert (np.abs(world - ras).max() > 1) == (parent is not None)
        assert np.abs(volumes.world_to_volume_ras(node, world) - ras).max() < 0.01


def test_points_go_through_a_linear_parent_as_matrices_say(scene, ct):
    matrix = affine(rotation(10, 20, 30), origin=(40.0, -5.0, 12.0))
    ct.SetAndObserveTransformNodeID(linear_transform(scene).GetID())
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 50.0, 6.5]])
    expected = points @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.allclose(volumes.volume_ras_to_world(ct, points), expected, atol=1e-9)
    assert np.allclose(volumes.world_to_volume_ras(ct, expected), points, atol=1e-9)


def test_voxel_borders_and_points_outside(scene, ct):
    origin = np.array([12.5, -40.0, 77.0])      # 1 mm voxels: the first one reaches from -0.5 to 0.5
    assert volumes.ijk_at_world(ct, origin + [0.49, 0.51, 8.49]) == (0, 1, 8)
    assert volumes.ijk_at_world(ct, origin - 0.49) == (0, 0, 0)
    for outside in ([-0.51, 0, 0], [0, 11.51, 0], [0, 0, 8.51], [np.nan, 0, 0], [0, np.inf, 0]):
        with pytest.raises(InputError, match='outside "CT"'):
            volumes.ijk_at_world(ct, origin + outside)


def test_an_image_that_counts_from_elsewhere_lies_where_it_is(scene):
    node = volumes.node_from_volume(ct_volume(), scene)
    node.GetImageData().SetExtent(2, 15, 3, 14, 0, 8)
    shape, matrix = volumes.lattice_of(node)
    assert shape == (14, 12, 9) and np.allclose(matrix[:3, 3], [14.5, -37.0, 77.0])


def test_results_share_parent_and_geometry_and_updates_keep_them(scene, ct):
    transform = linear_transform(scene)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    heat = volumes.node_from_volume(Volume(np.zeros((3, 4, 5), np.float32), np.diag([8.0, 8, 8, 1])), scene, like=ct,
                                    name="heat")
    assert heat.GetTransformNodeID() == transform.GetID() and heat.GetName() == "heat"
    events = []
    heat.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: events.append(1))
    volumes.update_node(heat, Volume(np.ones((2, 2, 2), np.float32), np.diag([9.0, 9, 9, 1])))
    back = volumes.volume_from_node(heat)
    assert back.shape == (2, 2, 2) and back.spacing == (9.0, 9.0, 9.0) and back.array.min() == 1
    assert len(events) == 1 and heat.GetTransformNodeID() == transform.GetID()


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_a_hardened_copy_is_where_the_volume_is_seen(scene, kind):
    shape, matrix = LATTICES["oblique"]
    ras = np.einsum("ab,bijk->aijk", matrix[:3, :3], np.indices(shape)) + matrix[:3, 3][:, None, None, None]
    ct = volumes.node_from_volume(Volume((ras[0] + 2 * ras[1] - ras[2]).astype(np.float32), matrix, "CT"), scene)
    transform = linear_transform(scene) if kind == "linear" else grid_transform(scene)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    world = volumes.world_at_ijk(ct, (7, 6, 4))
    copy = volumes.hardened_copy(ct)
    assert copy.GetTransformNodeID() is None and volumes.parent_kind(copy) == "none"
    assert ct.GetTransformNodeID() == transform.GetID() and copy.GetName() == "CT hardened"
    i, j, k = volumes.ijk_at_world(copy, world)
    value = volumes.volume_from_node(copy).array[i, j, k]
    before = volumes.world_to_volume_ras(ct, volumes.world_at_ijk(copy, (i, j, k)))
    assert abs(value - before @ [1, 2, -1]) < 0.1


@pytest.mark.parametrize("parent", [None, "linear"])
def test_box_of_a_rotated_roi(scene, ct, parent):
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    with pytest.raises(InputError, match="no extent"):
        volumes.box_of_roi(roi, ct)
    roi.SetSize(10, 20, 30)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(affine(rotation(0, 0, 90), origin=(5.0, 6.0, 7.0)).ravel())
    roi.SetAndObserveObjectToNodeMatrix(matrix)
    if parent:
        transform = linear_transform(scene)
        roi.SetAndObserveTransformNodeID(transform.GetID())
        ct.SetAndObserveTransformNodeID(transform.GetID())
    assert np.allclose(volumes.box_of_roi(roi, ct), [(-5, 15), (1, 11), (-8, 22)], atol=1e-6)


def test_what_cannot_be_segmented_is_refused_in_a_sentence(scene, ct):
    def refused(node, words):
        with pytest.raises(InputError, match=words) as caught:
            volumes.volume_from_node(node)
        assert caught.value.sentence.endswith(".") and "\n" not in caught.value.sentence

    refused(None, "No volume is chosen")
    refused(scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S"), '"S" is not a volume')
    refused(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"), '"empty" holds no voxels')
    refused(scene.AddNewNodeByClass("vtkMRMLSequenceNode", "beats"), '"beats" is a sequence')
    for class_name in ("vtkMRMLVectorVolumeNode", "vtkMRMLScalarVolumeNode", "vtkMRMLDiffusionWeightedVolumeNode"):
        node = scene.AddNewNodeByClass(class_name, "many")
        image = vtk.vtkImageData()
        image.SetDimensions(4, 4, 4)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
        node.SetAndObserveImageData(image)
        refused(node, "3 values per voxel")
    flat = volumes.node_from_volume(ct_volume(), scene, name="flat")
    flat.SetSpacing(1, 0, 1)
    refused(flat, "spacing of zero")
    scene.RemoveNode(ct)
    refused(ct, '"CT" is no longer in the scene')
