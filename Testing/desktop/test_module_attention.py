"""The Attention section in the panel: with an engine that answers at once, and once with the real one."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from double import pythonqt


def looking_engine():
    """The panel tests' quick engine that can be looked into too: most attention goes to the query's own cell."""
    from HiEndSegLib.operations.attend_result import (AttentionMap, AttentionResult, LayerRank, QueriesResult,
                                                      QueryView, UncertaintyResult)
    from HiEndSegPanel.scenarios import QuickEngine

    class LookingEngine(QuickEngine):
        asked, kept, answers = 0, None, True

        def _pump(self, timeout):
            if self.answers:
                super()._pump(timeout)

        def _attendAnswer(self, volume, at, layers, heads, kind, query, **others):
            self.asked += 1
            self.kept = volume if volume is not None else self.kept
            cell, depth = 4, 12
            own = np.diag([cell, cell, cell, 1.0])
            own[:3, 3] = (cell - 1) / 2
            matrix = self.kept.ijk_to_ras @ own
            grid = tuple(max(1, n // cell) for n in self.kept.shape)
            point = tuple(at or (self.kept.ijk_to_ras @ [*(n / 2 for n in self.kept.shape), 1.0])[:3])
            index = np.clip(np.round((np.linalg.inv(matrix) @ [*point, 1.0])[:3]).astype(int), 0, np.array(grid) - 1)
            maps = []
            for layer in layers or (2, 5, 8, 11):
                for head in [None] if heads == "mean" else [None, 0, 1, 2]:
                    far = np.linalg.norm(np.moveaxis(np.indices(grid), 0, -1) - index - [0, head or 0, 0], axis=-1)
                    weights = np.exp(-far / (1 + layer / 6)).astype(np.float32)
                    maps.append(AttentionMap(layer, head, weights / weights.sum(), matrix, f"Block {layer} speaks."))
            shares = np.zeros(grid, np.float32)
            shares[tuple(index)] = 1
            return AttentionResult(kind, maps, point, shares, matrix, self.kept.ijk_to_ras, self.kept.shape, depth, 3,
                                   query, {}, ["Brighter means more."])

        def _ranksAnswer(self, **others):
            return [LayerRank(n, 5.0 + n, 96, []) for n in range(12)]

        def _inspect_queriesAnswer(self, at, **others):
            views = [QueryView(n, [("liver", 0.9 - n / 10)], 9, [], [(1 - n, 0.5)], [(1 - n, 0.4)], (0, 0, 0, 0))
                     for n in range(2)]
            return QueriesResult(views, [(1, 0.7), (0, 0.3)], "liver", {}, tuple(at), {}, ["Query 1 answers here."])

        def _uncertaintyAnswer(self, volume, **others):
            entropy = np.linspace(0, 1, volume.array.size, dtype=np.float32).reshape(volume.shape)
            return UncertaintyResult(volume.with_array(entropy), [
                {"id": "liver", "name": "Liver", "voxels": 9, "confidence": 0.75, "unsure": 0.1, "entropy": 0.2}], {},
                ["Sure in most places."])

    return LookingEngine()


@pytest.fixture
def engine(desk):
    from HiEndSegPanel import machine

    quick = looking_engine()
    desk.panel.sections.setEngine(quick)
    desk.ui.attentionSection.collapsed = False
    yield quick
    quick.answers = True
    begin_again(desk)
    desk.ui.attentionSection.collapsed = True
    desk.panel.sections.setEngine(machine.engine())


def begin_again(desk):
    """Choices as a fresh panel has them."""
    looking = attention(desk)
    looking.hide()
    looking.set_compare("none")
    looking.set_heads_wanted(False)
    looking.set_side_by_side(False)
    looking.set_kind("encoder")
    looking.set_query("point")
    looking.set_head("mean")


@pytest.fixture
def volume(desk, engine):
    from HiEndSegPanel.scenarios import sampleVolume

    node = sampleVolume(size=(32, 30, 16))
    desk.choose(node)
    return node


@pytest.fixture
def view(desk):
    """A slice view, gone afterwards: the stand-in has none of its own."""
    import acts

    yield acts.slice_view(desk)
    for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
        node = desk.scene.GetSingletonNode("Red", kind)
        if node is not None:
            desk.scene.RemoveNode(node)


def attention(desk):
    return desk.panel.sections.attention


def settle(desk, seconds=10):
    assert desk.until(lambda: not attention(desk).state.busy and attention(desk).state.phase != "starting", seconds), \
        attention(desk).state.headline
    return attention(desk).state


def show(desk):
    desk.ui.attentionButton.click()
    state = settle(desk)
    assert state.phase == "shown", state.headline
    return state


def middle(volume):
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    return [(bounds[2 * n] + bounds[2 * n + 1]) / 2 for n in range(3)]


def test_without_a_volume_the_button_says_what_to_do(desk, engine):
    assert not desk.ui.attentionButton.enabled and "volume" in desk.ui.attentionButton.toolTip.lower()
    assert desk.ui.attentionHeadline.text and not desk.ui.attentionResultRow.visible


def test_the_map_comes_and_everything_is_as_before_when_it_goes(desk, volume, view):
    other = desk.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "theirs")
    view.SetBackgroundVolumeID(volume.GetID())
    view.SetForegroundVolumeID(other.GetID())
    view.SetForegroundOpacity(0.25)
    before = desk.count("vtkMRMLScalarVolumeNode")
    state = show(desk)
    assert view.GetForegroundVolumeID() == state.heat_id and view.GetForegroundOpacity() == pytest.approx(0.5)
    for selector in (desk.ui.volumeSelector, desk.ui.adaptVolumeSelector):
        titles = [selector.nodeFromIndex(n).GetName() for n in range(selector.nodeCount())]
        assert "Attention" not in titles and "Sample" in titles
    assert desk.segment.state.volume_id == volume.GetID()
    assert desk.ui.attentionLayerSlider.maximum == 11 and desk.ui.attentionLayerSlider.value == state.layer
    assert [button.text for button, _f in desk.panel.sections._attentionSection._taps._buttons] == ["2", "5", "8", "11"]
    assert desk.ui.attentionLegend.visible and desk.ui.attentionLegend.pixmap.width() == 400
    desk.ui.attentionOpacitySlider.setValue(30)
    assert view.GetForegroundOpacity() == pytest.approx(0.3)
    desk.picture("attention", volume)
    desk.exit()
    assert view.GetForegroundVolumeID() == other.GetID() and view.GetForegroundOpacity() == 0.25
    desk.enter()
    assert view.GetForegroundVolumeID() == state.heat_id
    desk.ui.attentionOpacitySlider.setValue(50)
    desk.ui.attentionButton.click()
    assert view.GetForegroundVolumeID() == other.GetID() and view.GetForegroundOpacity() == 0.25
    assert desk.count("vtkMRMLScalarVolumeNode") == before and not desk.ui.attentionResultRow.visible


def test_dragging_keeps_one_question_in_flight_and_the_latest_wins(desk, engine, volume):
    show(desk)
    point, asked = desk.node(attention(desk).state.point_id), engine.asked
    engine.answers = False
    start = middle(volume)
    for step in range(20):
        point.SetNthControlPointPositionWorld(0, start[0] + step, start[1], start[2])
        desk.app.processEvents()
    engine.answers = True
    state = settle(desk)
    assert engine.asked - asked <= 3, "one was under way, the last one came after it"
    assert state.point[0] == pytest.approx(start[0] + 19)
    assert f"R {start[0] + 19:.0f}" in desk.ui.attentionPointText.text


def test_block_head_and_threshold(desk, engine, volume):
    show(desk)
    desk.ui.attentionLayerSlider.setValue(3)
    state = settle(desk)
    assert state.layer == 3 and "Block 3" in desk.ui.attentionLayerText.text
    assert "Block 3 speaks." in desk.ui.attentionHeadline.text
    desk.press(desk.ui.attentionLayerRow, "5")
    assert settle(desk).layer == 5 and desk.ui.attentionLayerSlider.value == 5
    asked = engine.asked
    desk.ui.attentionHeadBox.setCurrentIndex(2)
    assert attention(desk).state.head == "1" and engine.asked == asked, "all heads are there already"
    desk.ui.attentionThresholdSlider.setValue(50)
    display = desk.node(state.heat_id).GetDisplayNode()
    assert display.GetLowerThreshold() == pytest.approx(0.5 * display.GetWindowLevelMax())
    desk.ui.attentionSmoothBox.setChecked(False)
    assert desk.node(state.heat_id).GetImageData().GetDimensions() == (8, 7, 4)


def test_a_click_is_awaited_and_given_back(desk, volume):
    show(desk)
    mouse = desk.scene.GetFirstNodeByClass("vtkMRMLInteractionNode")
    before = mouse.GetCurrentInteractionMode()
    desk.ui.attentionPlaceButton.click()
    assert attention(desk).state.placing and desk.ui.attentionPlaceButton.checked
    assert "Click" in desk.ui.attentionHeadline.text
    point = desk.node(attention(desk).state.point_id)
    point.AddControlPointWorld(*middle(volume))
    mouse.SwitchToViewTransformMode()
    assert desk.until(lambda: not desk.ui.attentionPlaceButton.checked, 5)
    assert settle(desk).phase == "shown" and mouse.GetCurrentInteractionMode() == before


def test_pictures_ranks_queries_and_uncertainty(desk, volume, view):
    view.SetBackgroundVolumeID(volume.GetID())
    state = show(desk)
    desk.ui.attentionMoreBox.collapsed = False
    desk.ui.attentionCompareBox.collapsed = False
    desk.ui.attentionHeadsBox.setChecked(True)
    assert desk.ui.attentionHeadsPicture.pixmap.width() == 400
    desk.ui.attentionCompareKindBox.setCurrentIndex(1)
    desk.ui.attentionOtherLayerSlider.setValue(11)
    settle(desk)
    assert "in common" in desk.ui.attentionCompareSentence.text
    assert desk.ui.attentionComparePicture.pixmap.width() == 400
    desk.ui.attentionRankButton.click()
    settle(desk)
    assert desk.ui.attentionRankPicture.pixmap.width() == 400 and "of 96" in desk.ui.attentionRankSentence.text
    desk.ui.attentionInspectButton.click()
    settle(desk)
    rows = desk.ui.attentionInspectList
    assert rows.topLevelItemCount == 2 and rows.topLevelItem(0).text(0) == "Query 1"
    assert desk.ui.attentionInspectPicture.pixmap.width() == 400
    rows.itemClicked.emit(rows.topLevelItem(0), 0)
    assert settle(desk).object_query == 1 and attention(desk).state.kind == "head"
    desk.ui.attentionUncertaintyButton.click()
    state = settle(desk)
    assert view.GetForegroundVolumeID() == state.uncertainty_id != state.heat_id
    assert desk.ui.attentionConfidenceList.topLevelItem(0).text(1) == "75 %"
    desk.picture("attention-more", volume)
    desk.ui.attentionUncertaintyBox.setChecked(False)
    assert view.GetForegroundVolumeID() == attention(desk).state.heat_id
    desk.ui.attentionMoreBox.collapsed = True
    desk.ui.attentionCompareBox.collapsed = True


def test_a_kept_map_is_an_ordinary_volume(desk, volume):
    show(desk)
    before = desk.count("vtkMRMLScalarVolumeNode")
    desk.ui.attentionSaveButton.click()
    kept = desk.node(attention(desk).state.saved_id)
    assert desk.count("vtkMRMLScalarVolumeNode") == before + 1 and "attention of block" in kept.GetName()
    desk.ui.attentionButton.click()
    assert kept.GetScene() is desk.scene and "even share" in kept.GetDescription()


def test_there_is_no_3d_without_a_graphics_card(desk, volume):
    show(desk)
    assert not desk.ui.attentionSurfaceBox.visible, "the stand-in has no 3D view"


def test_closing_the_scene_leaves_nothing(desk, engine, volume, view):
    view.SetBackgroundVolumeID(volume.GetID())
    show(desk)
    engine.answers = False
    attention(desk).set_layer(4)
    desk.scene.Clear(0)
    engine.answers = True
    state = settle(desk)
    assert state.phase == "off" and state.heat_id is None and not desk.ui.attentionButton.enabled
    assert view.GetForegroundVolumeID() is None and view.GetForegroundOpacity() == 0.0
    desk.until(lambda: False, 0.2)
    for kind in ("vtkMRMLScalarVolumeNode", "vtkMRMLMarkupsNode", "vtkMRMLColorLegendDisplayNode"):
        assert desk.count(kind) == 0, kind


def test_deleting_the_volume_hides_the_map(desk, volume):
    show(desk)
    desk.scene.RemoveNode(volume)
    state = settle(desk)
    assert state.phase == "off" and desk.count("vtkMRMLScalarVolumeNode") == 0


def test_closing_the_panel_lets_go(desk, volume):
    from HiEndSegPanel.attention import AttentionSection

    pixels = [pythonqt.connection_count(widget) for widget in (desk.ui.attentionButton, desk.ui.attentionLayerSlider)]
    show(desk)
    desk.panel._closeSections()
    assert desk.count("vtkMRMLMarkupsNode") == 0
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, AttentionSection)]
    desk.panel._makeSections()
    assert pixels == [pythonqt.connection_count(widget)
                      for widget in (desk.ui.attentionButton, desk.ui.attentionLayerSlider)]


def test_the_shipped_model_on_the_shipped_sample(desk):
    """Real engine, real model, real CT: what `acts.attend` plays."""
    import acts
    from HiEndSegPanel.scenarios import sampleVolume

    acts.attend(desk, sampleVolume())
