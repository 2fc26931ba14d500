"""The result: the table of volumes, surfaces, undo of a run, and what can be downloaded."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from .. import downloads
from .base import Panel


class ResultPanel(Panel):
    name, title, shown = "results", "Result", "seg_segmentation_id"

    def __init__(self, session: Any):
        super().__init__(session)
        self.state.update({"res_columns": [], "res_rows": [], "res_formats": []})
        self._shown: Any = None

    def refresh(self) -> None:
        state = self.session.segment.state
        node = self.session.scene.GetNodeByID(state.table_id) if state.table_id else None
        key = (state.table_id, node.GetTable().GetMTime() if node is not None else 0, state.segmentation_id)
        if key == self._shown:
            return
        self._shown = key
        columns = range(node.GetNumberOfColumns()) if node is not None else ()
        rows = range(node.GetNumberOfRows()) if node is not None else ()
        self.state.res_columns = [node.GetColumnName(column) for column in columns]
        self.state.res_rows = [[node.GetCellText(row, column) for column in columns] for row in rows]
        self.state.res_formats = downloads.offered(self.session)

    def build(self) -> None:
        with html.Div(classes="d-flex flex-wrap mb-2"):
            v3.VBtn("{{ seg_show_3d ? 'Hide 3D' : 'Show 3D' }}", click=(self.on_3d, "[]"), size="small", classes="mr-1",
                    id="res-3d", color=("seg_show_3d ? 'primary' : undefined",))
            v3.VBtn("Undo", click=(self.on_step, "['undo']"), size="small", classes="mr-1", id="res-undo",
                    v_if=("seg_undo_available",), title="Bring back what the last run replaced")
            v3.VBtn("Redo", click=(self.on_step, "['redo']"), size="small", v_if=("seg_redo_available",), id="res-redo")
        with html.Table(classes="hes-table", style="width: 100%", v_if=("res_rows.length",), id="res-table"):
            with html.Thead(), html.Tr():
                html.Th("{{ column }}", v_for="column in res_columns", key="column")
            with html.Tbody(), html.Tr(v_for="(row, index) in res_rows", key="index"):
                html.Td("{{ cell }}", v_for="(cell, column) in row", key="column")
        html.Div("Download", classes="mt-3 mb-1 font-weight-medium")
        with html.Div(classes="d-flex flex-wrap"):
            v3.VBtn("{{ format.title }}", v_for="format in res_formats", key="format.id", size="small",
                    classes="mr-1 mb-1", href=("'/download/' + format.id",), raw_attrs=['download=""'],
                    id=("'download-' + format.id",))

    def on_3d(self) -> None:
        presenter, views = self.session.segment, self.session.views
        on = not presenter.state.show_3d
        views.keep_3d(on)
        presenter.set_show_3d(on)
        if on:
            views.fit_3d()

    def on_step(self, which: str) -> None:
        """A whole run back or forth; single corrections before it cannot be taken back one by one any more."""
        self.session.views.forget_steps()
        {"undo": self.session.segment.undo, "redo": self.session.segment.redo}[which]()

    def add_routes(self, app: Any) -> None:
        downloads.add_routes(app, self.session)
