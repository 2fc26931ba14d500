"""The Adapt section's widgets on a form of their own: every state in widgets, every click as one action, no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from double import dialogs, pythonqt

from HiEndSegLib.bridge.plots import Curve, write_chart
from HiEndSegLib.presenter.adapt_state import AdaptState, CurvePoint, ScoreRow, SpeedRow, TeachRow
from HiEndSegLib.presenter.signals import Signal
from HiEndSegLib.presenter.state import Choice, ModelRow, Question

FORM = Path(__file__).resolve().parents[2] / "HiEndSeg" / "Resources" / "UI" / "HiEndSeg.ui"
ROWS = (TeachRow("liver", "Liver", (221, 130, 101), True, False, 0.61, 212.34, "You changed 212 ml."),
        TeachRow("spleen", "Spleen", (157, 108, 162), False, False, 0.98, 0.4, "As the model has it."),
        TeachRow("cyst", "Cyst", (40, 200, 190), True, True, None, None, "The model does not know it."))
SCORES = (ScoreRow("liver", "Liver", True, 0.61, 0.78, 8.1, 3.25, "better", "better"),
          ScoreRow("cyst", "Cyst", True, None, 0.71, None, 2.2, "better", "learned"),
          ScoreRow("spleen", "Spleen", False, 0.97, 0.90, 1.0, 2.0, "worse", "worse"),
          ScoreRow("colon", "Colon", False, None, 0.99, None, None, "same", "Protected; no change"))


class Recorder:
    """In the presenter's place: a state to set, and the actions that were called."""

    def __init__(self):
        self.changed, self.state, self.calls = Signal(), AdaptState(), []

    def set(self, **changes):
        self.state = replace(self.state, **changes)
        self.changed.emit()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, *arguments))

    def taken(self):
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def section(desk):
    """(widgets, recorder): the section on a second form; closed at the end, and then nothing of it may be left."""
    from HiEndSegPanel.adapt import AdaptSection

    slicer, recorder = desk.slicer, Recorder()
    form = slicer.util.loadUI(str(FORM))
    ui = slicer.util.childWidgetVariables(form)
    form.setMRMLScene(slicer.mrmlScene)
    form.resize(430, 1100)
    form.show()
    slots = sum(pythonqt.connection_count(widget) for widget in vars(ui).values())
    made = AdaptSection(ui, recorder)
    ui.adaptSection.collapsed = False
    yield ui, recorder
    made.close()
    assert len(recorder.changed) == 0
    assert sum(pythonqt.connection_count(widget) for widget in vars(ui).values()) == slots
    assert desk.count("vtkMRMLPlotViewNode") == 0
    form.setMRMLScene(None)
    form.delete()


def boxes(ui):
    import qt

    rows = ui.adaptList
    return [rows.topLevelItem(n).checkState(0) == qt.Qt.Checked for n in range(rows.topLevelItemCount)]


def table_texts(table):
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def test_at_first_there_is_a_sentence_and_a_grey_button(section):
    ui, recorder = section
    recorder.set(headline="Choose a volume.", run_text="Adapt", run_tooltip="Choose a volume first.")
    assert ui.adaptHeadline.text == "Choose a volume." and ui.adaptHeadline.visible
    assert ui.adaptButton.enabled is False and ui.adaptButton.toolTip == "Choose a volume first."
    for widget in (ui.adaptList, ui.adaptProgressRow, ui.adaptFinishButton, ui.adaptQuestionBox, ui.adaptCurveBox,
                   ui.adaptResultBox, ui.adaptEncoderButton):
        assert widget.visible is False, widget.name
    assert recorder.taken() == []


def test_structures_have_boxes_differences_and_new_marks(section):
    import qt

    ui, recorder = section
    recorder.set(rows=ROWS, rows_sentence="2 structures are taught.", compare_text="Compare again",
                 compare_available=True)
    assert boxes(ui) == [True, False, True]
    texts = [[ui.adaptList.topLevelItem(row).text(column) for column in range(3)] for row in range(3)]
    assert texts == [["Liver", "212.3 ml", "0.61"], ["Spleen", "0.4 ml", "0.98"], ["Cyst", "new", ""]]
    assert ui.adaptList.topLevelItem(2).toolTip(0) == "The model does not know it."
    ui.adaptList.topLevelItem(1).setCheckState(0, qt.Qt.Checked)
    assert recorder.taken() == [("check", "spleen", True)]
    recorder.set(rows=(ROWS[0], replace(ROWS[1], checked=True)))
    assert boxes(ui) == [True, True] and recorder.taken() == []
    ui.adaptCompareButton.click()
    assert recorder.taken() == [("compare",)]


