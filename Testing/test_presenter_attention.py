"""The Attention section's presenter: what is asked when, what the state says, and what is given back."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from attention_helpers import (CELL, DEPTH, OTHER, SHAPE, TAPS, AttentionDesk, a_view, a_volume, attended,
                               token_matrix)
from bridge_scene import linear_transform, scene, slicer                                    # noqa: F401
from presenter_helpers import Desk, card

from HiEndSegLib.bridge.heat import heat_color
from HiEndSegLib.bridge.volumes import (array_of_image, lattice_of, node_from_volume, volume_ras_to_world,
                                        world_to_volume_ras)
from HiEndSegLib.errors import EngineError, InputError, OptionError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.operations.attend_result import AttentionMap
from HiEndSegLib.presenter.attention_maps import crop, finer, in_common


@pytest.fixture
def desk(scene):
    made = AttentionDesk(scene)
    yield made
    made.presenter.close()


@pytest.fixture
def ct(scene):
    return a_volume(scene)


def picture(data):
    """(rows, columns, 3) of a PNG file's bytes, read by another program than the one that wrote it."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# --------------------------------------------------------------------------------------------------- asking

def test_nothing_is_asked_before_there_is_a_volume(desk):
    assert desk.state.phase == "off" and not desk.state.button_enabled and "volume" in desk.state.headline
    desk.presenter.press()
    desk.tick()
    assert desk.engine.jobs == [] and desk.state.phase == "off"


def test_the_first_question_is_about_the_middle_and_hands_the_volume_over_once(desk, ct):
    desk.show(ct)
    asked = desk.asked()
    assert len(asked) == 1 and asked[0]["volume"].shape == SHAPE and asked[0]["layers"] is None
    assert np.abs(np.array(asked[0]["at"]) - (0, -1, 0)).max() < 2 and asked[0]["heads"] == "all"
    assert [row.layer for row in desk.state.layers if row.tap] == list(TAPS) and len(desk.state.layers) == DEPTH
    desk.presenter.point_at((10.0, 5.0, 2.0))
    desk.settle()
    assert desk.asked()[1]["volume"] is None and desk.asked()[1]["volume_key"] == asked[0]["volume_key"]
    assert desk.asked()[1]["at"] == pytest.approx([10.0, 5.0, 2.0]) and desk.asked()[1]["layers"] == [11]


def test_while_the_point_is_dragged_one_question_is_in_flight_and_the_latest_wins(desk, ct):
    desk.show(ct)
    point = desk.scene.GetNodeByID(desk.state.point_id)
    for step in range(30):
        point.SetNthControlPointPositionWorld(0, float(step) / 2, 0.0, 0.0)
        desk.tick(answer=False)
        assert desk.engine.looking is not None
    assert len(desk.asked()) == 2, "the first of them; the others wait, and only the last is left"
    desk.settle()
    assert [arguments["at"][0] for arguments in desk.asked()[1:]] == [0.0, 14.5]
    assert desk.state.point == (14.5, 0.0, 0.0) and not desk.state.working


def test_an_answer_to_an_earlier_place_is_shown_while_the_next_is_asked(desk, ct):
    desk.show(ct)
    before = lattice_values(desk)
    desk.presenter.point_at((20.0, 0.0, 0.0))
    desk.tick(answer=False)
    desk.presenter.point_at((-20.0, 0.0, 0.0))
    desk.engine.answer()
    desk.presenter.tick()
    assert desk.state.working and not np.array_equal(lattice_values(desk), before)


def lattice_values(desk):
    return array_of_image(desk.scene.GetNodeByID(desk.state.heat_id).GetImageData()).copy()


def test_a_worker_that_forgot_the_volume_gets_it_again(desk, ct):
    desk.show(ct)
    desk.presenter.point_at((4.0, 0.0, 0.0))
    desk.tick(answer=False)
    desk.engine.looking._fail(EngineError("The worker no longer has this volume.", code="unknown-volume"))
    desk.settle()
    with_volume = [arguments["volume"] is not None for arguments in desk.asked()]
    assert with_volume == [True, False, True] and desk.state.phase == "shown"
    desk.presenter.point_at((5.0, 0.0, 0.0))
    desk.tick(answer=False)
    desk.engine.looking._fail(EngineError("The worker died."))
    desk.tick()
    assert desk.state.phase == "failed" and "died" in desk.state.headline
    desk.presenter.point_at((6.0, 0.0, 0.0))
    desk.settle()
    assert desk.asked()[-1]["volume"] is not None and desk.state.phase == "shown"


