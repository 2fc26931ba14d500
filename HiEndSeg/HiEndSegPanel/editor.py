"""Slicer's Segment Editor inside the panel, on an editor node of its own, with its shortcuts only while it is shown."""

from __future__ import annotations

import slicer

TAG = "HiEndSeg"


class EmbeddedEditor:
    """Made when Edit is first pressed: the widget is large, and most people look before they correct.

    entered: function that says whether the module is on screen.
    """

    def __init__(self, ui, entered):
        self.ui, self._entered = ui, entered
        self._widget = None
        self._open = self._active = False
        self._observed = None
        ui.editSection.setVisible(False)
        ui.closeEditorButton.connect("clicked()", self.hide)

    @property
    def isOpen(self):
        return self._open

    def open(self, segmentationID, volumeID):
        """Show the editor on a segmentation; its voxels are the truth already."""
        if self._widget is None:
            self._widget = slicer.qMRMLSegmentEditorWidget()
            self._widget.setMaximumNumberOfUndoStates(10)
            self.ui.editorLayout.addWidget(self._widget)
        # in this order: the widget stores its first choices in the editor node, and refuses a volume without the rest
        self._widget.setMRMLSegmentEditorNode(self._editorNode())
        self._widget.setMRMLScene(slicer.mrmlScene)
        self._widget.setSegmentationNode(slicer.mrmlScene.GetNodeByID(segmentationID))
        self._widget.setSourceVolumeNode(slicer.mrmlScene.GetNodeByID(volumeID))
        self._open = True
        self.ui.editSection.setVisible(True)
        self.ui.editSection.collapsed = False
        if self._entered():
            self.enter()

    def hide(self):
        """Done editing: the segmentation stays as it is."""
        self.exit()
        if self._open:
            self._open = False
            self._widget.setSegmentationNode(None)
        self.ui.editSection.setVisible(False)

    def saveStateForUndo(self, segmentationNode):
        """Before our button overwrites something that is being edited: the editor's own undo shall bring it back."""
        if not self._open or self._widget.segmentationNode() is not segmentationNode:
            return False
        self._widget.saveStateForUndo()
        return True

    def enter(self):
        """The module is on screen."""
        if self._open and not self._active:
            self._active = True
            self._widget.installKeyboardShortcuts()
            self._widget.updateWidgetFromMRML()

    def exit(self):
        """The module is left: no brush, no shortcut and no observer of a view may stay behind."""
        if self._active:
            self._active = False
            self._widget.setActiveEffect(None)
            self._widget.uninstallKeyboardShortcuts()
            self._widget.removeViewObservations()

    def sceneClosing(self):
        self.hide()

    def nodeRemoved(self, nodeID):
        """The edited segmentation, its volume or the editor's own node is gone."""
        if not self._open:
            return
        used = (self._widget.segmentationNode(), self._widget.sourceVolumeNode(), self._widget.mrmlSegmentEditorNode())
        if any(node is None or node.GetScene() is None or node.GetID() == nodeID for node in used):
            self.hide()

    def close(self):
        """The panel goes away."""
        self.hide()
        self.ui.closeEditorButton.disconnect("clicked()", self.hide)
        if self._widget is not None:
            self._widget.setMRMLScene(None)
            self._widget.setMRMLSegmentEditorNode(None)
            self._widget = None

    @staticmethod
    def _editorNode():
        """Our own node: two widgets on the Segment Editor module's node would fight."""
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(TAG, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = scene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            node.UnRegister(None)
            node.SetSingletonTag(TAG)
            node = scene.AddNode(node)
        return node
