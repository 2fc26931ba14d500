"""The result's row: Show 3D, Edit, Undo, and the table of volumes."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from .widgets import Connections, fillTable

#: Rows of the table that are seen without scrolling.
MOST_ROWS = 9


class ResultRow:
    """editor: the `EmbeddedEditor` that Edit opens."""

    def __init__(self, ui, presenter, editor):
        self.ui, self.presenter, self._editor = ui, presenter, editor
        self._shown = None
        self._connections = Connections((ui.editButton, self.onEdit), (ui.undoButton, self.onUndo),
                                        (ui.redoButton, self.onRedo), (ui.copyTableButton, self.onCopy))
        ui.resultTable.verticalHeader().setVisible(False)
        presenter.changed.connect(self.show)
        self.show()

    def close(self):
        self.presenter.changed.disconnect(self.show)
        self._connections.close()
        self.ui.show3DButton.setSegmentationNode(None)

    def onEdit(self):
        with slicer.util.tryWithErrorDisplay(_("The result cannot be edited."), waitCursor=True):
            ids = self.presenter.make_editable()
            if ids is not None:
                self._editor.open(*ids)

    def onUndo(self):
        with slicer.util.tryWithErrorDisplay(_("This cannot be undone."), waitCursor=True):
            self.presenter.undo()

    def onRedo(self):
        with slicer.util.tryWithErrorDisplay(_("This cannot be done again."), waitCursor=True):
            self.presenter.redo()

    def onCopy(self):
        table = self.ui.resultTable
        rows = [[table.horizontalHeaderItem(column).text() for column in range(table.columnCount)]]
        rows += [[table.item(row, column).text() for column in range(table.columnCount)]
                 for row in range(table.rowCount)]
        slicer.app.clipboard().setText("\n".join("\t".join(row) for row in rows))

    def show(self):
        state = self.presenter.state
        key = (state.segmentation_id, state.table_id, state.undo_available, state.redo_available, state.phase)
        if key == self._shown:
            return
        self._shown = key
        ui, scene = self.ui, slicer.mrmlScene
        segmentation = scene.GetNodeByID(state.segmentation_id) if state.segmentation_id else None
        ui.resultBox.setVisible(segmentation is not None)
        ui.show3DButton.setSegmentationNode(segmentation)
        ui.editButton.setEnabled(not state.busy)
        ui.undoButton.setVisible(state.undo_available or state.redo_available)
        ui.redoButton.setVisible(state.undo_available or state.redo_available)
        ui.undoButton.setEnabled(state.undo_available)
        ui.redoButton.setEnabled(state.redo_available)
        self._showTable(scene.GetNodeByID(state.table_id) if state.table_id else None)

    def _showTable(self, node):
        ui, table = self.ui, self.ui.resultTable
        ui.tableBox.setVisible(node is not None)
        if node is None:
            return
        columns, rows = range(node.GetNumberOfColumns()), range(node.GetNumberOfRows())
        fillTable(table, [node.GetColumnName(column) for column in columns],
                  [[node.GetCellText(row, column) for column in columns] for row in rows], MOST_ROWS)
