"""The Adapt section in the panel with a quick engine: from a corrected case to the table, and every way out of it."""

from __future__ import annotations

import gc

import pytest
from double import mrml_widgets, pythonqt


@pytest.fixture
def engine(desk):
    """A quick engine in all sections for one test."""
    from HiEndSegLib.presenter.adapt_speeds import TIMES
    from HiEndSegPanel import machine
    from HiEndSegPanel.scenarios import QuickEngine

    desk.panel.settings.pop(TIMES, None)        # what real lessons took is not what this engine plans
    quick = QuickEngine()
    desk.panel.sections.setEngine(quick)
    desk.ui.adaptSection.collapsed = False
    yield quick
    quick.patient = False
    adapt(desk).cancel()
    desk.until(lambda: not adapt(desk).state.busy, 5)
    desk.ui.adaptSection.collapsed = True
    desk.panel.sections.setEngine(machine.engine())


@pytest.fixture
def corrected(desk, engine):
    """(volume, segmentation): a result with a part taken away and a new structure."""
    from HiEndSegPanel.scenarios import correct, sampleVolume

    volume = sampleVolume(size=(32, 30, 16))
    desk.choose(volume)
    node = desk.run()
    correct(volume, node, desk.segment._catalogue.card.labels[0].id, "Cyst")
    return volume, node


def adapt(desk):
    return desk.panel.sections.adapt


def settle(desk):
    assert desk.until(lambda: not adapt(desk).state.busy, 10), adapt(desk).state.headline
    return adapt(desk).state


def compared(desk):
    """Press Compare; the state with its rows, when the plan is there too."""
    desk.ui.adaptCompareButton.click()
    settle(desk)
    assert desk.until(lambda: adapt(desk).state.speeds[0].fits is not None, 10), adapt(desk).state.plan_sentence
    return adapt(desk).state


def row(desk, id_):
    """The entry of the list with this structure."""
    index = [row.id for row in adapt(desk).state.rows].index(id_)
    return desk.ui.adaptList.topLevelItem(index)


def start(desk, engine):
    """Press Adapt; the engine waits halfway."""
    engine.patient = True
    desk.ui.adaptButton.click()
    assert desk.until(lambda: adapt(desk).state.phase == "running" and adapt(desk).state.curve, 10), adapt(desk).state


def test_the_result_of_segment_is_what_is_corrected(desk, corrected):
    volume, node = corrected
    assert desk.ui.adaptVolumeSelector.currentNode() is volume
    assert desk.ui.adaptSegmentationSelector.currentNode() is node
    assert not desk.ui.adaptButton.enabled and "ompare" in desk.ui.adaptButton.toolTip
    assert desk.ui.adaptModelBox.currentText.startswith(adapt(desk).state.models[0].title)


def test_what_differs_is_ticked_and_what_is_new_is_marked(desk, corrected):
    import qt

    state = compared(desk)
    first, new = state.rows[0], next(one for one in state.rows if one.is_new)
    assert first.checked and first.changed_ml > 0 and not new.checked
    assert row(desk, first.id).checkState(0) == qt.Qt.Checked and row(desk, first.id).text(1).endswith(" ml")
    assert row(desk, new.id).text(1) == "new" and row(desk, new.id).checkState(0) == qt.Qt.Unchecked
    row(desk, new.id).setCheckState(0, qt.Qt.Checked)
    assert next(one for one in adapt(desk).state.rows if one.is_new).checked
    assert desk.until(lambda: desk.ui.adaptSpeedBox.itemText(0) == "Quick: 3 min, 537 MB", 10)
    assert desk.ui.adaptPlanSentence.text and desk.ui.adaptTeachingSentence.text
    assert desk.ui.adaptButton.enabled


def test_from_the_button_to_the_table(desk, engine, corrected):
    volume, node = corrected
    compared(desk)
    desk.ui.adaptNameEdit.setText("As we draw it")
    start(desk, engine)
    assert desk.ui.adaptCurveBox.visible and "Dice" in desk.ui.adaptCurveText.text
    assert desk.count("vtkMRMLPlotViewNode") == 1 and desk.ui.adaptFinishButton.visible
    assert "As we draw it" in desk.ui.adaptHeadline.text and not desk.ui.adaptList.enabled
    desk.picture("adapt-running", volume, node)
    desk.exit()
    engine.patient = False                      # it goes on while another module is shown
    assert settle(desk).phase == "done"
    desk.enter()
    assert desk.ui.adaptTable.rowCount >= 1 and desk.ui.adaptResultBox.visible
    assert not desk.ui.adaptUseButton.visible, "nothing was kept"
    desk.picture("adapt-kept-nothing", volume, node)


def test_stopping_asks_whether_to_keep_the_best(desk, engine, corrected):
    compared(desk)
    start(desk, engine)
    desk.ui.adaptButton.click()
    assert desk.ui.adaptQuestionBox.visible
    desk.press(desk.ui.adaptQuestionBox, "Go on")
    assert adapt(desk).state.phase == "running"
    desk.ui.adaptButton.click()
    desk.press(desk.ui.adaptQuestionBox, "Stop and keep nothing")
    state = settle(desk)
    assert state.result_key is None and state.table == () and desk.ui.adaptButton.enabled
    start(desk, engine)
    desk.ui.adaptFinishButton.click()
    assert settle(desk).phase == "done"


