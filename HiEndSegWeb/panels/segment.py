"""The Segment section: the `SegmentPresenter`'s state in the page, and the page's clicks to the presenter."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from ..binding import Binding
from .base import Panel


class SegmentPanel(Panel):
    name, title = "segment", "Segment"

    def __init__(self, session: Any):
        super().__init__(session)
        self.presenter = session.segment
        self.binding = Binding(self.state, "seg", self.presenter, extra=("busy",))

    def build(self) -> None:
        presenter = self.presenter
        html.Div("{{ seg_volume_sentence }}", classes="hes-sentence mb-2", id="seg-volume")
        v3.VAlert(text=("seg_volume_warning",), v_if=("seg_volume_warning",), type="warning", density="compact",
                  variant="tonal", classes="mb-2")
        v3.VSelect(label="Model", items=("seg_models.map(m => ({title: m.title, value: m.id}))",), density="compact",
                   model_value=("seg_model_id",), update_modelValue=(presenter.set_model, "[$event]"),
                   disabled=("seg_busy",), hide_details=True, classes="mb-1", id="seg-model")
        html.Div("{{ seg_model_sentence }}", classes="hes-sentence mb-2")
        with v3.VExpansionPanels(variant="accordion", classes="mb-2"), v3.VExpansionPanel(elevation=0):
            v3.VExpansionPanelTitle("{{ seg_structures_sentence }}", id="seg-structures")
            with v3.VExpansionPanelText():
                with html.Div(classes="mb-1"):
                    v3.VBtn("All", click=presenter.select_all, size="small", variant="text", id="seg-all")
                    v3.VBtn("None", click=presenter.select_none, size="small", variant="text", id="seg-none")
                with html.Label(v_for="row in seg_structures", key="row.id", classes="d-flex align-center"):
                    html.Input(type="checkbox", checked=("row.checked",), disabled=("seg_busy",), classes="mr-2",
                               id=("'seg-only-' + row.id",),
                               change=(presenter.check_structure, "[row.id, $event.target.checked]"))
                    html.Span(classes="hes-swatch",
                              style=("{background: 'rgb(' + row.color.join(',') + ')'}",))
                    html.Span("{{ row.name }}")
        v3.VSelect(label="Compute on", items=("seg_devices.map(d => ({title: d.title, value: d.kind}))",),
                   density="compact", model_value=("seg_device",), hide_details=True, classes="mb-1",
                   update_modelValue=(presenter.set_device, "[$event]"), disabled=("seg_busy",), id="seg-device")
        html.Div("{{ seg_device_sentence }} {{ seg_plan_sentence }}", classes="hes-sentence mb-2", id="seg-plan")
        v3.VBtn("{{ seg_button_text }}", click=self.guarded(presenter.press), disabled=("!seg_button_enabled",),
                block=True, title=("seg_button_tooltip",), id="seg-run",
                color=("seg_busy ? undefined : 'primary'",))
        with html.Div(v_if=("seg_busy",), classes="mt-2"):
            v3.VProgressLinear(model_value=("100 * seg_fraction",), height=8, color="primary", id="seg-progress")
            html.Div("{{ seg_time_text }}", classes="hes-sentence", id="seg-time")
        html.Div("{{ seg_headline }}", classes="mt-2 font-weight-medium", id="seg-headline")
        html.Div("{{ seg_detail }}", classes="hes-sentence", id="seg-detail")
        with v3.VAlert(v_if=("seg_question",), density="compact", variant="tonal", type="info", classes="mt-2",
                       id="seg-question"):
            html.Div("{{ seg_question.text }}", classes="mb-2")
            v3.VBtn("{{ choice.text }}", v_for="choice in seg_question.choices", key="choice.id", size="small",
                    classes="mr-1 mb-1", click=(self.guarded(presenter.answer), "[choice.id]"),
                    id=("'seg-answer-' + choice.id",))
        with html.Div(v_if=("seg_offers.length",), classes="mt-2"):
            v3.VBtn("{{ offer.text }}", v_for="offer in seg_offers", key="offer.action", size="small",
                    classes="mr-1", click=(self.on_offer, "[offer.action]"))

    def on_offer(self, action: str) -> None:
        """A remedy after a failure."""
        if action == "again":
            self.presenter.run()
        elif action == "device_cpu":
            self.presenter.set_device("cpu")
        elif action == "verify_model":
            self.session.models.verify(self.presenter.state.model_id)
        else:
            self.session.page.say("Install HiEndSeg with 'make setup', then open the page again."
                                  if action == "setup" else "Choose another model, or fewer structures.")
