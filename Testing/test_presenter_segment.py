"""The Segment section with an engine that does what the test says: phases, wording, choices, enabling. Real MRML."""

from __future__ import annotations

import numpy as np
import pytest
from bridge_scene import ct, ct_volume, scene, slicer                                               # noqa: F401
from presenter_helpers import DOCTOR, Desk, FakeEngine, card

from HiEndSegLib.bridge.volumes import node_from_volume
from HiEndSegLib.errors import DeviceError, EngineError, ModelError, OutOfMemoryError
from HiEndSegLib.models.registry import ModelProblem
from HiEndSegLib.presenter.state import PHASES

MR = {"id": "tiny-mr", "title": "Brain MR", "modality": "MR",
      "intensity": {"unit": "native", "windows": [[0, 1000]]}}


@pytest.fixture
def desk(scene):                                                                                    # noqa: F811
    return Desk(scene)


def test_from_nothing_to_finished_nodes(desk, ct):                                                  # noqa: F811
    assert desk.state.phase == "idle" and not desk.state.button_enabled
    assert desk.state.headline == desk.state.button_tooltip == "Choose a volume to segment."
    desk.presenter.set_volume(ct)
    assert desk.state.button_enabled and desk.state.button_text == "Segment"
    assert desk.state.headline == 'Ready to segment "CT".' and "14 x 12 x 9 voxels" in desk.state.volume_sentence
    desk.presenter.press()
    assert desk.state.phase == "starting" and desk.state.button_text == "Cancel"
    assert desk.engine.count("segment") == 0, "the button answers before voxels are read"
    desk.tick()
    job = desk.engine.segmenting
    assert job.arguments["only"] is None and job.arguments["roi"] is None and job.arguments["device"] == "auto"
    assert np.array_equal(job.arguments["volume"].array, ct_volume().array)
    desk.tick(2)
    desk.engine.advance(0.4, "Tile 4 of 10")
    desk.tick()
    assert desk.state.phase == "running" and desk.state.fraction == 0.4 and desk.state.detail == "Tile 4 of 10"
    assert desk.state.headline == 'Segmenting "CT"'
    assert desk.state.seconds_left == 3 and desk.state.time_text == "About 3 s left"
    job._note("a line of the log")
    desk.engine.finish(messages=["Not found: Left kidney."])
    desk.tick()
    state = desk.state
    assert state.phase == "done" and state.fraction == 1.0 and state.headline.startswith(
        'Found 1 structure in "CT" (2 s).')
    assert state.detail == "Not found: Left kidney." and state.log == ("a line of the log",)
    assert state.button_text == "Segment" and state.button_enabled and state.seconds_left is None
    node = desk.scene.GetNodeByID(state.segmentation_id)
    assert node.GetName() == "CT HiEndSeg" and node.GetAttribute("HiEndSeg.Model") == "tiny@1.0.0"
    assert desk.scene.GetNodeByID(state.table_id).GetTable().GetNumberOfRows() == 1
    assert desk.phases == ["idle", "starting", "running", "done"] and set(desk.phases) <= set(PHASES)


def test_changes_come_once_per_action_and_not_at_all_without_one(desk, ct):                         # noqa: F811
    count = []
    desk.tick(1)
    desk.presenter.changed.connect(lambda: count.append(1))
    desk.presenter.set_volume(ct)
    assert len(count) == 1
    desk.presenter.set_volume(ct.GetID())
    desk.presenter.set_filter("")
    assert len(count) == 1
    desk.tick(1)                                # the plan is asked for and, by this engine, answered a tick later
    desk.tick()
    told = len(count)
    for _ in range(20):
        desk.tick()
    assert len(count) == told
    desk.start()
    desk.tick()                                 # what the engine says first
    told = len(count)
    for _ in range(5):
        desk.tick()
    assert len(count) == told, "nothing moved"


def test_cancel_is_shown_at_once_and_ends_in_idle(scene, ct):                                       # noqa: F811
    desk = Desk(scene, obedient=False)
    job = desk.start(ct)
    desk.engine.advance(0.5)
    desk.tick()
    desk.presenter.press()
    assert desk.state.phase == "cancelling" and not desk.state.button_enabled and desk.state.headline == "Stopping…"
    assert desk.state.seconds_left is None
    desk.presenter.cancel()
    desk.tick()
    assert desk.state.phase == "cancelling"
    job._cancelled()
    desk.tick()
    assert desk.state.phase == "idle" and desk.state.headline == "Stopped; nothing was changed."
    assert desk.state.segmentation_id is None and desk.state.button_text == "Segment" and desk.state.button_enabled
    desk.through()
    assert desk.state.phase == "done"


