"""What is saved with the scene: the volume, region, result, model and structures that were chosen, and what Adapt is to
learn from, under which name.

Typed access to one node. Not `slicer.parameterNodeWrapper`: of its connectors none fits a list that is filled at run
time, and this class runs wherever MRML does, so that what is tested is what runs in Slicer.
"""

from __future__ import annotations


class _Reference:
    """A node that is kept as a node reference: its id, or None where there is none or the node is gone."""

    def __init__(self, role):
        self.role = role

    def __get__(self, parameters, owner=None):
        node = parameters.node.GetNodeReference(self.role)
        return None if node is None else node.GetID()

    def __set__(self, parameters, nodeID):
        if nodeID != self.__get__(parameters):
            parameters.node.SetNodeReferenceID(self.role, nodeID or None)


class _Text:
    """A string; "" where nothing was stored."""

    def __init__(self, name):
        self.name = name

    def __get__(self, parameters, owner=None):
        return parameters.node.GetParameter(self.name) or ""

    def __set__(self, parameters, value):
        if value != self.__get__(parameters):
            parameters.node.SetParameter(self.name, value)


class SceneParameters:
    """node: the module's vtkMRMLScriptedModuleNode. only: ids of the checked structures, None for all."""

    volumeID = _Reference("InputVolume")
    roiID = _Reference("Region")
    outputID = _Reference("Output")
    correctedID = _Reference("Corrected")
    model = _Text("Model")
    versionName = _Text("VersionName")
    _only = _Text("Only")

    def __init__(self, node):
        self.node = node

    @property
    def only(self):
        return None if not self._only else tuple(id_ for id_ in self._only.split(",") if id_ != "-")

    @only.setter
    def only(self, ids):
        # "-" stands for "none of them", which is not "all"
        self._only = "" if ids is None else ",".join(ids) or "-"
