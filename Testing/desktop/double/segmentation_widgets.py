"""The Segmentations module's widgets: Show 3D, and a recorder in the place of the Segment Editor."""

from __future__ import annotations

import slicer
from PySide6 import QtCore, QtWidgets

from .mrml_widgets import _watch, qMRMLWidget

Property = QtCore.Property


class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):
    """Makes and removes the closed surface of a real segmentation node, and follows it."""

    _stands_for_native = True
    SIGNALS = {}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._node, self._tags = None, []
        self.setText("Show 3D")
        self.setCheckable(True)
        self.setEnabled(False)
        self.toggled.connect(self._onToggled)
        self.destroyed.connect(_watch.forget(self._tags))

    def segmentationNode(self):
        return self._node

    def setSegmentationNode(self, node):
        if node is self._node:
            return
        if node is not None and not node.IsA("vtkMRMLSegmentationNode"):
            raise TypeError("setSegmentationNode takes a segmentation node")
        _watch.forget(self._tags)()
        self._node = node
        if node is not None:
            for event in (slicer.vtkSegmentation.SegmentAdded, slicer.vtkSegmentation.SegmentRemoved,
                          slicer.vtkSegmentation.ContainedRepresentationNamesModified):
                _watch.watch(self._tags, node, event, self._update)
        self._update()

    def _surface(self):
        return slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()

    def _update(self, *_):
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        self.setEnabled(bool(segmentation and segmentation.GetNumberOfSegments()))
        self.blockSignals(True)
        self.setChecked(bool(segmentation and segmentation.ContainsRepresentation(self._surface())))
        self.blockSignals(False)

    def _onToggled(self, on):
        if self._node is None:
            return
        segmentation = self._node.GetSegmentation()
        if not on:
            segmentation.RemoveRepresentation(self._surface())
        elif segmentation.CreateRepresentation(self._surface()) and self._node.GetDisplayNode():
            self._node.GetDisplayNode().SetPreferredDisplayRepresentationName3D(self._surface())


class WrongOrder(RuntimeError):
    """The Segment Editor logs an error or misbehaves; here a test shall fail."""


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Not an editor: records in which order it is set up, and whether its shortcuts and observations are given back.

    Undo is real (`vtkSegmentationHistory`); effects, painting and everything shown are missing.
    """

    _stands_for_native = True
    SIGNALS = {}

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._parameters = self._segmentation = self._volume = None
        self._shortcuts = self._observed = False
        self._history = slicer.vtkSegmentationHistory()
        layout = QtWidgets.QVBoxLayout(self)
        self._label = QtWidgets.QLabel("Segment Editor (the stand-in draws none)", self)
        layout.addWidget(self._label)

    def mrmlSegmentEditorNode(self):
        return self._parameters

    def setMRMLSegmentEditorNode(self, node):
        if node is not None and not node.IsA("vtkMRMLSegmentEditorNode"):
            raise TypeError("a vtkMRMLSegmentEditorNode is wanted")
        if node is not None and node.GetSingletonTag() in (None, "", "SegmentEditor"):
            raise WrongOrder("this editor node belongs to the Segment Editor module: two widgets on one node fight")
        self._parameters = node

    def setMRMLScene(self, scene):
        if scene is not None and self._parameters is None:
            raise WrongOrder("setMRMLSegmentEditorNode comes before setMRMLScene")
        qMRMLWidget.setMRMLScene(self, scene)

    def segmentationNode(self):
        return self._segmentation

    def setSegmentationNode(self, node):
        if node is not None and (self._scene is None or self._parameters is None):
            raise WrongOrder("editor node and scene come before the segmentation")
        if node is not None and node.GetScene() is not self._scene:
            raise WrongOrder("this segmentation is not in the widget's scene")
        self._segmentation = node
        self._history.SetSegmentation(None if node is None else node.GetSegmentation())
        if self._parameters is not None:
            self._parameters.SetAndObserveSegmentationNode(node)
        if node is None:
            self._volume = None

    def sourceVolumeNode(self):
        return self._volume

    def setSourceVolumeNode(self, node):
        if node is not None and self._segmentation is None:
            raise WrongOrder("need to set segment editor and segmentation nodes first")
        self._volume = node
        if self._parameters is not None:
            self._parameters.SetAndObserveSourceVolumeNode(node)

    def updateWidgetFromMRML(self):
        if self._parameters is None:
            raise WrongOrder("updateWidgetFromMRML without an editor node")
        if self._parameters.GetScene() is None:
            raise WrongOrder("the editor node is not in a scene any more")

    def installKeyboardShortcuts(self, parent=None):
        if self._shortcuts:
            raise WrongOrder("shortcuts are installed already: every key would act twice")
        self._shortcuts = True

    def uninstallKeyboardShortcuts(self):
        self._shortcuts = False

    def removeViewObservations(self):
        self._observed = False

    def setActiveEffect(self, effect):
        if effect is not None:
            raise NotImplementedError("the stand-in has no effects")
        self._effect = None

    def activeEffect(self):
        return None

    def _getStates(self):
        return self._history.GetMaximumNumberOfStates()

    def setMaximumNumberOfUndoStates(self, states):
        self._history.SetMaximumNumberOfStates(states)

    def saveStateForUndo(self):
        if self._segmentation is None:
            raise WrongOrder("saveStateForUndo without a segmentation")
        self._history.SaveState()

    def undo(self):
        self._history.RestorePreviousState()

    def redo(self):
        self._history.RestoreNextState()

    def _getVisible(self):
        return getattr(self, "_selectors", True)

    def _setVisible(self, on):
        self._selectors = bool(on)

    maximumNumberOfUndoStates = Property(int, _getStates, setMaximumNumberOfUndoStates)
    segmentationNodeSelectorVisible = Property(bool, _getVisible, _setVisible)
    sourceVolumeNodeSelectorVisible = Property(bool, _getVisible, _setVisible)


OFFERED = (qMRMLSegmentationShow3DButton, qMRMLSegmentEditorWidget)
