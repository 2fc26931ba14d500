"""Which segmentation and table belong to which volume, written into the scene: it survives saving and loading."""

from __future__ import annotations

import slicer

from .scene import check_node

#: Attribute of a segmentation made here: the model's "id@version".
MODEL = "HiEndSeg.Model"
#: Attribute of a table made here, and the reference from a segmentation to it.
TABLE = "HiEndSeg.Table"


def mark_result(segmentation_node, model_key: str) -> None:
    """Remember that (and by which model) the segmentation was made here."""
    segmentation_node.SetAttribute(MODEL, model_key)


def results_of(volume_node) -> list:
    """Segmentation nodes made here for this volume, newest last."""
    scene = volume_node.GetScene()
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    found = []
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLSegmentationNode")
        if node.GetAttribute(MODEL) and (node.GetNodeReferenceID(role) == volume_node.GetID()
                                         or _in_step(node, volume_node)):
            found.append(node)
    return found


def drawn_on(volume_node) -> list:
    """Segmentation nodes whose reference volume this is and that are shown in lists of nodes, newest last."""
    scene = volume_node.GetScene()
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    nodes = [scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
             for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))]
    return [node for node in nodes if node.GetNodeReferenceID(role) == volume_node.GetID()
            and not node.GetHideFromEditors()]


def segments_in(segmentation_node, ids) -> list[str]:
    """Those of `ids` that the segmentation has with at least one voxel or cell drawn, in the order given."""
    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    segmentation = segmentation_node.GetSegmentation()
    return [id_ for id_ in ids if segmentation.GetSegmentIndex(id_) >= 0 and not _is_empty(segmentation, id_)]


def table_of(segmentation_node):
    """The table node made for this segmentation, or None."""
    return segmentation_node.GetNodeReference(TABLE)


def surface_shown(segmentation_node) -> bool:
    """Whether "Show 3D" is on: the surfaces exist and are visible."""
    display = segmentation_node.GetDisplayNode()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return bool(display is not None and display.GetVisibility3D()
                and segmentation_node.GetSegmentation().ContainsRepresentation(surface))


def show_surface(segmentation_node, on: bool) -> None:
    """Show 3D on or off, as Slicer's own button does. Making surfaces takes up to seconds; off drops them again."""
    check_node(segmentation_node, "vtkMRMLSegmentationNode")
    if not on:
        segmentation_node.RemoveClosedSurfaceRepresentation()
        return
    segmentation_node.CreateDefaultDisplayNodes()
    segmentation_node.CreateClosedSurfaceRepresentation()
    segmentation_node.GetDisplayNode().SetVisibility3D(True)


def _in_step(node, volume_node) -> bool:
    """Whether both are shown by one sequence browser: then they belong together, without a reference."""
    scene = node.GetScene()
    browsers = (scene.GetNthNodeByClass(n, "vtkMRMLSequenceBrowserNode")
                for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")))
    return any(browser.GetSequenceNode(node) is not None and browser.GetSequenceNode(volume_node) is not None
               for browser in browsers)


def _is_empty(segmentation, id_: str) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    segment = segmentation.GetSegment(id_)
    image = segment.GetRepresentation(name)
    if image is None:
        return segment.GetRepresentation(segmentation.GetSourceRepresentationName()) is None
    if image.GetNumberOfPoints() == 0:
        return True
    from .volumes import array_of_image

    return not bool((array_of_image(image) == segment.GetLabelValue()).any())
