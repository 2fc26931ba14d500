"""The Adapt section with an engine that does what the test says: comparing, ticking, running, using, reverting."""

from __future__ import annotations

import numpy as np
import pytest
from adapt_helpers import AdaptDesk, model_answer, paint, plan, version
from bridge_scene import ct, ct_volume, scene, slicer                                               # noqa: F401

from HiEndSegLib.bridge.plots import chart_points
from HiEndSegLib.errors import EngineError, InputError, ModelError, OptionError
from HiEndSegLib.presenter.report import together
from HiEndSegLib.presenter.adapt_inputs import SHIPPED_ENCODER
from HiEndSegLib.presenter.adapt_outcome import change_sentence, score_rows
from HiEndSegLib.presenter.adapt_state import ADAPT_BUSY, ADAPT_PHASES

SHAPE = ct_volume().shape


@pytest.fixture
def desk(scene):                                                                                    # noqa: F811
    desk = AdaptDesk(scene)
    yield desk
    desk.presenter.close()
    desk.segment.close()


def corrected():
    """The liver grew by 4 x 12 x 9 voxels (0.43 ml) of 432; the kidneys are as they were."""
    array = model_answer(SHAPE)
    array[4] = 1
    return array


def test_from_a_corrected_case_to_a_version_in_use_and_back(desk, ct):                              # noqa: F811
    assert desk.state.phase == "idle" and not desk.state.run_enabled
    assert desk.state.headline == "Choose the volume whose segmentation you corrected."
    node = desk.case(ct, corrected())
    desk.segment.set_volume(ct)
    desk.presenter.enter()
    state = desk.state
    assert (state.volume_id, state.segmentation_id, state.model_id) == (ct.GetID(), node.GetID(), "tiny@1.0.0")
    assert state.compare_available and state.run_tooltip.startswith("Compare first")
    desk.presenter.compare()
    assert desk.state.phase == "comparing" and desk.engine.count("segment") == 0, "the button answers first"
    desk.tick()
    job = desk.engine.open("segment")
    assert job.arguments["model"] is desk.registry.cards[0] and job.arguments["only"] is None
    desk.end_segment()
    desk.tick()
    state = desk.state
    assert state.phase == "ready" and state.run_enabled, state
    assert [(row.id, row.checked, row.is_new, row.dice) for row in state.rows] == [
        ("liver", True, False, pytest.approx(2 * 432 / (432 + 540))), ("kidney_left", False, False, 1.0),
        ("kidney_right", False, False, 1.0)]
    assert state.rows[0].changed_ml == pytest.approx(0.108) and "Dice 0.89" in state.rows[0].sentence
    assert state.rows[1].sentence == "As the model has it."
    assert state.rows_sentence == "1 structure is taught; all others are protected."
    desk.tick(0.3, times=3)
    assert [(row.id, row.minutes, row.memory, row.fits) for row in desk.state.speeds] == [
        ("quick", 5.0, "2.0 GB", True), ("full", 60.0, "2.0 GB", True)]
    assert desk.state.plan_sentence == "quick: about 5 minutes and 2.0 GB."

    assert desk.state.name == "" and desk.state.name_suggestion == "Tiny test model adapted"
    desk.presenter.press()
    assert desk.state.phase == "starting" and desk.engine.count("adapt") == 0
    desk.tick()
    job = desk.engine.open("adapt")
    asked = job.arguments
    assert asked["structures"] == ["liver"] and asked["name"] == "Tiny test model adapted" and asked["sides"] == "ask"
    assert asked["speed"] == "quick" and not asked["keep_teaching"] and not asked["keep_if_worse"]
    assert np.array_equal(asked["labels"].array, corrected()) and asked["labels"].same_lattice(asked["volume"])
    assert [label.id for label in asked["legend"]] == ["liver", "kidney_left", "kidney_right"]
    desk.learn(job)
    desk.tick()
    state = desk.state
    assert state.phase == "running" and state.fraction == 0.04 and "Best so far: Dice 0.60" in state.detail
    assert [(p.step, p.loss, p.dice) for p in state.curve] == [(1, 2.0, None), (2, 1.0, None), (3, 2 / 3, None),
                                                              (4, 0.5, None), (4, None, 0.6)]
    assert state.seconds_left == pytest.approx(300, abs=2) and state.time_text == "About 5 min left"
    chart = desk.scene.GetNodeByID(state.chart_id)
    expected = [2.0]                                    # a running average, as a share of its highest
    for loss in (1.0, 2 / 3, 0.5):
        expected.append(0.8 * expected[-1] + 0.2 * loss)
    assert chart_points(chart, 0) == [(step + 1, pytest.approx(loss / 2.0)) for step, loss in enumerate(expected)]
    assert chart_points(chart, 1) == [(4, 0.6)]
    assert not (state.can_use or state.compare_available or state.overlay_available)
    desk.end(job)
    state = desk.state
    assert state.phase == "done" and state.result_key == "mine@1.0.0" and "is ready" in state.headline
    assert [(r.id, r.taught, r.dice_before, r.dice_after, r.verdict) for r in state.table] == [
        ("liver", True, 0.5, 0.75, "better"), ("kidney_left", False, None, 0.99, "same")]
    assert state.table[0].surface_after == 2.5 and "Better on what was held out: Liver." in state.result_sentence
    assert state.can_use and not state.can_revert and "A message." in state.detail

    desk.presenter.use_now()
    assert desk.segment.state.model_id == "mine@1.0.0" and not desk.state.can_use
    assert desk.state.can_revert and "used in the section Segment from now on" in desk.state.headline
    desk.presenter.revert()
    assert desk.segment.state.model_id == "tiny@1.0.0" and desk.state.question.id == "delete"
    assert [choice.id for choice in desk.state.question.choices] == ["cancel", "delete"]
    desk.presenter.answer("cancel")
    assert "mine@1.0.0" in [row.id for row in desk.state.models] and desk.state.can_use
    desk.presenter.use_now()
    desk.presenter.revert()
    desk.presenter.answer("delete")
    assert [row.id for row in desk.state.models] == ["tiny@1.0.0"] == [row.id for row in desk.segment.state.models]
    assert desk.state.result_key is None and not desk.state.can_use and "was deleted" in desk.state.headline
    assert set(desk.phases) <= set(ADAPT_PHASES)
    assert desk.phases == ["idle", "comparing", "ready", "starting", "running", "done"]


