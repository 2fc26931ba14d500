"""What may happen to the scene while a job runs, where results go, questions, undo. Real MRML, an engine on a leash."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from bridge_scene import (LATTICES, ct, ct_volume, grid_transform, linear_transform, rotation, scene,    # noqa: F401
                          slicer)
from presenter_helpers import Desk, card

import vtk

from HiEndSegLib.bridge.corrections import read_correction
from HiEndSegLib.bridge.layers import read_segments
from HiEndSegLib.bridge.tables import read_table
from HiEndSegLib.bridge.volumes import lattice_of, matrix_to_vtk, node_from_volume
from HiEndSegLib.geometry.labels import Label

THREE = card(labels=[{"value": 1, "id": "liver", "name": "Liver", "color": [221, 130, 101]},
                     {"value": 2, "id": "kidney_left", "name": "Left kidney", "color": [185, 102, 83]},
                     {"value": 3, "id": "spleen", "name": "Spleen", "color": [157, 108, 162]}])
ALL = {"liver": 1, "kidney_left": 2, "spleen": 3}


@pytest.fixture
def desk(scene):                                                                                    # noqa: F811
    desk = Desk(scene, cards=[THREE])
    yield desk
    desk.presenter.close()


def answer(shape, liver=slice(0, 4), kidney=slice(4, 6), spleen=slice(8, 10)):
    """A label map in layers along i."""
    array = np.zeros(shape, np.uint8)
    for value, part in ((1, liver), (2, kidney), (3, spleen)):
        array[part] = value
    return array


def voxels(desk, volume):
    """The result's segments on the volume's lattice, values of ALL."""
    return read_segments(desk.scene.GetNodeByID(desk.state.segmentation_id), volume, ALL).array


def first_result(desk, ct, **parts):                                                                # noqa: F811
    desk.presenter.set_volume(ct)
    desk.through(answer(lattice_of(ct)[0], **parts))
    assert desk.state.phase == "done", desk.state.detail
    return desk.scene.GetNodeByID(desk.state.segmentation_id)


def roi_node(scene, center, size, matrix=None):                                                     # noqa: F811
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    roi.SetCenter(*center)
    roi.SetSize(*size)
    if matrix is not None:
        roi.SetAndObserveObjectToNodeMatrix(matrix_to_vtk(matrix))
    return roi


# ---------------------------------------------------------------------------------------------- the scene changes


def test_the_scene_is_closed_while_it_runs(desk, ct):                                               # noqa: F811
    job = desk.start(ct)
    desk.presenter.scene_closing()
    assert desk.state.phase == "idle" and "scene was closed" in desk.state.headline
    assert desk.state.volume_id is None and not desk.state.button_enabled
    desk.scene.Clear(False)
    desk.presenter.scene_closed()
    again = node_from_volume(ct_volume(), desk.scene)
    assert again.GetID() == "vtkMRMLScalarVolumeNode1", "a new scene gives ids anew"
    job._finish(None)                                   # the engine was faster than the cancel
    desk.tick()
    desk.tick()
    assert desk.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0 and desk.state.phase == "idle"
    first_result(desk, again)
    assert desk.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


def test_a_job_dropped_with_the_scene_is_still_driven_to_its_end(desk, ct):                         # noqa: F811
    job = desk.start(ct)
    desk.presenter.scene_closing()
    assert job.state == "cancelling"
    desk.tick()
    assert job.state == "cancelled"


@pytest.mark.parametrize("told", [True, False])
def test_the_volume_is_deleted_while_it_runs(desk, ct, told):                                       # noqa: F811
    job = desk.start(ct)
    node_id = ct.GetID()
    desk.scene.RemoveNode(ct)
    if told:
        desk.presenter.node_removed(node_id)
        assert "deleted" in desk.state.detail and job.state == "cancelling"
    else:
        desk.engine.finish()
        desk.tick()
        assert '"CT" was deleted; choose another volume.' in desk.state.detail
    assert desk.state.phase == "failed" and desk.state.headline == '"CT" was not segmented.'
    desk.tick()
    assert desk.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert not desk.state.button_enabled
    first_result(desk, node_from_volume(ct_volume(), desk.scene))


def test_the_volume_is_replaced_by_another_lattice_while_it_runs(desk, ct):                         # noqa: F811
    desk.start(ct)
    other = node_from_volume(ct_volume("oblique"), desk.scene)
    ct.SetIJKToRASMatrix(matrix_to_vtk(lattice_of(other)[1]))
    desk.engine.finish()
    desk.tick()
    assert desk.state.phase == "failed" and "was changed or replaced meanwhile" in desk.state.detail
    assert desk.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_voxels_changed_while_it_runs_are_mentioned(desk, ct):                                      # noqa: F811
    desk.start(ct)
    ct.GetImageData().Modified()
    desk.engine.finish()
    desk.tick()
    assert desk.state.phase == "done" and "changed meanwhile" in desk.state.detail


def test_a_transform_set_while_it_runs_is_followed(desk, ct):                                       # noqa: F811
    desk.start(ct)
    ct.SetAndObserveTransformNodeID(linear_transform(desk.scene).GetID())
    desk.engine.finish(answer(ct_volume().shape))
    desk.tick()
    assert desk.state.phase == "done"
    assert desk.scene.GetNodeByID(desk.state.segmentation_id).GetTransformNodeID() == ct.GetTransformNodeID()
    assert np.array_equal(voxels(desk, ct), answer(ct_volume().shape))


def test_leaving_the_section_stops_nothing_and_quitting_everything(desk, ct):                       # noqa: F811
    desk.start(ct)
    desk.presenter.leave()
    desk.tick()
    assert desk.state.busy
    desk.presenter.enter()
    assert desk.state.busy
    told = []
    desk.presenter.changed.connect(lambda: told.append(1))
    desk.presenter.close()
    assert desk.engine.segmenting.state == "cancelling" and told == []
    desk.presenter.close()
    desk.presenter.run()
    desk.tick()
    assert desk.engine.count("segment") == 1


def test_the_segmentation_to_replace_is_deleted_while_it_runs(desk, ct):                            # noqa: F811
    old = first_result(desk, ct)
    desk.start(existing="replace")
    old_id = old.GetID()
    desk.scene.RemoveNode(old)
    desk.presenter.node_removed(old_id)
    desk.engine.finish(answer(ct_volume().shape))
    desk.tick()
    assert desk.state.phase == "done" and "a new one was made" in desk.state.detail
    assert np.array_equal(voxels(desk, ct), answer(ct_volume().shape))


def test_nodes_that_go_are_forgotten(desk, ct):                                                     # noqa: F811
    node = first_result(desk, ct)
    table = desk.scene.GetNodeByID(desk.state.table_id)
    roi = roi_node(desk.scene, (15, -35, 80), (4, 4, 4))
    desk.presenter.set_roi(roi)
    for gone, field in ((table, "table_id"), (roi, "roi_id"), (node, "segmentation_id"), (ct, "volume_id")):
        id_ = gone.GetID()
        assert getattr(desk.state, field) == id_
        desk.presenter.node_removed(id_)                # Slicer tells it before and after
        desk.scene.RemoveNode(gone)
        desk.presenter.node_removed(id_)
        assert getattr(desk.state, field) is None
    assert desk.state.roi_sentence == "" and not desk.state.button_enabled


# ---------------------------------------------------------------------------------------------- where it lies


@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize("parent", ["none", "linear", "nonlinear"])
def test_results_lie_on_the_volume_however_that_lies(scene, lattice, parent):                       # noqa: F811
    desk = Desk(scene, cards=[THREE])
    volume = node_from_volume(ct_volume(lattice), scene)
    if parent != "none":
        transform = linear_transform(scene) if parent == "linear" else grid_transform(scene)
        volume.SetAndObserveTransformNodeID(transform.GetID())
    desk.presenter.set_volume(volume)
    expected = answer(lattice_of(volume)[0])
    desk.through(expected, transform="as_is")
    assert desk.state.phase == "done" and desk.state.question is None, desk.state.detail
    assert np.array_equal(voxels(desk, volume), expected)
    node = scene.GetNodeByID(desk.state.segmentation_id)
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()


def test_a_nonlinear_transform_is_asked_about(desk, ct):                                            # noqa: F811
    ct.SetAndObserveTransformNodeID(grid_transform(desk.scene).GetID())
    desk.presenter.set_volume(ct)
    assert 'under the non-linear transform "tilt correction"' in desk.state.volume_sentence
    desk.presenter.run()
    question = desk.state.question
    assert question.id == "transform" and [choice.id for choice in question.choices] == ["as_is", "harden", "cancel"]
    assert desk.state.phase == "idle" and desk.engine.count("segment") == 0
    desk.presenter.answer("cancel")
    assert desk.state.question is None and desk.state.volume_id == ct.GetID()
    desk.presenter.run()
    assert desk.state.question.number > question.number
    desk.presenter.answer("harden")
    assert desk.state.phase == "starting"
    copy = desk.scene.GetNodeByID(desk.state.volume_id)
    assert copy is not ct and copy.GetName() == "CT hardened" and copy.GetTransformNodeID() is None
    desk.tick()
    desk.engine.finish()
    desk.tick()
    assert desk.state.phase == "done" and ct.GetTransformNodeID() is not None


def test_a_linear_transform_is_nothing_to_ask_about(desk, ct):                                      # noqa: F811
    ct.SetAndObserveTransformNodeID(linear_transform(desk.scene).GetID())
    desk.presenter.set_volume(ct)
    desk.presenter.run()
    assert desk.state.question is None and desk.state.phase == "starting"


# ---------------------------------------------------------------------------------------------- region


def test_a_region_goes_to_the_engine_in_the_volumes_own_millimetres(desk, ct):                      # noqa: F811
    ct.SetAndObserveTransformNodeID(linear_transform(desk.scene, turn=(0, 0, 0)).GetID())
    roi = roi_node(desk.scene, (15.5 + 40, -35 - 5, 80 + 12), (4, 6, 2))
    desk.presenter.set_volume(ct)
    desk.presenter.set_roi(roi)
    assert desk.state.roi_sentence == "Only inside the region of interest (4 x 6 x 2 mm)."
    box = desk.start().arguments["roi"]
    assert np.allclose(box, ((13.5, 17.5), (-38, -32), (79, 81)))
    desk.presenter.cancel()
    desk.tick()
    desk.presenter.set_roi(None)
    assert desk.start().arguments["roi"] is None


def test_a_rotated_region_becomes_the_box_around_it_and_says_so(desk, ct):                          # noqa: F811
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(0, 0, 45), (18, -35, 80)
    desk.presenter.set_volume(ct)
    desk.presenter.set_roi(roi_node(desk.scene, (0, 0, 0), (4, 4, 4), matrix))
    assert "is rotated" in desk.state.roi_sentence and "(6 x 6 x 4 mm)" in desk.state.roi_sentence
    (low, high), *_ = desk.start().arguments["roi"]
    assert np.isclose(high - low, 4 * np.sqrt(2))


def test_a_quarter_turn_is_no_rotation_worth_a_word(desk, ct):                                      # noqa: F811
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(0, 0, 90), (18, -35, 80)
    desk.presenter.set_volume(ct)
    desk.presenter.set_roi(roi_node(desk.scene, (0, 0, 0), (4, 6, 4), matrix))
    assert "rotated" not in desk.state.roi_sentence


@pytest.mark.parametrize("center, size, words", [
    ((500, 0, 0), (4, 4, 4), 'lies outside "CT"'), ((18, -35, 80), (0, 4, 4), "has no extent")])
def test_a_useless_region_is_said_before_anything_runs(desk, ct, center, size, words):              # noqa: F811
    desk.presenter.set_volume(ct)
    desk.presenter.set_roi(roi_node(desk.scene, center, size))
    assert words in desk.state.roi_sentence and not desk.state.button_enabled
    assert words in desk.state.button_tooltip


def test_a_region_moved_away_before_its_turn_is_a_sentence(desk, ct):                               # noqa: F811
    roi = roi_node(desk.scene, (18, -35, 80), (4, 4, 4))
    desk.presenter.set_volume(ct)
    desk.presenter.set_roi(roi)
    roi.SetCenter(500, 0, 0)
    desk.presenter.run()
    assert desk.state.phase == "failed" and "lies outside" in desk.state.detail


# ---------------------------------------------------------------------------------------------- running again


def test_running_again_asks_and_new_leaves_the_first_alone(desk, ct):                               # noqa: F811
    first = first_result(desk, ct)
    desk.presenter.run()
    question = desk.state.question
    assert question.id == "existing" and '"CT HiEndSeg" already holds Liver, Left kidney and Spleen' in question.text
    assert [choice.id for choice in question.choices] == ["replace", "new", "cancel"]
    desk.presenter.answer("cancel")
    assert desk.state.question is None and desk.engine.count("segment") == 1
    desk.presenter.run()
    desk.presenter.answer("new")
    desk.tick()
    desk.engine.finish(answer(ct_volume().shape, liver=slice(0, 2)))
    desk.tick()
    second = desk.scene.GetNodeByID(desk.state.segmentation_id)
    assert second is not first and second.GetName() == "CT HiEndSeg_1"
    assert np.array_equal(read_segments(first, ct, ALL).array, answer(ct_volume().shape))
    assert not desk.state.undo_available


def test_replacing_everything_keeps_the_node_and_can_be_undone(desk, ct):                           # noqa: F811
    node = first_result(desk, ct)
    before, table = voxels(desk, ct), read_table(desk.scene.GetNodeByID(desk.state.table_id))
    ids = desk.state.segmentation_id, desk.state.table_id
    after = answer(ct_volume().shape, liver=slice(0, 3), spleen=slice(9, 13))
    desk.presenter.run()
    desk.presenter.answer("replace")
    desk.tick()
    desk.engine.finish(after)
    desk.tick()
    assert (desk.state.segmentation_id, desk.state.table_id) == ids and desk.state.undo_available
    assert np.array_equal(voxels(desk, ct), after)
    changed = read_table(desk.scene.GetNodeByID(desk.state.table_id))
    assert changed[0][1] == 0.32 and table[0][1] == 0.43, "volumes of the liver, ml"
    desk.presenter.undo()
    assert np.array_equal(voxels(desk, ct), before) and not desk.state.undo_available and desk.state.redo_available
    assert read_table(desk.scene.GetNodeByID(desk.state.table_id)) == table
    desk.presenter.redo()
    assert np.array_equal(voxels(desk, ct), after) and desk.state.undo_available
    assert desk.scene.GetNodeByID(ids[0]) is node


def test_only_some_structures_are_replaced_and_their_neighbours_keep_every_voxel(desk, ct):         # noqa: F811
    node = first_result(desk, ct)
    node.GetSegmentation().GetSegment("spleen").SetName("Milz")
    before = voxels(desk, ct)
    desk.presenter.set_only(["liver"])
    desk.presenter.run()
    assert "already holds Liver. Replace them" in desk.state.question.text
    desk.presenter.answer("replace")
    desk.tick()
    assert desk.engine.segmenting.arguments["only"] == ["liver"]
    desk.engine.finish(answer(ct_volume().shape, slice(2, 10), slice(0, 0), slice(0, 0)))    # over all the others
    desk.tick()
    expected = np.where(before == 1, 0, before)
    free = expected == 0
    expected[2:10][free[2:10]] = 1
    assert np.array_equal(voxels(desk, ct), expected)
    assert "left to it" in desk.state.detail and node.GetSegmentation().GetSegment("spleen").GetName() == "Milz"
    rows = {name: ml for name, ml, _mean in read_table(desk.scene.GetNodeByID(desk.state.table_id))}
    assert set(rows) == {"Liver", "Left kidney", "Milz"}, "the table is of the whole segmentation"


def test_a_structure_that_is_not_there_yet_is_added(desk, ct):                                      # noqa: F811
    desk.presenter.set_only(["liver"])
    first_result(desk, ct)
    desk.presenter.set_only(["spleen"])
    desk.presenter.run()
    assert "Add Spleen to it" in desk.state.question.text
    desk.presenter.answer("replace")
    desk.tick()
    desk.engine.finish(answer(ct_volume().shape))
    desk.tick()
    expected = answer(ct_volume().shape)
    assert np.array_equal(voxels(desk, ct), np.where(expected == 2, 0, expected))


def test_inside_a_region_only_the_region_is_replaced(desk, ct):                                     # noqa: F811
    first_result(desk, ct)
    before = voxels(desk, ct)
    desk.presenter.set_roi(roi_node(desk.scene, (12.5 + 3, -40 + 5.5, 77 + 4), (100, 100, 4.2)))     # k 2..6
    desk.presenter.run()
    assert "inside the region of interest" in desk.state.question.text
    desk.presenter.answer("replace")
    desk.tick()
    new = answer(ct_volume().shape, liver=slice(0, 0), kidney=slice(0, 14), spleen=slice(0, 0))
    inside = np.zeros(new.shape, bool)
    inside[:, :, 2:7] = True
    desk.engine.finish(np.where(inside, new, 0))
    desk.tick()
    assert desk.state.phase == "done", desk.state.detail
    assert np.array_equal(voxels(desk, ct), np.where(inside, new, before))
    desk.presenter.undo()
    assert np.array_equal(voxels(desk, ct), before)


def test_what_a_person_drew_stays(desk, ct):                                                        # noqa: F811
    node = first_result(desk, ct)
    node.GetSegmentation().AddEmptySegment("tumor", "Tumor")
    desk.through(answer(ct_volume().shape), existing="replace")
    assert node.GetSegmentation().GetSegment("tumor") is not None


def test_a_chosen_output_is_used_without_a_question_while_it_is_empty(desk, ct):                    # noqa: F811
    mine = desk.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    mine.CreateDefaultDisplayNodes()
    desk.presenter.set_volume(ct)
    desk.presenter.set_output(mine)
    assert desk.state.output_id == mine.GetID()
    desk.through(answer(ct_volume().shape))
    assert desk.state.segmentation_id == mine.GetID() and np.array_equal(voxels(desk, ct), answer(ct_volume().shape))
    desk.presenter.run()
    assert desk.state.question is not None, "now it holds something"


def test_results_are_found_again_in_a_scene_that_was_loaded(desk, ct):                              # noqa: F811
    node = first_result(desk, ct)
    again = Desk(desk.scene, cards=[THREE])
    again.presenter.set_volume(ct)
    assert again.state.segmentation_id == node.GetID() and again.state.table_id == desk.state.table_id
    other = node_from_volume(ct_volume(), desk.scene, name="other")
    again.presenter.set_volume(other)
    assert again.state.segmentation_id is None
    again.presenter.close()


def test_an_editors_own_history_has_the_first_word(desk, ct):                                       # noqa: F811
    node = first_result(desk, ct)
    saved = []

    def hook(segmentation):
        saved.append(read_segments(segmentation, ct, ALL).array)
        return len(saved) == 1

    desk.presenter.set_undo_hook(hook)
    desk.through(answer(ct_volume().shape, liver=slice(0, 1)), existing="replace")
    assert np.array_equal(saved[0], answer(ct_volume().shape)), "saved before the change"
    assert not desk.state.undo_available, "the editor's undo is the one to use"
    desk.through(answer(ct_volume().shape, liver=slice(0, 2)), existing="replace")
    assert len(saved) == 2 and desk.state.undo_available, "the editor was not there this time"
    assert node.GetID() == desk.state.segmentation_id


def test_a_result_that_cannot_replace_is_not_lost(desk, ct):                                        # noqa: F811
    node = first_result(desk, ct)
    desk.start(existing="replace")
    node.SetAndObserveTransformNodeID(grid_transform(desk.scene).GetID())
    desk.engine.finish(answer(ct_volume().shape))
    desk.tick()
    assert desk.state.phase == "done" and "put into a new segmentation" in desk.state.detail
    assert desk.state.segmentation_id != node.GetID()


def test_3d_editing_and_measuring_again(desk, ct):                                                  # noqa: F811
    assert desk.presenter.make_editable() is None and "segment it first" in desk.state.detail
    desk.presenter.set_show_3d(True)
    assert "no result to show in 3D" in desk.state.detail
    node = first_result(desk, ct)
    desk.presenter.set_show_3d(True)
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    assert desk.state.show_3d and node.GetSegmentation().ContainsRepresentation(surface)
    desk.through(answer(ct_volume().shape, liver=slice(0, 2)), existing="replace")
    assert desk.state.show_3d, "it stays on"
    desk.presenter.set_show_3d(False)
    assert not desk.state.show_3d and not node.GetSegmentation().ContainsRepresentation(surface)
    assert desk.presenter.make_editable() == (node.GetID(), ct.GetID())
    node.GetSegmentation().RemoveSegment("spleen")
    desk.presenter.measure()
    assert [name for name, *_ in read_table(desk.scene.GetNodeByID(desk.state.table_id))] == ["Liver", "Left kidney"]
    legend = [Label(value, id_, id_, (0, 0, 0)) for id_, value in ALL.items()]
    assert read_correction(node, ct, legend).missing == ["spleen"]


# ---------------------------------------------------------------------------------------------- several


def test_a_batch_goes_on_when_one_fails_and_says_why(desk, ct):                                     # noqa: F811
    others = [node_from_volume(ct_volume(), desk.scene, name=name) for name in ("B", "C")]
    empty = desk.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    desk.presenter.run_many([ct, empty, *others])
    desk.tick()
    assert desk.state.headline == 'Starting "CT" (1 of 4)'
    desk.tick(2)
    desk.engine.advance(0.5)
    desk.tick()
    assert desk.state.headline == 'Segmenting "CT" (1 of 4)' and desk.state.fraction == 0.125
    assert 13 <= desk.state.seconds_left <= 16, "2 s for one half, and three more volumes"
    desk.engine.finish()
    seen = [desk.state.fraction]
    for _ in range(30):
        desk.tick()
        seen += [desk.state.fraction] if desk.state.busy else []
        if any(job.operation == "segment" and not job.done for job in desk.engine.jobs):
            desk.engine.finish()
    assert seen == sorted(seen)
    state = desk.state
    assert state.phase == "failed" and state.headline.startswith("3 of 4 were segmented in")
    assert [(outcome.name, outcome.ok) for outcome in state.outcomes] == [
        ("CT", True), ("empty", False), ("B", True), ("C", True)]
    assert "holds no voxels" in state.outcomes[1].sentence and "empty: " in state.detail
    assert len(desk.presenter.summary.placed) == 3
    assert desk.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 3


def test_what_is_wrong_with_the_model_stops_the_whole_batch(desk, ct):                              # noqa: F811
    from HiEndSegLib.errors import ModelError

    desk.presenter.run_many([ct, node_from_volume(ct_volume(), desk.scene, name="B")])
    desk.tick()
    desk.engine.fail(ModelError("The weights are altered."))
    desk.tick()
    assert desk.state.phase == "failed" and desk.engine.count("segment") == 1
    assert [outcome.sentence for outcome in desk.state.outcomes] == ["The weights are altered.",
                                                                     "Not tried, for the same reason."]


def test_a_batch_is_cancelled_as_a_whole_and_keeps_what_is_done(desk, ct):                          # noqa: F811
    other = node_from_volume(ct_volume(), desk.scene, name="B")
    desk.presenter.run_many([ct.GetID(), other])
    desk.tick()
    desk.engine.finish()
    desk.tick()
    desk.tick()
    desk.presenter.cancel()
    assert desk.state.phase == "cancelling"
    desk.tick()
    assert desk.state.phase == "idle" and desk.state.headline == "Stopped. 1 of 2 were segmented and stay."
    desk.presenter.run_many([])
    assert desk.state.phase == "failed" and "at least one volume" in desk.state.detail


def test_a_volume_of_a_batch_is_deleted_before_its_turn(desk, ct):                                  # noqa: F811
    other, third = (node_from_volume(ct_volume(), desk.scene, name=name) for name in "BC")
    desk.presenter.run_many([ct, other, third])
    desk.tick()
    id_ = other.GetID()
    desk.scene.RemoveNode(other)
    desk.presenter.node_removed(id_)
    assert desk.engine.segmenting.state == "running"
    desk.engine.finish()
    for _ in range(3):
        desk.tick()
    desk.engine.finish()
    desk.tick()
    assert [outcome.ok for outcome in desk.state.outcomes] == [True, False, True]


# ---------------------------------------------------------------------------------------------- 20 runs in a row


def test_twenty_runs_leave_nothing_behind(desk, ct):                                                # noqa: F811
    """Nodes, observers of the scene, the volume and the segmentation, jobs and label maps: as many as after the first.

    The scene tells of every node that goes, temporary ones too, as it does in Slicer.
    """
    gone = []

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def tell(_scene, _event, node):
        gone.append(node.GetID())
        desk.presenter.node_removed(node.GetID())

    desk.scene.AddObserver(desk.scene.NodeRemovedEvent, tell)
    first_result(desk, ct)
    node = desk.scene.GetNodeByID(desk.state.segmentation_id)
    maps = []

    def once(number):
        desk.start(existing="replace")
        array = answer(ct_volume().shape, liver=slice(0, 1 + number % 4))
        desk.engine.finish(array)
        maps.append(weakref.ref(desk.engine.jobs[-1]._result.labels.array))
        desk.tick()
        assert desk.state.phase == "done"
        desk.engine.jobs.clear()

    def observers():
        return [count_observers(thing) for thing in (desk.scene, ct, ct.GetImageData(), node, node.GetSegmentation())]

    once(0)
    nodes, watched, listeners = desk.scene.GetNumberOfNodes(), observers(), len(desk.presenter.changed)
    for number in range(1, 21):
        once(number)
    assert desk.scene.GetNumberOfNodes() == nodes and observers() == watched
    assert len(desk.presenter.changed) == listeners and not desk.presenter._orphans
    assert len(gone) >= 21, "the temporary label map of each run"
    gc.collect()
    assert all(ref() is None for ref in maps), "no label map is kept"
    history = desk.presenter._outputs.histories.get(node.GetID())._history
    assert history.GetNumberOfStates() <= 11


def count_observers(thing):
    """Observers of a VTK object, from what it prints about itself."""
    return str(thing).count("vtkObserver (")


def test_observers_are_counted(scene):                                                              # noqa: F811
    before = count_observers(scene)
    tag = scene.AddObserver("ModifiedEvent", lambda *_: None)
    assert count_observers(scene) == before + 1
    scene.RemoveObserver(tag)
