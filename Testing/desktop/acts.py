"""What a person does with the panel, from start to end, on the real engine. Used by the tests and by `show.py`.

Each act chooses its volume, presses the buttons, looks at what came of it, and keeps pictures.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time

import numpy as np
import vtk

#: Seconds from Cancel to the end, as promised.
PROMISED = 1.0


# --------------------------------------------------------------------------------------------------- volumes

def like(desk, volume, *, flip=False, turn=None):
    """The same anatomy stored otherwise: along i the other way round (left-handed), or the patient lying turned."""
    from HiEndSegLib.bridge.volumes import node_from_volume, volume_from_node
    from HiEndSegLib.geometry.volume import Volume

    before = volume_from_node(volume)
    array, matrix = before.array, before.ijk_to_ras.copy()
    if flip:
        array = array[::-1]
        matrix[:3, 3] += matrix[:3, 0] * (array.shape[0] - 1)
        matrix[:3, 0] *= -1
    if turn is not None:
        matrix = turn @ matrix
    return node_from_volume(Volume(array, matrix, volume.GetName()), desk.scene)


def rotation(degrees):
    """(4, 4): a turn about the patient's long axis and a little about the others."""
    result = np.eye(4)
    for axis, angle in zip((2, 0, 1), np.radians([degrees, degrees / 3, degrees / 5])):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(4)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def linear_transform(desk):
    node = desk.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    matrix = vtk.vtkMatrix4x4()
    turn = rotation(20)
    turn[:3, 3] = (40.0, -15.0, 25.0)
    matrix.DeepCopy(turn.ravel())
    node.SetMatrixTransformToParent(matrix)
    return node


def grid_transform(desk, volume, millimeters=8.0):
    """A smooth bend over the volume, as DICOM import makes for a tilted gantry."""
    from vtkmodules.util import numpy_support

    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    grid = vtk.vtkImageData()
    grid.SetDimensions(6, 6, 6)
    grid.SetSpacing(*[(bounds[2 * n + 1] - bounds[2 * n]) / 3 for n in range(3)])
    grid.SetOrigin(*[bounds[2 * n] - (bounds[2 * n + 1] - bounds[2 * n]) / 3 for n in range(3)])
    field = np.random.default_rng(8).normal(size=(216, 3)) * millimeters
    grid.GetPointData().SetScalars(numpy_support.numpy_to_vtk(field, deep=True))
    transform = vtk.vtkGridTransform()
    transform.SetDisplacementGridData(grid)
    transform.SetInterpolationModeToCubic()
    node = desk.scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "tilt correction")
    node.SetAndObserveTransformToParent(transform)
    return node


# --------------------------------------------------------------------------------------------------- looking

def labels_of(desk, node, volume):
    """(I, J, K) label map of a result on its volume's lattice, with the card's values; it must lie on that lattice."""
    from HiEndSegLib.bridge.layers import read_segments

    card = desk.segment._catalogue.card
    there = node.GetSegmentation()
    reading = read_segments(node, volume, {label.id: label.value for label in card.labels
                                           if there.GetSegmentIndex(label.id) >= 0})
    assert not reading.resampled, "the result does not lie on the volume's voxels"
    return reading.array


def check_result(desk, volume, node):
    """A finished result is complete: segments, meaning, place, transform, table, panel. Returns its label map."""
    card, segments = desk.segment._catalogue.card, node.GetSegmentation()
    assert node.GetName().startswith(f"{volume.GetName()} HiEndSeg")
    for label in card.labels:
        segment = segments.GetSegment(label.id)
        assert segment is not None and segment.GetName() == label.name
        assert np.allclose(np.array(segment.GetColor()) * 255, label.color, atol=0.6)
        meaning = vtk.reference("")
        assert segment.GetTag("TerminologyEntry", meaning) and label.terminology["type"][1] in str(meaning)
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    tree = desk.slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(desk.scene)
    places = [tree.GetItemParent(tree.GetItemByDataNode(other)) for other in (node, volume)]
    assert places[0] == places[1] and tree.GetItemByDataNode(node)
    array = labels_of(desk, node, volume)
    from HiEndSegLib.bridge.tables import read_table

    rows = read_table(desk.node(desk.state.table_id))
    present = [label.name for label in card.labels if (array == label.value).any()]
    assert [name for name, _ml, _mean in rows] == present and len(rows) >= 3
    voxel = abs(np.linalg.det(volume_matrix(volume)[:3, :3])) / 1000
    for label in card.labels:
        if label.name in present:
            milliliters = next(ml for name, ml, _mean in rows if name == label.name)
            assert abs(milliliters - (array == label.value).sum() * voxel) < 0.02
    assert desk.ui.resultTable.rowCount == len(rows) and desk.ui.resultBox.visible
    assert desk.ui.show3DButton.segmentationNode() is node and not desk.ui.show3DButton.checked
    return array


