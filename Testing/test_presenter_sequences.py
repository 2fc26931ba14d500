"""Sequences (4D): frame by frame into an output sequence that the same browser shows. Slicer's own sequence nodes."""

from __future__ import annotations

import numpy as np
import pytest
from bridge_scene import LEGEND, ct_volume, label_volume, linear_transform, scene, slicer                # noqa: F401
from presenter_helpers import Desk, card

from HiEndSegLib.bridge import sequences
from HiEndSegLib.bridge.layers import read_segments
from HiEndSegLib.bridge.volumes import lattice_of, node_from_volume, volume_from_node
from HiEndSegLib.errors import InputError

if not hasattr(slicer, "vtkSlicerSequencesLogic"):
    pytest.skip("this slicer-core has no sequences", allow_module_level=True)

FRAMES = 3
IDS = {"liver": 1, "kidney_left": 2}


@pytest.fixture
def movie(scene):                                                                                   # noqa: F811
    """(proxy volume node, browser node, sequence node) of three time points; the second lies elsewhere."""
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(scene)           # registers the browser's class, as Slicer does at its start
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "heart")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for number in range(FRAMES):
        volume = ct_volume("oblique" if number == 1 else "axis-aligned")
        node = node_from_volume(volume.with_array(volume.array + number), scene, name="frame")
        sequence.SetDataNodeAtValue(node, str(number * 0.5))
        scene.RemoveNode(node.GetDisplayNode())
        scene.RemoveNode(node)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic.UpdateProxyNodesFromSequences(browser)
    yield browser.GetProxyNode(sequence), browser, sequence
    logic.SetMRMLScene(None)


def show(browser, number):
    browser.SetSelectedItemNumber(number)
    slicer.vtkSlicerSequencesLogic().UpdateProxyNodesFromSequences(browser)


def layers(number, shape):
    array = np.zeros(shape, np.uint8)
    array[:2 + number], array[5 + number:9] = 1, 2
    return array


def run_all(desk):
    """Let the engine answer every frame with its own label map."""
    number = 0
    for _ in range(40):
        desk.tick()
        if desk.state.busy and any(job.operation == "segment" and not job.done for job in desk.engine.jobs):
            job = desk.engine.segmenting
            assert job.arguments["volume"].array[0, 0, 0] - ct_volume().array[0, 0, 0] == number
            desk.engine.finish(layers(number, job.arguments["volume"].shape))
            number += 1
    return number


def test_frames_are_read_and_named_where_they_lie(movie):
    proxy, browser, sequence = movie
    assert sequences.frame_count(proxy) == FRAMES and sequences.browser_of(proxy) == (browser, sequence)
    assert [sequences.frame_title(sequence, n) for n in range(FRAMES)] == ["time 0.0 s", "time 0.5 s", "time 1.0 s"]
    nodes = proxy.GetScene().GetNumberOfNodes()
    for number in range(FRAMES):
        frame = sequences.read_frame(sequence, number)
        expected = ct_volume("oblique" if number == 1 else "axis-aligned")
        assert np.array_equal(frame.array, expected.array + number)
        assert np.allclose(frame.ijk_to_ras, expected.ijk_to_ras)
    assert proxy.GetScene().GetNumberOfNodes() == nodes
    with pytest.raises(InputError, match="has no time point 4; it has 3"):
        sequences.read_frame(sequence, 3)


def test_an_ordinary_volume_has_no_frames(scene):                                                   # noqa: F811
    assert sequences.frame_count(node_from_volume(ct_volume(), scene)) == 0


