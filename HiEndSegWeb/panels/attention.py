"""The Attention section: what the encoder looks at from a point, in the slice views."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from ..binding import Binding
from .base import Panel


COMPARED = (("none", "With nothing"), ("layer", "With another block"), ("model", "With another model"))


class AttentionPanel(Panel):
    name, title, shown = "attention", "Attention", "seg_volume_id"

    def __init__(self, session: Any):
        super().__init__(session)
        self.presenter = session.attention
        self.binding = Binding(self.state, "att", self.presenter, extra=("busy",))

    def build(self) -> None:
        presenter = self.presenter
        html.Div("{{ att_headline }}", classes="font-weight-medium", id="att-headline")
        html.Div("{{ att_detail }}", classes="hes-sentence mb-2")
        with html.Div(classes="d-flex mb-2"):
            v3.VBtn("{{ att_button_text }}", click=self.guarded(presenter.press), disabled=("!att_button_enabled",),
                    title=("att_button_tooltip",), color="primary", classes="mr-2", id="att-show")
            v3.VBtn("Set the point", click=self.guarded(presenter.place_point), id="att-place",
                    color=("att_placing ? 'primary' : undefined",), title="The next click in a slice is the question",
                    prepend_icon="mdi-crosshairs-gps")
        html.Div("{{ att_point_text }}", classes="hes-sentence", id="att-point")
        with html.Div(v_if=("att_working",), classes="mb-2"):
            v3.VProgressLinear(model_value=("100 * att_fraction",), height=8, color="primary", id="att-progress",
                               indeterminate=("!att_fraction",), raw_attrs=['aria-label="Computing"'])
        self._select("Model", "models", "model_id", presenter.set_model, v_if="att_models.length > 1")
        self._select("Ask about", "queries", "query", presenter.set_query)
        self._select("Structure", "structures", "structure", presenter.set_structure, title="name",
                     v_if="att_query === 'structure'")
        self._select("Show", "kinds", "kind", presenter.set_kind)
        with html.Div(v_if=("att_layers.length",)):
            html.Div("{{ att_layer_text }}", classes="hes-sentence mt-1", id="att-layer-text")
            v3.VSlider(model_value=("att_layer",), min=0, max=("att_layers.length - 1",), step=1, show_ticks="always",
                       classes="mb-3", tick_size=4, hide_details=True, density="compact", id="att-layer",
                       ticks=("Object.fromEntries(att_layers.filter(l => l.tap).map(l => [l.layer, '' + l.layer]))",),
                       update_modelValue=(presenter.set_layer, "[$event]"), raw_attrs=['aria-label="Block"'])
        self._select("Head", "heads", "head", presenter.set_head)
        v3.VSlider(label="Opacity", model_value=("att_opacity",), min=0, max=1, step=0.05, hide_details=True,
                   density="compact", update_modelValue=(presenter.set_opacity, "[$event]"), id="att-opacity",
                   raw_attrs=['aria-label="Opacity"'])
        v3.VSlider(label="Threshold", model_value=("att_threshold",), min=0, max=1, step=0.05, hide_details=True,
                   density="compact", update_modelValue=(presenter.set_threshold, "[$event]"), id="att-threshold",
                   raw_attrs=['aria-label="Threshold"'])
        with html.Label(classes="d-flex align-center"):
            html.Input(type="checkbox", checked=("att_smooth",), classes="mr-2", id="att-smooth",
                       change=(presenter.set_smooth, "[$event.target.checked]"))
            html.Span("Smooth")
        self._compare()
        with html.Div(v_if=("att_legend.length",), classes="mt-1", id="att-legend"):
            html.Div("{{ att_legend_title }}", classes="text-caption")
            with html.Div(style="display: flex"):
                with html.Div(v_for="row in att_legend", key="row.value", style="flex: 1; text-align: center"):
                    html.Div(style=("{height: '10px', background: 'rgb(' + row.color.join(',') + ')'}",))
                    html.Span("{{ row.text }}", classes="text-caption")
        html.Div("{{ att_meaning }}", classes="hes-sentence", id="att-meaning")
        with html.Div(classes="d-flex flex-wrap mt-2"):
            v3.VBtn("Save as volume", click=self.guarded(presenter.save), disabled=("!att_can_save",), size="small",
                    classes="mr-1 mb-1", id="att-save")
            v3.VBtn("All heads", click=(self.on_heads, "[]"), size="small", classes="mr-1 mb-1", id="att-heads",
                    color=("att_heads_wanted ? 'primary' : undefined",))
            v3.VBtn("Ranks", click=self.guarded(presenter.ask_ranks), disabled=("!att_rank_available",), size="small",
                    classes="mr-1 mb-1", id="att-ranks", title="Effective rank of the attention values, by layer")
            v3.VBtn("{{ att_uncertainty_working ? 'Stop' : 'Uncertainty' }}", click=(self.on_uncertainty, "[]"),
                    disabled=("!att_uncertainty_available",), size="small", id="att-uncertainty",
                    classes="mr-1 mb-1", title=("att_uncertainty_tooltip",),
                    color=("att_uncertainty_shown ? 'primary' : undefined",))
            v3.VBtn("Object queries", click=self.guarded(presenter.ask_inspect), disabled=("!att_inspect_available",),
                    size="small", classes="mb-1", title=("att_inspect_tooltip",), id="att-inspect")
        html.Img(v_if=("att_heads_picture",), src=("att_heads_picture",), style="width: 100%", alt="All heads",
                 id="att-heads-picture")
        html.Img(v_if=("att_rank_picture",), src=("att_rank_picture",), style="width: 100%", alt="Effective rank",
                 id="att-rank-picture")
        html.Div("{{ att_rank_working ? 'Measuring the blocks…' : att_rank_sentence }}", classes="hes-sentence")
        html.Div("{{ att_uncertainty_sentence }}", classes="hes-sentence", id="att-uncertainty-sentence")
        with html.Table(v_if=("att_confidence.length",), classes="hes-table mt-1", style="width: 100%",
                        id="att-confidence"):
            with html.Thead(), html.Tr():
                for title in ("Structure", "Sure"):
                    html.Th(title)
            with html.Tbody(), html.Tr(v_for="row in att_confidence", key="row.id", title=("row.sentence",)):
                with html.Td():
                    html.Span(classes="hes-swatch", style=("{background: 'rgb(' + row.color.join(',') + ')'}",))
                    html.Span("{{ row.name }}")
                html.Td("{{ (100 * row.confidence).toFixed(0) }} %")
        with html.Table(v_if=("att_inspect.length",), classes="hes-table mt-1", style="width: 100%", id="att-queries"):
            with html.Thead(), html.Tr():
                for title in ("Query", "Speaks for", "Sure", "Here"):
                    html.Th(title)
            with html.Tbody(), html.Tr(v_for="row in att_inspect", key="row.number", title=("row.sentence",)):
                with html.Td():
                    html.Button("{{ row.title }}", classes="hes-link", id=("'att-query-' + row.number",),
                                click=(self.guarded(presenter.set_object_query), "[row.number]"))
                html.Td("{{ row.structure }}")
                html.Td("{{ (100 * row.probability).toFixed(0) }} %")
                html.Td("{{ row.share === null ? '' : (100 * row.share).toFixed(0) + ' %' }}")
        html.Img(v_if=("att_inspect_picture",), src=("att_inspect_picture",), style="width: 100%",
                 alt="Object queries by class and mask embedding", id="att-inspect-picture")
        html.Div("{{ att_inspect_working ? 'Running the mask head…' : att_inspect_sentence }}", classes="hes-sentence")

    def _compare(self) -> None:
        presenter = self.presenter
        v3.VSelect(label="Compare", items=("att_compared", [{"value": id_, "title": title} for id_, title in COMPARED]),
                   model_value=("att_compare",), update_modelValue=(presenter.set_compare, "[$event]"),
                   density="compact", hide_details=True, classes="mb-1", id="att-compare")
        with html.Div(v_if=("att_compare === 'layer' && att_layers.length > 1",)):
            html.Div("{{ att_other_layer_text }}", classes="hes-sentence")
            v3.VSlider(model_value=("att_other_layer",), min=0, max=("att_layers.length - 1",), step=1,
                       hide_details=True, density="compact", id="att-other-layer",
                       update_modelValue=(presenter.set_other_layer, "[$event]"),
                       raw_attrs=['aria-label="Other block"'])
        self._select("Other model", "compare_models", "other_model_id", presenter.set_other_model,
                     v_if="att_compare === 'model'")
        html.Div("{{ att_compare_sentence }}", classes="hes-sentence", id="att-compare-sentence")
        html.Img(v_if=("att_compare_picture",), src=("att_compare_picture",), style="width: 100%", alt="Both maps")

    @staticmethod
    def _select(label: str, rows: str, chosen: str, act: Any, *, title: str = "title", v_if: str = "true") -> None:
        v3.VSelect(label=label, model_value=(f"att_{chosen}",), density="compact", hide_details=True, classes="mb-1",
                   items=(f"att_{rows}.map(r => ({{title: r.{title}, value: r.id, props: {{disabled: r.enabled === "
                          "false, subtitle: r.sentence || ''}}))",),
                   update_modelValue=(act, "[$event]"), v_if=(f"att_{rows}.length && {v_if}",), id=f"att-{chosen}")

    def on_heads(self) -> None:
        self.presenter.set_heads_wanted(not self.presenter.state.heads_wanted)

    def on_uncertainty(self) -> None:
        state = self.presenter.state
        if state.uncertainty_id is None:
            self.presenter.ask_uncertainty()
        else:
            self.presenter.show_uncertainty(not state.uncertainty_shown)
