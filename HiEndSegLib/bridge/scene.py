"""What desktop Slicer has done at start-up and the bare wheel has not, and checks of nodes that a person chose."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import slicer
import vtk

from ..errors import InputError, OutputError

#: What the sentences call a node class.
_KINDS = {"vtkMRMLScalarVolumeNode": "volume", "vtkMRMLSegmentationNode": "segmentation",
          "vtkMRMLMarkupsROINode": "region of interest"}
#: Logics made here must outlive the call: they own the registration and their observers.
_kept = []


def prepare_scene(scene) -> None:
    """Make segmentation nodes of `scene` usable; does nothing where it was done, as in desktop Slicer.

    On the wheel nobody has made the Segmentations logic, which registers the converters between representations
    (once per process); without it no segment can be added.
    """
    if not _converters_registered():
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(scene)
        _kept.append(logic)
    if not _converters_registered():
        raise OutputError("Slicer's segmentation converters are missing, so no result can be shown; "
                          "reinstall Slicer or the slicer-core package.")


def check_node(node, class_name: str):
    """The node itself, or InputError in a sentence: none chosen, of another kind, or no longer in a scene."""
    kind = _KINDS.get(class_name, class_name)
    if node is None:
        raise InputError(f"No {kind} is chosen; choose one and try again.")
    if not (hasattr(node, "IsA") and node.IsA(class_name)):
        name = node.GetName() if hasattr(node, "GetName") else type(node).__name__
        raise InputError(f'"{name}" is not a {kind}; choose a {kind}.')
    if node.GetScene() is None:
        raise InputError(f'The {kind} "{node.GetName()}" is no longer in the scene; choose another one.')
    return node


def unique_name(scene, name: str) -> str:
    """`name`, or `name_1`, `name_2`, … where a node of that name is already in the scene."""
    return scene.GenerateUniqueName(name) if scene.GetFirstNodeByName(name) is not None else name


def place_beside(node, reference) -> bool:
    """Put `node` next to `reference` (same patient, study or folder) in the subject hierarchy.

    False where that cannot be: on the wheel no plugin makes items for nodes, so their item id is 0.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    if hierarchy is None:
        return False
    item, beside = hierarchy.GetItemByDataNode(node), hierarchy.GetItemByDataNode(reference)
    if not item or not beside:
        return False
    hierarchy.SetItemParent(item, hierarchy.GetItemParent(beside))
    return True


def same_parent(node, reference) -> None:
    """Give `node` the parent transform of `reference` (none where that has none)."""
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())


@contextmanager
def temporary_node(scene, class_name: str):
    """A node hidden from every list, removed at the end whatever happens, with what was added for it."""
    node = scene.CreateNodeByClass(class_name)
    node.UnRegister(None)       # CreateNodeByClass hands over a reference that Python does not count
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.SetName("HiEndSeg temporary")
    scene.AddNode(node)
    try:
        yield node
    finally:
        for extra in [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]:
            if extra is not None:
                scene.RemoveNode(extra)
        scene.RemoveNode(node)


def load_terminology(logic, path) -> str:
    """Load a terminology file (`Resources/SegmentationCategoryTypeModifier-HiEndSeg.term.json`); its context's name.

    logic: a vtkSlicerTerminologiesModuleLogic. Raises InputError where the file is missing or is not one.
    """
    if not Path(path).is_file():
        raise InputError(f"The terminology file {path} is missing; install HiEndSeg again.")
    context = logic.LoadTerminologyFromFile(str(path))
    if not context:
        raise InputError(f"{path} is not a terminology file that Slicer can read; install HiEndSeg again.")
    return context


def names_in_scene(scene) -> list[str]:
    """Names of volumes, segmentations, markups, sequences and of everything in the subject hierarchy (patients too).

    What must not be in a text that leaves this computer.
    """
    names = {scene.GetNthNodeByClass(n, kind).GetName() for kind in ("vtkMRMLDisplayableNode", "vtkMRMLSequenceNode")
             for n in range(scene.GetNumberOfNodesByClass(kind))}
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    if hierarchy is not None:
        items = vtk.vtkIdList()
        hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
        names |= {hierarchy.GetItemName(items.GetId(n)) for n in range(items.GetNumberOfIds())}
    return sorted(filter(None, names))


def _converters_registered() -> bool:
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    made = factory.ConstructRepresentationObjectByRepresentation(name)
    if made is None:
        return False
    made.UnRegister(None)
    return True
