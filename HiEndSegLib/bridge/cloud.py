"""A heat map in the 3D views as a colored cloud inside the organs' surfaces. For graphics cards: software is slow."""

from __future__ import annotations

import slicer
import vtk

from .heat import heat_color

#: What OpenGL calls renderers that have no graphics card behind them.
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software", "swr", "gdi generic", "microsoft basic render")


def drawn_by_a_card(window) -> bool:
    """Whether a vtkRenderWindow that has drawn already is backed by a graphics card."""
    words = "" if window is None else str(window.ReportCapabilities() or "").lower()
    names = [line for line in words.splitlines() if "renderer string" in line]
    return bool(names) and not any(word in line for line in names for word in _SOFTWARE)


def show_cloud(node, top: float, floor: float):
    """The map as a volume rendering: nothing below `floor`, the map's colors, denser where it is stronger.

    Returns its display node. Called again, only colors and opacity follow.
    """
    scene = node.GetScene()
    if not scene.IsNodeClassRegistered("vtkMRMLVolumePropertyNode"):
        scene.RegisterNodeClass(slicer.vtkMRMLVolumePropertyNode())
    display = cloud_of(node)
    if display is None:
        prop = scene.CreateNodeByClass("vtkMRMLVolumePropertyNode")
        prop.UnRegister(None)
        prop.SetSaveWithScene(False)
        prop.SetHideFromEditors(True)
        scene.AddNode(prop)
        kind = "vtkMRMLGPURayCastVolumeRenderingDisplayNode"
        if not scene.IsNodeClassRegistered(kind):
            scene.RegisterNodeClass(slicer.vtkMRMLGPURayCastVolumeRenderingDisplayNode())
        display = scene.CreateNodeByClass(kind)
        display.UnRegister(None)
        display.SetSaveWithScene(False)
        display.SetHideFromEditors(True)
        scene.AddNode(display)
        display.SetAndObserveVolumePropertyNodeID(prop.GetID())
        node.AddAndObserveDisplayNodeID(display.GetID())
    colors, opacity = vtk.vtkColorTransferFunction(), vtk.vtkPiecewiseFunction()
    for step in range(17):
        share = step / 16
        colors.AddRGBPoint(share * top, *(c / 255 for c in heat_color(share)))
    floor = min(floor, 0.95 * top)
    opacity.AddPoint(0.0, 0.0)
    opacity.AddPoint(floor, 0.0)
    opacity.AddPoint(floor + 0.25 * (top - floor), 0.08)
    opacity.AddPoint(top, 0.5)
    prop = display.GetVolumePropertyNode()
    modified = prop.StartModify()
    try:
        prop.SetColor(colors)
        prop.SetScalarOpacity(opacity)
        prop.GetVolumeProperty().SetInterpolationTypeToLinear()
        prop.GetVolumeProperty().ShadeOff()
    finally:
        prop.EndModify(modified)
    display.SetVisibility(True)
    return display


def hide_cloud(node) -> None:
    """Take the rendering away with all that was made for it. Safe to call twice."""
    display = cloud_of(node)
    if display is None:
        return
    scene, prop = node.GetScene(), display.GetVolumePropertyNode()
    display.SetVisibility(False)
    scene.RemoveNode(display)
    if prop is not None:
        scene.RemoveNode(prop)


def cloud_of(node):
    """The volume rendering of a map, or None."""
    for n in range(node.GetNumberOfDisplayNodes()):
        display = node.GetNthDisplayNode(n)
        if display is not None and display.IsA("vtkMRMLVolumeRenderingDisplayNode"):
            return display
    return None


class Glass:
    """A segmentation's surfaces see-through for a while, so that a cloud inside is seen; then as they were."""

    def __init__(self, scene):
        self._scene, self._id, self._before = scene, None, None

    def on(self, segmentation_node, opacity: float = 0.3) -> None:
        self.off()
        display = segmentation_node.GetDisplayNode()
        if display is not None:
            self._id, self._before = segmentation_node.GetID(), display.GetOpacity3D()
            display.SetOpacity3D(opacity)

    def off(self) -> None:
        """Safe to call twice, and when the segmentation is gone."""
        node = self._scene.GetNodeByID(self._id) if self._id else None
        if node is not None and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetOpacity3D(self._before)
        self._id = self._before = None
