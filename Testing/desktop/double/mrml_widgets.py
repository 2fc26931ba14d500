"""qMRML widgets on a real MRML scene: what the panel's form holds."""

from __future__ import annotations

import vtk
from PySide6 import QtCore, QtWidgets

Property, Signal = QtCore.Property, QtCore.Signal


class qMRMLWidget(QtWidgets.QWidget):
    """Hands the scene down by its signal, as the form connects it."""

    _stands_for_native = True
    SIGNALS = {"mrmlSceneChanged(vtkMRMLScene*)": "_sceneChanged"}
    _sceneChanged = Signal(object)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self._sceneChanged.emit(scene)


class _Filter(QtCore.QObject):
    """`sortFilterProxyModel()`: the one method of it that hides single nodes."""

    _stands_for_native = True

    def __init__(self, combo):
        super().__init__(combo)
        self._hiddenIDs = []

    def setHiddenNodeIDs(self, ids):
        self._hiddenIDs = list(ids)
        self.parent()._rebuild()

    def _getHidden(self):
        return list(self._hiddenIDs)

    hiddenNodeIDs = Property("QStringList", _getHidden, setHiddenNodeIDs)


def _plain(name, kind, default):
    """A Qt property with a setter method, as the C++ class has both."""
    hidden = "_" + name

    def get(self):
        return getattr(self, hidden, default)

    def put(self, value):
        setattr(self, hidden, list(value) if kind == "QStringList" else value)
        self._rebuild()
    return Property(kind, get, put), put


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Lists the scene's nodes of the given types. Grey until it has a scene. Its own entries: None, create, rename."""

    _stands_for_native = True
    SIGNALS = {"currentNodeChanged(vtkMRMLNode*)": "_nodeChanged", "currentNodeIDChanged(QString)": "_idChanged",
               "currentNodeChanged(bool)": "_validChanged", "nodeAddedByUser(vtkMRMLNode*)": "_added",
               "nodeActivated(vtkMRMLNode*)": "_activated"}
    _nodeChanged, _idChanged, _validChanged = Signal(object), Signal(str), Signal(bool)
    _added, _activated = Signal(object), Signal(object)

    nodeTypes, setNodeTypes = _plain("nodeTypes", "QStringList", [])
    hideChildNodeTypes, setHideChildNodeTypes = _plain("hideChildNodeTypes", "QStringList", [])
    showChildNodeTypes, setShowChildNodeTypes = _plain("showChildNodeTypes", bool, True)
    showHidden, setShowHidden = _plain("showHidden", bool, False)
    noneEnabled, setNoneEnabled = _plain("noneEnabled", bool, False)
    noneDisplay, setNoneDisplay = _plain("noneDisplay", str, "None")
    addEnabled, setAddEnabled = _plain("addEnabled", bool, True)
    removeEnabled, setRemoveEnabled = _plain("removeEnabled", bool, True)
    renameEnabled, setRenameEnabled = _plain("renameEnabled", bool, False)
    editEnabled, setEditEnabled = _plain("editEnabled", bool, False)
    selectNodeUponCreation, setSelectNodeUponCreation = _plain("selectNodeUponCreation", bool, True)
    baseName, setBaseName = _plain("baseName", str, "")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._scene, self._current, self._tags, self._attributes, self._ids = None, "", [], [], []
        self._filter = _Filter(self)
        self._box = QtWidgets.QComboBox(self)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.activated.connect(self._chosen)
        self._box.setMinimumWidth(60)
        self._box.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Fixed)
        self.setEnabled(False)
        self.destroyed.connect(_watch.forget(self._tags))

    # scene
    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is self._scene:
            return
        _watch.forget(self._tags)()
        self._scene = scene
        self.setEnabled(scene is not None)
        if scene is not None:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent,
                          scene.EndBatchProcessEvent):
                _watch.watch(self._tags, scene, event, self._sceneMoved)
        self._rebuild()

    def _sceneMoved(self, caller, event):
        if not self._scene.IsBatchProcessing() and not self._scene.IsClosing():
            self._rebuild()

    def _nodeMoved(self, caller, event):
        row = self._ids.index(caller.GetID()) if caller.GetID() in self._ids else -1
        if row >= 0 and self._box.itemText(row) != caller.GetName():
            self._box.setItemText(row, caller.GetName())

    def sortFilterProxyModel(self):
        return self._filter

    def addAttribute(self, kind, name, value=None):
        self._attributes.append((kind, name, value))
        self._rebuild()

    def _accepts(self, node) -> bool:
        if node.GetID() in self._filter._hiddenIDs or (node.GetHideFromEditors() and not self.showHidden):
            return False
        kinds = [kind for kind in self.nodeTypes if node.IsA(kind)]
        if not kinds or any(node.IsA(kind) for kind in self.hideChildNodeTypes):
            return False
        if not self.showChildNodeTypes and node.GetClassName() not in self.nodeTypes:
            return False
        wanted = [(node.GetAttribute(name), value) for kind, name, value in self._attributes if node.IsA(kind)]
        return all(has is not None and value in (None, has) for has, value in wanted)

    def _rebuild(self):
        if not hasattr(self, "_box"):
            return
        scene = self._scene
        nodes = [] if scene is None else [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
        nodes = [node for node in nodes if self._accepts(node)]
        before = list(self._ids)
        self._ids = ([""] if self.noneEnabled else []) + [node.GetID() for node in nodes]
        self._box.blockSignals(True)
        self._box.clear()
        if self.noneEnabled:
            self._box.addItem(self.noneDisplay)
        for node in nodes:
            self._box.addItem(node.GetName())
            _watch.watch(self._tags, node, vtk.vtkCommand.ModifiedEvent, self._nodeMoved)
        for on, text in ((self.addEnabled, "Create new…"), (self.renameEnabled, "Rename current…"),
                         (self.removeEnabled, "Delete current")):
            if on and scene is not None:
                self._box.addItem(text)
        self._box.blockSignals(False)
        wanted = self._current
        if wanted not in self._ids:            # its row went: Qt's box falls on the one before
            gone = before.index(wanted) if wanted in before else 0
            rest = [i for i in before[:gone] if i in self._ids] or self._ids[:1] or [""]
            wanted = rest[-1]
        elif wanted == "" and not self.noneEnabled and self._ids:
            wanted = self._ids[0]
        self._select(wanted)

    # the current node
    def _select(self, id_):
        self._box.setCurrentIndex(self._ids.index(id_) if id_ in self._ids else -1)
        if id_ == self._current:
            return
        self._current = id_
        node = self.currentNode()
        self._nodeChanged.emit(node)
        self._validChanged.emit(node is not None)
        self._idChanged.emit(id_)

    def _chosen(self, row):
        if row < len(self._ids):
            self._select(self._ids[row])
            self._activated.emit(self.currentNode())
            return
        text = self._box.itemText(row)
        self._box.setCurrentIndex(self._ids.index(self._current) if self._current in self._ids else -1)
        if text == "Create new…":
            self.addNode()
        elif text == "Delete current" and self.currentNode() is not None:
            self._scene.RemoveNode(self.currentNode())

    def currentNode(self):
        return self._scene.GetNodeByID(self._current) if self._scene is not None and self._current else None

    def setCurrentNode(self, node):
        self.setCurrentNodeID("" if node is None else node.GetID())

    def _getCurrentNodeID(self):
        return self._current

    def setCurrentNodeID(self, id_):
        self._select(id_ if id_ in self._ids else "")

    currentNodeID = Property(str, _getCurrentNodeID, setCurrentNodeID)

    def nodeCount(self):
        return len([i for i in self._ids if i])

    def nodeFromIndex(self, index):
        ids = [i for i in self._ids if i]
        return self._scene.GetNodeByID(ids[index]) if 0 <= index < len(ids) else None

    def addNode(self, kind=None):
        kind = kind or self.nodeTypes[0]
        node = self._scene.AddNewNodeByClass(kind, self._scene.GenerateUniqueName(self.baseName or kind[9:-4]))
        for wanted, name, value in self._attributes:
            if node.IsA(wanted):
                node.SetAttribute(name, value)
        self._rebuild()
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self._added.emit(node)
        return node


class _watch:
    """Observers of VTK objects as (object, event, tag), removed when the widget goes. One per object and event."""

    @staticmethod
    def watch(tags, thing, event, method):
        for known, kind, tag in list(tags):
            if known.GetReferenceCount() <= 1:          # only this list still holds it
                known.RemoveObserver(tag)
                tags.remove((known, kind, tag))
        if not any(known is thing and kind == event for known, kind, _ in tags):
            tags.append((thing, event, thing.AddObserver(event, method)))

    @staticmethod
    def forget(tags):
        def forget(*_):
            for thing, _event, tag in tags:
                thing.RemoveObserver(tag)
            tags.clear()
        return forget


OFFERED = (qMRMLWidget, qMRMLNodeComboBox)
