"""`Sections`: Segment, Edit, Adapt and Models with their presenters, tied to the scene and to what is saved with it."""

from __future__ import annotations

import qt
import slicer
import vtk
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.presenter.adapt import AdaptPresenter
from HiEndSegLib.presenter.attention import AttentionPresenter
from HiEndSegLib.presenter.models import ModelsPresenter
from HiEndSegLib.presenter.segment import SegmentPresenter
from slicer.util import VTKObservationMixin

from .adapt import AdaptSection
from .attention import AttentionSection
from .editor import EmbeddedEditor
from .models import ModelsSection
from .results import ResultRow
from .segment import SegmentSection

#: Milliseconds without a change after which a moved region or transform is looked at again.
QUIET = 300


class Sections(VTKObservationMixin):
    """entered: function that says whether the module is on screen. act(action): what an offer does elsewhere.

    pagesChanged: called when the set-up page may have to come or go.
    """

    def __init__(self, ui, logic, engine, settings, entered, act, pagesChanged):
        VTKObservationMixin.__init__(self)
        self.ui, self.logic, self._entered = ui, logic, entered
        self._act, self._pagesChanged = act, pagesChanged
        registry = Registry()
        self.segment = SegmentPresenter(scene=slicer.mrmlScene, engine=engine, registry=registry, settings=settings)
        self.models = ModelsPresenter(registry=registry, engine=engine, settings=settings)
        self.adapt = AdaptPresenter(scene=slicer.mrmlScene, engine=engine, registry=registry, settings=settings,
                                    segment=self.segment)
        self.models.models_changed.connect(self.segment.refresh)
        self.models.models_changed.connect(self.adapt.refresh)
        self.adapt.models_changed.connect(self.models.refresh)
        self.attention = AttentionPresenter(scene=slicer.mrmlScene, engine=engine, registry=registry, settings=settings,
                                            segment=self.segment)
        for changed in (self.models.models_changed, self.adapt.models_changed):
            changed.connect(self.attention.refresh)
        self.editor = EmbeddedEditor(ui, entered)
        self.segment.set_undo_hook(self.editor.saveStateForUndo)
        self._adaptSection = AdaptSection(ui, self.adapt)
        modelsSection = ModelsSection(ui, self.models, lambda: self.segment.state.model_id)
        self.segment.changed.connect(modelsSection.show)        # what can be done depends on the chosen model
        self._parts = [SegmentSection(ui, self.segment, self.onOffer), ResultRow(ui, self.segment, self.editor),
                       self._adaptSection, modelsSection]
        self._attentionSection = AttentionSection(ui, self.attention)
        self._parts.append(self._attentionSection)
        self._parameters, self._watched, self._linking = None, set(), False
        self._later = qt.QTimer()
        self._later.setSingleShot(True)
        self._later.setInterval(QUIET)
        self._later.connect("timeout()", self.onQuiet)
        self.segment.changed.connect(self.onChanged)
        self.adapt.changed.connect(self.onChanged)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        self.addObserver(scene, scene.StartSaveEvent, self.onSceneStartSave)
        self.addObserver(scene, scene.EndSaveEvent, self.onSceneEndSave)

    @property
    def busy(self):
        adapt = self.adapt.state
        drawing = adapt.overlay_shown and not adapt.overlay_ids
        return self.segment.state.busy or self.models.state.busy or adapt.busy or drawing or \
            self.attention.state.busy

    @property
    def needsSetup(self):
        return self.segment.state.needs_setup

    def enter(self):
        self._linkToScene()
        self.segment.enter()
        self.adapt.enter()
        self.attention.enter()
        self._attentionSection.enter()
        self.models.refresh()
        self.editor.enter()

    def exit(self):
        """Whatever runs goes on."""
        self.segment.leave()
        self.adapt.leave()
        self.attention.leave()
        self.editor.exit()

    def tick(self):
        self.segment.tick()
        self.adapt.tick()
        self.attention.tick()
        self.models.tick()

    def close(self):
        self.removeObservers()
        self._later.stop()
        self._later.disconnect("timeout()", self.onQuiet)
        self.editor.close()
        for part in self._parts:
            part.close()
        self.models.close()
        self.adapt.close()
        self.attention.close()
        self.segment.close()
        self._parameters = None

    def setEngine(self, engine):
        """Use another engine from now on, in every section that computes."""
        self.segment.set_engine(engine)
        self.adapt.set_engine(engine)
        self.attention.set_engine(engine)

    def onOffer(self, action):
        """A remedy that the Segment section offers after a failure."""
        if action == "verify_model":
            self.ui.modelsSection.collapsed = False
            self.models.verify(self.segment.state.model_id)
        elif action == "choose_model":
            self.ui.modelList.setFocus()
        elif action == "device_cpu":
            self.segment.set_device("cpu")
        elif action == "again":
            self.segment.run()
        elif action == "roi":
            self.ui.roiSelector.setFocus()
        else:
            self._act(action)

    # ------------------------------------------------------------------------------------------- the scene

    def onSceneStartClose(self, caller=None, event=None):
        self._unlink()
        self.editor.hide()
        self._adaptSection.sceneClosing()
        self.adapt.scene_closing()
        self.attention.scene_closing()
        self.segment.scene_closing()

    def onSceneEndClose(self, caller=None, event=None):
        self.segment.scene_closed()
        self.adapt.scene_closed()
        self.attention.scene_closed()
        if self._entered():
            self._linkToScene()

    def onSceneStartSave(self, caller=None, event=None):
        self.attention.scene_saving()

    def onSceneEndSave(self, caller=None, event=None):
        self.attention.scene_saved()

    def onSceneEndImport(self, caller=None, event=None):
        """A scene was loaded: what was chosen when it was saved is chosen again."""
        self._unlink()
        if self._entered():
            self._linkToScene()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller, event, node):
        if caller.IsClosing():
            return                          # told as a whole by onSceneStartClose
        self.editor.nodeRemoved(node.GetID())
        self.segment.node_removed(node.GetID())
        self.adapt.node_removed(node.GetID())
        self.attention.node_removed(node.GetID())

    # ------------------------------------------------------------------------------------------- the parameter node

    def _linkToScene(self):
        """Take what the scene's parameter node says; a fresh one gets the first volume there is."""
        if self._parameters is not None:
            return
        self._parameters = self.logic.getParameterNode()
        if self._parameters.volumeID is None and self.segment.state.volume_id is None:
            self._parameters.volumeID = self._firstVolume()
        self.addObserver(self._parameters.node, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self.onParameters()

    def _unlink(self):
        if self._parameters is not None:
            self.removeObserver(self._parameters.node, vtk.vtkCommand.ModifiedEvent, self.onParameters)
            self._parameters = None

    def onParameters(self, caller=None, event=None):
        """The parameter node → the presenter."""
        if self._linking:
            return
        self._linking = True
        try:
            parameters, state = self._parameters, self.segment.state
            if parameters.volumeID != state.volume_id:
                self.segment.set_volume(parameters.volumeID)
            if parameters.roiID != state.roi_id:
                self.segment.set_roi(parameters.roiID)
            if parameters.model and parameters.model != state.model_id:
                self.segment.set_model(parameters.model)
            if parameters.only != self._only(self.segment.state):
                self.segment.set_only(parameters.only)
            if parameters.outputID != state.output_id:
                self.segment.set_output(parameters.outputID)
            if parameters.correctedID is not None and parameters.correctedID != self.adapt.state.segmentation_id:
                self.adapt.set_segmentation(parameters.correctedID)
            if parameters.versionName and parameters.versionName != self.adapt.state.name:
                self.adapt.set_name(parameters.versionName)
        finally:
            self._linking = False
        self.onChanged()

    def onChanged(self):
        """The presenter → the parameter node; and watch the chosen nodes for what changes their facts."""
        self._pagesChanged()
        if self._linking or self._parameters is None:
            return
        state, self._linking = self.segment.state, True
        try:
            with slicer.util.NodeModify(self._parameters.node):
                self._parameters.volumeID, self._parameters.roiID = state.volume_id, state.roi_id
                self._parameters.outputID = state.output_id
                self._parameters.model, self._parameters.only = state.model_id or "", self._only(state)
                self._parameters.correctedID = self.adapt.state.segmentation_id
                self._parameters.versionName = self.adapt.state.name
        finally:
            self._linking = False
        self._watchInputs()

    @staticmethod
    def _only(state):
        checked = tuple(row.id for row in state.structures if row.checked)
        return None if len(checked) == len(state.structures) else checked

    def _watchInputs(self):
        """Look again, a little later, when what was chosen is transformed, moved, or gets and loses segments."""
        moved, changed = slicer.vtkMRMLTransformableNode.TransformModifiedEvent, vtk.vtkCommand.ModifiedEvent
        segment, adapt = self.segment.state, self.adapt.state
        events = {(segment.volume_id, moved), (segment.roi_id, changed), (adapt.volume_id, moved),
                  (adapt.segmentation_id, slicer.vtkSegmentation.SegmentAdded),
                  (adapt.segmentation_id, slicer.vtkSegmentation.SegmentRemoved)}
        if events == self._watched:
            return
        self.removeObservers(self.onInputModified)
        self._watched = events
        for nodeID, event in events:
            node = slicer.mrmlScene.GetNodeByID(nodeID) if nodeID else None
            if node is not None:
                self.addObserver(node, event, self.onInputModified)

    def onInputModified(self, caller=None, event=None):
        self._later.start()

    def onQuiet(self):
        """What was chosen has come to rest."""
        self.segment.refresh()
        self.adapt.refresh()
        self.attention.refresh()

    @staticmethod
    def _firstVolume():
        scene = slicer.mrmlScene
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
            node = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
            if not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetHideFromEditors():
                return node.GetID()
        return None