def test_cancel_before_the_voxels_were_read(desk, ct):                                              # noqa: F811
    desk.presenter.set_volume(ct)
    desk.presenter.run()
    desk.presenter.cancel()
    assert desk.state.phase == "idle" and desk.engine.count("segment") == 0
    desk.tick()
    assert desk.engine.count("segment") == 0


@pytest.mark.parametrize("error, offers", [
    (EngineError("The worker stopped unexpectedly (killed); the next one starts a new worker."),
     ["again", "device_cpu", "setup"]),
    (ModelError("The weights of model tiny@1.0.0 do not match the checksum on its card."),
     ["verify_model", "choose_model"]),
    (DeviceError("The device cuda:0 was asked for, and only cpu is here."), ["device_cpu"]),
    (OutOfMemoryError("9 GB are needed and 2 GB are free."), ["device_cpu", "roi"])])
def test_failures_are_said_and_the_next_run_works(desk, ct, error, offers):                         # noqa: F811
    desk.start(ct)
    desk.engine.fail(error)
    desk.tick()
    assert desk.state.phase == "failed" and desk.state.headline == '"CT" was not segmented.'
    assert desk.state.detail == str(error) and [offer.action for offer in desk.state.offers] == offers
    assert desk.state.button_enabled and desk.presenter.summary.error is error
    desk.presenter.set_device("cpu")
    assert "device_cpu" not in [offer.action for offer in desk.state.offers]
    desk.through()
    assert desk.state.phase == "done" and desk.state.offers == ()


def test_a_bug_is_a_sentence_and_a_line_in_the_log(desk, ct, monkeypatch, caplog):                  # noqa: F811
    monkeypatch.setattr("HiEndSegLib.bridge.segmentations.segmentation_from_labels", lambda *a, **k: {}["gone"])
    desk.start(ct)
    desk.engine.finish()
    desk.tick()
    assert desk.state.phase == "failed" and "unexpected" in desk.state.detail
    assert any("KeyError" in line for line in desk.state.log) and "KeyError" in caplog.text


def test_a_result_without_its_table_is_still_a_result(desk, ct, monkeypatch, caplog):               # noqa: F811
    monkeypatch.setattr("HiEndSegLib.bridge.tables.write_table", lambda *a, **k: {}["gone"])
    desk.start(ct)
    desk.engine.finish()
    desk.tick()
    assert desk.state.phase == "done" and desk.state.segmentation_id and desk.state.table_id is None
    assert "table of volumes could not be made" in desk.state.detail and "KeyError" in caplog.text


def test_devices_are_looked_at_beside_everything_else(scene):                                       # noqa: F811
    desk = Desk(scene, doctor=None)
    assert desk.state.device_sentence == "Looking at the devices…"
    assert [(row.kind, row.works) for row in desk.state.devices] == [("auto", None), ("cpu", None)]
    desk.tick()
    desk.engine.doctor_answer = DOCTOR
    desk.tick()
    assert desk.state.device_sentence == "A card works, 8 GiB."
    assert [(row.kind, row.works, row.title) for row in desk.state.devices] == [
        ("auto", True, "Automatic (the best that works)"), ("cuda:0", True, "Graphics card 0"), ("cpu", True, "CPU")]
    desk.presenter.set_device("cpu")
    assert desk.state.device_sentence == "The CPU works, 2 threads." and desk.settings["device"] == "cpu"
    desk.presenter.enter()
    desk.tick()
    assert desk.engine.count("doctor") == 1
    desk.presenter.look_at_devices()
    desk.tick()
    assert desk.engine.count("doctor") == 2


def test_a_device_of_another_day_is_named_as_missing(scene):                                        # noqa: F811
    desk = Desk(scene, settings={"device": "cuda:1"})
    desk.tick()
    row = next(row for row in desk.state.devices if row.kind == "cuda:1")
    assert row.works is False and "not here now" in desk.state.device_sentence


@pytest.mark.parametrize("answer, words", [
    ({**DOCTOR, "versions": {"torch": None}, "devices": []}, "PyTorch is not installed yet"),
    (EngineError("The worker could not start (no such file)."), "could not start")])