def test_the_answer_is_kept_and_the_persons_ticks_too(desk, ct):                                    # noqa: F811
    node = desk.compared(ct, corrected())
    desk.presenter.check("liver", False)
    desk.presenter.check("kidney_left", True)
    desk.presenter.check("no such thing", True)
    assert [row.checked for row in desk.state.rows] == [False, True, False]
    paint(desk, ct, node, np.ones(SHAPE) * (np.arange(14) == 13)[:, None, None], "Tumor")
    desk.presenter.compare()
    assert desk.engine.count("segment") == 1 and desk.state.phase == "ready", "nothing about the volume changed"
    assert [(row.id, row.checked, row.is_new) for row in desk.state.rows] == [
        ("liver", False, False), ("kidney_left", True, False), ("kidney_right", False, False), ("tumor", False, True)]
    assert "New to this model; 0.11 ml drawn." in desk.state.rows[3].sentence
    ct.GetImageData().Modified()
    desk.presenter.compare()
    desk.tick()
    assert desk.engine.count("segment") == 2, "other voxels, another answer"
    desk.end_segment()
    desk.tick()
    other = desk.case(ct, name="another")
    desk.presenter.set_segmentation(other)
    assert desk.state.rows == () and desk.state.phase == "idle"


def test_a_new_structure_is_taught_and_one_that_is_not_ticked_is_nobodys(desk, ct):                 # noqa: F811
    node = desk.compared(ct)
    for where, name in (((12, 13), "Tumor"), ((0, 1), "Body"), ((8,), "Cyst")):
        paint(desk, ct, node, np.ones(SHAPE) * np.isin(np.arange(14), where)[:, None, None], name)
    desk.presenter.compare()
    assert desk.state.run_tooltip == "Check at least one structure to teach."
    assert [("too few to learn from" in row.sentence) for row in desk.state.rows[3:]] == [False, False, True]
    desk.presenter.check("tumor", True)
    desk.presenter.run()
    desk.tick()
    arguments = desk.engine.open("adapt").arguments
    assert arguments["structures"] == ["tumor"]
    legend = {label.id: label for label in arguments["legend"]}
    assert set(legend) == {"liver", "kidney_left", "kidney_right", "tumor"} and legend["tumor"].name == "Tumor"
    labels = arguments["labels"].array
    assert (labels[12] == legend["tumor"].value).all() and (labels[0] == 1).all() and not labels[8].any()


