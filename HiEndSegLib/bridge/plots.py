"""Curves as Slicer shows them: a table per curve, a plot series on it, and one chart that holds the series.

The nodes are made once and filled anew; a plot view that shows the chart redraws by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import slicer
import vtk

from .scene import unique_name

#: Attribute of the chart: "1" where it was made here. References from the chart to its tables, one per curve.
CHART = "HiEndSeg.Chart"
_TABLE = "HiEndSeg.ChartTable"


@dataclass(frozen=True)
class Curve:
    """name: in the legend and over the column. points: (x, y), x rising. color: (r, g, b), 0 to 255."""

    name: str
    points: Sequence[tuple[float, float]]
    color: tuple[int, int, int]
    dots: bool = False


def write_chart(scene, curves: Sequence[Curve], *, chart=None, name: str = "HiEndSeg chart", title: str = "",
                x_title: str = "", y_title: str = "", y_range: tuple[float, float] | None = None):
    """A vtkMRMLPlotChartNode of `curves`; `chart`, one made here, is filled anew instead (same number of curves).

    Each curve has a table of its own, so that one may have points where another has none. The tables and series are
    hidden from the lists of nodes; they and the chart go with `remove_chart`.
    """
    if chart is None:
        chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", unique_name(scene, name))
        chart.SetAttribute(CHART, "1")
        chart.SetTitle(title)
        chart.SetXAxisTitle(x_title)
        chart.SetYAxisTitle(y_title)
        if y_range is not None:
            chart.SetYAxisRangeAuto(False)
            chart.SetYAxisRange(*y_range)
        for curve in curves:
            _add_series(scene, chart, curve, x_title or "x")
    for index, curve in enumerate(curves):
        table = chart.GetNthNodeReference(_TABLE, index)
        if table is None:
            raise ValueError(f"the chart has no table for curve {index}, {curve.name}")
        _fill(table, curve, x_title or "x")
    return chart


def chart_points(chart, index: int) -> list[tuple[float, float]]:
    """(x, y) of the points of a chart's curve."""
    table = chart.GetNthNodeReference(_TABLE, index).GetTable()
    return [(table.GetValue(row, 0).ToDouble(), table.GetValue(row, 1).ToDouble())
            for row in range(table.GetNumberOfRows())]


def remove_chart(chart) -> None:
    """The chart with its series and tables. Views that show it are empty afterwards."""
    scene = chart.GetScene()
    if scene is None:
        return
    others = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
    others += [chart.GetNthNodeReference(_TABLE, n) for n in range(chart.GetNumberOfNodeReferences(_TABLE))]
    for node in [chart, *filter(None, others)]:
        scene.RemoveNode(node)


def _add_series(scene, chart, curve: Curve, x_title: str) -> None:
    table = scene.AddNewNodeByClass("vtkMRMLTableNode", unique_name(scene, f"{chart.GetName()}: {curve.name}"))
    series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", curve.name)
    for node in (table, series):
        node.SetHideFromEditors(True)
    table.SetUseColumnTitleAsColumnHeader(True)
    _fill(table, curve, x_title)
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName(x_title)
    series.SetYColumnName(curve.name)
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
    series.SetColor(*(part / 255 for part in curve.color))
    series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleSolid)
    series.SetLineWidth(2)
    series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle if curve.dots
                          else slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.AddNodeReferenceID(_TABLE, table.GetID())


def _fill(node, curve: Curve, x_title: str) -> None:
    columns = []
    for title, values in ((x_title, [x for x, _y in curve.points]), (curve.name, [y for _x, y in curve.points])):
        column = vtk.vtkDoubleArray()
        column.SetName(title)
        column.SetNumberOfValues(len(values))
        for row, value in enumerate(values):
            column.SetValue(row, float(value))
        columns.append(column)
    table = vtk.vtkTable()
    for column in columns:
        table.AddColumn(column)
    modified = node.StartModify()
    try:
        node.SetAndObserveTable(table)
    finally:
        node.EndModify(modified)
