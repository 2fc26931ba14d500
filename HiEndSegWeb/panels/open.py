"""Opening a volume: the sample that ships, or a file from the person's computer."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from .. import uploads
from .base import Panel


class OpenPanel(Panel):
    name, title = "open", "Volume"

    def __init__(self, session: Any):
        super().__init__(session)
        self.state.update({"upload_percent": -1, "upload_error": "", "volume_rows": [], "volume_chosen": None})

    def refresh(self) -> None:
        session = self.session
        rows = [{"value": node.GetID(), "title": node.GetName()} for node in session.volumes()]
        if rows != self.state.volume_rows:
            self.state.volume_rows = rows
        if self.state.volume_chosen != session.segment.state.volume_id:
            self.state.volume_chosen = session.segment.state.volume_id

    def build(self) -> None:
        v3.VSelect(label="Volume", items=("volume_rows",), model_value=("volume_chosen",), density="compact",
                   hide_details=True, classes="mb-2", v_if=("volume_rows.length",), disabled=("seg_busy",),
                   update_modelValue=(self.session.choose_volume, "[$event]"), id="volume")
        with html.Div(classes="d-flex mb-1"):
            v3.VBtn("Sample CT", click=self.guarded(self.session.open_sample), size="small", classes="mr-2",
                    disabled=("seg_busy",), id="open-sample")
            with html.Label(classes="v-btn v-btn--size-small v-btn--variant-elevated v-btn--density-default "
                                    "bg-surface"):
                html.Span("Open a file…")
                html.Input(type="file", id="open-file", accept=uploads.ACCEPT, style="display: none")
        html.Div("NIfTI, NRRD, or a zip of DICOM files; you can also drop one on the page. It stays on this computer.",
                 classes="hes-sentence")
        v3.VProgressLinear(model_value=("upload_percent",), v_if=("upload_percent >= 0",), height=8, classes="mt-2",
                           color="primary", id="upload-progress")
        v3.VAlert(text=("upload_error",), v_if=("upload_error",), type="error", density="compact", variant="tonal",
                  classes="mt-2", id="upload-error")

    def add_routes(self, app: Any) -> None:
        uploads.add_routes(app, self.session)
