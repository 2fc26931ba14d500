"""The Segment section: a `SegmentPresenter`'s state in widgets, and widgets' changes to the presenter."""

from __future__ import annotations

import functools

import qt
import slicer
from slicer.i18n import tr as _

from .widgets import (ButtonRow, Connections, QuestionBox, fillBox, fillRows, fitHeight, modelTitle, setText, swatch,
                      warningPixmap)


def fitRegion(roi, volume):
    """Give a region that was just created, and has no extent yet, the volume's: its sides are then dragged inward."""
    if roi is None or volume is None or max(roi.GetSize()) > 0:
        return
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)                 # in the world, whatever transform the volume lies under
    roi.SetCenterWorld([(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)])
    roi.SetSizeWorld([bounds[2 * axis + 1] - bounds[2 * axis] for axis in range(3)])
    roi.CreateDefaultDisplayNodes()


class SegmentSection:
    """ui: the form's widgets. act(action): what the button of an offer does, by the offer's action."""

    def __init__(self, ui, presenter, act):
        self.ui, self.presenter, self._act = ui, presenter, act
        self._shown = None              # the state that the widgets show
        self._writing = False           # the widgets' own signals mean nothing while they are written
        self._question = QuestionBox(ui.questionBox, ui.questionText, ui.questionButtonsLayout, self.onAnswer)
        self._offers = ButtonRow(ui.offersLayout)
        ui.volumeWarningIcon.setPixmap(warningPixmap(ui.volumeWarning))
        self._connections = Connections(
            (ui.volumeSelector, "currentNodeChanged(vtkMRMLNode*)", self.onVolume),
            (ui.roiSelector, "currentNodeChanged(vtkMRMLNode*)", self.onRegion),
            (ui.outputSelector, "currentNodeChanged(vtkMRMLNode*)", self.onOutput),
            (ui.modelSearch, "textChanged(QString)", self.onSearch),
            (ui.modelList, "currentRowChanged(int)", self.onModel),
            (ui.structureList, "itemChanged(QListWidgetItem*)", self.onStructures),
            (ui.allStructuresButton, self.onAllStructures), (ui.noStructuresButton, self.onNoStructures),
            (ui.deviceBox, "currentIndexChanged(int)", self.onDevice),
            (ui.runButton, self.onRun))
        presenter.changed.connect(self.show)
        self.show()

    def close(self):
        """Listen to nothing any more."""
        self.presenter.changed.disconnect(self.show)
        self._connections.close()
        self._question.clear()
        self._offers.clear()

    # ---------------------------------------------------------------------------------------- widgets → presenter

    def onVolume(self, node=None):
        if not self._writing:
            self.presenter.set_volume(node)

    def onRegion(self, node=None):
        if not self._writing:
            fitRegion(node, self.ui.volumeSelector.currentNode())
            self.presenter.set_roi(node)

    def onOutput(self, node=None):
        if not self._writing:
            self.presenter.set_output(node)

    def onSearch(self, text=""):
        if not self._writing:
            self.presenter.set_filter(text)

    def onModel(self, row=-1):
        if not self._writing and 0 <= row < len(self._shown.models):
            self.presenter.set_model(self._shown.models[row].id)

    def onStructures(self):
        if not self._writing:
            boxes = self.ui.structureList
            self.presenter.set_only([row.id for index, row in enumerate(self._shown.structures)
                                     if boxes.item(index).checkState() == qt.Qt.Checked])

    def onAllStructures(self):
        self.presenter.select_all()

    def onNoStructures(self):
        self.presenter.select_none()

    def onDevice(self, index=-1):
        if not self._writing and 0 <= index < len(self._shown.devices):
            self.presenter.set_device(self._shown.devices[index].kind)

    def onRun(self):
        with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not start.")):
            self.presenter.press()

    def onAnswer(self, choice):
        with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not go on.")):
            self.presenter.answer(choice)

    # ---------------------------------------------------------------------------------------- presenter → widgets

    def show(self):
        """Write what differs from what the widgets show."""
        state, before = self.presenter.state, self._shown
        if state == before:
            return
        self._shown, self._writing = state, True
        try:
            def differs(*names):
                return before is None or any(getattr(state, n) != getattr(before, n) for n in names)

            self._showProgress(state)
            if differs("volume_id", "roi_id", "output_id", "volume_sentence", "volume_warning", "roi_sentence",
                       "phase"):
                self._showInputs(state)
            if differs("models", "model_id", "model_sentence", "model_filter"):
                self._showModels(state)
            if differs("structures", "structures_sentence"):
                self._showStructures(state)
            if differs("devices", "device", "device_sentence", "plan_sentence", "plan_fits"):
                self._showMachine(state)
            self._question.show(state.question)
            if differs("offers"):
                self.ui.offersBox.setVisible(bool(state.offers))
                self._offers.fill([(offer.text, functools.partial(self._act, offer.action)) for offer in state.offers])
            if differs("log"):
                self.ui.logText.setPlainText("\n".join(state.log))
                self.ui.logText.moveCursor(qt.QTextCursor.End)
        finally:
            self._writing = False

    def _showProgress(self, state):
        ui = self.ui
        for widget, text in ((ui.headline, state.headline), (ui.detail, state.detail), (ui.timeLabel, state.time_text)):
            setText(widget, text)
        ui.progressRow.setVisible(state.busy)
        ui.timeLabel.setVisible(bool(state.time_text))
        ui.progressBar.setValue(int(1000 * state.fraction))
        if ui.runButton.text != state.button_text:
            ui.runButton.setText(state.button_text)
        ui.runButton.setEnabled(state.button_enabled)
        ui.runButton.setToolTip(state.button_tooltip)

    def _showInputs(self, state):
        ui = self.ui
        for selector, nodeID in ((ui.volumeSelector, state.volume_id), (ui.roiSelector, state.roi_id),
                                 (ui.outputSelector, state.output_id)):
            if selector.currentNodeID != (nodeID or ""):
                selector.setCurrentNodeID(nodeID or "")
        setText(ui.volumeSentence, state.volume_sentence)
        setText(ui.roiSentence, state.roi_sentence)
        setText(ui.volumeWarningText, state.volume_warning)
        ui.volumeWarning.setVisible(bool(state.volume_warning))
        for widget in (ui.volumeSelector, ui.roiSelector, ui.modelSearch, ui.modelList, ui.structuresBox, ui.deviceBox,
                       ui.outputSelector):
            widget.setEnabled(not state.busy)

    def _showModels(self, state):
        ui = self.ui
        ui.modelSearch.setVisible(len(state.models) > 4 or bool(state.model_filter))
        if ui.modelSearch.text != state.model_filter:
            ui.modelSearch.setText(state.model_filter)
        fillRows(ui.modelList, [(modelTitle(row), row.tooltip) for row in state.models])
        fitHeight(ui.modelList, least=1, most=5)
        chosen = [index for index, row in enumerate(state.models) if row.id == state.model_id]
        ui.modelList.setCurrentRow(chosen[0] if chosen else -1)
        rows = [row for row in state.models if row.id == state.model_id]
        facts = [_("{modality}, {count} structures, {size} MB, license {license}.").format(
            modality=row.modality, count=len(row.structures), size=f"{row.megabytes:g}", license=row.licence)
            for row in rows]
        facts += [row.adapted_sentence for row in rows if row.adapted_sentence]
        setText(ui.modelDetails, " ".join([*facts, state.model_sentence]))
        ui.modelDetails.setToolTip(rows[0].tooltip if rows else "")

    def _showStructures(self, state):
        box, boxes = self.ui.structuresBox, self.ui.structureList
        box.setTitle(state.structures_sentence or _("Structures"))
        fillRows(boxes, [(row.name, "") for row in state.structures])
        for index, row in enumerate(state.structures):
            item = boxes.item(index)
            wanted = qt.Qt.Checked if row.checked else qt.Qt.Unchecked
            if item.checkState() != wanted or item.icon().isNull():
                item.setCheckState(wanted)
                item.setIcon(swatch(row.color))

    def _showMachine(self, state):
        ui = self.ui
        fillBox(ui.deviceBox, [(row.title, row.sentence) for row in state.devices])
        chosen = [index for index, row in enumerate(state.devices) if row.kind == state.device]
        ui.deviceBox.setCurrentIndex(chosen[0] if chosen else -1)
        setText(ui.deviceSentence, state.device_sentence)
        setText(ui.planSentence, state.plan_sentence)
