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
        self.state.update({"upload_percent": -1, "upload_error": "", "opening": "", "volume_rows": [],
                           "volume_chosen": None, "window": "", "window_shown": False})

    def refresh(self) -> None:
        session = self.session
        self.set_state(volume_rows=[{"value": node.GetID(), "title": node.GetName()} for node in session.volumes()],
                       volume_chosen=session.segment.state.volume_id, window=session.window_name(),
                       window_shown=session.segment.state.volume_id in session.hounsfield)

    def build(self) -> None:
        with html.Div(classes="d-flex align-center mb-2", v_if=("volume_rows.length",)):
            v3.VSelect(label="Volume", items=("volume_rows",), model_value=("volume_chosen",), density="compact",
                       hide_details=True, disabled=("seg_busy || ada_busy",), id="volume",
                       update_modelValue=(self.guarded(self.session.choose_volume), "[$event]"))
            v3.VBtn(icon="mdi-close", size="small", variant="text", click=self.guarded(self.session.remove_volume),
                    disabled=("seg_busy || ada_busy",), id="volume-remove",
                    raw_attrs=['aria-label="Close this volume"'],
                    title="Close this volume and its results; download what you want to keep first")
        v3.VSelect(label="Window", items=("windows", list(self.session.WINDOWS)), model_value=("window",),
                   density="compact", hide_details=True, classes="mb-2", v_if=("window_shown",), id="window",
                   placeholder="Your own", persistent_placeholder=True,
                   update_modelValue=(self.session.set_window, "[$event]"))
        with html.Div(classes="d-flex mb-1"):
            v3.VBtn("Sample CT", click=self.guarded(self.session.open_sample), size="small", classes="mr-2",
                    disabled=("seg_busy || ada_busy || opening !== ''",), id="open-sample")
            v3.VBtn("Open a file…", size="small", id="open-button",
                    disabled=("seg_busy || ada_busy || opening !== ''",),
                    raw_attrs=['data-file="open-file"'])
            html.Input(type="file", id="open-file", accept=uploads.ACCEPT, classes="hes-hidden",
                       raw_attrs=['data-upload="/upload"', 'tabindex="-1"', 'aria-label="File"'])
        html.Div("NIfTI, NRRD, or a zip of DICOM files; you can also drop one on the page. It stays on the computer "
                 "that HiEndSeg runs on.", classes="hes-sentence")
        with html.Div(v_if=("upload_percent >= 0 || opening",), classes="mt-2"):
            v3.VProgressLinear(model_value=("upload_percent",), height=8, color="primary", id="upload-progress",
                               indeterminate=("opening !== '' || upload_percent === 100",),
                               raw_attrs=['aria-label="Opening"'])
            html.Div("{{ opening ? 'Opening ' + opening + '…' : upload_percent < 100 ? 'Sending, ' + upload_percent + "
                     "' %' : 'Checking…' }}", classes="hes-sentence")
        v3.VAlert(text=("upload_error",), v_if=("upload_error",), type="error", density="compact", variant="tonal",
                  classes="mt-2", id="upload-error")

    def add_routes(self, app: Any) -> None:
        uploads.add_routes(app, self.session)