def test_without_torch_or_engine_it_says_what_to_do(scene, ct, answer, words):                      # noqa: F811
    desk = Desk(scene, doctor=answer)
    desk.presenter.set_volume(ct)
    desk.tick()
    assert words in desk.state.device_sentence
    if not isinstance(answer, EngineError):
        assert desk.state.needs_setup and not desk.state.button_enabled
        assert "open the set-up page" in desk.state.button_tooltip
        desk.presenter.run()
        assert desk.state.phase == "failed" and desk.engine.count("segment") == 0
        desk.presenter.set_engine(FakeEngine())
        desk.tick()
        assert not desk.state.needs_setup and desk.state.button_enabled


def test_the_plan_is_asked_when_things_come_to_rest(desk, ct):                                      # noqa: F811
    desk.presenter.set_volume(ct)
    desk.tick(0.1)
    assert desk.engine.count("plan") == 0 and desk.state.plan_sentence == ""
    desk.presenter.set_device("cpu")
    desk.tick(0.25)
    assert desk.engine.count("plan") == 0, "it changed meanwhile"
    desk.tick(0.1)
    assert desk.engine.count("plan") == 1 and desk.state.plan_sentence == "Planning the memory…"
    desk.tick()
    assert "voxels become 5 x 4 x 3 at 3 mm" in desk.state.plan_sentence and desk.state.plan_fits is True
    desk.presenter.refresh()
    desk.tick(1)
    assert desk.engine.count("plan") == 1, "the same question is not asked twice"
    desk.engine.plan_answer = EngineError("The plan failed.")
    desk.presenter.set_device("auto")
    assert desk.state.plan_sentence == ""
    desk.tick(1)
    desk.presenter.set_device("cpu")            # its answer would be about the device before
    desk.tick()
    assert desk.state.plan_sentence == ""
    desk.tick(1)
    desk.tick()
    assert desk.state.plan_sentence == "The plan failed." and desk.state.plan_fits is None


def test_no_plan_stands_in_the_way_of_a_run(desk, ct):                                              # noqa: F811
    desk.presenter.set_volume(ct)
    desk.start()
    for _ in range(4):
        desk.tick(1)
    assert desk.engine.count("plan") == 0


def test_structures_are_checked_and_go_to_the_engine(desk, ct):                                     # noqa: F811
    assert [(row.id, row.name, row.color, row.checked) for row in desk.state.structures] == [
        ("liver", "Liver", (221, 130, 101), True), ("kidney_left", "Left kidney", (185, 102, 83), True)]
    assert desk.state.structures_sentence == "All 2 structures"
    desk.presenter.set_volume(ct)
    desk.presenter.select_none()
    assert not desk.state.button_enabled and desk.state.button_tooltip == "Check at least one structure."
    desk.presenter.check_structure("kidney_left", True)
    assert desk.state.structures_sentence == "1 of 2 structures" and desk.state.button_enabled
    job = desk.start()
    assert job.arguments["only"] == ["kidney_left"]
    desk.engine.finish(np.full(ct_volume().shape, 2, np.uint8))
    desk.tick()
    segmentation = desk.scene.GetNodeByID(desk.state.segmentation_id).GetSegmentation()
    assert list(segmentation.GetSegmentIDs()) == ["kidney_left"]
    desk.presenter.select_all()
    assert desk.start(existing="new").arguments["only"] is None


def test_models_are_chosen_remembered_and_found_by_their_structures(scene, ct):                     # noqa: F811
    cards = [card(), card(**MR), card(id="other", version="2.0.0"), card(id="other", version="1.0.0")]
    desk = Desk(scene, cards=cards, problems=[ModelProblem(None, "The card of broken cannot be read.")])
    assert [row.id for row in desk.state.models] == ["tiny@1.0.0", "tiny-mr@1.0.0", "other@2.0.0", "other@1.0.0"]
    assert desk.state.model_id == "tiny@1.0.0" and desk.state.model_problems == ("The card of broken cannot be read.",)
    desk.presenter.set_filter("brain mr")
    assert [row.id for row in desk.state.models] == ["tiny-mr@1.0.0"] and desk.state.model_id == "tiny@1.0.0"
    desk.presenter.set_filter("KIDNEY other")
    assert [row.id for row in desk.state.models] == ["other@2.0.0", "other@1.0.0"]
    desk.presenter.set_filter("nothing like it")
    assert desk.state.models == ()
    desk.presenter.set_model("other@1.0.0")
    assert desk.state.model_id == "other@1.0.0" and desk.settings["model"] == "other"
    desk.presenter.set_model("unknown")
    assert desk.state.model_id == "other@1.0.0"
    again = Desk(scene, cards=cards, settings=desk.settings)
    assert again.state.model_id == "other@2.0.0", "its newest version"
    desk.registry.cards = cards[:2]
    desk.presenter.refresh()
    assert desk.state.model_id == "tiny@1.0.0", "the chosen one is gone"
    desk.registry.cards = []
    desk.presenter.set_volume(ct)
    desk.presenter.refresh()
    assert desk.state.model_id is None and not desk.state.button_enabled
    assert desk.state.button_tooltip == "No model is installed; add one in the section Models."


