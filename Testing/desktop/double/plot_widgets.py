"""A plot view on a real plot view node: lines only, drawn by Qt. Takes over the rules of Slicer's layout manager."""

from __future__ import annotations

import math

import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from .mrml_widgets import _watch

Signal = QtCore.Signal
_MARGIN = 26


class NoOwner(RuntimeError):
    """Slicer's layout manager would make a second, invisible view for this node; here a test shall fail."""


class qMRMLPlotView(QtWidgets.QWidget):
    """What PythonQt reaches of it: slots only; its getters are not invokable. Scene first, as it draws from there.

    Nodes are read when their events come, not when it is drawn: a change without an event is not seen, as in Slicer.
    """

    _stands_for_native = True
    SIGNALS = {"mrmlSceneChanged(vtkMRMLScene*)": "_sceneChanged"}
    _sceneChanged = Signal(object)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._scene = self._node = self._chart = None
        self._tags, self._chartTags, self._lines = [], [], []
        self.destroyed.connect(_watch.forget(self._tags))
        self.destroyed.connect(_watch.forget(self._chartTags))

    def setMRMLScene(self, scene):
        if scene is self._scene:
            return
        self._scene = scene
        if self._node is not None and self._node.GetScene() is not scene:
            self.setMRMLPlotViewNode(None)
        self._sceneChanged.emit(scene)

    def setMRMLPlotViewNode(self, node):
        if node is not None and not node.IsA("vtkMRMLPlotViewNode"):
            raise TypeError("a vtkMRMLPlotViewNode is wanted")
        if node is not None and (self._scene is None or node.GetScene() is not self._scene):
            raise RuntimeError("the plot view node is not in the view's scene: it would stay empty")
        if node is self._node:
            return
        _watch.forget(self._tags)()
        self._node = node
        if node is not None:
            for event in (node.PlotChartNodeChangedEvent, vtk.vtkCommand.ModifiedEvent):
                _watch.watch(self._tags, node, event, self._chartChanged)
        self._chartChanged()

    def fitToContent(self):
        self.update()

    def RemovePlotSelections(self):
        pass

    def _chartChanged(self, caller=None, event=None):
        chart = None if self._node is None or self._scene is None else self._node.GetPlotChartNode()
        if chart is not self._chart:
            _watch.forget(self._chartTags)()
            self._chart = chart
            if chart is not None:
                _watch.watch(self._chartTags, chart, vtk.vtkCommand.ModifiedEvent, self._moved)
        self._moved()

    def _moved(self, caller=None, event=None):
        self._lines = self._read()
        self.update()

    def _read(self):
        """(name, color, points) of every series that can be drawn, as the genuine view picks them."""
        if self._chart is None:
            return []
        found = []
        for number in range(self._chart.GetNumberOfPlotSeriesNodes()):
            series = self._chart.GetNthPlotSeriesNode(number)
            table = None if series is None else series.GetTableNode()
            if table is None:
                continue
            x, y = (table.GetTable().GetColumnByName(name or "") for name in
                    (series.GetXColumnName(), series.GetYColumnName()))
            if y is None or x is None:
                continue
            if "string" in (x.GetDataTypeAsString(), y.GetDataTypeAsString()):
                raise TypeError("a plot's columns must be numbers")
            points = [(x.GetTuple1(n), y.GetTuple1(n)) for n in range(y.GetNumberOfTuples())]
            found.append((series.GetName(), series.GetColor(), [p for p in points if all(map(math.isfinite, p))]))
        return found

    def paintEvent(self, event):
        painter, series = QtGui.QPainter(self), self._lines
        painter.fillRect(self.rect, QtGui.QColor(255, 255, 255))
        everything = [point for _name, _color, points in series for point in points]
        if everything:
            low = [min(p[axis] for p in everything) for axis in range(2)]
            high = [max(p[axis] for p in everything) for axis in range(2)]
            if not self._chart.GetYAxisRangeAuto():
                low[1], high[1] = self._chart.GetYAxisRange()
            width, height = self.width - 2 * _MARGIN, self.height - 2 * _MARGIN
            scale = [size / ((b - a) or 1.0) for size, a, b in zip((width, height), low, high)]
            painter.drawRect(_MARGIN, _MARGIN, width, height)
            painter.drawText(2, _MARGIN + 4, f"{high[1]:.2g}")
            painter.drawText(2, _MARGIN + height, f"{low[1]:.2g}")
            painter.drawText(_MARGIN, self.height - 8, f"{self._chart.GetXAxisTitle() or ''} {low[0]:g}–{high[0]:g}")
            for row, (name, color, points) in enumerate(series):
                painter.setPen(QtGui.QPen(QtGui.QColor(*[int(255 * part) for part in color]), 2))
                painter.drawText(_MARGIN + 6, _MARGIN + 16 + 14 * row, name or "")
                places = [QtCore.QPointF(_MARGIN + (a - low[0]) * scale[0],
                                         _MARGIN + height - (b - low[1]) * scale[1]) for a, b in points]
                for first, second in zip(places, places[1:] or places):
                    painter.drawLine(first, second)
        painter.end()


def watch_layout(scene):
    """The layout manager's part: a plot view node that nobody owns when it comes into the scene."""
    @vtk.calldata_type(vtk.VTK_OBJECT)
    def added(caller, event, node):
        if node.IsA("vtkMRMLPlotViewNode") and node.GetParentLayoutNode() is None:
            raise NoOwner("SetAndObserveParentLayoutNodeID comes before AddNode")
    return scene.AddObserver(scene.NodeAddedEvent, added)


OFFERED = (qMRMLPlotView,)