def test_what_is_taught_goes_away_while_it_runs(desk, engine, corrected):
    volume, node = corrected
    compared(desk)
    start(desk, engine)
    desk.scene.RemoveNode(node)
    assert not settle(desk).busy and desk.ui.adaptSegmentationSelector.currentNode() is None
    assert "deleted" in desk.ui.adaptHeadline.text and desk.ui.adaptList.visible is False


def test_the_scene_is_closed_while_it_runs(desk, engine, corrected):
    compared(desk)
    start(desk, engine)
    desk.scene.Clear(0)
    state = settle(desk)
    assert state.volume_id is None and state.curve == () and not desk.ui.adaptCurveBox.visible
    desk.until(lambda: False, 0.3)
    for kind in ("PlotView", "PlotChart", "PlotSeries", "Table", "Segmentation"):
        assert desk.count(f"vtkMRML{kind}Node") == 0, kind


def test_a_segment_that_is_added_is_noticed(desk, engine):
    from HiEndSegPanel.scenarios import sampleVolume

    volume = sampleVolume(size=(32, 30, 16))
    desk.choose(volume)
    node = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "by hand")
    desk.ui.adaptSegmentationSelector.setCurrentNode(node)
    assert "no segments" in desk.ui.adaptSegmentationSentence.text and not desk.ui.adaptCompareButton.enabled
    node.GetSegmentation().AddEmptySegment("liver", "Liver")
    assert desk.until(lambda: desk.ui.adaptCompareButton.enabled, 5), desk.ui.adaptSegmentationSentence.text


def test_scripts_adapt(desk, engine, corrected, monkeypatch):
    from HiEndSegLib.errors import OptionError
    from HiEndSegPanel import machine

    monkeypatch.setattr(machine, "_engine", engine)
    volume, node = corrected
    heard, nodes = [], desk.scene.GetNumberOfNodes()
    first = desk.segment._catalogue.card.labels[0].id
    assert desk.logic.adapt(volume, node, "From a script", structures=[first],
                            progress=lambda *what: heard.append(what)) is None, "nothing got better"
    assert heard and desk.scene.GetNumberOfNodes() == nodes
    for wrong in ({"structures": ["toenail"]}, {"structures": []}, {"model": "no-such-model"}):
        with pytest.raises(OptionError):
            desk.logic.adapt(volume, node, "From a script", **wrong)


def leaks(desk):
    sections = desk.panel.sections
    combos = [w for w in vars(desk.ui).values() if isinstance(w, mrml_widgets.qMRMLNodeComboBox)]
    gc.collect()
    return {"observers": len(sections.Observations), "widgets": sum(len(combo._tags) for combo in combos),
            "slots": sum(len(relays) for slots in pythonqt._connections.values() for relays in slots.values()),
            "listeners": len(sections.adapt.changed) + len(sections.segment.changed),
            "nodes": desk.scene.GetNumberOfNodes(), "orphans": len(sections.adapt._orphans),
            "items": desk.ui.adaptList.topLevelItemCount,
            "buttons": len(desk.widget.findChildren(pythonqt.QtWidgets.QPushButton))}


def test_six_lessons_leave_nothing_behind(desk, engine, corrected):
    counts = []
    for lesson in range(6):
        compared(desk)
        start(desk, engine)
        if lesson % 2:
            desk.ui.adaptFinishButton.click()
        engine.patient = False
        assert settle(desk).phase == "done"
        desk.app.processEvents()
        desk.app.sendPostedEvents(None, 52)     # DeferredDelete: what deleteLater() waits for
        counts.append(leaks(desk))
    assert counts[-1] == counts[1], counts


def test_reloading_while_it_runs_leaves_no_slot_and_no_node(desk, engine, corrected):
    """Sections are closed and made anew, as after an installation."""
    compared(desk)
    start(desk, engine)
    panel, old = desk.panel, desk.panel.sections
    panel._closeSections()
    assert len(old.adapt.changed) == len(old.segment.changed) == len(old.Observations) == 0
    for kind in ("PlotView", "PlotChart", "PlotSeries"):
        assert desk.count(f"vtkMRML{kind}Node") == 0, kind
    slots = sum(pythonqt.connection_count(widget) for name, widget in vars(desk.ui).items()
                if name.startswith("adapt") and name not in ("adaptSection", "adaptCurveBox", "adaptLogBox"))
    assert slots == 0
    panel._makeSections()
    desk.panel.sections.setEngine(engine)


def test_the_corrected_segmentation_is_in_the_parameter_node(desk, corrected):
    volume, node = corrected
    other = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Drawn by somebody")
    other.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    other.GetSegmentation().AddEmptySegment("", "Liver")
    adapt(desk).set_segmentation(node)
    assert desk.logic.getParameterNode().correctedID == node.GetID()
    desk.logic.getParameterNode().correctedID = other.GetID()
    assert adapt(desk).state.segmentation_id == other.GetID()
    desk.scene.RemoveNode(other)
    assert desk.logic.getParameterNode().correctedID != other.GetID()