def test_overlapping_segments_and_another_lattice_are_said(desk, ct):                               # noqa: F811
    node = desk.compared(ct)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4] = 1
    paint(desk, ct, node, mask, "Tumor")
    from HiEndSegLib.bridge.volumes import lattice_of
    from test_bridge_structures import add_segment

    shifted = lattice_of(ct)[1].copy()
    shifted[:3, 3] += 0.5
    add_segment(node, np.roll(mask, 10, axis=0), shifted, "Cyst")
    desk.presenter.compare()
    assert [row.id for row in desk.state.rows[3:]] == ["tumor", "cyst"]
    assert "New to this model; 0.22 ml drawn." in desk.state.rows[4].sentence
    desk.presenter.check("tumor", True)
    desk.presenter.check("cyst", True)
    desk.presenter.run()
    desk.tick()
    job = desk.engine.open("adapt")
    values = {label.id: label.value for label in job.arguments["legend"]}
    assert np.array_equal(job.arguments["labels"].array == values["tumor"], mask == 1)
    assert (job.arguments["labels"].array[13, :, 1:] == values["cyst"]).all()
    desk.end(job)
    assert "Liver and Tumor overlap in 216 voxels; they were read as Tumor." in desk.state.detail
    assert "Cyst: resampled onto the lattice" in desk.state.detail


@pytest.mark.parametrize("choice", ["keep", "swap", "cancel"])
@pytest.mark.parametrize("by", ["the drawing", "the engine"])
def test_swapped_sides_are_asked_about(desk, ct, by, choice):                                       # noqa: F811
    array = model_answer(SHAPE)
    if by == "the drawing":
        array[array > 1] = 5 - array[array > 1]
        desk.compared(ct, array)
        assert "look swapped" in desk.state.rows[1].sentence
        desk.presenter.press()
        desk.tick()
        assert desk.engine.count("adapt") == 0
    else:
        job = desk.start(ct, corrected())
        job._fail(OptionError("Left kidney and Right kidney look swapped; say so.", code="swapped-sides"))
        desk.tick()
    question = desk.state.question
    assert question.id == "sides" and "look swapped" in question.text and desk.state.phase == "ready"
    assert [one.id for one in question.choices] == ["keep", "swap", "cancel"]
    before = desk.engine.count("adapt")
    desk.presenter.answer(choice)
    desk.tick()
    assert desk.state.question is None
    if choice == "cancel":
        assert desk.engine.count("adapt") == before and desk.state.phase == "ready" and desk.state.run_enabled
    else:
        assert desk.engine.open("adapt").arguments["sides"] == choice


def test_finishing_early_keeps_the_best(desk, ct):                                                  # noqa: F811
    job = desk.start(ct, corrected())
    job._advance(0.01, "Step 1")
    desk.tick()
    assert not desk.state.finish_available and "nothing to keep yet" in desk.state.finish_tooltip
    desk.presenter.finish()
    assert not job.finishing
    desk.learn(job)
    desk.tick()
    assert desk.state.finish_available
    desk.presenter.press()
    assert desk.state.question.id == "stop" and desk.state.phase == "running", "it goes on while the person thinks"
    assert [one.id for one in desk.state.question.choices] == ["finish", "discard", "cancel"]
    desk.presenter.answer("cancel")
    assert desk.state.question is None and not job.finishing
    desk.presenter.press()
    desk.presenter.answer("finish")
    assert job.finishing and desk.state.phase == "finishing" and not desk.state.finish_available
    desk.presenter.press()
    assert [one.id for one in desk.state.question.choices] == ["cancel", "discard"]
    desk.tick()
    assert desk.state.question is not None and job.state == "running", "a second click loses nothing"
    desk.presenter.answer("cancel")
    desk.end(job, stopped="asked")
    assert desk.state.phase == "done" and "holds the best until you stopped" in desk.state.headline


