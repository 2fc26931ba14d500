"""HiEndSeg: organs in CT volumes, segmented automatically. The module that a person sees in 3D Slicer.

The four classes that Slicer looks for. What the panel decides and says comes from `HiEndSegLib/presenter`; its widgets
are bound in `HiEndSegPanel/`. This file is imported at every start of Slicer: nothing but Slicer's own modules here.
"""

import os
import sys

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (ScriptedLoadableModule, ScriptedLoadableModuleLogic,
                                           ScriptedLoadableModuleTest, ScriptedLoadableModuleWidget)

FOLDER = os.path.dirname(os.path.abspath(__file__))
#: What Reload reads again.
OURS = ("HiEndSegLib", "HiEndSegPanel")


def _findLibrary():
    """Make `HiEndSegLib` importable: beside this file where HiEndSeg is installed, one folder up in the source tree."""
    for folder in (FOLDER, os.path.dirname(FOLDER)):
        if os.path.isfile(os.path.join(folder, "HiEndSegLib", "__init__.py")):
            if folder not in sys.path:
                sys.path.append(folder)
            return


_findLibrary()


def resource(relative):
    """Path of a file that ships with the module: in its own Resources or, in the source tree, one folder up."""
    candidates = [os.path.join(folder, "Resources", relative) for folder in (FOLDER, os.path.dirname(FOLDER))]
    return next((path for path in candidates if os.path.exists(path)), candidates[0])


class HiEndSeg(ScriptedLoadableModule):
    """What Slicer shows of the module before anybody opened it."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "HiEndSeg"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Terminologies", "SubjectHierarchy"]
        self.parent.contributors = ["HiEndSeg contributors"]
        self.parent.helpText = _(
            "<p>Segments organs in CT volumes automatically, on an ordinary computer and without sending data "
            "anywhere: choose a volume and press Segment.</p><p>For research use; not a medical device.</p>")
        self.parent.acknowledgementText = _(
            "<p>Built on the published ideas of Hi-End-MAE (Tang et al., arXiv 2502.08347), MaskMed (Xie and Agam, "
            "arXiv 2511.15603) and HER-Seg (Xu et al., arXiv 2504.06205).</p>")
        self.parent.icon = qt.QIcon(resource("Icons/HiEndSeg.svg"))
        # other modules (terminology, sample data) are not there yet
        slicer.app.connect("startupCompleted()", _onStartupCompleted)


def _onStartupCompleted():
    from HiEndSegLib.desktop import startup

    startup.completed(slicer)


class HiEndSegWidget(ScriptedLoadableModuleWidget):
    """The panel: one per Slicer, made when the module is opened for the first time."""

    def __init__(self, parent=None):
        self.ui = self.logic = self.panel = None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from HiEndSegLib.presenter import wording
        from HiEndSegPanel import panel

        wording.set_translation(translate)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/HiEndSeg.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = HiEndSegLogic()
        self.panel = panel.Panel(self.ui, self.logic, self.parent, resource)

    def enter(self):
        """The module is on screen."""
        self.panel.enter()

    def exit(self):
        """The module is left; whatever runs goes on."""
        self.panel.exit()

    def cleanup(self):
        """Unload, reload, or the end of Slicer: the scene may be half gone."""
        if self.panel is not None:
            panel, self.panel = self.panel, None
            panel.close()

    def onReload(self):
        """Reload the library and the panel too: Slicer's own reload reads this file only."""
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class HiEndSegLogic(ScriptedLoadableModuleLogic):
    """Segmentation and adaptation for scripts; all of it waits until the result is there.

        logic = HiEndSegLogic()
        segmentation = logic.segment(slicer.util.getNode("CT"), only=["liver", "spleen"])
        ...                                               # correct it, by hand or by another program
        model = logic.adapt(slicer.util.getNode("CT"), segmentation, "Liver as we draw it", structures=["liver"])
        segmentation = logic.segment(slicer.util.getNode("CT2"), model=model)
    """

    def __init__(self, parent=None):
        ScriptedLoadableModuleLogic.__init__(self, parent)

    def getParameterNode(self):
        """What the panel keeps in the scene, as `HiEndSegPanel.parameters.SceneParameters`."""
        from HiEndSegPanel.parameters import SceneParameters

        return SceneParameters(ScriptedLoadableModuleLogic.getParameterNode(self))

    def segment(self, volumeNode, model=None, device="auto", only=None, roi=None, output=None, frames="this",
                progress=None):
        """Segment a volume and return its vtkMRMLSegmentationNode, which has a table of volumes beside it.

        model: id of an installed model; None for the default. device: "auto", "cuda", "mps" or "cpu". only: ids of
        structures, None for all. roi: vtkMRMLMarkupsROINode outside of which nothing is segmented. output: a
        segmentation whose structures of these names are replaced (with undo); None makes a new one. frames: "all"
        segments every time point where the volume belongs to a sequence, into an output sequence whose proxy is
        returned. progress(fraction, sentence): called while it runs.
        Raises HiEndSegLib.errors.HiEndSegError with a sentence that says what to do.
        """
        from HiEndSegPanel.scripting import segment

        return segment(volumeNode, model=model, device=device, only=only, roi=roi, output=output, frames=frames,
                       progress=progress)

    def segmentNodes(self, volumeNodes, model=None, device="auto", only=None, roi=None, progress=None):
        """Segment several volumes one after another; a list of segmentation nodes, with None for those that failed.

        What failed is in the log, and does not stop the others. Arguments as `segment`.
        """
        from HiEndSegPanel.scripting import segmentNodes

        return segmentNodes(volumeNodes, model=model, device=device, only=only, roi=roi, progress=progress)


    def adapt(self, volumeNode, segmentationNode, name, structures=None, speed="auto", model=None, encoder=None,
              device="auto", sides="ask", keepTeaching=False, keepAnyway=False, progress=None):
        """Teach a model from one corrected case; the key ("id@version") of the new version, which `segment` takes.

        None where nothing got better, so that nothing was kept; keepAnyway keeps it all the same. The model that is
        taught is never changed.
        segmentationNode: segments of the volume, corrected. name: of the version, in the list of models. structures:
        ids to teach, as the list in the panel has them; None for those that differ from the model's own answer. speed:
        "quick" (head and adapters), "full" (everything), "auto" by device. model: id of the model to teach; None for
        the one that made the segmentation, else the default. encoder: path of a pretrained encoder, to make a new model
        from it instead. sides: "keep" or "swap" what looks swapped between left and right; "ask" raises. keepTeaching:
        keep parts of this case beside the version on this computer, so that later lessons do not undo this one.
        progress(fraction, sentence): called while it runs.
        Raises HiEndSegLib.errors.HiEndSegError with a sentence that says what to do.
        """
        from HiEndSegPanel.scripting import adapt

        return adapt(volumeNode, segmentationNode, name, structures=structures, speed=speed, model=model,
                     encoder=encoder, device=device, sides=sides, keepTeaching=keepTeaching, keepAnyway=keepAnyway,
                     progress=progress)


