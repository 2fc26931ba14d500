"""Shared by the bridge tests: an MRML scene of the slicer-core wheel, lattices, and short ways to make nodes."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", exc_type=ImportError,
                             reason="the slicer-core wheel is missing or cannot be loaded: no MRML to test the bridge")

import vtk                                                                          # noqa: E402
from vtkmodules.util import numpy_support                                           # noqa: E402

from HiEndSegLib.bridge.volumes import node_from_volume                             # noqa: E402
from HiEndSegLib.geometry.labels import Label                                       # noqa: E402
from HiEndSegLib.geometry.volume import Volume                                      # noqa: E402

SHAPE = (14, 12, 9)


def sct(code, meaning, side=None):
    return {"category": ["SCT", "123037004", "Anatomical Structure"], "type": ["SCT", code, meaning],
            "modifier": {"left": ["SCT", "7771000", "Left"], "right": ["SCT", "24028007", "Right"]}.get(side)}


# Values with gaps and out of order on purpose: they must not reach Slicer as they are
LEGEND = [Label(5, "liver", "Liver", (221, 130, 101), sct("10200004", "Liver")),
          Label(2, "kidney_left", "Left kidney", (185, 102, 83), sct("64033007", "Kidney", "left")),
          Label(9, "spleen", "Spleen", (157, 108, 162), sct("78961009", "Spleen")),
          Label(7, "colon", "Colon", (204, 168, 143), sct("71854001", "Colon"))]
VALUE = {label.id: label.value for label in LEGEND}


def rotation(*degrees):
    """A rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [x for x in range(3) if x != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def affine(directions=np.eye(3), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(directions) * spacing
    matrix[:3, 3] = origin
    return matrix


LATTICES = {
    "axis-aligned": (SHAPE, affine(origin=(12.5, -40.0, 77.0))),
    "left-handed": (SHAPE, affine(np.diag([-1, 1, 1]), (1.5, 1.5, 3.0), (100.0, -20.0, 5.0))),
    "oblique": (SHAPE, affine(rotation(20, -35, 10), (0.9, 1.1, 2.5), (-31.0, 7.0, 60.0))),
    "permuted": (SHAPE, affine([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], (1.5, 1.5, 1.5), (3.0, 4.0, 5.0))),
    "one-slice": ((14, 12, 1), affine(rotation(5, 0, 8), (0.8, 0.8, 5.0), (1.0, 2.0, 3.0))),
    "anisotropic": (SHAPE, affine(np.diag([-1, -1, 1]), (0.5, 0.5, 8.0), (1.0, 2.0, 3.0))),
}


def ct_volume(lattice="axis-aligned", dtype=np.int16):
    shape, matrix = LATTICES[lattice]
    return Volume(np.random.default_rng(3).integers(-1000, 1500, shape).astype(dtype), matrix, "CT")


def label_volume(lattice="axis-aligned"):
    """Liver next to the left kidney, the spleen apart, no colon; different along every axis."""
    shape, matrix = LATTICES[lattice]
    array = np.zeros(shape, np.uint8)
    array[1:6, 2:8, 0:5] = VALUE["liver"]
    array[6:9, 3:8, 0:4] = VALUE["kidney_left"]
    array[10:13, 9:11, 0:7] = VALUE["spleen"]
    return Volume(array, matrix, "result")


def linear_transform(scene, *, turn=(10, 20, 30), move=(40.0, -5.0, 12.0)):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(affine(rotation(*turn), origin=move).ravel())
    node.SetMatrixTransformToParent(matrix)
    return node


def grid_transform(scene, millimetres=6.0):
    """A smooth displacement over the whole neighbourhood, as DICOM import makes for gantry tilt."""
    grid = vtk.vtkImageData()
    grid.SetDimensions(7, 7, 7)
    grid.SetSpacing(60, 60, 60)
    grid.SetOrigin(-180, -180, -180)
    field = np.random.default_rng(8).normal(size=(343, 3)) * millimetres
    grid.GetPointData().SetScalars(numpy_support.numpy_to_vtk(field, deep=True))
    transform = vtk.vtkGridTransform()
    transform.SetDisplacementGridData(grid)
    transform.SetInterpolationModeToCubic()
    node = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "tilt correction")
    node.SetAndObserveTransformToParent(transform)
    return node


@pytest.fixture
def scene():
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(True)


@pytest.fixture
def ct(scene):
    return node_from_volume(ct_volume(), scene)