@pytest.mark.parametrize("way", ["press before a score", "discard", "cancel"])
def test_cancelling_keeps_nothing(desk, ct, way):                                                   # noqa: F811
    desk.engine.obedient = False
    job = desk.start(ct, corrected())
    if way == "discard":
        desk.learn(job)
        desk.tick()
        desk.presenter.press()
        desk.presenter.answer("discard")
    elif way == "cancel":
        desk.presenter.cancel()
    else:
        desk.presenter.press()
    assert desk.state.phase == "cancelling" and not desk.state.run_enabled and job.state == "cancelling"
    job._cancelled()
    desk.tick()
    assert desk.state.phase == "ready" and desk.state.run_enabled and desk.state.result_key is None
    assert desk.state.headline == "Stopped; nothing was kept, and the model is as it was."


def test_a_cancel_that_comes_too_late_shows_what_was_made(desk, ct):                                # noqa: F811
    desk.engine.obedient = False
    job = desk.start(ct, corrected())
    desk.presenter.cancel()
    desk.end(job)
    assert desk.state.phase == "done" and desk.state.result_key == "mine@1.0.0"


def test_a_question_about_stopping_goes_when_the_run_is_over(desk, ct):                             # noqa: F811
    job = desk.start(ct, corrected())
    desk.learn(job)
    desk.tick()
    desk.presenter.press()
    desk.end(job)
    assert desk.state.question is None and desk.state.phase == "done"
    desk.presenter.answer("discard")
    assert desk.state.phase == "done"


def test_nothing_better_keeps_nothing_unless_told_to(desk, ct):                                     # noqa: F811
    job = desk.start(ct, corrected())
    desk.end(job, key=None, better=False)
    state = desk.state
    assert state.phase == "done" and state.result_key is None and not state.can_use and state.can_keep
    assert state.headline == "Nothing got better, so nothing was kept. The model is as it was."
    assert state.table[0].verdict == "same" and not state.overlay_available
    desk.presenter.keep_anyway()
    desk.tick()
    job = desk.engine.open("keep")
    assert job.arguments == {"unsaved": "unsaved-1"} and desk.state.phase == "finishing" and not desk.state.can_keep
    desk.end(job)
    assert desk.state.result_key == "mine@1.0.0" and desk.state.can_use and not desk.state.can_keep
    assert "was kept all the same" in desk.state.headline


def test_what_cannot_be_kept_any_more_is_said(desk, ct):                                            # noqa: F811
    desk.end(desk.start(ct, corrected()), key=None, better=False)
    desk.presenter.keep_anyway()
    desk.tick()
    desk.engine.open("keep")._fail(EngineError("It is not remembered any more; adapt again."))
    desk.tick()
    assert desk.state.headline == "It could not be kept." and "adapt again" in desk.state.detail
    assert not desk.state.can_keep and desk.state.phase == "done"


@pytest.mark.parametrize("error", [EngineError("The worker stopped unexpectedly."),
                                   ModelError("The base was changed since."), InputError("The volume is flat.")])
def test_failures_are_said_and_the_next_run_works(desk, ct, error):                                 # noqa: F811
    job = desk.start(ct, corrected())
    job._note("a line")
    job._fail(error)
    desk.tick()
    assert desk.state.phase == "failed" and desk.state.headline == "The model was not adapted."
    facts = together(desk.segment.report_facts(), desk.presenter.report_facts())
    assert desk.state.detail in facts["error"] and facts["secrets"]
    assert desk.state.detail == str(error) and desk.state.run_enabled and desk.state.log == ("a line",)
    desk.presenter.press()
    desk.tick()
    desk.end(desk.engine.open("adapt"))
    assert desk.state.phase == "done"


def test_a_comparison_that_fails_or_is_stopped(desk, ct):                                           # noqa: F811
    desk.case(ct)
    desk.segment.set_volume(ct)
    desk.presenter.enter()
    desk.presenter.compare()
    desk.presenter.cancel()
    assert desk.state.phase == "idle" and desk.state.headline == "Stopped; nothing was compared."
    desk.tick()
    assert desk.engine.count("segment") == 0
    desk.presenter.compare()
    desk.tick()
    desk.presenter.press()
    desk.tick()
    assert desk.state.phase == "idle" and "nothing was compared" in desk.state.headline
    desk.presenter.compare()
    desk.tick()
    desk.engine.open("segment")._fail(InputError("The volume is flat."))
    desk.tick()
    assert desk.state.phase == "failed" and desk.state.headline == "The case was not compared."
    assert desk.state.detail == "The volume is flat." and desk.state.rows == ()


