"""The Adapt section: what to teach, the live curve, before and after."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from aiohttp import web
from trame.widgets import html
from trame.widgets import vuetify3 as v3

from HiEndSegLib.errors import InputError
from HiEndSegLib.presenter.adapt_curve import smoothed
from HiEndSegLib.presenter.models import WEIGHTS

from .. import uploads
from ..binding import Binding
from .base import Panel

#: The curve's box, in its own units.
WIDTH, HEIGHT = 320, 110
#: The entry of the list of models that stands for an encoder.
ENCODER = "encoder"


class AdaptPanel(Panel):
    name, title, shown = "adapt", "Adapt", "seg_segmentation_id"

    def __init__(self, session: Any):
        super().__init__(session)
        self.presenter = session.adapt
        self.binding = Binding(self.state, "ada", self.presenter, extra=("busy",))
        self.state.update({"ada_picture": "", "ada_curve_text": "", "enc_percent": -1, "enc_error": ""})
        self._drawn: Any = None
        self._sent: Path | None = None                  # the folder of the encoder that was sent

    def refresh(self) -> None:
        curve = self.presenter.state.curve
        if curve is self._drawn:
            return
        self._drawn = curve
        steps = max((point.step for point in curve), default=1)
        self.state.ada_picture = picture(line(smoothed([(p.step, p.loss) for p in curve if p.loss is not None]), steps),
                                         line([(p.step, p.dice) for p in curve if p.dice is not None], steps, 0.0, 1.0))
        losses = [p.loss for p in curve if p.loss is not None]
        dices = [p.dice for p in curve if p.dice is not None]
        self.state.ada_curve_text = " ".join(
            ([f"Loss {losses[-1]:.3f}."] if losses else []) + ([f"Dice on held-out slices {dices[-1]:.3f}."] if dices
                                                               else []))

    def build(self) -> None:
        presenter = self.presenter
        html.Div("{{ ada_headline }}", classes="font-weight-medium", id="ada-headline")
        html.Div("{{ ada_detail }}", classes="hes-sentence mb-2", id="ada-detail")
        self._models()
        with html.Div(classes="d-flex mb-2"):
            v3.VBtn("{{ ada_compare_text }}", click=self.guarded(presenter.compare), size="small", id="ada-compare",
                    disabled=("!ada_compare_available",), title=("ada_compare_tooltip",))
        with html.Div(v_if=("ada_rows.length",), classes="mb-2"):
            html.Div("{{ ada_rows_sentence }}", classes="hes-sentence")
            with html.Label(v_for="row in ada_rows", key="row.id", classes="d-flex align-center",
                            title=("row.sentence",)):
                html.Input(type="checkbox", checked=("row.checked",), disabled=("ada_busy",), classes="mr-2",
                           id=("'ada-teach-' + row.id",), change=(presenter.check, "[row.id, $event.target.checked]"))
                html.Span(classes="hes-swatch", style=("{background: 'rgb(' + row.color.join(',') + ')'}",))
                html.Span("{{ row.name }}")
                html.Span("new", v_if="row.is_new", classes="ml-1 text-caption text-accent")
                v3.VSpacer()
                html.Span("{{ row.dice === null ? '' : 'Dice ' + row.dice.toFixed(2) }}", classes="text-caption")
            v3.VTextField(label="Name", model_value=("ada_name",), placeholder=("ada_name_suggestion",), id="ada-name",
                          update_modelValue=(presenter.set_name, "[$event]"), density="compact", hide_details=True,
                          persistent_placeholder=True, disabled=("ada_busy",), classes="my-2")
            v3.VSelect(label="Speed", items=("ada_speeds.map(s => ({title: s.title, value: s.id}))",), id="ada-speed",
                       model_value=("ada_speed",), update_modelValue=(presenter.set_speed, "[$event]"),
                       density="compact", hide_details=True, disabled=("ada_busy",), classes="mb-1")
            html.Div("{{ ada_plan_sentence }}", classes="hes-sentence mb-1")
            with html.Label(classes="d-flex align-center", title=("ada_keep_teaching_sentence",)):
                html.Input(type="checkbox", checked=("ada_keep_teaching",), disabled=("ada_busy",), classes="mr-2",
                           change=(presenter.set_keep_teaching, "[$event.target.checked]"), id="ada-keep-teaching")
                html.Span("Remember this case for the next time")
            html.Div("{{ ada_keep_teaching_sentence }}", classes="hes-sentence mb-1")
        v3.VBtn("{{ ada_run_text }}", click=self.guarded(presenter.press), disabled=("!ada_run_enabled",), block=True,
                title=("ada_run_tooltip",), id="ada-run", color=("ada_busy ? undefined : 'primary'",))
        v3.VBtn("Stop and keep the best", click=self.guarded(presenter.finish), v_if=("ada_finish_available",),
                block=True, classes="mt-1", title=("ada_finish_tooltip",), id="ada-finish")
        with html.Div(v_if=("ada_busy",), classes="mt-2"):
            v3.VProgressLinear(model_value=("100 * ada_fraction",), height=8, color="primary", id="ada-progress")
            html.Div("{{ ada_time_text }}", classes="hes-sentence")
        self._question()
        self._curve()
        self._table()
        html.Div("{{ ada_result_sentence }}", classes="hes-sentence mt-1", id="ada-result")
        with html.Div(classes="d-flex flex-wrap mt-1"):
            for name, title, act in (("use", "Use it now", presenter.use_now), ("revert", "Revert", presenter.revert),
                                     ("keep", "Keep anyway", presenter.keep_anyway)):
                v3.VBtn(title, click=self.guarded(act), v_if=(f"ada_can_{name}",), title=(f"ada_{name}_tooltip",),
                        size="small", classes="mr-1 mb-1", id=f"ada-{name}")
            v3.VBtn("Export the adapted model", v_if=("ada_result_key",), size="small", classes="mb-1",
                    href=("'/model/' + ada_result_key",), raw_attrs=['download=""'], id="ada-export")
        with html.Label(v_if=("ada_overlay_available",), classes="d-flex align-center"):
            html.Input(type="checkbox", checked=("ada_overlay_shown",), classes="mr-2", id="ada-overlay",
                       change=(presenter.show_overlay, "[$event.target.checked]"))
            html.Span("Before and after as outlines")
        html.Div("{{ ada_overlay_sentence }}", classes="hes-sentence")

    def _models(self) -> None:
        """What is taught: a model, or a new one around an encoder."""
        v3.VSelect(label="Teach", id="ada-model", density="compact", hide_details=True, disabled=("ada_busy",),
                   items=("[...ada_models.map(m => ({title: m.title, value: m.id})), "
                          f"{{title: 'A new model, from an encoder alone', value: '{ENCODER}'}}]",),
                   model_value=(f"ada_from_encoder ? '{ENCODER}' : ada_model_id",), classes="mb-2",
                   update_modelValue=(self.guarded(self.teach), "[$event]"))
        with html.Div(v_if=("ada_from_encoder",), classes="mb-2"):
            html.Div("{{ ada_encoder_sentence }}", classes="hes-sentence", id="ada-encoder")
            v3.VBtn("Another encoder…", size="small", classes="mt-1", disabled=("ada_busy || enc_percent >= 0",),
                    id="ada-encoder-button", raw_attrs=['data-file="ada-encoder-file"'],
                    title="Send a file with the weights of a Hi-End-MAE encoder; it stays on this computer and goes with "
                          "the page")
            html.Input(type="file", id="ada-encoder-file", accept=",".join(WEIGHTS), classes="hes-hidden",
                       raw_attrs=['data-upload="/encoder"', 'tabindex="-1"', 'aria-label="Encoder file"'])
            v3.VProgressLinear(model_value=("enc_percent",), v_if=("enc_percent >= 0",), height=8, color="primary",
                               indeterminate=("enc_percent === 100",), classes="mt-1",
                               raw_attrs=['aria-label="Sending an encoder"'])
            html.Div("{{ enc_error }}", classes="text-error", v_if=("enc_error",), id="ada-encoder-error")

    def teach(self, id_: str) -> None:
        """Choose a model of the list, or the encoder that was used last."""
        if id_ == ENCODER:
            self.presenter.set_encoder(self.presenter.state.encoder_path)
        else:
            self.presenter.set_model(id_)

    def add_routes(self, app: Any) -> None:
        app.router.add_post("/encoder", self._receive)

    async def _receive(self, request: web.Request) -> web.Response:
        """POST /encoder?name=…, weights as the body: looked at without running anything in them, then chosen."""
        models = self.session.models

        async def work(folder: Path) -> dict:
            name = re.sub(r"[^A-Za-z0-9._-]+", "_", re.split(r"[/\\]", request.query.get("name", ""))[-1])[-80:]
            ending = Path(name).suffix.lower()
            if ending not in WEIGHTS:
                raise InputError(f"An encoder is one file with weights ({', '.join(WEIGHTS)}); send that.")
            self.session.may_open()
            uploads.models_are_free(models)
            path = await uploads.receive(request, folder / name.lstrip("."), uploads.MAX_MODEL,
                                         "use it in desktop Slicer or with 'hiendseg adapt --encoder'")
            await uploads.added(models, path)
            if models.state.failed:
                raise InputError(models.state.headline)
            before, self._sent = self._sent, folder.rename(folder.with_name(f"{folder.name}-kept"))
            self.presenter.set_encoder(self._sent / path.name)
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)
            return {}

        return await uploads.answer(self.session.folder, "encoder-", work)

    def _question(self) -> None:
        with v3.VAlert(v_if=("ada_question",), density="compact", variant="tonal", type="info", classes="mt-2",
                       id="ada-question"):
            html.Div("{{ ada_question.text }}", classes="mb-2")
            v3.VBtn("{{ choice.text }}", v_for="choice in ada_question.choices", key="choice.id", size="small",
                    classes="mr-1 mb-1", click=(self.guarded(self.presenter.answer), "[choice.id]"),
                    id=("'ada-answer-' + choice.id",))

    @staticmethod
    def _curve() -> None:
        with html.Div(v_if=("ada_curve.length",), classes="mt-2", id="ada-curve"):
            html.Div("{{ ada_curve_text }}", classes="hes-sentence")
            html.Div(v_html=("ada_picture",))
            html.Div("Gray: loss. Blue: Dice on slices that were held out, 0 to 1.", classes="text-caption")

    @staticmethod
    def _table() -> None:
        with html.Table(v_if=("ada_table.length",), classes="hes-table mt-2", style="width: 100%", id="ada-table"):
            with html.Thead(), html.Tr():
                for title in ("Structure", "Before", "After", ""):
                    html.Th(title)
            with html.Tbody(), html.Tr(v_for="row in ada_table", key="row.id", title=("row.verdict_text",)):
                html.Td("{{ row.name }}{{ row.taught ? ' (taught)' : '' }}")
                html.Td("{{ row.dice_before === null ? '–' : row.dice_before.toFixed(3) }}")
                html.Td("{{ row.dice_after === null ? '–' : row.dice_after.toFixed(3) }}")
                html.Td("{{ row.verdict_text }}",
                        classes=("row.verdict === 'worse' ? 'text-error' : row.verdict === 'better' ? 'text-success' "
                                 ": ''",))


def picture(loss: str, dice: str) -> str:
    """The curve as SVG; only numbers of ours go into it."""
    lines = (("#888", 1.5, loss), ("#2196f3", 2, dice))
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" style="width: 100%; height: auto; display: block">'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="currentColor" opacity="0.3"/>'
            + "".join(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"/>'
                      for color, width, points in lines) + "</svg>")


def line(points: list[tuple[int, float]], steps: int, low: float | None = None, high: float | None = None) -> str:
    """Points (step, value) as an SVG polyline in the curve's box; the largest value on top."""
    if not points:
        return ""
    values = [value for _, value in points]
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    scale = (HEIGHT - 8) / ((high - low) or 1.0)
    return " ".join(f"{4 + (WIDTH - 8) * step / max(steps, 1):.1f},{HEIGHT - 4 - (value - low) * scale:.1f}"
                    for step, value in points)
