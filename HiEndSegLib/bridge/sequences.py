"""Sequences (4D): the time points of a volume that is a sequence's proxy, and a sequence of segmentations beside it.

A browser node keeps sequences in step: at any moment each of them shows one item as an ordinary "proxy" node of the
scene. The items themselves lie in a scene of their own inside the sequence node, so nothing here changes what is on
screen while frames are worked on.
"""

from __future__ import annotations

from collections.abc import Sequence

import slicer

from ..errors import InputError
from ..geometry.labels import Label
from ..geometry.volume import Volume
from .results import mark_result
from .scene import check_node, prepare_scene, temporary_node, unique_name
from .segmentations import segmentation_from_labels
from .volumes import volume_from_node


def browser_of(volume_node):
    """(browser node, sequence node) of which the volume is the proxy, or (None, None)."""
    scene = volume_node.GetScene()
    count = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode") if scene is not None else 0
    for index in range(count):
        browser = scene.GetNthNodeByClass(index, "vtkMRMLSequenceBrowserNode")
        sequence = browser.GetSequenceNode(volume_node)
        if sequence is not None:
            return browser, sequence
    return None, None


def frame_count(volume_node) -> int:
    """Time points of a volume that is a sequence's proxy; 0 for an ordinary volume."""
    _browser, sequence = browser_of(volume_node)
    return 0 if sequence is None else sequence.GetNumberOfDataNodes()


def read_frame(sequence_node, index: int) -> Volume:
    """Voxels (copied) and own IJKToRAS of one time point; InputError where there is none or it is no volume."""
    check_node(sequence_node, "vtkMRMLSequenceNode")
    node = sequence_node.GetNthDataNode(index) if 0 <= index < sequence_node.GetNumberOfDataNodes() else None
    if node is None:
        raise InputError(f'The sequence "{sequence_node.GetName()}" has no time point {index + 1}; it has '
                         f"{sequence_node.GetNumberOfDataNodes()}.")
    return volume_from_node(node)


def frame_title(sequence_node, index: int) -> str:
    """How the sequence names a time point: "time 1.5 s"; its number where it has no name."""
    value = sequence_node.GetNthIndexValue(index)
    words = (sequence_node.GetIndexName() or "", value or str(index + 1), sequence_node.GetIndexUnit() or "")
    return " ".join(word for word in words if word)


def new_segmentation_sequence(sequence_node, name: str, model_key: str):
    """A sequence in the same scene with the same index, an empty segmentation at each time point, to be filled by
    `add_frame`.

    Empty, not missing: for a missing time point Slicer would show the one before. Each is marked as made by the model,
    because the proxy takes its attributes from it (references to other nodes do not survive in a sequence).
    """
    scene = sequence_node.GetScene()
    prepare_scene(scene)
    output = scene.AddNewNodeByClass("vtkMRMLSequenceNode", unique_name(scene, name))
    output.SetIndexName(sequence_node.GetIndexName())
    output.SetIndexUnit(sequence_node.GetIndexUnit())
    output.SetIndexType(sequence_node.GetIndexType())
    with temporary_node(scene, "vtkMRMLSegmentationNode") as empty:
        empty.SetHideFromEditors(False)         # copied into the time points, and so are these two
        empty.SetSaveWithScene(True)
        empty.SetName(output.GetName())
        empty.SetSourceRepresentationToBinaryLabelmap()
        mark_result(empty, model_key)
        for index in range(sequence_node.GetNumberOfDataNodes()):
            output.SetDataNodeAtValue(empty, sequence_node.GetNthIndexValue(index))
    return output


def add_frame(output_node, sequence_node, index: int, labels: Volume, legend: Sequence[Label],
              model_key: str) -> None:
    """Put one time point's label map, on that time point's own lattice, into the output sequence as a segmentation.

    Raises as `segmentation_from_labels`; the output is unchanged then.
    """
    scene = output_node.GetScene()
    frame = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "HiEndSeg temporary")
    segmentation = None
    try:
        frame.SetHideFromEditors(True)
        source = sequence_node.GetNthDataNode(index)
        frame.SetAndObserveImageData(source.GetImageData())
        frame.CopyOrientation(source)
        segmentation = segmentation_from_labels(labels, legend, frame, name=output_node.GetName())
        mark_result(segmentation, model_key)
        output_node.SetDataNodeAtValue(segmentation, sequence_node.GetNthIndexValue(index))
    finally:
        for node in filter(None, (segmentation, frame)):
            for display in [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]:
                if display is not None:
                    scene.RemoveNode(display)
            scene.RemoveNode(node)


def show_beside(browser_node, output_node, proxy_volume):
    """Let the browser show the output in step with the volume; the segmentation node that is then on screen.

    It gets the volume's parent transform.
    """
    browser_node.AddSynchronizedSequenceNode(output_node)
    browser_node.SetOverwriteProxyName(output_node, False)
    slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser_node)
    browser_node.SetSaveChanges(output_node, True)      # what a person corrects in a time point stays there
    proxy = browser_node.GetProxyNode(output_node)
    proxy.SetAndObserveTransformNodeID(proxy_volume.GetTransformNodeID())
    return proxy