def test_all_frames_become_a_sequence_in_the_same_browser(scene, movie):                            # noqa: F811
    proxy, browser, sequence = movie
    proxy.SetAndObserveTransformNodeID(linear_transform(scene).GetID())
    desk = Desk(scene)
    desk.presenter.set_volume(proxy)
    assert desk.state.frames == FRAMES and "one of 3 time points" in desk.state.volume_sentence
    kept = scene.GetNumberOfNodes()
    desk.presenter.run()
    assert desk.state.question.id == "frames"
    assert [choice.id for choice in desk.state.question.choices] == ["all", "this", "cancel"]
    desk.presenter.answer("all")
    assert desk.state.headline == 'Starting "heart, time 0.0 s" (1 of 3)'
    assert run_all(desk) == FRAMES
    assert desk.state.phase == "done" and desk.state.headline.startswith("3 of 3 were segmented"), desk.state.detail
    result = scene.GetNodeByID(desk.state.segmentation_id)
    output = browser.GetSequenceNode(result)
    assert output.GetNumberOfDataNodes() == FRAMES and output.GetIndexName() == "time"
    assert result.GetName() == "heart HiEndSeg" and result.GetTransformNodeID() == proxy.GetTransformNodeID()
    for number in (2, 0, 1):
        show(browser, number)
        shape, _matrix = lattice_of(proxy)
        assert np.array_equal(read_segments(result, proxy, IDS).array, layers(number, shape)), number
    liver = result.GetSegmentation().GetSegment("liver")
    assert liver.GetName() == "Liver" and np.allclose(np.array(liver.GetColor()) * 255, (221, 130, 101))
    added = {scene.GetNthNode(n).GetClassName() for n in range(kept, scene.GetNumberOfNodes())}
    assert not [n for n in range(scene.GetNumberOfNodes()) if "temporary" in scene.GetNthNode(n).GetName()], added
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 1


def test_only_this_frame_is_an_ordinary_run(scene, movie):                                          # noqa: F811
    proxy, browser, _sequence = movie
    show(browser, 2)
    desk = Desk(scene)
    desk.presenter.set_volume(proxy)
    desk.presenter.run()
    desk.presenter.answer("this")
    desk.tick()
    assert np.array_equal(desk.engine.segmenting.arguments["volume"].array, volume_from_node(proxy).array)
    desk.engine.finish()
    desk.tick()
    assert desk.state.phase == "done" and scene.GetNumberOfNodesByClass("vtkMRMLSequenceNode") == 1


def test_a_frame_that_fails_is_left_out_and_named(scene, movie):                                    # noqa: F811
    proxy, _browser, _sequence = movie
    desk = Desk(scene)
    desk.presenter.set_volume(proxy)
    desk.presenter.run(frames="all")
    desk.tick()
    desk.engine.fail(InputError("The volume is flat."))
    desk.tick()
    for _ in range(2):
        desk.tick()
        desk.engine.finish()
        desk.tick()
    assert desk.state.headline.startswith("2 of 3 were segmented") and "heart, time 0.0 s: The volume is flat." in \
        desk.state.detail
    result = scene.GetNodeByID(desk.state.segmentation_id)
    output = sequences.browser_of(proxy)[0].GetSequenceNode(result)
    browser = sequences.browser_of(proxy)[0]
    for number in (0, 1, 0, 2):
        show(browser, number)
        assert result.GetSegmentation().GetNumberOfSegments() == (2 if number else 0), \
            "a time point without result shows none, and not the one before"
        desk.presenter.refresh()
        assert desk.state.segmentation_id == result.GetID()
    assert [output.GetNthIndexValue(n) for n in range(output.GetNumberOfDataNodes())] == ["0.0", "0.5", "1.0"]


def test_the_sequence_is_deleted_while_its_frames_run(scene, movie):                                # noqa: F811
    proxy, _browser, sequence = movie
    desk = Desk(scene)
    desk.presenter.set_volume(proxy)
    desk.presenter.run(frames="all")
    desk.tick()
    id_ = sequence.GetID()
    scene.RemoveNode(sequence)
    desk.presenter.node_removed(id_)
    for _ in range(4):
        desk.tick()
    assert desk.state.phase == "failed" and not any(outcome.ok for outcome in desk.state.outcomes)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_refused_frame_leaves_no_empty_sequence(scene, movie):                                    # noqa: F811
    proxy, _browser, sequence = movie
    output = sequences.new_segmentation_sequence(sequence, "out", "tiny@1.0.0")
    nodes = scene.GetNumberOfNodes()
    wrong = label_volume("left-handed")
    with pytest.raises(InputError, match="does not lie on the lattice"):
        sequences.add_frame(output, sequence, 0, wrong, LEGEND, "tiny@1.0.0")
    assert output.GetNthDataNode(0).GetSegmentation().GetNumberOfSegments() == 0 and scene.GetNumberOfNodes() == nodes
    desk = Desk(scene, cards=[card()])
    desk.presenter.set_volume(proxy)
    desk.presenter.run(frames="all")
    desk.tick()
    job = desk.engine.segmenting
    from presenter_helpers import result_of

    job._finish(result_of({**job.arguments, "volume": wrong}))
    desk.tick()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSequenceNode") == 2, "the one of this test, and the movie"
    desk.presenter.close()
