"""The person's models: add one from a file, verify, export, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aiohttp import web
from trame.widgets import html
from trame.widgets import vuetify3 as v3

from HiEndSegLib.errors import InputError

from .. import downloads, uploads
from ..binding import Binding
from .base import Panel


class ModelsPanel(Panel):
    name, title = "models", "Models"

    def __init__(self, session: Any):
        super().__init__(session)
        self.presenter = session.models
        self.binding = Binding(self.state, "mod", self.presenter)
        self.state.update({"mod_percent": -1, "mod_error": ""})

    def build(self) -> None:
        presenter = self.presenter
        with html.Div(v_for="row in mod_rows", key="row.id", classes="d-flex align-center",
                      style=("{paddingLeft: 12 * row.depth + 'px'}",), title=("row.tooltip",)):
            with html.Div(classes="flex-grow-1", style="min-width: 0"):
                html.Div("{{ row.title }}")
                html.Div("{{ row.adapted_sentence || row.id }}", classes="hes-sentence")
            for action, icon, title, act in (
                    ("verify", "mdi-check-decagram-outline", "Verify card and weights of {}", presenter.verify),
                    ("delete", "mdi-delete-outline", "Delete {}", presenter.delete),
                    ("forget", "mdi-image-off-outline", "Delete the images kept beside {}", presenter.forget_teaching)):
                shown = {"verify": "true", "delete": "!row.shipped", "forget": "row.teaching"}[action]
                label = f"`{title.replace('{}', '${row.title}')}`"
                v3.VBtn(icon=icon, size="x-small", variant="text", v_if=(shown,), disabled=("mod_busy",),
                        title=(label,), raw_attrs=[f':aria-label="{label}"'],
                        id=(f"'models-{action}-' + row.id",), click=(self.guarded(act), "[row.id]"))
            for action, icon, shown, query, label in (
                    ("export", "mdi-download-outline", "!row.shipped", "", "`Export ${row.title} as one file`"),
                    ("whole", "mdi-download-multiple-outline", "row.parent", " + '?whole=1'",
                     "`Export ${row.title} with everything it needs, for people without the model it comes from`")):
                v3.VBtn(icon=icon, size="x-small", variant="text", v_if=(shown,), href=(f"'/model/' + row.id{query}",),
                        title=(label,), raw_attrs=['download=""', f':aria-label="{label}"'],
                        id=(f"'models-{action}-' + row.id",))
        v3.VBtn("Add a model…", size="small", classes="mt-2", id="models-button", disabled=("mod_busy",),
                raw_attrs=['data-file="models-file"'])
        html.Input(type="file", id="models-file", accept=".zip", classes="hes-hidden",
                   raw_attrs=['data-upload="/models"', 'tabindex="-1"', 'aria-label="Model file"'])
        v3.VProgressLinear(model_value=("mod_percent",), v_if=("mod_percent >= 0",), height=8, color="primary",
                           indeterminate=("mod_percent === 100",), classes="mt-2",
                           raw_attrs=['aria-label="Adding a model"'])
        html.Div("{{ mod_headline }}", classes=("mod_failed ? 'mt-2 text-error' : 'mt-2'",), id="models-headline")
        html.Div("{{ mod_error }}", classes="text-error", v_if=("mod_error",), id="models-error")
        with v3.VAlert(v_if=("mod_question",), density="compact", variant="tonal", type="info", classes="mt-2",
                       id="models-question"):
            html.Div("{{ mod_question.text }}", classes="mb-2")
            v3.VBtn("{{ choice.text }}", v_for="choice in mod_question.choices", key="choice.id", size="small",
                    classes="mr-1 mb-1", click=(self.guarded(presenter.answer), "[choice.id]"),
                    id=("'models-answer-' + choice.id",))
        html.Div("{{ problem }}", v_for="problem in mod_problems", key="problem", classes="hes-sentence text-error")

    def add_routes(self, app: Any) -> None:
        downloads.add_model_route(app, self.session)
        app.router.add_post("/models", self._receive)

    async def _receive(self, request: web.Request) -> web.Response:
        """POST /models?name=…, a model's zip as the body. The registry checks it before anything is kept."""
        async def work(folder: Path) -> dict:
            if not request.query.get("name", "").lower().endswith(".zip"):
                raise InputError("A model is one .zip file, as 'Export' writes it; send that.")
            uploads.models_are_free(self.presenter)
            path = await uploads.receive(request, folder / f"{uploads.display_name(request.query['name'])}.zip",
                                         uploads.MAX_MODEL,
                                         "add the model in desktop Slicer or with 'hiendseg models add'")
            await uploads.added(self.presenter, path)
            return {}

        return await uploads.answer(self.session.folder, "model-", work)