def test_changed_voxels_are_handed_over_anew(desk, ct):
    desk.show(ct)
    ct.GetImageData().Modified()
    desk.presenter.point_at((4.0, 0.0, 0.0))
    desk.settle()
    first, second = desk.asked()
    assert second["volume"] is not None and second["volume_key"] != first["volume_key"]


def test_a_refusal_is_said_and_the_map_stays(desk, ct):
    desk.show(ct)
    heat = desk.state.heat_id
    desk.presenter.point_at((900.0, 0.0, 0.0))
    desk.tick(answer=False)
    desk.engine.looking._fail(OptionError("The point lies outside the volume; choose a point inside it."))
    desk.tick()
    assert desk.state.phase == "failed" and "outside" in desk.state.headline and desk.state.heat_id == heat
    desk.presenter.point_at((0.0, 0.0, 0.0))
    desk.settle()
    assert desk.state.phase == "shown" and desk.state.heat_id == heat


def test_a_point_under_a_transform_is_asked_in_the_volumes_own_space(desk, ct):
    ct.SetAndObserveTransformNodeID(linear_transform(desk.scene).GetID())
    desk.show(ct)
    world = volume_ras_to_world(ct, (6.0, 4.0, 2.0))
    desk.presenter.point_at(world)
    desk.settle()
    assert desk.asked()[-1]["at"] == pytest.approx([6.0, 4.0, 2.0], abs=1e-6)
    heat = desk.scene.GetNodeByID(desk.state.heat_id)
    assert heat.GetTransformNodeID() == ct.GetTransformNodeID()
    assert "under a transform" in desk.state.detail


def test_a_transform_set_later_is_followed(desk, ct):
    desk.show(ct)
    desk.presenter.refresh()
    desk.settle()
    assert len(desk.asked()) == 1, "nothing has changed"
    ct.SetAndObserveTransformNodeID(linear_transform(desk.scene, turn=(0, 0, 5), move=(4.0, 0.0, 0.0)).GetID())
    desk.presenter.refresh()
    desk.settle()
    assert desk.asked()[-1]["at"] == pytest.approx(world_to_volume_ras(ct, desk.state.point))
    assert len(desk.asked()) == 2
    assert desk.scene.GetNodeByID(desk.state.heat_id).GetTransformNodeID() == ct.GetTransformNodeID()


# --------------------------------------------------------------------------------------------------- the map

def test_the_maps_hottest_voxel_lies_in_the_asked_cell(desk, ct):
    desk.show(ct)
    for at in ((11.0, 6.0, -7.0), (-14.0, 12.0, 9.0)):
        desk.presenter.point_at(at)
        desk.settle()
        heat = desk.scene.GetNodeByID(desk.state.heat_id)
        shape, matrix = lattice_of(heat)
        values = array_of_image(heat.GetImageData())
        hottest = (matrix @ [*np.unravel_index(values.argmax(), shape), 1.0])[:3]
        # the answer's hot cell is the query's, one further along i in odd blocks
        cells = (np.linalg.inv(token_matrix()) @ [*at, 1.0])[:3].round() + [desk.state.layer % 2, 0, 0]
        cells %= np.array(SHAPE) // CELL
        assert np.abs(hottest - (token_matrix() @ [*cells, 1.0])[:3]).max() < 0.01


