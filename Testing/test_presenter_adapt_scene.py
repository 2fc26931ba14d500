"""The Adapt section and the scene: outlines, charts, deleted nodes, closed scenes, nothing left behind. Real MRML."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from adapt_helpers import AdaptDesk, AdaptEngine, model_answer, version
from bridge_scene import LATTICES, ct, ct_volume, linear_transform, scene, slicer                   # noqa: F401
from presenter_helpers import result_of

from HiEndSegLib.bridge.layers import read_segments
from HiEndSegLib.bridge.volumes import lattice_of, matrix_to_vtk, node_from_volume
from HiEndSegLib.engine.adapting import AdaptResult
from HiEndSegLib.errors import InputError

SHAPE = ct_volume().shape


@pytest.fixture
def desk(scene):                                                                                    # noqa: F811
    desk = AdaptDesk(scene)
    yield desk
    desk.presenter.close()
    desk.segment.close()


def corrected():
    array = model_answer(SHAPE)
    array[4] = 1
    return array


def adapted(desk, volume, **how):
    """A version was made from the corrected case."""
    job = desk.start(volume, corrected(), **how)
    desk.learn(job)
    desk.tick()
    desk.end(job)
    assert desk.state.phase == "done", desk.state


def nodes(scene):                                                                                   # noqa: F811
    return sorted((scene.GetNthNode(n).GetClassName(), scene.GetNthNode(n).GetName())
                  for n in range(scene.GetNumberOfNodes()))


def show_overlay(desk, after):
    desk.presenter.show_overlay(True)
    assert desk.state.overlay_shown and not desk.state.overlay_ids
    desk.tick()
    job = desk.engine.open("segment")
    job._advance(0.5, "Tile 1 of 2")
    desk.tick()
    assert "Tile 1 of 2 (50 %)" in desk.state.overlay_sentence
    desk.end_segment(after)
    desk.tick()
    return job


@pytest.mark.parametrize("lattice, moved", [("oblique", False), ("left-handed", True)])
def test_before_and_after_lie_on_the_patients_grid_and_go_on_request(scene, lattice, moved):        # noqa: F811
    desk = AdaptDesk(scene)
    volume = node_from_volume(ct_volume(lattice), scene)
    if moved:
        volume.SetAndObserveTransformNodeID(linear_transform(scene).GetID())
    adapted(desk, volume)
    before = nodes(scene)
    assert desk.state.overlay_available and not desk.state.overlay_shown
    after = model_answer(SHAPE)
    after[4:6] = 1
    job = show_overlay(desk, after)
    assert job.arguments["model"].key == "mine@1.0.0" and job.arguments["only"] is None
    old, new = (scene.GetNodeByID(id_) for id_ in desk.state.overlay_ids)
    values = {"liver": 1, "kidney_left": 2}
    assert np.array_equal(read_segments(old, volume, values).array, model_answer(SHAPE) == 1), "only what was taught"
    assert np.array_equal(read_segments(new, volume, values).array, after == 1)
    for node in (old, new):
        assert node.GetTransformNodeID() == volume.GetTransformNodeID()
        assert read_segments(node, volume, values).resampled == []
    assert desk.state.overlay_sentence == "Thin lines: before. Bold lines: the adapted model."
    assert old.GetDisplayNode().GetSliceIntersectionThickness() < new.GetDisplayNode().GetSliceIntersectionThickness()
    assert desk.segment.state.segmentation_id not in desk.state.overlay_ids
    desk.presenter.show_overlay(True)
    assert len(desk.state.overlay_ids) == 2
    desk.presenter.show_overlay(False)
    assert nodes(scene) == before and not desk.state.overlay_shown and desk.state.overlay_available
    desk.presenter.close()


def test_an_overlay_can_be_stopped_while_it_is_made(desk, ct):                                      # noqa: F811
    adapted(desk, ct)
    before = nodes(desk.scene)
    desk.presenter.show_overlay(True)
    desk.tick()
    job = desk.engine.open("segment")
    desk.presenter.show_overlay(False)
    assert job.state == "cancelling" and not desk.state.overlay_shown
    desk.tick()
    assert job.state == "cancelled" and nodes(desk.scene) == before


def test_an_overlay_that_fails_says_why_and_leaves_nothing(desk, ct):                               # noqa: F811
    adapted(desk, ct)
    before = nodes(desk.scene)
    desk.presenter.show_overlay(True)
    desk.tick()
    desk.engine.open("segment")._fail(InputError("The volume is flat."))
    desk.tick()
    assert desk.state.overlay_sentence == "The volume is flat." and not desk.state.overlay_shown
    desk.presenter.show_overlay(True)
    desk.tick()
    job = desk.engine.open("segment")
    ct.SetIJKToRASMatrix(matrix_to_vtk(LATTICES["oblique"][1]))
    job._finish(result_of(job.arguments, model_answer(SHAPE)))
    desk.tick()
    assert "was changed or replaced meanwhile" in desk.state.overlay_sentence and not desk.state.overlay_ids
    assert nodes(desk.scene) == before


def test_without_the_old_answer_only_the_new_model_is_drawn(desk, ct):                              # noqa: F811
    adapted(desk, ct)
    ct.GetImageData().Modified()
    show_overlay(desk, model_answer(SHAPE))
    assert len(desk.state.overlay_ids) == 1 and desk.state.overlay_sentence == "Bold lines: the adapted model."


def test_an_outline_that_somebody_deletes_takes_the_other_with_it(desk, ct):                        # noqa: F811
    adapted(desk, ct)
    before = nodes(desk.scene)
    show_overlay(desk, model_answer(SHAPE))
    first = desk.state.overlay_ids[0]
    desk.scene.RemoveNode(desk.scene.GetNodeByID(first).GetDisplayNode())
    desk.scene.RemoveNode(desk.scene.GetNodeByID(first))
    desk.presenter.node_removed(first)
    assert not desk.state.overlay_shown and nodes(desk.scene) == before


def test_a_new_run_and_another_case_take_the_outlines_away(desk, ct):                               # noqa: F811
    adapted(desk, ct)
    before = nodes(desk.scene)
    show_overlay(desk, model_answer(SHAPE))
    desk.presenter.run()
    assert nodes(desk.scene) == before and not desk.state.overlay_shown
    desk.tick()
    desk.end(desk.engine.open("adapt"), key="second@1.0.0")
    show_overlay(desk, model_answer(SHAPE))
    desk.presenter.set_segmentation(None)
    assert nodes(desk.scene) == before and desk.state.result_key is None


def test_many_runs_leave_one_chart_and_closing_leaves_none(desk, ct):                               # noqa: F811
    desk.compared(ct, corrected())
    before = nodes(desk.scene)
    charts = set()
    for number in range(3):
        desk.presenter.run()
        desk.tick()
        job = desk.engine.open("adapt")
        desk.learn(job, steps=number + 2)
        desk.tick(2)
        desk.end(job, key=f"v{number}@1.0.0")
        charts.add(desk.state.chart_id)
        show_overlay(desk, model_answer(SHAPE))
    assert len(charts) == 1 and len(desk.state.curve) == 5
    desk.presenter.close()
    assert nodes(desk.scene) == before, "outlines and charts are gone, the person's nodes are not"
    desk.presenter.close()


def test_a_chart_that_somebody_deletes_comes_back_with_the_next_run(desk, ct):                      # noqa: F811
    adapted(desk, ct)
    chart = desk.state.chart_id
    desk.scene.RemoveNode(desk.scene.GetNodeByID(chart))
    desk.presenter.node_removed(chart)
    assert desk.state.chart_id is None
    desk.presenter.run()
    desk.tick()
    desk.learn(desk.engine.open("adapt"))
    desk.tick(2)
    assert desk.scene.GetNodeByID(desk.state.chart_id).IsA("vtkMRMLPlotChartNode")


def test_the_chart_is_drawn_once_a_second_and_at_the_end(desk, ct, monkeypatch):                    # noqa: F811
    count = []
    import HiEndSegLib.bridge.plots as plots

    real = plots.write_chart
    monkeypatch.setattr(plots, "write_chart", lambda *a, **k: (count.append(1), real(*a, **k))[1])
    job = desk.start(ct, corrected())
    for step in range(20):
        job._record({"kind": "step", "step": step, "loss": 1.0})
        desk.tick(0.1)
    assert len(count) in (2, 3) and len(desk.state.curve) == 20
    desk.end(job)
    desk.tick(2, times=3)
    assert len(count) <= 4


@pytest.mark.parametrize("what", ["volume", "segmentation"])
@pytest.mark.parametrize("told", [True, False])
def test_a_node_that_is_needed_goes_while_it_learns(desk, ct, what, told):                          # noqa: F811
    node = desk.compared(ct, corrected())
    desk.presenter.run()
    if told:
        desk.tick()
    gone = ct if what == "volume" else node
    id_ = gone.GetID()
    desk.scene.RemoveNode(gone)
    desk.presenter.node_removed(id_)
    desk.segment.node_removed(id_)
    assert f"The {what} was deleted" in desk.state.headline and not desk.state.busy
    assert not desk.state.run_enabled and desk.state.rows == ()
    desk.tick(times=2)
    assert all(job.done for job in desk.engine.jobs) and desk.engine.count("adapt") == int(told)
    assert desk.state.volume_id is None if what == "volume" else desk.state.segmentation_id != id_


def test_the_volume_goes_while_it_is_compared(desk, ct):                                            # noqa: F811
    desk.case(ct)
    desk.segment.set_volume(ct)
    desk.presenter.enter()
    desk.presenter.compare()
    desk.tick()
    job = desk.engine.open("segment")
    id_ = ct.GetID()
    desk.scene.RemoveNode(ct)
    desk.presenter.node_removed(id_)
    assert job.state == "cancelling" and "deleted" in desk.state.headline
    desk.tick()
    assert desk.state.phase == "idle"


def test_nodes_that_do_not_matter_may_go(desk, ct):                                                 # noqa: F811
    other = desk.case(ct, name="another", made_by="")
    job = desk.start(ct, corrected())
    id_ = other.GetID()
    desk.scene.RemoveNode(other)
    desk.presenter.node_removed(id_)
    assert desk.state.busy and not job.done


def test_a_node_deleted_before_it_is_read_is_a_sentence(desk, ct):                                  # noqa: F811
    node = desk.compared(ct, corrected())
    desk.presenter.run()
    desk.scene.RemoveNode(node)                     # and nobody says so
    desk.tick()
    assert desk.state.phase == "failed" and "no longer in the scene" in desk.state.detail


def test_a_segment_that_goes_after_comparing_is_said(desk, ct):                                     # noqa: F811
    node = desk.compared(ct, corrected())
    node.GetSegmentation().RemoveSegment("liver")
    desk.presenter.run()
    desk.tick()
    assert desk.state.phase == "failed" and "liver: no longer in the segmentation" in desk.state.detail


def test_the_scene_is_closed_while_it_learns(desk, ct):                                             # noqa: F811
    job = desk.start(ct, corrected())
    desk.learn(job)
    desk.tick()
    for presenter in (desk.segment, desk.presenter):
        presenter.scene_closing()
    assert job.state == "cancelling" and "The scene was closed" in desk.state.headline
    assert desk.state.phase == "idle" and desk.state.volume_id is None and desk.state.curve == ()
    desk.scene.Clear(False)
    for presenter in (desk.segment, desk.presenter):
        presenter.scene_closed()
    desk.tick(times=2)
    assert job.state == "cancelled" and desk.state.chart_id is None and desk.state.rows == ()
    again = node_from_volume(ct_volume(), desk.scene)
    assert again.GetID() == "vtkMRMLScalarVolumeNode1"
    desk.presenter.set_volume(again)
    assert desk.engine.count("segment") == 1
    adapted(desk, again)
    assert desk.engine.count("segment") == 2, "the answer about the old volume of this id is not used"


def test_a_version_that_was_written_before_it_could_be_stopped_is_listed(desk, ct):                 # noqa: F811
    desk.engine.obedient = False
    told = []
    desk.presenter.models_changed.connect(lambda: told.append(1))
    job = desk.start(ct, corrected())
    desk.presenter.scene_closing()
    desk.registry.cards.append(version(desk.registry.cards[0]))
    job._finish(AdaptResult("mine@1.0.0", {}, []))
    desk.tick()
    assert told == [1] and "mine@1.0.0" in [row.id for row in desk.segment.state.models]


def test_the_section_follows_segment_until_something_is_chosen_here(desk, ct):                      # noqa: F811
    desk.segment.set_volume(ct)
    assert desk.state.volume_id == ct.GetID() and desk.state.segmentation_id is None
    desk.segment.run()
    desk.tick()
    desk.end_segment()
    desk.tick()
    assert desk.state.segmentation_id == desk.segment.state.segmentation_id is not None
    other = desk.case(ct, name="another")
    desk.presenter.set_segmentation(other)
    desk.segment.run(existing="new")
    desk.tick()
    desk.end_segment()
    desk.tick()
    assert desk.state.segmentation_id == other.GetID()


def test_a_drawing_that_nobody_made_here_is_found_too(desk, ct):                                    # noqa: F811
    node = desk.case(ct, name="drawn by hand", made_by="")
    desk.presenter.set_volume(ct)
    assert desk.state.segmentation_id == node.GetID() and desk.state.model_id == "tiny@1.0.0"
    assert desk.state.segmentation_sentence == '3 segments in "drawn by hand".'


def test_leaving_stops_nothing_and_closing_everything(desk, ct):                                    # noqa: F811
    job = desk.start(ct, corrected())
    desk.presenter.leave()
    assert not job.done and desk.state.busy
    desk.presenter.close()
    assert job.state == "cancelling"
    told = desk.changes
    desk.presenter.tick()
    desk.segment.set_device("cpu")
    assert desk.changes == told


def test_another_engine_takes_over(desk, ct):                                                       # noqa: F811
    job = desk.start(ct, corrected())
    other = AdaptEngine()
    desk.presenter.set_engine(other)
    assert job.state == "cancelling" and not desk.state.busy
    desk.presenter.run()
    desk.tick()
    assert other.count("adapt") == 1


def test_a_closed_presenter_is_garbage(scene, ct):                                                  # noqa: F811
    desk = AdaptDesk(scene)
    adapted(desk, ct)
    presenter = weakref.ref(desk.presenter)
    desk.presenter.close()
    desk.presenter = None
    desk.see = None
    gc.collect()
    assert presenter() is None
    desk.segment.close()


def test_scripts_can_wait(desk, ct):                                                                # noqa: F811
    desk.compared(ct, corrected())
    desk.presenter.run()
    assert desk.presenter.wait(timeout=0.2).busy
    desk.engine.open("adapt")._cancelled()
    assert desk.presenter.wait(timeout=20).phase == "ready"


def test_reading_is_of_the_moment_the_button_is_pressed(desk, ct):                                  # noqa: F811
    node = desk.compared(ct, corrected())
    array = corrected()
    array[5] = 1                                    # corrected further after comparing
    from HiEndSegLib.bridge.segmentations import update_segmentation
    from HiEndSegLib.geometry.volume import Volume

    update_segmentation(node, Volume(array, lattice_of(ct)[1]), desk.registry.cards[0].labels, ct)
    desk.presenter.run()
    desk.tick()
    assert np.array_equal(desk.engine.open("adapt").arguments["labels"].array, array)


def test_what_segment_computed_is_not_computed_again(desk, ct):                                     # noqa: F811
    desk.segment.set_volume(ct)
    desk.segment.run()
    desk.tick()
    desk.end_segment()
    desk.tick()
    desk.presenter.compare()
    assert desk.state.phase == "ready" and desk.engine.count("segment") == 1
    assert [row.dice for row in desk.state.rows] == [1.0, 1.0, 1.0] and not any(row.checked for row in desk.state.rows)
    desk.segment.check_structure("liver", False)        # half an answer is none
    ct.GetImageData().Modified()
    desk.segment.run(existing="new")
    desk.tick()
    desk.end_segment()
    desk.tick()
    desk.presenter.compare()
    desk.tick()
    assert desk.state.phase == "comparing" and desk.engine.count("segment") == 3


def test_using_a_version_does_not_forget_what_was_compared(desk, ct):                               # noqa: F811
    node = desk.compared(ct, corrected())
    node.RemoveAttribute("HiEndSeg.Model")              # drawn by hand: nothing says which model it belongs to
    desk.presenter.run()
    desk.tick()
    desk.end(desk.engine.open("adapt"))
    desk.presenter.use_now()
    desk.segment.refresh()
    desk.segment.set_device("cpu")
    assert desk.state.model_id == "tiny@1.0.0" and len(desk.state.rows) == 3 and desk.state.table
    desk.registry.cards.pop()
    desk.presenter.refresh()
    assert desk.state.result_key is None and "not in the model list any more" in desk.state.headline


def test_the_next_case_of_the_segment_section_is_taken_over(desk, ct):                              # noqa: F811
    adapted(desk, ct)
    other = node_from_volume(ct_volume("oblique"), desk.scene)
    desk.segment.set_volume(other)
    assert desk.state.volume_id == other.GetID() and desk.state.segmentation_id is None
    assert desk.state.rows == () and desk.state.table == () and desk.state.phase == "idle"
    desk.presenter.set_volume(ct)
    third = node_from_volume(ct_volume("left-handed"), desk.scene)
    desk.segment.set_volume(third)
    assert desk.state.volume_id == ct.GetID(), "the person chose it here"
    id_ = ct.GetID()
    desk.scene.RemoveNode(ct)
    desk.presenter.node_removed(id_)
    desk.presenter.enter()
    assert desk.state.volume_id == third.GetID()


def test_a_volume_that_was_moved_is_segmented_again(desk, ct):                                      # noqa: F811
    desk.compared(ct, corrected())
    matrix = lattice_of(ct)[1].copy()
    matrix[0, 3] += 5
    ct.SetIJKToRASMatrix(matrix_to_vtk(matrix))
    desk.presenter.compare()
    desk.tick()
    assert desk.state.phase == "comparing" and desk.engine.count("segment") == 2


def test_a_segmentation_of_another_volume_is_named(desk, ct):                                       # noqa: F811
    other = node_from_volume(ct_volume("oblique"), desk.scene, name="another CT")
    node = desk.case(other, made_by="")
    desk.presenter.set_volume(ct)
    desk.presenter.set_segmentation(node)
    assert 'It was drawn on "another CT", not on "CT"' in desk.state.segmentation_sentence
    desk.presenter.set_volume(other)
    desk.presenter.set_segmentation(node)
    assert "It was drawn on" not in desk.state.segmentation_sentence


def test_more_segments_than_a_model_can_have(desk, ct):                                             # noqa: F811
    node = desk.case(ct)
    for number in range(253):
        node.GetSegmentation().AddEmptySegment(f"s{number}", f"Part {number}")
    desk.segment.set_volume(ct)
    desk.presenter.enter()
    desk.presenter.compare()
    desk.tick()
    desk.end_segment()
    desk.tick()
    assert len(desk.state.rows) == 254 and "2 more segments are not listed" in desk.state.rows_sentence
    assert desk.state.rows[100].sentence == "Nothing is drawn, so nothing can be learned."