def volume_matrix(volume):
    from HiEndSegLib.bridge.volumes import lattice_of

    return lattice_of(volume)[1]


def start(desk, volume):
    """Press Segment and wait until the engine computes."""
    desk.choose(volume)
    desk.ui.runButton.click()
    assert desk.until(lambda: desk.state.phase == "running" and desk.state.fraction > 0), desk.state.headline
    assert desk.ui.runButton.text == "Cancel" and desk.ui.progressBar.visible


# --------------------------------------------------------------------------------------------------- acts

def segment(desk, volume, name="segment"):
    """Segment to finished nodes; the module is left and entered again on the way."""
    start(desk, volume)
    desk.picture(f"{name}-running", volume)
    desk.exit()
    assert desk.until(lambda: desk.state.fraction > 0.2 or not desk.state.busy)
    desk.enter()
    assert desk.until(lambda: not desk.state.busy), desk.state.headline
    assert desk.state.phase == "done", desk.state.detail
    node = desk.node(desk.state.segmentation_id)
    array = check_result(desk, volume, node)
    desk.picture(f"{name}-done", volume, node)
    return node, array


def show_and_edit(desk, volume, node, name="edit"):
    """Show 3D, then the embedded editor; leaving the module gives its shortcuts back."""
    surface = desk.slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    desk.ui.show3DButton.click()
    assert node.GetSegmentation().ContainsRepresentation(surface)
    desk.ui.editButton.click()
    editor = desk.panel.sections.editor
    assert editor.isOpen and desk.ui.editSection.visible
    assert editor._widget.segmentationNode() is node and editor._widget.sourceVolumeNode() is volume
    assert editor._widget._shortcuts
    editor._widget._observed = True             # as an effect that the person takes up leaves it
    desk.picture(name, volume, node)
    desk.exit()
    assert not editor._widget._shortcuts and not editor._widget._observed
    desk.enter()
    assert editor._widget._shortcuts
    desk.ui.closeEditorButton.click()
    assert not editor._widget._shortcuts and not desk.ui.editSection.visible


def cancel(desk, volume, name="cancel"):
    """Cancel while tiles are computed; returns the seconds it took."""
    before = desk.count("vtkMRMLSegmentationNode")
    start(desk, volume)
    began = time.monotonic()
    desk.ui.runButton.click()
    assert desk.until(lambda: not desk.state.busy, 10)
    took = time.monotonic() - began
    assert desk.count("vtkMRMLSegmentationNode") == before and desk.ui.runButton.text == "Segment"
    assert desk.state.phase == "idle" and desk.ui.runButton.enabled
    desk.picture(name, volume)
    return took


def worker_killed(desk, volume, name="killed"):
    """The worker dies in the middle: said in a sentence, nothing lost, and the next run works."""
    import psutil

    start(desk, volume)
    launcher = psutil.Process(desk.segment._machine.engine.worker_pid)
    interpreter = launcher.children(recursive=True)
    assert interpreter, "the worker runs under a launcher, as PythonSlicer is one"
    for process in interpreter:
        process.kill()
    assert desk.until(lambda: not desk.state.busy, 20)
    assert desk.state.phase == "failed" and "worker" in desk.state.detail, desk.state
    assert "again" in [offer.action for offer in desk.state.offers]
    desk.picture(name, volume)
    desk.press(desk.ui.offersBox, next(o.text for o in desk.state.offers if o.action == "again"))
    assert desk.until(lambda: not desk.state.busy), desk.state.headline
    assert desk.state.phase == "done", desk.state.detail


def scene_closed(desk, volume, name="scene-closed"):
    """File / Close scene in the middle: stopped, and nothing is put into the empty scene."""
    start(desk, volume)
    desk.scene.Clear(0)
    assert not desk.state.busy and desk.state.volume_id is None
    desk.until(lambda: False, 1.0)
    for kind in ("vtkMRMLSegmentationNode", "vtkMRMLScalarVolumeNode", "vtkMRMLTableNode"):
        assert desk.count(kind) == 0, kind
    desk.picture(name)


def volume_deleted(desk, volume, name="volume-deleted"):
    """The volume is deleted in the middle."""
    start(desk, volume)
    title = volume.GetName()
    desk.scene.RemoveNode(volume)
    assert desk.until(lambda: not desk.state.busy, 5)
    desk.until(lambda: False, 0.5)
    assert desk.count("vtkMRMLSegmentationNode") == 0
    assert title not in [desk.ui.volumeSelector.nodeFromIndex(n).GetName()
                         for n in range(desk.ui.volumeSelector.nodeCount())]
    desk.picture(name)


