"""Charts and outlines: made once, filled in place, gone without a trace. Real MRML."""

from __future__ import annotations

import numpy as np
import pytest
from bridge_scene import (LEGEND, VALUE, ct, ct_volume, label_volume, linear_transform, scene,      # noqa: F401
                          slicer)

from HiEndSegLib.bridge.layers import read_segments
from HiEndSegLib.bridge.outlines import OUTLINE, add_outlines, remove_outlines
from HiEndSegLib.bridge.plots import Curve, chart_points, remove_chart, write_chart
from HiEndSegLib.bridge.results import mark_result, results_of
from HiEndSegLib.bridge.segmentations import segmentation_from_labels


def curves(loss, dice):
    return [Curve("Loss", loss, (200, 90, 60)), Curve("Dice", dice, (40, 120, 190), dots=True)]


def test_a_chart_is_filled_in_place_and_removed_as_a_whole(scene):                                  # noqa: F811
    before = scene.GetNumberOfNodes()
    chart = write_chart(scene, curves([], []), name="Adapting", x_title="Step", y_title="Share", y_range=(0, 1))
    made = scene.GetNumberOfNodes()
    again = write_chart(scene, curves([(1, 2.0), (2, 1.5), (3, 1.0)], [(3, 0.25)]), chart=chart, x_title="Step")
    assert again is chart and scene.GetNumberOfNodes() == made == before + 5
    assert chart_points(chart, 0) == [(1, 2.0), (2, 1.5), (3, 1.0)] and chart_points(chart, 1) == [(3, 0.25)]
    series = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
    assert [(one.GetXColumnName(), one.GetYColumnName()) for one in series] == [("Step", "Loss"), ("Step", "Dice")]
    assert all(one.GetTableNode().GetHideFromEditors() for one in series)
    assert chart.GetYAxisRangeAuto() is False and tuple(chart.GetYAxisRange()) == (0, 1)
    with pytest.raises(ValueError, match="no table for curve 2"):
        write_chart(scene, [*curves([], []), Curve("More", [], (0, 0, 0))], chart=chart)
    remove_chart(chart)
    assert scene.GetNumberOfNodes() == before
    remove_chart(chart)


def test_a_chart_survives_the_loss_of_a_series(scene):                                              # noqa: F811
    chart = write_chart(scene, curves([(1, 2.0)], []), x_title="Step")
    scene.RemoveNode(chart.GetNthPlotSeriesNode(1))
    remove_chart(chart)
    assert scene.GetNumberOfNodesByClass("vtkMRMLPlotSeriesNode") == 0
    assert scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0


def test_outlines_differ_in_style_lie_on_the_volume_and_go_again(scene, ct):                        # noqa: F811
    ct.SetAndObserveTransformNodeID(linear_transform(scene).GetID())
    result = segmentation_from_labels(label_volume(), LEGEND, ct)
    mark_result(result, "tiny@1.0.0")
    count = scene.GetNumberOfNodes()
    before = add_outlines(label_volume(), LEGEND, ct, "before", "old")
    after = add_outlines(label_volume(), LEGEND, ct, "after", "new")
    shown = [node.GetDisplayNode() for node in (before, after)]
    assert [(d.GetSliceIntersectionThickness(), d.GetOpacity2DOutline()) for d in shown] == [(1, 0.6), (3, 1.0)]
    assert not any(d.GetVisibility2DFill() or d.GetVisibility3D() for d in shown)
    assert all(d.GetVisibility2DOutline() and d.GetVisibility() for d in shown)
    assert np.array_equal(read_segments(after, ct, VALUE).array, label_volume().array)
    assert after.GetTransformNodeID() == ct.GetTransformNodeID()
    assert [node.GetAttribute(OUTLINE) for node in (before, after)] == ["before", "after"]
    assert results_of(ct) == [result] and before.GetHideFromEditors() and not before.GetSaveWithScene()
    assert remove_outlines(scene) == 2 and scene.GetNumberOfNodes() == count
    assert remove_outlines(scene) == 0 and result.GetScene() is scene