def test_an_image_the_model_was_not_made_for_is_warned_about_and_segmented_all_the_same(scene):     # noqa: F811
    rng = np.random.default_rng(0)
    mr = node_from_volume(ct_volume().with_array(rng.gamma(2, 150, ct_volume().shape).astype(np.int16)), scene,
                          name="T1")
    desk = Desk(scene, cards=[card(), card(**MR)])
    desk.presenter.set_volume(mr)
    assert "look like an MR image" in desk.state.volume_warning and "made for CT" in desk.state.volume_warning
    assert desk.state.button_enabled
    desk.presenter.set_model("tiny-mr")
    assert desk.state.volume_warning == ""
    desk.through()
    assert desk.state.phase == "done"


def test_the_first_run_teaches_how_long_it_takes(desk, ct):                                         # noqa: F811
    desk.presenter.set_volume(ct)
    desk.presenter.set_device("cpu")
    assert desk.state.models[0].expected_seconds is None
    assert desk.state.models[0].speed_sentence == "Not measured yet on this computer."
    desk.start()
    desk.engine.finish(seconds=30.0)
    desk.tick()
    assert abs(desk.state.models[0].expected_seconds - 30) < 0.5
    assert "About 30 s on this computer." in desk.state.model_sentence
    desk.start(existing="new")
    desk.tick()
    assert desk.state.time_text == "About 30 s left", "known before the first tile"


def test_the_sentence_says_what_was_measured_and_on_what(scene):                                    # noqa: F811
    def scores(*entries):
        return Desk(scene, cards=[card(scores=[dict(zip(("case", "structure", "dice", "trained_on"), entry))
                                               for entry in entries])]).state.models[0].score_sentence

    assert scores() == "Its card names no score."
    assert scores(("a", "liver", 0.9, True), ("b", "liver", 0.8, False), ("b", "spleen", 0.6, False),
                  ("b", "spleen", 0.7, False), ("c", "spleen", float("inf"), False), ("c", "x", "high", False)) == \
        "Dice 0.70 on average (0.60 to 0.80) over 2 structures in one case it was not trained on."
    assert "one case it was trained on; expect less on others" in scores(("a", "liver", 0.9, True))


def test_a_volume_that_cannot_be_segmented_says_why(desk, scene):                                   # noqa: F811
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    desk.presenter.set_volume(empty)
    assert "holds no voxels" in desk.state.volume_sentence and not desk.state.button_enabled
    desk.presenter.run()
    assert desk.state.phase == "failed" and "holds no voxels" in desk.state.detail
    desk.presenter.set_volume("vtkMRMLScalarVolumeNode99")
    assert "no longer in the scene" in desk.state.button_tooltip


def test_an_engine_that_was_closed_is_a_sentence(desk, ct):                                         # noqa: F811
    desk.engine.close()
    desk.presenter.set_volume(ct)
    desk.presenter.run()
    desk.tick()
    assert desk.state.phase == "failed" and "was closed" in desk.state.detail


def test_scripts_can_wait(desk, ct):                                                                # noqa: F811
    desk.presenter.set_volume(ct)
    desk.presenter.run(existing="new")
    turns = []

    def each():
        turns.append(desk.state.phase)
        if len(turns) == 2:
            desk.engine.finish()

    summary = desk.presenter.wait(timeout=20, each=each)
    assert summary.outcomes[0].ok and summary.placed[0].segmentation_id == desk.state.segmentation_id
    assert summary.results[0]["statistics"][0]["id"] == "liver" and not desk.state.busy


def test_the_report_names_no_patient(desk, scene):                                                  # noqa: F811
    anna = node_from_volume(ct_volume(), scene, name="Anna^Maria")
    job = desk.start(anna)
    job._note("worker: opened Anna^Maria in /home/anna/scan.nii")
    desk.engine.fail(EngineError('The worker stopped at "Anna^Maria".'))
    desk.tick()
    facts = desk.presenter.report_facts()
    assert "Anna^Maria" in facts["secrets"] and "Anna^Maria" in facts["error"] and len(facts["log"]) == 1