def test_a_finer_map_is_the_same_map():
    result = attended({"at": (3.0, 4.0, 5.0), "layers": [4], "heads": "mean", "kind": "encoder", "query": None})
    one = result.maps[0]
    fine = finer(one)
    factor = fine.shape[0] // one.weights.shape[0]
    assert factor % 2 == 1 and factor > 1
    middle = tuple(slice(factor // 2, None, factor) for _axis in range(3))
    assert np.allclose(fine.array[middle], one.weights * one.weights.size, rtol=1e-6)
    index = np.array([2, 1, 3])
    assert np.allclose((fine.ijk_to_ras @ [*(index * factor + factor // 2), 1.0]), one.ijk_to_ras @ [*index, 1.0])
    assert fine.array.max() == pytest.approx((one.weights * one.weights.size).max(), rel=1e-6)
    edges = [np.linalg.norm(fine.ijk_to_ras[:3, n]) * fine.shape[n] for n in range(3)]
    assert edges == pytest.approx([np.linalg.norm(one.ijk_to_ras[:3, n]) * one.weights.shape[n] for n in range(3)])


def test_what_two_maps_have_in_common():
    def one(array, shift=0.0):
        matrix = np.diag([4.0, 4, 4, 1])
        matrix[0, 3] = shift
        weights = np.asarray(array, np.float32)
        return AttentionMap(0, None, weights / weights.sum(), matrix)

    left, right = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    left[0], right[3] = 1, 1
    assert in_common(one(left), one(left)) == pytest.approx(1)
    assert in_common(one(left), one(right)) == pytest.approx(0)
    assert in_common(one(left), one(left + right)) == pytest.approx(0.5)
    assert in_common(one(left), one(right, -12.0)) == pytest.approx(1), "compared where they lie, not by index"


def test_block_head_and_look(desk, ct):
    desk.show(ct)
    asked = len(desk.asked())
    desk.presenter.set_head("2")
    desk.presenter.set_opacity(0.25)
    desk.presenter.set_threshold(0.5)
    assert len(desk.asked()) == asked, "no question is needed for these"
    node = desk.scene.GetNodeByID(desk.state.heat_id)
    display = node.GetDisplayNode()
    assert display.GetLowerThreshold() == pytest.approx(0.5 * display.GetWindowLevelMax())
    assert desk.state.legend[-1].value == pytest.approx(display.GetWindowLevelMax())
    assert [row.color for row in desk.state.legend] == [heat_color(share) for share in (0, 0.25, 0.5, 0.75, 1)]
    desk.presenter.set_smooth(False)
    assert node.GetImageData().GetDimensions() == tuple(n // CELL for n in SHAPE)
    assert display.GetInterpolate() == 0
    desk.presenter.set_layer(3)
    desk.settle()
    assert desk.asked()[-1]["layers"] == [3] and "Block 3" in desk.state.headline
    assert "Block 3 of 0 to 11" in desk.state.layer_text and desk.state.head == "2"


def test_rollout_has_no_heads_and_the_mask_head_other_layers(desk, ct):
    desk.show(ct)
    desk.presenter.set_head("1")
    desk.presenter.set_kind("rollout")
    desk.settle()
    assert desk.asked()[-1]["heads"] == "mean" and desk.asked()[-1]["kind"] == "rollout"
    assert [row.id for row in desk.state.heads] == ["mean"] and desk.state.head == "mean"
    desk.presenter.set_kind("head")
    desk.settle()
    assert desk.asked()[-1]["layers"] is None and len(desk.state.layers) == 2 and "Layer" in desk.state.layer_text


def test_a_block_that_says_nothing_is_not_the_first_one_shown(desk, ct, monkeypatch):
    import attention_helpers

    def flat_at_the_end(what, shift=0):
        result = attended(what, shift)
        for one in result.maps:
            if one.layer == 11:
                one.weights[:] = 1.0 / one.weights.size
        return result

    monkeypatch.setitem(attention_helpers.ANSWERS, "attend", flat_at_the_end)
    desk.show(ct)
    assert desk.state.layer == 8
    desk.presenter.set_layer(11)
    desk.settle()
    assert "almost evenly" in desk.state.detail


# --------------------------------------------------------------------------------------------------- comparing

def test_two_blocks_with_the_same_colors(desk, ct):
    desk.show(ct)
    desk.presenter.set_compare("layer")
    desk.presenter.set_other_layer(5)
    desk.settle()
    assert len(desk.asked()) == 1 and desk.state.other_layer == 5, "the first answer held both"
    desk.presenter.set_other_layer(4)
    desk.settle()
    assert desk.asked()[-1]["layers"] == [11, 4] and "in common" in desk.state.compare_sentence
    first, second = (desk.scene.GetNodeByID(id_) for id_ in (desk.state.heat_id, desk.state.other_heat_id))
    assert first.GetDisplayNode().GetWindowLevelMax() == second.GetDisplayNode().GetWindowLevelMax()
    shown = picture(desk.state.compare_picture)
    assert shown.shape[1] == 400 and shown.std() > 10
    desk.presenter.set_compare("none")
    assert desk.state.other_heat_id is None and desk.state.compare_picture == b""
    assert desk.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


def test_two_models(desk, ct):
    desk.show(ct)
    desk.presenter.set_compare("model")
    desk.tick(answer=False)
    assert desk.engine.looking.arguments["model"].key == OTHER.key
    desk.engine.answer(shift=2)
    desk.settle()
    assert desk.state.other_model_id == OTHER.key and OTHER.title in desk.state.compare_sentence
    assert desk.state.model_id != OTHER.key
    desk.presenter.point_at((5.0, 0.0, 0.0))
    desk.settle()
    assert [arguments["model"].id for arguments in desk.asked()[-2:]] == ["tiny", "second"]


def test_a_version_is_compared_with_what_it_came_from(scene):
    base, version = card(), dataclasses.replace(OTHER, adaptation={"parent": {"id": "tiny", "version": "1.0.0"}})
    third = dataclasses.replace(OTHER, id="third", title="Third")
    for own, wanted in ((version, base.key), (base, version.key)):
        desk = AttentionDesk(scene, cards=[third, base, version])
        desk.presenter.set_model(own.key)
        desk.presenter.set_compare("model")
        assert desk.state.other_model_id == wanted
        desk.presenter.close()


def test_side_by_side_in_two_views(desk, ct):
    logic = slicer.vtkMRMLLayoutLogic()
    logic.SetMRMLScene(desk.scene)
    layout = logic.GetLayoutNode()
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    desk.show(ct)
    assert not desk.state.side_by_side_available
    desk.presenter.set_compare("layer")
    desk.settle()
    assert desk.state.side_by_side_available
    desk.presenter.set_side_by_side(True)
    assert layout.GetViewArrangement() not in (0, layout.SlicerLayoutFourUpView)
    desk.presenter.leave()
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView
    desk.presenter.enter()
    assert layout.GetViewArrangement() != layout.SlicerLayoutFourUpView
    desk.presenter.press()
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView
    logic.SetMRMLScene(None)


# --------------------------------------------------------------------------------------------------- other questions

@pytest.fixture
def segmented(scene):
    """(desk with a Segment section that has a result, volume)."""
    segment = Desk(scene, cards=[card(), OTHER])
    volume = a_volume(scene)
    segment.start(volume)
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:10, 8:12, 4:8] = 1
    segment.engine.finish(labels)
    segment.tick()
    made = AttentionDesk(scene, segment=segment.presenter)
    yield made, volume, segment
    made.presenter.close()
    segment.presenter.close()


def test_volume_and_model_are_those_of_the_segment_section(segmented):
    desk, volume, segment = segmented
    assert desk.state.volume_id == volume.GetID() and desk.state.model_id == segment.state.model_id
    segment.presenter.set_model("second")
    assert desk.state.model_id == OTHER.key
    desk.presenter.set_model("tiny")
    assert desk.state.model_id == "tiny@1.0.0" and segment.state.model_id == OTHER.key
    segment.presenter.set_volume(None)
    assert desk.state.volume_id is None and not desk.state.button_enabled


def test_a_structure_is_asked_with_its_voxels_only(segmented):
    desk, volume, segment = segmented
    desk.presenter.set_query("structure")
    assert desk.state.structure == "liver" and [row.id for row in desk.state.structures][0] == "liver"
    desk.presenter.press()
    desk.settle()
    mask, shape = desk.asked()[-1]["mask"], desk.asked()[-1]["mask"].shape
    assert desk.asked()[-1]["at"] is None and shape == (6, 6, 6) and int(mask.array.sum()) == 64
    corner = (mask.ijk_to_ras @ [1, 1, 1, 1.0])[:3]
    assert corner == pytest.approx((lattice_of(volume)[1] @ [6, 8, 4, 1.0])[:3])
    assert desk.state.phase == "shown" and desk.state.point is None
    desk.presenter.set_query("point")
    desk.settle()
    assert desk.state.point is not None and desk.asked()[-1]["mask"] is None


def test_a_structure_that_was_drawn_again_is_asked_again(segmented):
    desk, _volume, _segment = segmented
    desk.presenter.set_query("structure")
    desk.presenter.press()
    desk.settle()
    desk.presenter.refresh()
    desk.settle()

    def drawn():
        return [int(arguments["mask"].array.sum()) for arguments in desk.asked()]

    assert drawn() == [64], "nothing changed: nothing is asked"
    segmentation = desk.scene.GetNodeByID(desk.state.segmentation_id).GetSegmentation()
    image = segmentation.GetSegment("liver").GetRepresentation(segmentation.GetSourceRepresentationName())
    voxels = array_of_image(image)
    voxels[...] = 0
    voxels[1, 1, 1] = 1
    image.Modified()
    desk.presenter.refresh()
    desk.settle()
    assert drawn() == [64, 1], "the map of the old drawing must not stand for the new one"


def test_another_network_begins_with_its_own_block(scene):
    other = replace(OTHER, network={**OTHER.network, "num_classes": 9})
    segment = Desk(scene, cards=[card(), other])
    volume = a_volume(scene)
    segment.start(volume)
    segment.engine.finish(np.zeros(SHAPE, np.uint8))
    segment.tick()
    desk = AttentionDesk(scene, cards=[card(), other], segment=segment.presenter)
    desk.presenter.press()
    desk.settle()
    desk.presenter.set_layer(7)
    desk.settle()
    segment.presenter.set_model("second")
    desk.presenter.tick()
    assert desk.state.model_id == other.key and desk.engine.looking.arguments["layers"] is None, \
        "block 7 of the first model may not exist here"
    desk.settle()
    desk.presenter.set_compare("model")
    desk.settle()
    assert desk.asked()[-1]["layers"] is None and desk.state.compare_sentence
    desk.presenter.close()
    segment.presenter.close()


def test_a_block_is_not_compared_with_itself(desk, ct):
    desk.show(ct)
    desk.presenter.set_other_layer(desk.state.layer)
    desk.settle()
    assert desk.state.compare_sentence == "Both are the same; choose another block." and not desk.state.compare_picture


def test_an_empty_structure_is_refused_in_words(segmented):
    desk, volume, segment = segmented
    desk.presenter.set_structure([row.id for row in desk.state.structures if row.id != "liver"][0])
    desk.presenter.press()
    desk.settle()
    assert desk.state.phase == "failed" and "no voxels" in desk.state.headline and desk.asked() == []


def test_cropping_keeps_place_and_number():
    array = np.zeros((9, 8, 7), np.uint8)
    assert crop(Volume(array, np.eye(4))) is None
    array[0, 3:5, 6] = 3
    small = crop(Volume(array, np.eye(4)))
    assert small.shape == (3, 4, 3) and small.array.sum() == 2 and tuple(small.ijk_to_ras[:3, 3]) == (-1, 2, 5)


def test_object_queries_are_listed_and_looked_at(desk, ct):
    desk.presenter.set_volume(ct)
    assert not next(row for row in desk.state.queries if row.id == "query").enabled
    desk.presenter.ask_inspect()
    assert desk.state.inspect_working
    desk.settle()
    rows = desk.state.inspect
    assert [row.number for row in rows][:2] == [1, 0], "who answers at the point comes first"
    assert rows[0].structure == "Liver" and rows[0].probability == pytest.approx(0.8) and rows[0].share == 0.8
    assert rows[0].made == ("Liver",) and rows[0].near_classes == ("2 (0.95)",)
    places = picture(desk.state.inspect_picture)
    color = next(label.color for label in desk.presenter.card.labels if label.id == "liver")
    liver = (places == color).all(axis=-1)
    assert places.shape[1] == 400 and liver[:, :200].sum() > 4 * 40 and liver[:, 200:].sum() > 4 * 40, "both plots"
    assert (places == (255, 64, 64)).all(axis=-1).any(), "the query that answers at the point is framed"
    desk.presenter.point_at((5.0, 5.0, 5.0))
    assert desk.state.inspect_picture == b"" and desk.state.inspect == (), "they were those of another place"
    desk.presenter.set_object_query(3)
    desk.settle()
    asked = desk.asked()[-1]
    assert (asked["query"], asked["kind"]) == (3, "head") and desk.state.query == "query"
    desk.presenter.set_kind("encoder")
    desk.settle()
    assert desk.state.query == "point" and desk.asked()[-1]["query"] is None


def test_ranks_are_told_and_drawn(desk, ct):
    desk.presenter.set_volume(ct)
    desk.presenter.ask_ranks()
    desk.settle()
    assert [row.rank for row in desk.state.rank] == [10.0 + n for n in range(DEPTH)]
    assert "from 10 (block 0) to 21 (block 11) of 96" in desk.state.rank_sentence
    shown = picture(desk.state.rank_picture)
    bars = [(shown[:, column] == (150, 84, 120)).all(axis=-1).sum() for column in range(shown.shape[1])]
    heights = [height for height in dict.fromkeys(bars) if height]
    assert heights == sorted(heights) and len(heights) > 6, "one bar is higher than the one before"


def test_all_heads_for_the_slice_on_screen(desk, ct, scene):
    _view, node = a_view(scene, ct)
    desk.show(ct)
    assert desk.state.heads_picture == b""
    desk.presenter.set_heads_wanted(True)
    before = picture(desk.state.heads_picture)
    assert before.shape[1] == 400
    node.SetSliceOffset(12.0)
    desk.presenter.tick()
    after = picture(desk.state.heads_picture)
    assert after.shape == before.shape and not np.array_equal(after, before), "another slice is another picture"
    # each head's hot cell is one further along j: the tiles differ from each other
    half = before.shape[1] // 3
    assert not np.array_equal(before[:, :half], before[:, half:2 * half])


def test_uncertainty_comes_with_confidence_and_goes(desk, ct, scene):
    view, _node = a_view(scene, ct)
    desk.show(ct)
    desk.presenter.ask_uncertainty()
    job = desk.engine.jobs[-1]
    assert job.operation == "uncertainty" and job.arguments["volume"].shape == SHAPE
    job._advance(0.5, "Tile 1 of 2")
    desk.presenter.tick()
    assert desk.state.uncertainty_working and "50 %" in desk.state.uncertainty_sentence
    import attention_helpers

    job._finish(attention_helpers.uncertain(job.arguments))
    desk.presenter.tick()
    assert [row.name for row in desk.state.confidence] == ["Spleen", "Liver"], "the least sure first"
    assert view.GetForegroundVolumeID() == desk.state.uncertainty_id and desk.state.uncertainty_shown
    assert desk.state.legend_title == "Uncertainty, 0 to 1" and desk.state.legend[-1].text == "1.0"
    assert "is unsure" in desk.state.headline and desk.state.meaning == "Sure in most places."
    desk.presenter.show_uncertainty(False)
    assert view.GetForegroundVolumeID() == desk.state.heat_id and desk.state.legend_title == "Times an even share"
    array_of_image(ct.GetImageData())[...] = 7
    ct.GetImageData().Modified()
    desk.presenter.refresh()
    desk.settle()
    assert desk.state.confidence == (), "it was that of other voxels"
    desk.presenter.ask_uncertainty()
    job = desk.engine.jobs[-1]
    job._finish(attention_helpers.uncertain(job.arguments))
    desk.presenter.tick()
    assert desk.state.confidence
    desk.presenter.set_model("second")
    assert desk.state.confidence == () and scene.GetNodeByID(desk.state.uncertainty_id or "") is None


def test_uncertainty_can_be_stopped(desk, ct):
    desk.show(ct)
    desk.presenter.ask_uncertainty()
    desk.presenter.ask_uncertainty()
    for _turn in range(3):
        desk.presenter.tick()
    assert not desk.state.uncertainty_working and desk.engine.jobs[-1].state == "cancelled"
    assert desk.state.confidence == ()


def test_a_click_starts_it(desk, ct):
    desk.presenter.set_volume(ct)
    desk.presenter.place_point()
    assert desk.state.placing and "Click" in desk.state.headline and desk.asked() == []
    point = desk.scene.GetNodeByID(desk.state.point_id)
    point.AddControlPointWorld(3.0, 4.0, 5.0)
    desk.scene.GetFirstNodeByClass("vtkMRMLInteractionNode").SwitchToViewTransformMode()
    desk.tick()
    desk.settle()
    assert desk.state.phase == "shown" and desk.asked()[-1]["at"] == pytest.approx([3.0, 4.0, 5.0])
    assert not desk.state.placing


@pytest.fixture(autouse=True)
def mouse(scene):
    """Mouse modes, as every Slicer has them."""
    logic = slicer.vtkMRMLApplicationLogic()
    logic.SetMRMLScene(scene)
    yield
    logic.SetMRMLScene(None)


# --------------------------------------------------------------------------------------------------- keeping, 3D

def test_a_kept_map_says_what_it_is(desk, ct):
    desk.show(ct)
    desk.presenter.set_head("1")
    desk.presenter.save()
    kept = desk.scene.GetNodeByID(desk.state.saved_id)
    assert desk.state.point == pytest.approx((0, 0, 0), abs=0.5) and desk.state.point_text == "R 0, A 0, S 0 mm"
    assert kept.GetName() == "CT attention of block 11, head 1, at R 0, A 0, S 0 mm"
    desk.presenter.point_at((12.0, -8.2, 3.0))
    assert desk.state.point_text == "R 12, P 8, S 3 mm", "as the library's sentences name a place"
    assert "times an even share" in kept.GetDescription() and kept.GetSaveWithScene()
    desk.presenter.press()
    assert kept.GetScene() is not None and desk.state.saved_id == kept.GetID()
    desk.scene.RemoveNode(kept)
    desk.presenter.node_removed(kept.GetID() or "")
    desk.presenter.node_removed(desk.state.saved_id)
    assert desk.state.saved_id is None


def test_3d_only_with_a_graphics_card_and_back_again(segmented):
    desk, volume, segment = segmented
    desk.presenter.press()
    desk.settle()
    assert not desk.state.surface_available
    desk.presenter.set_graphics(True)
    assert desk.state.surface_available
    result = desk.scene.GetNodeByID(segment.state.segmentation_id)
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    opacity = result.GetDisplayNode().GetOpacity3D()
    desk.presenter.set_surface(True)
    assert desk.state.surface and result.GetSegmentation().ContainsRepresentation(surface)
    assert result.GetDisplayNode().GetOpacity3D() < opacity
    assert desk.scene.GetNumberOfNodesByClass("vtkMRMLVolumeRenderingDisplayNode") == 1
    desk.presenter.press()
    assert not result.GetSegmentation().ContainsRepresentation(surface)
    assert result.GetDisplayNode().GetOpacity3D() == opacity
    for kind in ("vtkMRMLVolumeRenderingDisplayNode", "vtkMRMLVolumePropertyNode"):
        assert desk.scene.GetNumberOfNodesByClass(kind) == 0


# --------------------------------------------------------------------------------------------------- giving back

def test_views_are_given_back_on_hiding_leaving_saving_and_closing(desk, ct, scene):
    view, _node = a_view(scene, ct)
    other = node_from_volume(Volume(np.zeros((3, 3, 3), np.float32), np.eye(4), "PET"), scene)
    view.SetForegroundVolumeID(other.GetID())
    view.SetForegroundOpacity(0.3)

    def theirs():
        return view.GetForegroundVolumeID() == other.GetID() and view.GetForegroundOpacity() == 0.3

    desk.show(ct)
    heat = desk.state.heat_id
    for away, back in ((desk.presenter.leave, desk.presenter.enter),
                       (desk.presenter.scene_saving, desk.presenter.scene_saved)):
        away()
        assert theirs()
        back()
        assert view.GetForegroundVolumeID() == heat
    desk.presenter.press()
    assert theirs() and desk.state.phase == "off"
    desk.presenter.press()
    desk.settle()
    desk.presenter.close()
    assert theirs() and scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


def test_an_answer_after_leaving_takes_no_view(desk, ct, scene):
    view, _node = a_view(scene, ct)
    desk.show(ct)
    desk.presenter.point_at((9.0, 0.0, 0.0))
    desk.tick(answer=False)
    desk.presenter.leave()
    desk.settle()
    assert view.GetForegroundVolumeID() is None
    desk.presenter.enter()
    assert view.GetForegroundVolumeID() == desk.state.heat_id


def test_an_answer_after_hiding_is_dropped(desk, ct):
    desk.show(ct)
    desk.presenter.point_at((9.0, 0.0, 0.0))
    desk.tick(answer=False)
    job = desk.engine.looking
    desk.presenter.press()
    assert job.state in ("cancelling", "cancelled")
    desk.tick(answer=False)
    assert desk.state.phase == "off" and desk.state.heat_id is None and not desk.state.busy


def test_the_scene_is_closed_while_it_is_asked(desk, ct, scene):
    view, _node = a_view(scene, ct)
    view.SetForegroundOpacity(0.2)
    desk.show(ct)
    desk.presenter.set_layer(4)
    desk.tick(answer=False)
    desk.presenter.scene_closing()
    assert view.GetForegroundVolumeID() is None and view.GetForegroundOpacity() == 0.2
    scene.Clear(0)
    desk.presenter.scene_closed()
    desk.tick(answer=False)
    assert desk.state.phase == "off" and desk.state.point is None and not desk.state.busy
    desk.show(a_volume(scene, "the next patient"))
    assert desk.asked()[-1]["volume"].name == "the next patient"


def test_the_volume_is_deleted(desk, ct, scene):
    desk.show(ct)
    id_ = ct.GetID()
    scene.RemoveNode(ct)
    desk.presenter.node_removed(id_)
    assert desk.state.phase == "off" and desk.state.volume_id is None and desk.state.point_id is None
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


def test_a_deleted_point_leaves_the_map_until_there_is_another(desk, ct, scene):
    desk.show(ct)
    point = scene.GetNodeByID(desk.state.point_id)
    id_ = point.GetID()
    scene.RemoveNode(point)
    desk.presenter.node_removed(id_)
    assert desk.state.phase == "shown" and desk.state.point is None
    desk.presenter.point_at((1.0, 2.0, 3.0))
    desk.settle()
    assert desk.state.point == (1.0, 2.0, 3.0) and desk.state.phase == "shown"


def test_a_4d_or_broken_volume_is_refused_in_words(desk, scene):
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "no voxels")
    desk.presenter.set_volume(empty)
    assert not desk.state.button_enabled and "no voxels" in desk.state.button_tooltip
    with pytest.raises(InputError):
        lattice_of(empty)


def test_points_go_there_and_back(desk, ct):
    ct.SetAndObserveTransformNodeID(linear_transform(desk.scene).GetID())
    assert world_to_volume_ras(ct, volume_ras_to_world(ct, (1.0, 2.0, 3.0))) == pytest.approx((1.0, 2.0, 3.0))


def test_importing_it_imports_nothing_heavy():
    code = ("import sys, HiEndSegLib.presenter.attention\n"
            "heavy = {'numpy', 'scipy', 'torch', 'slicer', 'vtk'} & set(sys.modules)\n"
            "assert not heavy, heavy\n")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_color_bar_shows_what_is_drawn():
    from HiEndSegLib.pictures import color_bar
    from HiEndSegLib.presenter.attention_extras import heat_colors

    shown = picture(color_bar(heat_colors, top=10.0, floor=5.0))
    line = shown[8].astype(int)
    assert np.abs(line[385] - heat_color(1.0)).max() < 6 and (line[100] == (40, 43, 46)).all()
    assert (shown[18:] == (230, 230, 230)).all(axis=-1).any(), "numbers below"
