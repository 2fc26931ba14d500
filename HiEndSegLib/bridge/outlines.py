"""Two label maps of one volume as outlines of different style, to look at and to remove again."""

from __future__ import annotations

from collections.abc import Sequence

from ..geometry.labels import Label
from ..geometry.volume import Volume
from .segmentations import segmentation_from_labels

#: Attribute of the nodes made here: "before" or "after".
OUTLINE = "HiEndSeg.Outline"
#: Width in pixels and opacity of the lines.
STYLES = {"before": (1, 0.6), "after": (3, 1.0)}


def add_outlines(labels: Volume, legend: Sequence[Label], volume_node, style: str, name: str):
    """A segmentation node of the label map (on the volume's lattice, under its transform) drawn as thin or bold lines.

    style: a key of `STYLES`. The node is hidden from lists of nodes, is not saved with the scene, and is no result:
    nobody can take it for the segmentation that is worked on. Raises as `segmentation_from_labels`.
    """
    width, opacity = STYLES[style]
    node = segmentation_from_labels(labels, legend, volume_node, name=name)
    node.SetAttribute(OUTLINE, style)
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetVisibility3D(False)
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetSliceIntersectionThickness(width)
    display.SetOpacity2DOutline(opacity)
    return node


def remove_outlines(scene) -> int:
    """All nodes made by `add_outlines` in the scene; how many there were."""
    found = [scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
             for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))]
    found = [node for node in found if node.GetAttribute(OUTLINE)]
    for node in found:
        remove_segmentation(node)
    return len(found)


def remove_segmentation(node) -> None:
    """A segmentation node with its display nodes."""
    scene = node.GetScene()
    for display in [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]:
        if display is not None:
            scene.RemoveNode(display)
    scene.RemoveNode(node)