def under_transform(desk, volume, transform, name, answer=None):
    """Segment a volume under a transform; returns the label map. The result lies under the same one."""
    volume.SetAndObserveTransformNodeID(transform.GetID())
    desk.choose(volume)
    node = desk.run(answer=answer)
    assert node is not None, desk.state.detail
    assert node.GetTransformNodeID() == transform.GetID()
    array = check_result(desk, volume, node)
    bounds, around = [0.0] * 6, [0.0] * 6
    node.GetRASBounds(bounds)
    volume.GetRASBounds(around)
    assert all(around[2 * n] - 1 <= bounds[2 * n] and bounds[2 * n + 1] <= around[2 * n + 1] + 1 for n in range(3))
    desk.picture(name, volume, node)
    return array


#: What is corrected in the act, the first of these that is there.
CORRECTED = ("liver", "spleen", "heart", "aorta")


def adapt(desk, volume, name="adapt", steps=6):
    """A corrected case teaches the model one structure that it knows and one that it does not, in a few steps; the
    version is kept, looked at, used, given up and deleted.

    steps: None for as many as the panel takes. Returns the state after the lesson.
    """
    import qt
    from HiEndSegPanel import scenarios

    ui, presenter = desk.ui, desk.panel.sections.adapt
    desk.choose(volume)
    node = desk.run()
    assert node is not None, desk.state.detail
    structure = next(id_ for id_ in CORRECTED
                     if desk.slicer.util.arrayFromSegmentBinaryLabelmap(node, id_, volume).sum() > 1000)
    new = scenarios.correct(volume, node, structure, "Cyst")
    ui.segmentSection.collapsed, ui.adaptSection.collapsed = True, False
    ui.adaptCompareButton.click()
    assert desk.until(lambda: not presenter.state.busy), presenter.state.headline
    rows = {row.id: row for row in presenter.state.rows}
    assert rows[structure].checked and rows[structure].dice < 0.9, rows[structure]
    strange = [row.id for row in rows.values() if row.is_new]
    assert len(strange) == 1 and not rows[strange[0]].checked
    ui.adaptList.topLevelItem(list(rows).index(strange[0])).setCheckState(0, qt.Qt.Checked)
    assert next(row for row in presenter.state.rows if row.is_new).checked
    assert desk.until(lambda: presenter.state.speeds[0].fits is not None, 60), presenter.state.plan_sentence
    desk.picture(f"{name}-ready", volume, node)
    parent = desk.state.model_id
    with contextlib.nullcontext() if steps is None else scenarios.fewSteps(presenter._engine, steps):
        ui.adaptButton.click()
        seen = max(1, (steps or 20) // 2)
        assert desk.until(lambda: len(presenter.state.curve) > seen or not presenter.state.busy), presenter.state
        assert presenter.state.busy, presenter.state.detail
        desk.picture(f"{name}-running", volume, node)
        assert desk.until(lambda: not presenter.state.busy), presenter.state.headline
    after = presenter.state
    assert after.phase == "done", after.detail
    taught = next(row for row in after.table if row.id == structure)
    assert taught.taught and taught.dice_before is not None and taught.dice_after is not None
    if after.can_keep:
        ui.adaptKeepButton.click()
        assert desk.until(lambda: not presenter.state.busy), presenter.state.headline
    key = presenter.state.result_key
    assert key is not None and key in [row.id for row in desk.state.models], presenter.state.headline
    desk.picture(f"{name}-done", volume, node)
    ui.adaptOverlayBox.click()
    assert desk.until(lambda: len(presenter.state.overlay_ids) == 2), presenter.state.overlay_sentence
    node.GetDisplayNode().SetVisibility(False)
    desk.picture(f"{name}-before-after", volume, desk.node(presenter.state.overlay_ids[1]))
    node.GetDisplayNode().SetVisibility(True)
    ui.adaptOverlayBox.click()
    assert presenter.state.overlay_ids == ()
    ui.adaptUseButton.click()
    assert desk.state.model_id == key and ui.adaptRevertButton.visible
    ui.adaptRevertButton.click()
    assert desk.state.model_id == parent
    desk.press(ui.adaptQuestionBox, "Delete it")
    assert key not in [row.id for row in desk.state.models] and node.GetSegmentation().GetSegment(new) is not None
    ui.adaptSection.collapsed, ui.segmentSection.collapsed = True, False
    return after


def broken_checksum(desk, volume, folder, name="broken-checksum"):
    """A model whose weights are not those of its card is refused in words, and Verify says the same.

    folder: the person's own model folder, empty.
    """
    from HiEndSegLib.resources import resource

    model = folder / "altered"
    shutil.copytree(resource("Models/torso-ct-tiny"), model)
    card = json.loads((model / "card.json").read_text(encoding="utf-8"))
    card.update(id="altered", title="An altered model", default=False)
    (model / "card.json").write_text(json.dumps(card), encoding="utf-8")
    weights = bytearray((model / "weights.safetensors").read_bytes())
    weights[-1000] ^= 1
    (model / "weights.safetensors").write_bytes(weights)
    desk.segment.refresh()
    desk.choose(volume)
    rows = [row.title for row in desk.state.models]
    desk.ui.modelList.setCurrentRow(rows.index("An altered model"))
    assert desk.state.model_id == f"altered@{card['version']}"
    assert desk.run() is None and desk.state.phase == "failed"
    assert "checksum" in desk.state.detail, desk.state.detail
    desk.press(desk.ui.offersBox, next(o.text for o in desk.state.offers if o.action == "verify_model"))
    assert desk.until(lambda: not desk.panel.sections.models.state.busy, 30)
    assert desk.panel.sections.models.state.failed and "checksum" in desk.ui.modelsSentence.text
    desk.picture(name, volume)
    desk.ui.modelsSection.collapsed = True
    shutil.rmtree(model)
    desk.segment.refresh()
    desk.segment.set_model("torso-ct-tiny")


def slice_view(desk, volume=None, name="Red"):
    """The nodes of a slice view, as Slicer has them for every view; gives the composite node."""
    made = []
    for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
        node = desk.scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        node.SetLayoutName(name)
        node.SetSingletonTag(name)
        made.append(desk.scene.AddNode(node))
    made[0].SetOrientationToAxial()
    if volume is not None:
        bounds = [0.0] * 6
        volume.GetRASBounds(bounds)
        made[0].JumpSliceByCentering(*[(bounds[2 * n] + bounds[2 * n + 1]) / 2 for n in range(3)])
        made[1].SetBackgroundVolumeID(volume.GetID())
    return made[1]


def attend(desk, volume, name="attention"):
    """Look into the model: a point in the slice, dragged, another block, compared, kept; views as before at the end."""
    looking, view = desk.panel.sections.attention, slice_view(desk, volume)
    desk.choose(volume)
    desk.ui.attentionSection.collapsed, desk.ui.segmentSection.collapsed = False, True

    def settle():
        assert desk.until(lambda: not looking.state.busy and looking.state.phase != "starting"), looking.state.headline
        assert looking.state.phase == "shown", looking.state.headline
        return looking.state

    kinds = ("vtkMRMLVolumeNode", "vtkMRMLColorLegendDisplayNode", "vtkMRMLSegmentationNode")
    before = [desk.count(kind) for kind in kinds]
    desk.ui.attentionButton.click()
    state = settle()
    assert state.meaning and "%" in state.headline and len(state.layers) == 12
    start, tooks = state.point, []
    for step in range(1, 6):
        began = time.monotonic()
        desk.node(state.point_id).SetNthControlPointPositionWorld(0, start[0] + 4.0 * step, *start[1:])
        state = settle()
        tooks.append(time.monotonic() - began)
    assert abs(state.point[0] - start[0] - 20) < 0.01
    desk.ui.attentionLayerSlider.setValue(8)
    settle()
    heat = desk.node(looking.state.heat_id)
    share = heat.GetImageData().GetScalarRange()[1]
    assert share > 1.5 and heat.GetTransformNodeID() == volume.GetTransformNodeID()
    desk.picture(name, volume)
    desk.ui.attentionCompareBox.collapsed = False
    desk.ui.attentionCompareKindBox.setCurrentIndex(1)
    desk.ui.attentionOtherLayerSlider.setValue(2)
    settle()
    assert "in common" in desk.ui.attentionCompareSentence.text
    desk.ui.attentionMoreBox.collapsed = False
    desk.ui.attentionHeadsBox.setChecked(True)
    desk.ui.attentionRankButton.click()
    settle()
    assert looking.state.rank_picture and looking.state.heads_picture
    desk.ui.attentionInspectButton.click()
    settle()
    assert looking.state.inspect, looking.state.inspect_sentence
    desk.picture(f"{name}-more", volume)
    desk.ui.attentionCompareBox.collapsed = desk.ui.attentionMoreBox.collapsed = True
    desk.ui.attentionHeadsBox.setChecked(False)
    desk.ui.attentionCompareKindBox.setCurrentIndex(0)
    desk.ui.attentionButton.click()
    assert looking.state.phase == "off" and view.GetForegroundVolumeID() is None
    assert [desk.count(kind) for kind in kinds] == before, "something of the map was left"
    desk.ui.attentionSection.collapsed, desk.ui.segmentSection.collapsed = True, False
    return sorted(tooks)[len(tooks) // 2]
