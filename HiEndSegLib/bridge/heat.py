"""Heat maps as scalar volume nodes: colors made in code, hidden from volume boxes, not saved unless they are kept.

A map is a `Volume` in the volume's own RAS; its node gets the volume's parent transform, so it lies on the patient
however that is moved. Which views show it is `views.py`'s.
"""

from __future__ import annotations

import numpy as np
import slicer

from ..geometry.volume import Volume
from .scene import check_node, place_beside, same_parent, unique_name
from .volumes import image_of_array, matrix_to_vtk

#: Attribute of heat maps that are not kept, and of the color node.
HEAT = "HiEndSeg.HeatMap"
COLORS = "HiEndSeg.HeatColors"
#: Of the color bar in a view, as shares of the view: smaller than Slicer's own, which covers a third of a small one.
LEGEND_SIZE = (0.08, 0.3)
#: (position, (r, g, b)) from the weakest to the strongest, 0 to 255: dark violet, red, orange, light yellow.
STOPS = ((0.0, (18, 8, 48)), (0.25, (92, 18, 110)), (0.5, (190, 55, 82)), (0.75, (246, 139, 20)),
         (1.0, (252, 250, 170)))


def heat_color(share: float) -> tuple[int, int, int]:
    """The map's color at 0 (weakest) to 1 (strongest), (r, g, b) in 0 to 255."""
    positions = [position for position, _color in STOPS]
    return tuple(int(round(np.interp(share, positions, [color[n] for _position, color in STOPS]))) for n in range(3))


def color_node(scene):
    """The color table of the maps, 256 entries; made when it is first asked for. Looks alike in every home."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLColorTableNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLColorTableNode")
        if node.GetAttribute(COLORS):
            return node
    node = scene.CreateNodeByClass("vtkMRMLColorTableNode")
    node.UnRegister(None)
    node.SetTypeToUser()
    node.SetName("HiEndSeg heat")
    node.SetAttribute(COLORS, "1")
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.SetNumberOfColors(256)
    node.GetLookupTable().SetTableRange(0, 255)
    for index in range(256):
        node.SetColor(index, f"{index}", *(c / 255 for c in heat_color(index / 255)), 1.0)
    return scene.AddNode(node)


def heat_node(volume_node, heat: Volume, name: str):
    """A new node with the map on `volume_node`'s patient: in no box, not saved, shown in no view yet.

    heat: on any lattice in the volume's own RAS. Raises InputError where the volume is gone.
    """
    scene = check_node(volume_node, "vtkMRMLScalarVolumeNode").GetScene()
    node = scene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(name)
    node.SetAttribute(HEAT, "1")
    node.SetHideFromEditors(True)           # before it is in the scene: a volume box would take it otherwise
    node.SetSaveWithScene(False)
    _fill(node, heat)
    scene.AddNode(node)
    same_parent(node, volume_node)
    _display(node, saved=False)
    return node


def update_heat(node, heat: Volume, volume_node) -> None:
    """Other voxels on another lattice, at once; the transform follows the volume's."""
    modified = node.StartModify()
    try:
        _fill(node, heat)
        same_parent(node, volume_node)
    finally:
        node.EndModify(modified)


def style_heat(node, top: float, floor: float, smooth: bool) -> None:
    """top: value of the last color. floor: below it nothing is drawn. smooth: interpolated between voxels or not."""
    display = node.GetDisplayNode()
    modified = display.StartModify()
    try:
        _look(display, top, floor)
        display.SetInterpolate(bool(smooth))
    finally:
        display.EndModify(modified)


def show_legend(node, on: bool, title: str = "") -> bool:
    """A color bar in the views that show the map, where this Slicer can draw one; whether there is one."""
    logic = getattr(slicer, "vtkSlicerColorLogic", None)
    if not hasattr(logic, "GetColorLegendDisplayNode"):
        return False
    legend = logic.GetColorLegendDisplayNode(node)
    if legend is None:
        if not on:
            return False
        scene = node.GetScene()
        if not scene.IsNodeClassRegistered("vtkMRMLColorLegendDisplayNode"):     # nobody has on the bare wheel
            scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
        legend = logic.AddDefaultColorLegendDisplayNode(node)
        legend.SetSaveWithScene(False)
        legend.SetLabelFormat("%.1f")
        legend.SetMaxNumberOfColors(256)
        legend.SetNumberOfLabels(5)
        legend.SetSize(*LEGEND_SIZE)            # letters grow with it
    if title:
        legend.SetTitleText(title)
    legend.SetVisibility(bool(on))
    return bool(on)


def drop_heat(scene, node_id: str | None) -> None:
    """Remove a map that is not kept, with its displays. Anything else stays."""
    node = scene.GetNodeByID(node_id) if node_id else None
    if node is None or not node.GetAttribute(HEAT):
        return
    for display in [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]:
        if display is not None:
            scene.RemoveNode(display)
    scene.RemoveNode(node)


def keep_heat(node, volume_node, name: str, description: str = ""):
    """A copy of a map as an ordinary volume of the scene: in all boxes, saved with it, with the same colors."""
    scene = node.GetScene()
    kept = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", unique_name(scene, name))
    image = node.GetImageData().NewInstance()
    image.DeepCopy(node.GetImageData())
    kept.CopyOrientation(node)
    kept.SetAndObserveImageData(image)
    kept.SetDescription(description)
    same_parent(kept, volume_node)
    place_beside(kept, volume_node)
    color_node(scene).SetSaveWithScene(True)
    _display(kept, saved=True)
    display, own = kept.GetDisplayNode(), node.GetDisplayNode()
    _look(display, own.GetWindowLevelMax(), own.GetLowerThreshold())
    display.SetInterpolate(own.GetInterpolate())
    return kept


def is_heat(node) -> bool:
    """Whether the node is a map made here that is not kept."""
    return bool(node.GetAttribute(HEAT))


def _fill(node, heat: Volume) -> None:
    node.SetIJKToRASMatrix(matrix_to_vtk(heat.ijk_to_ras))
    node.SetAndObserveImageData(image_of_array(np.asarray(heat.array, dtype=np.float32)))


def _display(node, saved: bool) -> None:
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSaveWithScene(saved)
    display.SetAndObserveColorNodeID(color_node(node.GetScene()).GetID())
    display.AutoWindowLevelOff()


def _look(display, top: float, floor: float) -> None:
    display.SetWindowLevelMinMax(0.0, max(float(top), 1e-6))
    display.SetThreshold(float(floor), float(np.finfo(np.float32).max))
    display.SetApplyThreshold(True)
