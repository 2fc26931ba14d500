"""The panel with a quick engine (thresholds instead of a network): choices, questions, the scene, leaks. Real Qt, real
MRML; the application is the stand-in."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
from double import dialogs, mrml_widgets, packages, pythonqt


@pytest.fixture
def engine(desk):
    """A quick engine in the panel for one test."""
    from HiEndSegPanel import machine
    from HiEndSegPanel.scenarios import QuickEngine

    quick = QuickEngine()
    desk.panel.sections.setEngine(quick)
    yield quick
    if desk.state.busy:
        desk.segment.cancel()
    desk.panel.sections.setEngine(machine.engine())


@pytest.fixture
def volume(desk, engine):
    from HiEndSegPanel.scenarios import sampleVolume

    return sampleVolume(size=(32, 30, 16))


def region(desk, volume, name="Region"):
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    node = desk.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    node.SetCenter(*[(bounds[2 * n] + bounds[2 * n + 1]) / 2 for n in range(3)])
    node.SetSize(*[(bounds[2 * n + 1] - bounds[2 * n]) / 2 for n in range(3)])
    return node


def test_without_a_volume_the_button_says_what_to_do(desk, engine):
    assert desk.ui.runButton.enabled is False and "volume" in desk.ui.runButton.toolTip.lower()
    assert desk.ui.headline.text and not desk.ui.progressRow.visible and not desk.ui.resultBox.visible
    assert desk.ui.setupPage.visible is False and desk.ui.sections.visible is True


def test_every_control_says_what_it_is_for(desk):
    import qt

    kinds = (qt.QAbstractButton, qt.QComboBox, qt.QListWidget, qt.QLineEdit, qt.QTableWidget, qt.QPlainTextEdit,
             qt.QTreeWidget, qt.QProgressBar, mrml_widgets.qMRMLNodeComboBox)
    named = [w for w in vars(desk.ui).values() if isinstance(w, kinds) and not w.name.startswith("qt_")]
    assert len(named) > 30
    assert [w.name for w in named if not w.toolTip] == []
    assert [w.name for w in vars(desk.ui).values() if getattr(w, "styleSheet", "")] == []


def test_models_tell_what_a_person_needs_to_choose(desk, engine, volume):
    desk.choose(volume)
    details = desk.ui.modelDetails.text
    for part in ("CT", "19 structures", "MB", "CC-BY-4.0", "Dice"):
        assert part in details
    assert desk.ui.modelList.count == 1 and "Liver" in desk.ui.modelDetails.toolTip
    desk.ui.modelSearch.setText("liver")
    assert desk.ui.modelList.count == 1
    desk.ui.modelSearch.setText("toenail")
    assert desk.ui.modelList.count == 0 and desk.state.model_id
    desk.ui.modelSearch.setText("")
    assert desk.ui.modelList.currentRow == 0


def test_only_checked_structures_are_written(desk, volume):
    import qt

    desk.choose(volume)
    desk.ui.structuresBox.collapsed = False
    desk.ui.noStructuresButton.click()
    assert desk.ui.runButton.enabled is False
    names = [row.name for row in desk.state.structures]
    desk.ui.structureList.item(names.index("Liver")).setCheckState(qt.Qt.Checked)
    assert desk.ui.structuresBox.title == "1 of 19 structures" and desk.logic.getParameterNode().only == ("liver",)
    node = desk.run()
    assert [node.GetSegmentation().GetNthSegmentID(n) for n in range(node.GetSegmentation().GetNumberOfSegments())] == [
        "liver"]
    desk.picture("structures", volume, node)
    desk.ui.allStructuresButton.click()
    assert desk.logic.getParameterNode().only is None
    desk.ui.structuresBox.collapsed = True


def test_a_region_is_used_and_watched(desk, volume):
    roi = region(desk, volume)
    desk.choose(volume)
    desk.ui.roiSelector.setCurrentNode(roi)
    assert "Only inside" in desk.ui.roiSentence.text
    roi.SetCenter(9999.0, 0.0, 0.0)
    assert desk.until(lambda: "outside" in desk.ui.roiSentence.text, 5)
    assert desk.ui.runButton.enabled is False
    desk.scene.RemoveNode(roi)
    assert desk.state.roi_id is None and desk.ui.roiSentence.visible is False


def test_a_new_region_is_as_large_as_the_volume(desk, volume):
    desk.choose(volume)
    roi = desk.ui.roiSelector.addNode()         # what "Create new" in the box does
    assert desk.state.roi_id == roi.GetID() and desk.ui.runButton.enabled
    assert desk.ui.roiSentence.text == "Only inside the region of interest (96 x 90 x 40 mm)."


def test_a_transform_set_later_is_noticed(desk, volume):
    import acts

    desk.choose(volume)
    volume.SetAndObserveTransformNodeID(acts.grid_transform(desk, volume).GetID())
    assert desk.until(lambda: "non-linear" in desk.ui.volumeSentence.text, 5)
    desk.ui.runButton.click()
    assert desk.state.question.id == "transform" and desk.ui.questionBox.visible
    desk.picture("question", volume)
    desk.press(desk.ui.questionBox, "Cancel")
    assert desk.ui.questionBox.visible is False and desk.count("vtkMRMLSegmentationNode") == 0


def test_a_warning_for_what_is_no_ct(desk, volume):
    import numpy as np
    from HiEndSegLib.bridge.volumes import node_from_volume, volume_from_node
    from HiEndSegLib.geometry.volume import Volume

    before = volume_from_node(volume)
    other = node_from_volume(Volume((np.abs(before.array) % 300).astype("int16"), before.ijk_to_ras, "T2"), desk.scene)
    desk.ui.volumeSelector.setCurrentNode(other)
    assert desk.ui.volumeWarning.visible and "do not rely" in desk.ui.volumeWarningText.text
    desk.picture("warning", other)
    desk.ui.volumeSelector.setCurrentNode(volume)
    assert not desk.ui.volumeWarning.visible


def test_running_again_replaces_what_was_agreed_with_undo(desk, volume):
    desk.choose(volume)
    first = desk.run()
    assert desk.run(answer="new") is not first
    desk.ui.outputSelector.setCurrentNode(first)
    assert desk.run(answer="replace") is first
    assert desk.ui.undoButton.visible and desk.ui.undoButton.enabled
    desk.ui.undoButton.click()
    assert not desk.ui.undoButton.enabled and desk.ui.redoButton.enabled
    desk.ui.redoButton.click()
    assert desk.ui.undoButton.enabled


def test_the_editors_undo_brings_back_what_the_button_replaced(desk, volume):
    desk.choose(volume)
    node = desk.run()
    desk.ui.editButton.click()
    editor = desk.panel.sections.editor._widget
    liver = node.GetSegmentation().GetSegment("liver")
    node.GetSegmentation().RemoveSegment("spleen")
    assert desk.run(answer="replace") is node and node.GetSegmentation().GetSegment("spleen") is not None
    assert desk.ui.undoButton.visible is False, "the editor has the undo now"
    editor.undo()
    assert node.GetSegmentation().GetSegment("spleen") is None and liver is not None


def test_deleting_what_is_edited_closes_the_editor(desk, volume):
    desk.choose(volume)
    node = desk.run()
    desk.ui.editButton.click()
    assert desk.panel.sections.editor.isOpen
    desk.scene.RemoveNode(node)
    assert not desk.panel.sections.editor.isOpen and not desk.ui.resultBox.visible


def test_what_was_chosen_comes_back_with_the_scene(desk, volume, tmp_path):
    desk.choose(volume)
    desk.ui.roiSelector.setCurrentNode(region(desk, volume))
    desk.segment.set_only(["liver", "spleen"])
    desk.panel.sections.adapt.set_name("Mine")
    path = str(tmp_path / "scene.mrml")
    desk.scene.SetURL(path)
    assert desk.scene.Commit(path)
    desk.scene.Clear(0)
    assert desk.state.volume_id is None and desk.logic.getParameterNode().volumeID is None
    desk.panel.sections.adapt.set_name("")
    desk.scene.SetURL(path)
    desk.scene.Import()
    assert desk.node(desk.state.volume_id).GetName() == "Sample"
    assert desk.node(desk.state.roi_id).GetName() == "Region"
    assert [row.id for row in desk.state.structures if row.checked] == ["spleen", "liver"]
    assert desk.ui.volumeSelector.currentNodeID == desk.state.volume_id
    assert desk.panel.sections.adapt.state.name == "Mine"


def test_scripts_may_choose_by_the_parameter_node(desk, volume):
    desk.choose(volume)
    desk.logic.getParameterNode().only = ("colon",)
    assert [row.id for row in desk.state.structures if row.checked] == ["colon"]
    desk.logic.getParameterNode().volumeID = None
    assert desk.state.volume_id is None and desk.ui.volumeSelector.currentNode() is None


def test_results_and_labels_are_not_offered_as_volumes(desk, volume):
    desk.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    desk.choose(volume)
    desk.run()
    combo = desk.ui.volumeSelector
    assert [combo.nodeFromIndex(n).GetName() for n in range(combo.nodeCount())] == ["Sample"]


def test_the_sample_is_one_click_away(desk, engine):
    desk.ui.helpSection.collapsed = False
    desk.ui.sampleButton.click()
    assert desk.node(desk.state.volume_id).GetName().startswith("HiEndSegTorsoCT")
    desk.ui.helpSection.collapsed = True


def test_models_are_added_and_deleted(desk, engine, tmp_path, monkeypatch):
    import json
    import shutil

    import qt
    from HiEndSegLib.resources import resource

    registry, models = desk.segment._catalogue._registry, desk.panel.sections.models
    monkeypatch.setattr(registry, "user", tmp_path / "own")
    source = tmp_path / "source"
    shutil.copytree(resource("Models/torso-ct-tiny"), source)
    card = json.loads((source / "card.json").read_text(encoding="utf-8"))
    card.update(id="mine", title="My model", default=False)
    (source / "card.json").write_text(json.dumps(card), encoding="utf-8")
    desk.ui.modelsSection.collapsed = False
    dialogs.answer(str(source))
    desk.ui.addFolderButton.click()
    assert desk.until(lambda: not models.state.busy, 30) and "was added" in desk.ui.modelsSentence.text
    titles = [desk.ui.modelList.item(n).text() for n in range(desk.ui.modelList.count)]
    desk.ui.modelList.setCurrentRow(titles.index("My model"))
    desk.ui.verifyButton.click()
    assert desk.until(lambda: not models.state.busy, 30) and "is sound" in desk.ui.modelsSentence.text
    desk.ui.openFolderButton.click()
    assert dialogs.DesktopServices.opened[-1].endswith(str(card["version"]))
    assert not desk.ui.forgetButton.visible, "nothing is kept beside it"
    kept = tmp_path / "own" / f"mine@{card['version']}" / "teaching.npz"
    kept.write_bytes(b"images")
    desk.segment.refresh()
    models.refresh()
    assert desk.ui.forgetButton.visible
    desk.ui.forgetButton.click()
    desk.press(desk.ui.modelsQuestionBox, "Delete images")
    assert desk.until(lambda: not models.state.busy, 30) and not kept.exists() and not desk.ui.forgetButton.visible
    exported = tmp_path / "mine.zip"
    dialogs.answer(str(exported.with_suffix("")))
    desk.ui.exportButton.click()
    assert desk.until(lambda: not models.state.busy, 30) and exported.is_file(), desk.ui.modelsSentence.text
    exported.write_bytes(b"mine")
    dialogs.answer(str(exported.with_suffix("")), qt.QMessageBox.Cancel)
    desk.ui.exportButton.click()
    assert not models.state.busy and exported.read_bytes() == b"mine", "replaced without having been asked"
    assert not desk.ui.exportWholeButton.visible, "it is whole"
    with monkeypatch.context() as patch:        # as if it were a version
        asked, state = [], models.state
        patch.setattr(models, "export", lambda *words, **how: asked.append((words, how)))
        models.state = replace(state, rows=tuple(replace(row, parent="base@1.0.0") for row in state.rows))
        models.changed.emit()
        assert desk.ui.exportWholeButton.visible
        dialogs.answer(str(tmp_path / "whole.zip"))
        desk.ui.exportWholeButton.click()
        assert asked == [((f"mine@{card['version']}", str(tmp_path / "whole.zip")), {"whole": True})]
        models.state = state
        models.changed.emit()
    desk.ui.deleteButton.click()
    desk.picture("models")
    desk.press(desk.ui.modelsQuestionBox, "Delete")
    assert desk.until(lambda: not models.state.busy, 30) and desk.ui.modelList.count == 1
    dialogs.answer("")
    desk.ui.addFileButton.click()                # the person thought better of it
    assert not models.state.busy
    desk.ui.modelsSection.collapsed = True


def test_the_report_goes_to_the_clipboard(desk, engine, volume):
    import qt
    from double import application

    application.show_main_window()
    volume.SetName("Jane Doe")
    desk.choose(volume)
    desk.run()
    desk.ui.reportButton.click()
    text = qt.QApplication.clipboard().text()
    assert "HiEndSeg" in text and "torch" in text
    assert "Jane" not in text and str(desk.app.temporaryPath) not in text


def test_the_table_can_be_copied(desk, volume):
    import qt

    desk.choose(volume)
    desk.run()
    desk.ui.copyTableButton.click()
    lines = qt.QApplication.clipboard().text().splitlines()
    assert lines[0].split("\t") == ["Structure", "Volume (ml)", "Mean (HU)"] and len(lines) >= 2


def test_sequences_go_frame_by_frame(desk, engine, volume):
    slicer, scene = desk.slicer, desk.scene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "CT 4D")
    sequence.SetIndexName("time")
    for time in range(3):
        sequence.SetDataNodeAtValue(volume, str(time))
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.AddSynchronizedSequenceNode(sequence)
    slicer.modules.sequences.logic().UpdateAllProxyNodes()
    proxy = browser.GetProxyNode(sequence)
    desk.choose(proxy)
    desk.run(answer="all")
    outputs = [scene.GetNthNodeByClass(n, "vtkMRMLSequenceNode") for n in range(desk.count("vtkMRMLSequenceNode"))]
    made = [node for node in outputs if node is not sequence]
    assert len(made) == 1 and made[0].GetNumberOfDataNodes() == 3
    assert "3 of 3" in desk.ui.headline.text


def test_scripts_segment_one_and_many(desk, engine, volume, monkeypatch):
    from HiEndSegLib.errors import HiEndSegError, OptionError
    from HiEndSegPanel import machine

    monkeypatch.setattr(machine, "_engine", engine)
    before = {key: value for key, value in desk.panel.settings.items() if key in ("model", "device")}
    heard = []
    node = desk.logic.segment(volume, only="liver", device="cpu", progress=lambda *what: heard.append(what))
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    assert desk.logic.segment(volume, only=["spleen"], output=node) is node
    assert node.GetSegmentation().GetNumberOfSegments() == 2
    empty = desk.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    made = desk.logic.segmentNodes([volume, empty, volume])
    assert made[0] is not None and made[1] is None and made[2] is not made[0]
    for wrong in ({"model": "no-such-model"}, {"only": ["toenail"]}, {"only": []}):
        with pytest.raises(OptionError):
            desk.logic.segment(volume, **wrong)
    with pytest.raises(HiEndSegError, match="holds no voxels"):
        desk.logic.segment(empty)
    assert before == {key: value for key, value in desk.panel.settings.items() if key in ("model", "device")}


def test_start_up_offers_the_sample_and_the_terminology(desk):
    from double.packages import SampleDataLogic

    assert [source.sampleName for source in SampleDataLogic.sources["HiEndSeg"]] == ["HiEndSegTorsoCT"]
    assert packages.translated, "texts go through Slicer's translation"


def observers_and_connections(desk):
    """Everything that could grow: observers of ours and of the stand-in's widgets, slots, listeners, nodes, jobs."""
    sections = desk.panel.sections
    combos = [w for w in vars(desk.ui).values() if isinstance(w, mrml_widgets.qMRMLNodeComboBox)]
    gc.collect()
    return {"observers": len(sections.Observations), "widgets": sum(len(combo._tags) for combo in combos),
            "slots": sum(len(relays) for slots in pythonqt._connections.values() for relays in slots.values()),
            "listeners": len(sections.segment.changed), "nodes": desk.scene.GetNumberOfNodes(),
            "buttons": len(desk.widget.findChildren(pythonqt.QtWidgets.QPushButton)),
            "orphans": len(sections.segment._orphans)}


def test_twenty_runs_leave_nothing_behind(desk, volume):
    """Twenty runs in a row, each with a new segmentation that is then deleted: no growth of observers or memory."""
    import psutil

    process, sizes, counts = psutil.Process(), [], []
    desk.choose(volume)
    for run in range(20):
        node = desk.run()
        assert node is not None
        desk.ui.editButton.click()
        desk.ui.closeEditorButton.click()
        table = desk.node(desk.state.table_id)
        for gone in (table, *[node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())], node):
            desk.scene.RemoveNode(gone)
        desk.app.processEvents()
        desk.app.sendPostedEvents(None, 52)      # DeferredDelete: what deleteLater() waits for
        counts.append(observers_and_connections(desk))
        sizes.append(process.memory_info().rss / 1e6)
    assert counts[-1] == counts[4], [c for c in counts]
    assert sizes[-1] - sizes[4] < 10, [round(size) for size in sizes]