def test_every_choice_is_told_once_and_writing_tells_nothing(section, desk):
    from HiEndSegPanel.scenarios import sampleVolume

    ui, recorder = section
    volume = sampleVolume(size=(16, 16, 8))
    segmentation = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "corrected")
    recorder.set(volume_id=volume.GetID(), segmentation_id=segmentation.GetID(),
                 models=tuple(ModelRow(key, key, (), "CT", 1.0, "", None, "", "") for key in ("a@1", "b@1")),
                 model_id="b@1", speed="full", keep_teaching=True, name="mine", name_suggestion="b@1, Liver",
                 speeds=(SpeedRow("quick", "Quick", 5.6, "0.6 GB", "", True),
                         SpeedRow("full", "Full", None, "", "", None)))
    assert recorder.taken() == []
    assert ui.adaptVolumeSelector.currentNode() is volume and ui.adaptModelBox.currentIndex == 1
    assert [ui.adaptSpeedBox.itemText(n) for n in range(2)] == ["Quick: 6 min, 0.6 GB", "Full"]
    assert ui.adaptSpeedBox.currentIndex == 1 and ui.adaptTeachingBox.checked
    assert (ui.adaptNameEdit.text, ui.adaptNameEdit.placeholderText) == ("mine", "b@1, Liver")
    ui.adaptVolumeSelector.setCurrentNode(None)
    ui.adaptSegmentationSelector.setCurrentNode(None)
    ui.adaptModelBox.setCurrentIndex(0)
    ui.adaptSpeedBox.setCurrentIndex(0)
    ui.adaptNameEdit.setText("yours")
    ui.adaptTeachingBox.click()
    assert recorder.taken() == [("set_volume", None), ("set_segmentation", None), ("set_model", "a@1"),
                                ("set_speed", "quick"), ("set_name", "yours"), ("set_keep_teaching", False)]


def test_an_encoder_is_chosen_by_its_file(section):
    ui, recorder = section
    recorder.set(models=(ModelRow("a@1", "A", (), "CT", 1.0, "", None, "", ""),), model_id="a@1")
    dialogs.answer("")
    ui.adaptModelBox.setCurrentIndex(1)
    assert recorder.taken() == [] and ui.adaptModelBox.currentIndex == 0, "the dialog was closed again"
    dialogs.answer("/somewhere/mae.pt")
    ui.adaptModelBox.setCurrentIndex(1)
    assert recorder.taken() == [("set_encoder", "/somewhere/mae.pt")]
    recorder.set(from_encoder=True, model_id=None, encoder_path="/somewhere/mae.pt", encoder_sentence="An encoder.")
    assert ui.adaptModelBox.currentIndex == 1 and ui.adaptEncoderButton.visible
    assert ui.adaptEncoderSentence.text == "An encoder." and recorder.taken() == []
    recorder.set(from_encoder=False, model_id="a@1")
    assert ui.adaptModelBox.currentIndex == 0 and not ui.adaptEncoderButton.visible
    ui.adaptModelBox.setCurrentIndex(1)             # the file is remembered
    assert recorder.taken() == [("set_encoder", "/somewhere/mae.pt")]


def test_while_it_runs_there_is_progress_and_two_ways_to_stop(section):
    ui, recorder = section
    recorder.set(phase="running", fraction=0.25, time_text="about 3 min", run_text="Cancel", run_enabled=True,
                 finish_available=True, finish_tooltip="The best so far has Dice 0.80.", rows=ROWS, log=("a", "b"))
    assert ui.adaptProgressBar.value == 250 and ui.adaptTimeLabel.text == "about 3 min"
    for widget in (ui.adaptVolumeSelector, ui.adaptSegmentationSelector, ui.adaptModelBox, ui.adaptList,
                   ui.adaptNameEdit, ui.adaptSpeedBox, ui.adaptTeachingBox):
        assert widget.enabled is False, widget.name
    assert ui.adaptFinishButton.toolTip == "The best so far has Dice 0.80." and ui.adaptLogText.plainText == "a\nb"
    ui.adaptFinishButton.click()
    ui.adaptButton.click()
    assert recorder.taken() == [("finish",), ("press",)]
    recorder.set(phase="ready", finish_available=False)
    assert not ui.adaptProgressRow.visible and not ui.adaptFinishButton.visible and ui.adaptList.enabled


def test_a_question_is_asked_in_the_panel(section, desk):
    ui, recorder = section
    recorder.set(question=Question(1, "sides", "Left and right look swapped.", (
        Choice("keep", "They are right"), Choice("swap", "Swap them"), Choice("cancel", "Cancel"))))
    assert ui.adaptQuestionBox.visible and ui.adaptQuestionText.text == "Left and right look swapped."
    desk.press(ui.adaptQuestionBox, "Swap them")
    assert recorder.taken() == [("answer", "swap")]
    recorder.set(question=None)
    assert not ui.adaptQuestionBox.visible