def test_obstacles_are_sentences(desk, scene, ct):                                                  # noqa: F811
    def says():
        desk.presenter.run()
        assert desk.state.phase == "failed" and desk.state.detail == desk.state.run_tooltip
        return desk.state.run_tooltip

    assert says() == "Choose the volume whose segmentation you corrected."
    desk.presenter.set_volume(ct)
    assert says() == "Choose the corrected segmentation of this volume."
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    desk.presenter.set_segmentation(empty)
    assert says() == '"empty" holds no segments; choose the corrected segmentation.'
    desk.presenter.set_segmentation("vtkMRMLSegmentationNode99")
    assert says() == "The segmentation is no longer in the scene; choose another one."
    node = desk.case(ct, np.zeros(SHAPE, np.uint8))
    desk.presenter.set_segmentation(node)
    assert says().startswith("Compare first")
    desk.presenter.compare()
    desk.tick()
    desk.end_segment()
    desk.tick()
    assert desk.state.phase == "failed" and 'Nothing is drawn in "CT HiEndSeg"' in desk.state.detail
    flat = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "flat")
    desk.presenter.set_volume(flat)
    assert "holds no voxels" in says()
    desk.registry.cards = []
    desk.presenter.set_volume(ct)
    assert "No model is installed" in says()
    assert desk.engine.count("adapt") == 0


def test_a_structure_that_cannot_be_learned_is_refused_before_the_engine_starts(desk, ct):          # noqa: F811
    array = model_answer(SHAPE)
    array[array == 2] = 0
    array[6, 6, 4] = 2
    desk.compared(ct, array)
    assert "too few to learn from" in desk.state.rows[1].sentence
    desk.presenter.check("kidney_left", True)
    desk.presenter.run()
    desk.tick()
    assert desk.state.phase == "failed" and "too few to learn from" in desk.state.detail
    assert desk.engine.count("adapt") == 0


def test_a_name_that_is_taken_is_refused_before_anything_runs(desk, ct):                            # noqa: F811
    desk.compared(ct, corrected())
    desk.presenter.set_name("tiny TEST model")
    assert "already" in desk.state.run_tooltip and "tiny TEST model 2" in desk.state.run_tooltip
    desk.presenter.set_name("  Liver of August ")
    assert desk.state.run_enabled and desk.state.name == "  Liver of August "
    desk.presenter.run()
    desk.tick()
    job = desk.engine.open("adapt")
    assert job.arguments["name"] == "Liver of August"
    desk.end(job)
    assert desk.state.name == "", "it is taken now"


def test_a_plan_that_does_not_fit_names_the_speed_that_does(desk, ct):                              # noqa: F811
    desk.engine.plans = {"quick": plan(), "full": plan("full", fits=False), "auto": "full"}
    desk.compared(ct, corrected())
    desk.tick(0.3, times=3)
    assert desk.state.speed == "full" and "choose Quick" in desk.state.run_tooltip and not desk.state.run_enabled
    desk.presenter.set_speed("quick")
    assert desk.state.run_enabled and desk.settings["adapt_speed"] == "quick"
    desk.presenter.set_speed("warp")
    assert desk.state.speed == "quick"
    desk.presenter.set_speed("auto")
    assert desk.state.speed == "full"
    desk.engine.plans = {"quick": plan(fits=False), "full": plan("full", fits=False), "auto": "quick"}
    desk.segment.set_device("cpu")
    desk.tick(0.3, times=3)
    assert "not enough memory" in desk.state.run_tooltip
    desk.engine.plans = EngineError("The plan failed.")
    desk.segment.set_device("auto")
    desk.tick(0.3, times=3)
    assert desk.state.plan_sentence == "The plan failed." and desk.state.run_enabled
    again = AdaptDesk(desk.scene, settings={"adapt_speed": "full"})
    assert again.state.speed == "full"
    again.presenter.close()


def test_a_run_teaches_how_long_it_takes(desk, ct):                                                 # noqa: F811
    desk.end(desk.start(ct, corrected()), seconds=30.0)
    desk.segment.set_device("cpu")
    desk.tick(0.3, times=3)
    assert desk.state.speeds[0].minutes == pytest.approx(0.5), "0.3 s a step were measured, 100 steps are planned"
    assert desk.state.plan_sentence == desk.state.speeds[0].sentence
    assert "about 30 seconds" in desk.state.plan_sentence, "the sentence beside the list must not say another time"
    desk.settings["adapt_times"] = '{"tiny|cpu|quick": "x", "a": -1, "b": 1e400, "c": 2}'
    desk.presenter.refresh()
    assert desk.state.speeds[0].minutes == 5.0
    desk.settings["adapt_times"] = "no json"
    desk.presenter.refresh()
    assert desk.state.speeds[0].minutes == 5.0


