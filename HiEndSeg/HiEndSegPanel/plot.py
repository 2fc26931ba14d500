"""A plot chart of the scene, drawn inside the panel: the person's own layout of views stays as it is."""

from __future__ import annotations

import logging

import slicer

#: Pixels.
HEIGHT = 200


class PlotInPanel:
    """layout: where the view goes. name: of its view node.

    The view is made when there is first something to show. Where none can be made, the texts beside it must do.
    """

    def __init__(self, layout, name):
        self._layout, self._name = layout, name
        self._view = self._nodeID = self._chartID = None
        self._possible = True

    @property
    def chartID(self):
        """What is shown, or None."""
        return self._chartID

    def show(self, chartID):
        """Show a vtkMRMLPlotChartNode, or nothing; safe when the chart has gone."""
        chart = slicer.mrmlScene.GetNodeByID(chartID) if chartID else None
        if chart is None:
            self.clear()
        elif self._possible and (chartID != self._chartID or self._node() is None):
            self.clear()
            try:
                self._begin(chart)
            except Exception:               # noqa: BLE001 - whatever a Slicer without plot views raises
                logging.exception("HiEndSeg: no plot view can be made")
                self._possible = False
                self.clear()

    def clear(self):
        """Let go of chart and node; the view stays for the next one."""
        node, self._nodeID, self._chartID = self._node(), None, None
        if self._view is not None:
            self._view.setVisible(False)
            self._view.setMRMLPlotViewNode(None)
        if node is not None:
            slicer.mrmlScene.RemoveNode(node)

    def close(self):
        self.clear()
        if self._view is not None:
            view, self._view = self._view, None
            view.setMRMLScene(None)
            self._layout.removeWidget(view)
            view.hide()
            view.deleteLater()

    def _node(self):
        return slicer.mrmlScene.GetNodeByID(self._nodeID) if self._nodeID else None

    def _begin(self, chart):
        if self._view is None:
            self._view = slicer.qMRMLPlotView()
            self._view.setMinimumHeight(HEIGHT)
            self._view.setMRMLScene(slicer.mrmlScene)
            self._layout.insertWidget(0, self._view)
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLPlotViewNode")
        node.UnRegister(None)
        node.SetName(self._name)
        node.SetLayoutName(self._name)
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node.SetDoPropagatePlotChartSelection(False)        # Slicer's own plot views show what is chosen elsewhere
        # before it is in the scene: a view node without an owner is the layout manager's, who makes a second view of it
        node.SetAndObserveParentLayoutNodeID(chart.GetID())
        slicer.mrmlScene.AddNode(node)
        self._nodeID, self._chartID = node.GetID(), chart.GetID()
        node.SetPlotChartNodeID(chart.GetID())
        self._view.setMRMLPlotViewNode(node)
        self._view.setVisible(True)
