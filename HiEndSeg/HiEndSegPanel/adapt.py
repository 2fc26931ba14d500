"""The Adapt section: teach the model from a corrected case; an `AdaptPresenter`'s state in widgets."""

from __future__ import annotations

import qt
import slicer
from HiEndSegLib.presenter import wording
from slicer.i18n import tr as _

from .plot import PlotInPanel
from .widgets import (Connections, QuestionBox, fillBox, fillTable, fillTree, fitTree, modelTitle, setText, swatch,
                      warningPixmap)

#: Rows of the list and of the table that are seen without scrolling.
MOST_ROWS = 10


def dice(value):
    """"0.87", or a dash where it could not be measured."""
    return "–" if value is None else f"{value:.2f}"


def millimeters(value):
    return "–" if value is None else f"{value:.1f}"


class AdaptSection:
    """ui: the form's widgets."""

    def __init__(self, ui, presenter):
        self.ui, self.presenter = ui, presenter
        self._shown = None              # the state that the widgets show
        self._writing = False           # the widgets' own signals mean nothing while they are written
        self._question = QuestionBox(ui.adaptQuestionBox, ui.adaptQuestionText, ui.adaptQuestionButtonsLayout,
                                     self.onAnswer)
        self._plot = PlotInPanel(ui.adaptCurveLayout, "HiEndSegAdapt")
        ui.adaptWarningIcon.setPixmap(warningPixmap(ui.adaptWarning))
        ui.adaptTable.verticalHeader().setVisible(False)
        self._connections = Connections(
            (ui.adaptVolumeSelector, "currentNodeChanged(vtkMRMLNode*)", self.onVolume),
            (ui.adaptSegmentationSelector, "currentNodeChanged(vtkMRMLNode*)", self.onSegmentation),
            (ui.adaptModelBox, "currentIndexChanged(int)", self.onModel),
            (ui.adaptList, "itemChanged(QTreeWidgetItem*,int)", self.onRows),
            (ui.adaptNameEdit, "textChanged(QString)", self.onName),
            (ui.adaptSpeedBox, "currentIndexChanged(int)", self.onSpeed),
            (ui.adaptTeachingBox, "toggled(bool)", self.onKeepTeaching),
            (ui.adaptOverlayBox, "toggled(bool)", self.onOverlay),
            (ui.adaptEncoderButton, self.onEncoder), (ui.adaptCompareButton, self.onCompare),
            (ui.adaptButton, self.onRun), (ui.adaptFinishButton, self.onFinish), (ui.adaptUseButton, self.onUse),
            (ui.adaptRevertButton, self.onRevert), (ui.adaptKeepButton, self.onKeep))
        presenter.changed.connect(self.show)
        self.show()

    def close(self):
        """Listen to nothing any more."""
        self.presenter.changed.disconnect(self.show)
        self._connections.close()
        self._question.clear()
        self._plot.close()

    def sceneClosing(self):
        """The chart and its view node go with everything else."""
        self._plot.clear()

    # ---------------------------------------------------------------------------------------- widgets → presenter

    def onVolume(self, node=None):
        if not self._writing:
            self.presenter.set_volume(node)

    def onSegmentation(self, node=None):
        if not self._writing:
            self.presenter.set_segmentation(node)

    def onModel(self, index=-1):
        if self._writing or index < 0:
            return
        if index < len(self._shown.models):
            self.presenter.set_model(self._shown.models[index].id)
        elif self._shown.encoder_path:
            self.presenter.set_encoder(self._shown.encoder_path)
        else:
            self.onEncoder()

    def onEncoder(self):
        """Choose the file of an encoder; a folder of one is chosen by any file in it."""
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Choose a pretrained encoder"), "",
            _("Pretrained encoders") + " (*.pt *.pth *.ckpt *.bin *.safetensors description.json);;" + _("All files")
            + " (*)")
        if path:
            self.presenter.set_encoder(path)
        else:
            self._rewrite()             # the box says "encoder", and none was chosen

    def onRows(self, item=None, column=0):
        if self._writing:
            return
        boxes = self.ui.adaptList
        states = [boxes.topLevelItem(index).checkState(0) == qt.Qt.Checked
                  for index in range(boxes.topLevelItemCount)]
        for row, checked in zip(self._shown.rows, states):      # each answer to `check` may make other rows
            if checked != row.checked:
                self.presenter.check(row.id, checked)

    def onName(self, text=""):
        if not self._writing:
            self.presenter.set_name(text)

    def onSpeed(self, index=-1):
        if not self._writing and 0 <= index < len(self._shown.speeds):
            self.presenter.set_speed(self._shown.speeds[index].id)

    def onKeepTeaching(self, on=False):
        if not self._writing:
            self.presenter.set_keep_teaching(on)

    def onOverlay(self, on=False):
        if not self._writing:
            with slicer.util.tryWithErrorDisplay(_("Before and after cannot be shown.")):
                self.presenter.show_overlay(on)

    def onCompare(self):
        with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not compare.")):
            self.presenter.compare()

    def onRun(self):
        with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not start.")):
            self.presenter.press()

    def onFinish(self):
        self.presenter.finish()

    def onUse(self):
        with slicer.util.tryWithErrorDisplay(_("The version cannot be used.")):
            self.presenter.use_now()

    def onRevert(self):
        with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not go back.")):
            self.presenter.revert()

    def onKeep(self):
        with slicer.util.tryWithErrorDisplay(_("The version cannot be kept.")):
            self.presenter.keep_anyway()

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
            if differs("volume_id", "segmentation_id", "volume_sentence", "segmentation_sentence", "phase"):
                self._showInputs(state)
            if differs("models", "model_id", "from_encoder", "encoder_path", "encoder_sentence", "phase"):
                self._showModels(state)
            if differs("rows", "rows_sentence", "compare_text", "compare_available", "compare_tooltip", "phase"):
                self._showRows(state)
            if differs("name", "name_suggestion", "speed", "speeds", "plan_sentence", "keep_teaching",
                       "keep_teaching_sentence", "phase"):
                self._showHow(state)
            self._question.show(state.question)
            if differs("curve", "chart_id"):
                self._showCurve(state)
            if differs("table", "result_sentence", "result_key", "can_use", "can_revert", "can_keep", "phase",
                       "overlay_available", "overlay_shown", "overlay_sentence"):
                self._showResult(state)
            if differs("log"):
                self.ui.adaptLogText.setPlainText("\n".join(state.log))
                self.ui.adaptLogText.moveCursor(qt.QTextCursor.End)
        finally:
            self._writing = False

    def _rewrite(self):
        """Put the widgets back to what the state says."""
        self._shown = None
        self.show()

    def _showProgress(self, state):
        ui = self.ui
        for label, text in ((ui.adaptHeadline, state.headline), (ui.adaptDetail, state.detail),
                            (ui.adaptTimeLabel, state.time_text)):
            setText(label, text)
        ui.adaptProgressRow.setVisible(state.busy)
        ui.adaptProgressBar.setValue(int(1000 * state.fraction))
        if ui.adaptButton.text != state.run_text:
            ui.adaptButton.setText(state.run_text)
        ui.adaptButton.setEnabled(state.run_enabled)
        ui.adaptButton.setToolTip(state.run_tooltip)
        ui.adaptFinishButton.setVisible(state.finish_available)
        ui.adaptFinishButton.setToolTip(state.finish_tooltip or ui.adaptFinishButton.text)

    def _showInputs(self, state):
        ui = self.ui
        for selector, nodeID in ((ui.adaptVolumeSelector, state.volume_id),
                                 (ui.adaptSegmentationSelector, state.segmentation_id)):
            if selector.currentNodeID != (nodeID or ""):
                selector.setCurrentNodeID(nodeID or "")
            selector.setEnabled(not state.busy)
        setText(ui.adaptVolumeSentence, state.volume_sentence)
        setText(ui.adaptSegmentationSentence, state.segmentation_sentence)

    def _showModels(self, state):
        ui = self.ui
        fillBox(ui.adaptModelBox, [(modelTitle(row), row.tooltip) for row in state.models] + [
            (_("A new model, from an encoder alone"),
             _("Weights that were pretrained without labels, plus this one case, give a model that knows what you "
               "check below"))])
        ids = [row.id for row in state.models]
        chosen = len(ids) if state.from_encoder else ids.index(state.model_id) if state.model_id in ids else -1
        ui.adaptModelBox.setCurrentIndex(chosen)
        ui.adaptModelBox.setEnabled(not state.busy)
        ui.adaptEncoderButton.setVisible(state.from_encoder)
        ui.adaptEncoderButton.setEnabled(not state.busy)
        setText(ui.adaptEncoderSentence, state.encoder_sentence if state.from_encoder else "")

    def _showRows(self, state):
        ui, shown = self.ui, []
        for row in state.rows:
            changed = _("new") if row.is_new else "" if row.changed_ml is None else _("{count} ml").format(
                count=f"{row.changed_ml:.1f}")
            shown.append(((row.name, changed, "" if row.dice is None else dice(row.dice)), row.sentence))
        entries = fillTree(ui.adaptList, (_("Structure"), _("Changed"), _("Dice")), shown)
        for row, entry in zip(state.rows, entries):
            wanted = qt.Qt.Checked if row.checked else qt.Qt.Unchecked
            if entry.checkState(0) != wanted or entry.icon(0).isNull():
                entry.setCheckState(0, wanted)
                entry.setIcon(0, swatch(row.color))
        fitTree(ui.adaptList, MOST_ROWS)
        ui.adaptList.setVisible(bool(state.rows))
        ui.adaptList.setEnabled(not state.busy)
        setText(ui.adaptRowsSentence, state.rows_sentence)
        setText(ui.adaptCompareButton, state.compare_text)
        ui.adaptCompareButton.setEnabled(state.compare_available)
        ui.adaptCompareButton.setToolTip(state.compare_tooltip)

    def _showHow(self, state):
        ui = self.ui
        if ui.adaptNameEdit.text != state.name:
            ui.adaptNameEdit.setText(state.name)
        ui.adaptNameEdit.setPlaceholderText(state.name_suggestion)
        fillBox(ui.adaptSpeedBox, [(self._speedText(row), row.sentence) for row in state.speeds])
        ids = [row.id for row in state.speeds]
        ui.adaptSpeedBox.setCurrentIndex(ids.index(state.speed) if state.speed in ids else -1)
        setText(ui.adaptPlanSentence, state.plan_sentence)
        ui.adaptTeachingBox.setChecked(state.keep_teaching)
        setText(ui.adaptTeachingSentence, state.keep_teaching_sentence)
        for widget in (ui.adaptNameEdit, ui.adaptSpeedBox, ui.adaptTeachingBox):
            widget.setEnabled(not state.busy)

    @staticmethod
    def _speedText(row):
        """"Quick: 6 min, 0.8 GB"."""
        facts = [] if row.minutes is None else [wording.seconds(60 * row.minutes)]
        facts += [row.memory] if row.memory else []
        return _("{speed}: {facts}").format(speed=row.title, facts=", ".join(facts)) if facts else row.title

    def _showCurve(self, state):
        ui = self.ui
        ui.adaptCurveBox.setVisible(bool(state.curve))
        self._plot.show(state.chart_id if state.curve else None)
        losses = [point for point in state.curve if point.loss is not None]
        scores = [point for point in state.curve if point.dice is not None]
        texts = [_("Step {step}: loss {loss}.").format(step=losses[-1].step, loss=f"{losses[-1].loss:.3f}")] \
            if losses else []
        if scores:
            texts.append(_("Held-out Dice {last}.").format(last=dice(scores[-1].dice)))
            best = [point for point in scores if point.best]
            if best:
                texts.append(_("The best so far was {best}, at step {step}.").format(best=dice(best[-1].dice),
                                                                                     step=best[-1].step))
        setText(ui.adaptCurveText, " ".join(texts))

    def _showResult(self, state):
        ui = self.ui
        ui.adaptResultBox.setVisible(bool(state.table or state.result_sentence or state.can_revert))
        setText(ui.adaptResultSentence, state.result_sentence)
        fillTable(ui.adaptTable, (_("Structure"), _("Dice"), _("mm"), _("Change")),
                  [self._scores(row) for row in state.table], MOST_ROWS)
        for column, tooltip in enumerate((
                _("Bold: taught; the others are protected"),
                _("Overlap with what you drew, where that was kept out of the teaching; 1 is all of it. Of a structure "
                  "that is not drawn: agreement with the old model"),
                _("Mean distance between the surfaces, in millimeters"), _("Better, worse, or as before"))):
            ui.adaptTable.horizontalHeaderItem(column).setToolTip(tooltip)
        for number, row in enumerate(state.table):
            first, last = ui.adaptTable.item(number, 0), ui.adaptTable.item(number, 3)
            font = first.font()
            font.setBold(row.taught)
            first.setFont(font)
            first.setToolTip(row.name)
            last.setToolTip(row.verdict_text)
        ui.adaptTable.setVisible(bool(state.table))
        worse = [row.name for row in state.table if row.verdict == "worse"]
        setText(ui.adaptWarningText, _("Worse than before: {names}. Look at them before you use this version.").format(
            names=wording.listing(worse)) if worse else "")
        ui.adaptWarning.setVisible(bool(worse))
        for button, on, tooltip in ((ui.adaptUseButton, state.can_use, state.use_tooltip),
                                    (ui.adaptKeepButton, state.can_keep, state.keep_tooltip),
                                    (ui.adaptRevertButton, state.can_revert, state.revert_tooltip)):
            button.setVisible(on)
            button.setToolTip(tooltip or button.text)
        ui.adaptOverlayBox.setVisible(state.overlay_available or state.overlay_shown)
        ui.adaptOverlayBox.setChecked(state.overlay_shown)
        setText(ui.adaptOverlaySentence, state.overlay_sentence)

    @staticmethod
    def _scores(row):
        """The texts of a row: before → after, or one number where there is no before; as short as the panel is narrow.
        """
        def pair(before, after, words):
            if before is None:
                return words(after)
            return _("{before} → {after}").format(before=words(before), after=words(after))

        return (row.name, pair(row.dice_before, row.dice_after, dice),
                pair(row.surface_before, row.surface_after, millimeters),
                {"better": _("better"), "worse": _("worse"), "same": _("as before")}.get(row.verdict, "–"))