def chart(scene):
    return write_chart(scene, [Curve("Loss", [(0, 1.0), (1, 0.5)], (200, 80, 60)),
                               Curve("Dice", [(1, 0.7)], (60, 90, 200), dots=True)], name="Curve", x_title="Step")


def test_the_curve_is_drawn_and_told_in_numbers(section, desk):
    import slicer

    ui, recorder = section
    made = chart(desk.scene)
    recorder.set(phase="running", chart_id=made.GetID(),
                 curve=(CurvePoint(10, 0.5, 0.9), CurvePoint(20, 0.4, 0.82, best=True), CurvePoint(30, 0.3, 0.80)))
    view = ui.adaptCurveBox.findChild(slicer.qMRMLPlotView)
    assert view.visible and [name for name, _c, _p in view._lines] == ["Loss", "Dice"]
    assert ui.adaptCurveText.text == "Step 30: loss 0.300. Held-out Dice 0.80. The best so far was 0.82, at step 20."
    write_chart(desk.scene, [Curve("Loss", [(0, 1.0), (1, 0.5), (2, 0.2)], (200, 80, 60)),
                             Curve("Dice", [(1, 0.7)], (60, 90, 200))], chart=made, x_title="Step")
    assert len(view._lines[0][2]) == 3 and desk.count("vtkMRMLPlotViewNode") == 1
    recorder.set(curve=(), chart_id=None)
    assert not ui.adaptCurveBox.visible and desk.count("vtkMRMLPlotViewNode") == 0


def test_closing_the_scene_takes_the_curve_along(section, desk):
    ui, recorder = section
    recorder.set(chart_id=chart(desk.scene).GetID(), curve=(CurvePoint(1, 0.5),))
    assert desk.count("vtkMRMLPlotViewNode") == 1
    desk.scene.Clear(0)
    recorder.set(chart_id=None, curve=())
    recorder.set(chart_id=chart(desk.scene).GetID(), curve=(CurvePoint(1, 0.5),))
    assert desk.count("vtkMRMLPlotViewNode") == 1


def test_without_plot_views_the_numbers_do(section, desk, monkeypatch, caplog):
    import slicer

    ui, recorder = section
    monkeypatch.delattr(slicer, "qMRMLPlotView")
    recorder.set(chart_id=chart(desk.scene).GetID(), curve=(CurvePoint(10, 0.5, 0.8),))
    recorder.set(curve=(CurvePoint(20, 0.4, 0.8),))
    assert ui.adaptCurveBox.visible and ui.adaptCurveText.text.startswith("Step 20: loss 0.400.")
    assert len([line for line in caplog.messages if "plot view" in line]) == 1


def test_before_and_after_and_what_can_be_done_with_it(section):
    ui, recorder = section
    recorder.set(phase="done", table=SCORES, result_sentence="Liver rose.", result_key="mine@1.0.0", can_use=True,
                 can_revert=True, use_tooltip="Use it.", overlay_available=True)
    assert table_texts(ui.adaptTable) == [["Liver", "0.61 → 0.78", "8.1 → 3.2", "better"],
                                          ["Cyst", "0.71", "2.2", "better"],
                                          ["Spleen", "0.97 → 0.90", "1.0 → 2.0", "worse"],
                                          ["Colon", "0.99", "–", "as before"]]
    assert ui.adaptTable.item(3, 3).toolTip() == "Protected; no change"
    assert [ui.adaptTable.item(row, 0).font().bold() for row in range(4)] == [True, True, False, False]
    assert ui.adaptWarning.visible and "Spleen" in ui.adaptWarningText.text and "Colon" not in ui.adaptWarningText.text
    assert ui.adaptUseButton.visible and ui.adaptRevertButton.visible and not ui.adaptKeepButton.visible
    ui.adaptUseButton.click()
    ui.adaptRevertButton.click()
    ui.adaptOverlayBox.click()
    assert recorder.taken() == [("use_now",), ("revert",), ("show_overlay", True)]
    recorder.set(overlay_shown=True, overlay_sentence="Thin: before; bold: after.")
    assert ui.adaptOverlayBox.checked and ui.adaptOverlaySentence.visible and recorder.taken() == []
    recorder.set(table=SCORES[:1], can_use=False, can_revert=False, can_keep=True, result_key=None)
    assert not ui.adaptWarning.visible and not ui.adaptUseButton.visible
    ui.adaptKeepButton.click()
    assert recorder.taken() == [("keep_anyway",)]