class HiEndSegTest(ScriptedLoadableModuleTest):
    """Reload and Test, the Self Tests module, and CTest; each scenario is in HiEndSegPanel/scenarios.py."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def tearDown(self):
        slicer.mrmlScene.Clear()

    def test_parametersBelongToTheScene(self):
        from HiEndSegPanel import scenarios

        scenarios.parametersBelongToTheScene(self, HiEndSegLogic())

    def test_panelWithAQuickEngine(self):
        from HiEndSegPanel import scenarios

        scenarios.panelWithAQuickEngine(self, HiEndSegLogic())

    def test_sceneClosedWhileRunning(self):
        from HiEndSegPanel import scenarios

        scenarios.sceneClosedWhileRunning(self, HiEndSegLogic())

    def test_sampleFromStartToEnd(self):
        from HiEndSegPanel import scenarios

        scenarios.sampleFromStartToEnd(self, HiEndSegLogic())

    def test_adaptWithAQuickEngine(self):
        from HiEndSegPanel import scenarios

        scenarios.adaptWithAQuickEngine(self, HiEndSegLogic())

    def test_adaptFromStartToEnd(self):
        from HiEndSegPanel import scenarios

        scenarios.adaptFromStartToEnd(self, HiEndSegLogic())

    def test_attentionFromStartToEnd(self):
        from HiEndSegPanel import scenarios_attention

        scenarios_attention.attentionFromStartToEnd(self, HiEndSegLogic())