def test_the_table_says_what_got_better_and_worse():
    rows = score_rows({
        "taught": [{"id": "a", "name": "A", "new": False, "dice_before": 0.5, "dice_after": 0.6},
                   {"id": "b", "name": "B", "new": False, "dice_before": 0.9, "dice_after": 0.8},
                   {"id": "c", "name": "C", "new": True, "dice_before": None, "dice_after": 0.7},
                   {"id": "d", "name": "D", "new": True, "dice_before": None, "dice_after": 0.0},
                   {"id": "e", "name": "E", "new": False, "dice_before": None, "dice_after": None},
                   "not a row", {"name": "no id"}],
        "protected": [{"id": "f", "name": "F", "agreement": 0.9, "dice_before": 0.5, "dice_after": 0.7},
                      {"id": "g", "name": "G", "agreement": 0.8, "dice_before": 0.7, "dice_after": 0.5},
                      {"id": "h", "name": "H", "agreement": float("nan"), "dice_before": None, "dice_after": None}],
        "worse": ["g"]})
    assert [(row.id, row.verdict, row.verdict_text) for row in rows] == [
        ("a", "better", "Better"), ("b", "worse", "Worse"), ("c", "better", "Newly learned"),
        ("d", "same", "Not learned"), ("e", "unknown", "Not measured: too small to hold a part of it out of the "
                                       "teaching."), ("g", "worse", "Protected, and got worse"),
        ("f", "better", "Protected, and got better"), ("h", "unknown", "Protected; not in this case")]
    assert change_sentence(rows) == "Better on what was held out: A and C. Worse: B and G. Could not be measured: E."
    assert score_rows({"taught": None, "protected": 3, "worse": "x"}) == () and change_sentence(()) == ""


def test_both_sections_wait_for_the_engine_and_say_so(desk, ct):                                    # noqa: F811
    from HiEndSegLib.engine.interface import JobState

    desk.compared(ct, corrected())
    desk.tick(0.3, times=3)
    desk.segment.run(existing="new")
    desk.tick()
    desk.presenter.run()
    desk.tick()
    job = desk.engine.open("adapt")
    job._state = JobState.IDLE
    desk.tick()
    assert desk.state.phase == "starting" and desk.state.seconds_left is None
    assert desk.state.detail == "Waiting for the segmentation that runs; the engine does one thing at a time."
    desk.end_segment()
    desk.tick(times=2)
    assert desk.state.detail == "Waiting until the engine is ready; it does one thing at a time."
    job._move(JobState.RUNNING)
    desk.clock.pass_(100)
    desk.learn(job)
    desk.tick()
    assert desk.state.phase == "running" and desk.state.seconds_left > 200, "waiting is not its own time"
    desk.segment.run(existing="new")
    desk.tick()
    desk.engine.open("segment")._state = JobState.IDLE
    desk.tick()
    assert "one thing at a time" in desk.segment.state.detail


def test_plans_are_not_asked_for_while_something_runs(desk, ct):                                    # noqa: F811
    desk.start(ct, corrected())
    asked = desk.engine.count("plan_adapt")
    desk.segment.set_device("cpu")
    desk.tick(1, times=4)
    assert desk.engine.count("plan_adapt") == asked


def test_changes_come_only_where_something_changed(desk, ct):                                       # noqa: F811
    job = desk.start(ct, corrected())
    desk.learn(job)
    desk.tick(times=2)
    told = desk.changes
    desk.tick(0.0, times=10)
    assert desk.changes == told, "nothing moved"
    desk.end(job)
    desk.tick(0.5, times=3)
    told = desk.changes
    desk.tick(0.5, times=20)
    assert desk.changes == told
    count = []
    desk.presenter.changed.connect(lambda: count.append(1))
    desk.presenter.check("kidney_left", True)
    assert len(count) == 1 and desk.state.phase == "done"


