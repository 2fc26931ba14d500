"""Correcting the result: choose a structure, paint, erase, cut; undo."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from .base import Panel

TOOLS = (("none", "Look", "mdi-cursor-default"), ("paint", "Paint", "mdi-brush"), ("erase", "Erase", "mdi-eraser"),
         ("scissors", "Scissors", "mdi-content-cut"))


class EditPanel(Panel):
    name, title, shown = "edit", "Correct", "seg_segmentation_id"

    def __init__(self, session: Any):
        super().__init__(session)
        self.state.update({"edit_rows": [], "edit_segment": "", "edit_tool": "none", "edit_can_undo": False,
                           "edit_can_redo": False, "edit_size": 8})
        self._editing: tuple | None = None

    def refresh(self) -> None:
        views = self.session.views
        stack = views.undo_stack
        state = self.session.segment.state
        wanted = (state.segmentation_id, state.volume_id)
        if state.segmentation_id and not state.busy and wanted != self._editing:
            self._open(*wanted)
        values = {"edit_can_undo": stack.can_undo(), "edit_can_redo": stack.can_redo()}
        if views.edited() is not None:
            values["edit_tool"], values["edit_segment"] = views.tool(), views.segment()
        for name, value in values.items():
            if self.state[name] != value:
                self.state[name] = value

    def _open(self, segmentation_id: str, volume_id: str) -> None:
        session = self.session
        if session.segment.make_editable() is None:
            return
        node, volume = (session.scene.GetNodeByID(id_) for id_ in (segmentation_id, volume_id))
        if node is None or volume is None:
            return
        self._editing = (segmentation_id, volume_id)
        session.views.edit(node, volume, session.segment.state.show_3d)
        segmentation = node.GetSegmentation()
        rows = []
        for index in range(segmentation.GetNumberOfSegments()):
            segment = segmentation.GetNthSegment(index)
            rows.append({"value": segmentation.GetNthSegmentID(index), "title": segment.GetName(),
                         "color": [round(255 * part) for part in segment.GetColor()]})
        self.state.edit_rows = rows

    def build(self) -> None:
        views = self.session.views
        v3.VSelect(label="Structure", items=("edit_rows",), model_value=("edit_segment",), density="compact",
                   hide_details=True, classes="mb-2", id="edit-segment",
                   update_modelValue=(views.set_segment, "[$event]"))
        with html.Div(classes="d-flex mb-2"):
            for tool, title, icon in TOOLS:
                v3.VBtn(title, prepend_icon=icon, size="small", classes="mr-1", id=f"edit-{tool}",
                        color=(f"edit_tool === '{tool}' ? 'primary' : undefined",),
                        click=(views.set_tool, f"['{tool}']"))
        with html.Div(classes="d-flex"):
            v3.VBtn("Undo", click=self.guarded(views.undo), disabled=("!edit_can_undo",), size="small",
                    classes="mr-1", id="edit-undo", prepend_icon="mdi-undo")
            v3.VBtn("Redo", click=self.guarded(views.redo), disabled=("!edit_can_redo",), size="small",
                    classes="mr-1", id="edit-redo", prepend_icon="mdi-redo")
            v3.VBtn("Measure again", click=self.session.segment.measure, size="small", id="edit-measure")
