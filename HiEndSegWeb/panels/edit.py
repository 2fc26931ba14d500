"""Correcting the result: choose a structure, paint, erase, cut; undo."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from HiEndSegLib.errors import InputError

from .base import Panel

TOOLS = (("none", "Look", "mdi-cursor-default"), ("paint", "Paint", "mdi-brush"), ("erase", "Erase", "mdi-eraser"),
         ("scissors", "Cut", "mdi-content-cut"))
CUTS = (("erase", "Erase what is drawn around"), ("keep", "Keep only what is drawn around"),
        ("fill", "Fill what is drawn around"))
#: Millimeters of the brush: least, most, at first; how much a key changes it.
BRUSH, FACTOR = (2, 60, 10), 1.25


class EditPanel(Panel):
    name, title, shown = "edit", "Correct", "seg_segmentation_id"

    def __init__(self, session: Any):
        super().__init__(session)
        self.state.update({"edit_rows": [], "edit_segment": "", "edit_tool": "none", "edit_can_undo": False,
                           "edit_can_redo": False, "edit_size": BRUSH[2], "edit_sphere": False, "edit_cut": "erase",
                           "edit_one_slice": True, "edit_name": ""})
        self._volume_id: str | None = None
        self._was_busy = False
        self._listed: tuple = ()

    def refresh(self) -> None:
        session, views = self.session, self.session.views
        state = session.segment.state
        node = session.scene.GetNodeByID(state.segmentation_id or "")
        if self._was_busy and not state.busy:
            views.forget_steps()                    # a run has changed what the tools' steps would bring back
        self._was_busy = state.busy
        if node is None and views.edited() is not None:
            views.end_editing()
        elif node is not None and not state.busy and (node is not views.edited()
                                                      or state.volume_id != self._volume_id):
            self._open(state.volume_id)
        if node is not None:
            self._list(node)
        self.set_state(edit_can_undo=views.undo_stack.can_undo(), edit_can_redo=views.undo_stack.can_redo(),
                       edit_tool=views.tool(), edit_segment=views.segment())

    def _open(self, volume_id: str) -> None:
        session = self.session
        ids = session.segment.make_editable()
        if ids is None:
            return
        node, volume = (session.scene.GetNodeByID(id_) for id_ in ids)
        self._volume_id = volume_id
        session.views.edit(node, volume, session.segment.state.show_3d)
        self.set_brush()
        self.set_scissors()

    def _list(self, node: Any) -> None:
        """Names and colors of the segments, when they are others."""
        segmentation = node.GetSegmentation()
        key = (node.GetID(), segmentation.GetMTime())
        if key == self._listed:
            return
        self._listed = key
        rows = []
        for index in range(segmentation.GetNumberOfSegments()):
            segment = segmentation.GetNthSegment(index)
            rows.append({"value": segmentation.GetNthSegmentID(index), "title": segment.GetName(),
                         "color": [round(255 * part) for part in segment.GetColor()]})
        self.set_state(edit_rows=rows)

    # ------------------------------------------------------------------------------------------ tools

    def add(self) -> None:
        """A structure of the person's own, to draw and to teach. Raises InputError."""
        name = " ".join(self.state.edit_name.split())[:60]
        if not name:
            raise InputError("Give the new structure a name first.")
        if any(row["title"].lower() == name.lower() for row in self.state.edit_rows):
            raise InputError(f'There is a structure "{name}" already; choose it in the list, or give another name.')
        self.session.views.add_segment(name)
        self.state.edit_name = ""

    def set_brush(self, size: float | None = None, sphere: bool | None = None) -> None:
        low, high, _ = BRUSH
        size = min(max(float(self.state.edit_size if size is None else size), low), high)
        self.set_state(edit_size=round(size, 1), edit_sphere=self.state.edit_sphere if sphere is None else bool(sphere))
        self.session.views.set_brush(size, self.state.edit_sphere)

    def resize_brush(self, larger: bool) -> None:
        self.set_brush(self.state.edit_size * (FACTOR if larger else 1 / FACTOR))

    def set_scissors(self, cut: str | None = None, one_slice: bool | None = None) -> None:
        cut = self.state.edit_cut if cut not in dict(CUTS) else cut
        self.set_state(edit_cut=cut,
                       edit_one_slice=self.state.edit_one_slice if one_slice is None else bool(one_slice))
        self.session.views.set_scissors(cut, self.state.edit_one_slice)

    def build(self) -> None:
        views = self.session.views
        v3.VSelect(label="Structure", items=("edit_rows",), model_value=("edit_segment",), density="compact",
                   hide_details=True, classes="mb-2", id="edit-segment",
                   update_modelValue=(views.set_segment, "[$event]"))
        with html.Div(classes="d-flex align-center mb-2"):
            v3.VTextField(label="New structure", v_model=("edit_name",), density="compact", hide_details=True,
                          id="edit-name", classes="mr-2", maxlength=60)
            v3.VBtn("Add", click=self.guarded(self.add), size="small", disabled=("!edit_name.trim()",), id="edit-add")
        with html.Div(classes="d-flex mb-2"):
            for tool, title, icon in TOOLS:
                v3.VBtn(title, prepend_icon=icon, size="small", classes="mr-1", id=f"edit-{tool}",
                        color=(f"edit_tool === '{tool}' ? 'primary' : undefined",),
                        raw_attrs=[f':aria-pressed="edit_tool === \'{tool}\'"'],
                        click=(views.set_tool, f"['{tool}']"))
        with html.Div(v_if=("edit_tool === 'paint' || edit_tool === 'erase'",), classes="mb-2"):
            v3.VSlider(label="Brush, mm", model_value=("edit_size",), min=BRUSH[0], max=BRUSH[1], step=1,
                       hide_details=True, density="compact", thumb_label=True, id="edit-size",
                       raw_attrs=['aria-label="Brush, mm"'],
                       update_modelValue=(self.set_brush, "[$event]"))
            with html.Label(classes="d-flex align-center"):
                html.Input(type="checkbox", checked=("edit_sphere",), classes="mr-2", id="edit-sphere",
                           change=(self.set_brush, "[edit_size, $event.target.checked]"))
                html.Span("Also in the neighboring slices (a ball)")
        with html.Div(v_if=("edit_tool === 'scissors'",), classes="mb-2"):
            v3.VSelect(label="Draw around something to", model_value=("edit_cut",), density="compact",
                       items=("edit_cuts", [{"value": value, "title": title} for value, title in CUTS]),
                       hide_details=True, update_modelValue=(self.set_scissors, "[$event]"), id="edit-cut")
            with html.Label(classes="d-flex align-center"):
                html.Input(type="checkbox", checked=("edit_one_slice",), classes="mr-2", id="edit-one-slice",
                           change=(self.set_scissors, "[edit_cut, $event.target.checked]"))
                html.Span("In this slice only, not through all of them")
        with html.Div(classes="d-flex"):
            v3.VBtn("Undo", click=self.guarded(views.undo), disabled=("!edit_can_undo",), size="small",
                    classes="mr-1", id="edit-undo", prepend_icon="mdi-undo")
            v3.VBtn("Redo", click=self.guarded(views.redo), disabled=("!edit_can_redo",), size="small",
                    classes="mr-1", id="edit-redo", prepend_icon="mdi-redo")
            v3.VBtn("Measure again", click=self.session.segment.measure, size="small", id="edit-measure",
                    title="Fill the table from the segmentation as it is now")