def test_an_encoder_makes_a_model_of_new_structures(desk, ct, tmp_path):                            # noqa: F811
    node = desk.case(ct)
    paint(desk, ct, node, np.ones(SHAPE) * (np.arange(14) == 13)[:, None, None], "Tumor")
    desk.presenter.set_volume(ct)
    desk.presenter.set_encoder(tmp_path / "hi-end-mae.pt")
    assert desk.state.from_encoder and desk.state.model_id is None
    assert desk.state.run_tooltip == "The encoder is not there any more; choose its file or folder again."
    (tmp_path / "hi-end-mae.pt").write_bytes(b"weights")
    desk.presenter.refresh()
    assert desk.state.compare_text == "Look at the segments" and desk.state.compare_available
    desk.presenter.compare()
    assert desk.engine.count("segment") == 0 and desk.state.phase == "ready", "an encoder has no answer"
    assert [(row.id, row.name, row.is_new, row.checked) for row in desk.state.rows] == [
        ("liver", "Liver", True, True), ("kidney_left", "Left kidney", True, True),
        ("kidney_right", "Right kidney", True, True), ("tumor", "Tumor", True, True)]
    desk.presenter.check("kidney_left", False)
    assert desk.state.rows_sentence == "3 of 4 structures are taught; the new model will know no other."
    desk.presenter.run()
    desk.tick()
    arguments = desk.engine.open("adapt").arguments
    assert arguments["model"] is None and arguments["encoder"] == str(tmp_path / "hi-end-mae.pt")
    assert arguments["structures"] == ["liver", "kidney_right", "tumor"] and arguments["name"] == "My model"
    assert {label.id for label in arguments["legend"]} == {"liver", "kidney_right", "tumor"}
    desk.presenter.set_model("tiny")
    assert desk.state.from_encoder, "not while it runs"
    desk.end(desk.engine.open("adapt"))
    desk.presenter.set_model("tiny")
    assert not desk.state.from_encoder and desk.state.model_id == "tiny@1.0.0" and desk.state.encoder_path


def test_an_encoders_folder_is_chosen_by_any_file_in_it(desk, tmp_path):
    assert desk.state.encoder_path == str(SHIPPED_ENCODER) and (SHIPPED_ENCODER / "description.json").is_file()
    (tmp_path / "description.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"w")
    desk.presenter.set_encoder(tmp_path / "weights.safetensors")
    assert desk.state.encoder_path == str(tmp_path) and desk.settings["encoder"] == str(tmp_path)
    desk.presenter.set_encoder(None)
    assert not desk.state.from_encoder


def test_a_case_segmented_by_a_version_teaches_the_version(scene, ct):                              # noqa: F811
    base = AdaptDesk(scene).registry.cards[0]
    mine = version(base, "mine", "Mine")
    desk = AdaptDesk(scene, cards=(base, mine))
    desk.case(ct, made_by="mine@1.0.0")
    desk.segment.set_volume(ct)
    desk.presenter.enter()
    assert desk.state.model_id == "mine@1.0.0" and desk.segment.state.model_id == "tiny@1.0.0"
    assert desk.state.name_suggestion == "Mine 2" and not desk.state.can_revert
    assert desk.state.segmentation_sentence.endswith("It was made by mine@1.0.0.")
    desk.presenter.set_model("tiny")
    desk.presenter.enter()
    assert desk.state.model_id == "tiny@1.0.0", "the person's choice stays"
    desk.segment.set_model("mine")
    assert desk.state.can_revert and 'Segment with "Tiny test model" again' in desk.state.revert_tooltip
    desk.registry.cards = [mine]                # the base went; its checksum is what counts
    desk.presenter.refresh()
    desk.segment.refresh()
    assert not desk.state.can_revert
    desk.registry.cards = [base]
    desk.presenter.refresh()
    assert "mine@1.0.0, which is not installed now" in desk.state.segmentation_sentence
    assert desk.state.model_id == "tiny@1.0.0"
    desk.presenter.close()


def test_states_are_busy_as_their_phases_say(desk, ct):                                             # noqa: F811
    desk.start(ct, corrected())
    assert desk.state.busy and desk.state.phase in ADAPT_BUSY
    desk.presenter.set_volume(None)
    desk.presenter.compare()
    desk.presenter.run()
    assert desk.state.volume_id == ct.GetID() and desk.engine.count("adapt") == 1
