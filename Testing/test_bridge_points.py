"""The query's point, the click that sets it, and two views side by side: all of it given back."""

from __future__ import annotations

import numpy as np
from bridge_scene import LATTICES, linear_transform, scene, slicer                           # noqa: F401
from test_bridge_heat import hot_token, settings, view, volume_of                            # noqa: F401

from HiEndSegLib.bridge.heat import heat_node
from HiEndSegLib.bridge.pairs import LEFT, RIGHT, SideBySide
from HiEndSegLib.bridge.points import QueryPoint, inside
from HiEndSegLib.bridge.views import composites
from HiEndSegLib.bridge.volumes import volume_ras_to_world


def test_a_point_is_one_and_tells_when_it_moves(scene):
    heard = []
    point = QueryPoint(scene, lambda: heard.append(point.position))
    assert point.position is None and point.node is None
    point.put((1, 2, 3))
    point.put((4, 5, 6))
    assert point.node.GetNumberOfControlPoints() == 1 and heard[-1] == (4.0, 5.0, 6.0)
    point.node.SetNthControlPointPositionWorld(0, 7.0, 8.0, 9.0)        # a person drags it
    assert heard[-1] == (7.0, 8.0, 9.0)
    heard.clear()
    point.remove()
    assert heard == [] and scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0
    assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsDisplayNode") == 0


def test_a_click_gives_the_mouse_back(scene, view):
    mouse, selection = (scene.GetFirstNodeByClass(kind) for kind in ("vtkMRMLInteractionNode", "vtkMRMLSelectionNode"))
    theirs = scene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", "a ruler")
    selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsLineNode")
    selection.SetActivePlaceNodeID(theirs.GetID())
    before = settings(scene)
    point = QueryPoint(scene, lambda: None)
    point.put((1, 2, 3))
    assert point.place() and point.placing and point.position is None
    assert selection.GetActivePlaceNodeID() == point.node_id
    point.node.AddControlPointWorld(4.0, 5.0, 6.0)                      # the click
    mouse.SwitchToViewTransformMode()                                   # what the view does after it
    point.settle()
    assert point.position == (4.0, 5.0, 6.0) and settings(scene) == before
    assert point.place()
    mouse.SwitchToViewTransformMode()                                   # Esc
    point.settle()
    assert point.position == (4.0, 5.0, 6.0), "no click, no other point"
    assert settings(scene) == before


def test_inside_asks_the_voxels(scene):
    ct = volume_of(scene, "oblique")
    ct.SetAndObserveTransformNodeID(linear_transform(scene).GetID())
    shape, matrix = LATTICES["oblique"]
    for index, wanted in (((0, 0, 0), True), (np.array(shape) - 1, True), ((-1, 0, 0), False),
                          ((0, shape[1], 0), False)):
        assert inside(ct, volume_ras_to_world(ct, (matrix @ [*index, 1.0])[:3])) is wanted


def test_two_maps_side_by_side_and_the_old_layout_back(scene):
    pairs = SideBySide(scene)
    ct = volume_of(scene)
    left, right = (heat_node(ct, hot_token(LATTICES["axis-aligned"][1])[0], name) for name in ("A", "B"))
    assert not pairs.available and pairs.show(ct, left, right, 0.5) is False
    logic = slicer.vtkMRMLLayoutLogic()
    logic.SetMRMLScene(scene)
    layout = logic.GetLayoutNode()
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    assert pairs.available and pairs.show(ct, left, right, 0.5, at=(12.5, -40.0, 79.0)) and pairs.shown
    shown = {view.GetLayoutName(): view for view in composites(scene)}
    assert [shown[tag].GetForegroundVolumeID() for tag in (LEFT, RIGHT)] == [left.GetID(), right.GetID()]
    assert all(shown[tag].GetLinkedControl() and shown[tag].GetBackgroundVolumeID() == ct.GetID()
               for tag in (LEFT, RIGHT))
    nodes = [scene.GetNthNodeByClass(n, "vtkMRMLSliceNode") for n in range(
        scene.GetNumberOfNodesByClass("vtkMRMLSliceNode"))]
    ours = [node for node in nodes if node.GetLayoutName() in (LEFT, RIGHT)]
    assert [node.GetSliceOffset() for node in ours] == [79.0, 79.0]
    assert len({node.GetViewGroup() for node in ours}) == 1 and ours[0].GetViewGroup() != 0
    pairs.set_opacity(0.25)
    assert shown[RIGHT].GetForegroundOpacity() == 0.25
    pairs.hide()
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView
    assert all(shown[tag].GetForegroundVolumeID() is None for tag in (LEFT, RIGHT))
    pairs.show(ct, left, right, 0.5)
    layout.SetViewArrangement(layout.SlicerLayoutOneUpRedSliceView)      # the person's own choice
    pairs.hide()
    assert layout.GetViewArrangement() == layout.SlicerLayoutOneUpRedSliceView
    logic.SetMRMLScene(None)
