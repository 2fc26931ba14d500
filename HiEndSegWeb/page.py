"""The page: a bar, one panel with the module's sections, and the views."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from aiohttp import web
from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html
from trame.widgets import vuetify3 as v3

from .panels.adapt import AdaptPanel
from .panels.attention import AttentionPanel
from .panels.edit import EditPanel
from .panels.help import build_help
from .panels.models import ModelsPanel
from .panels.open import OpenPanel
from .panels.results import ResultPanel
from .panels.segment import SegmentPanel
from .views import LAYOUTS

TITLE = "HiEndSeg"
DISCLAIMER = "For research use; not a medical device."
#: Milliseconds that a message stays.
MESSAGE_TIME = 12000
#: Colors with enough contrast under white and over dark text.
THEMES = {"theme": {"themes": {
    "dark": {"dark": True, "colors": {"primary": "#1976d2", "accent": "#90caf9", "error": "#ef9a9a",
                                      "success": "#81c784"}},
    "light": {"dark": False, "colors": {"primary": "#1565c0", "accent": "#0d47a1", "error": "#b00020",
                                        "success": "#2e7d32"}}}}}
STYLE = """
html { overflow: hidden; }
:focus-visible { outline: 2px solid #64b5f6 !important; outline-offset: 1px; }
.hes-hidden { position: absolute; width: 1px; height: 1px; opacity: 0; pointer-events: none; }
.hes-keys { width: 100%; border-spacing: 0 2px; } .hes-keys + .hes-keys { margin-top: 12px; }
.hes-keys th { text-align: left; width: 165px; font-weight: 500; }
.hes-panel { font-size: 14px; }
.hes-panel .v-expansion-panel-text__wrapper { padding: 8px 12px 12px; }
.hes-sentence { font-size: 13px; line-height: 1.35; opacity: .87; }
.v-label, .v-field-label { opacity: .87 !important; }
.hes-swatch { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; }
.hes-link { text-decoration: underline; } .hes-table th:first-child { text-align: left; }
.hes-table td, .hes-table th { padding: 2px 6px; font-size: 13px; }
.hes-corner { position: absolute; top: 4px; left: 4px; display: flex; align-items: center; color: white; }
.hes-corner-title, .hes-slider-text { font-size: 12px; color: white; text-shadow: 0 0 3px black; }
.hes-slider { position: absolute; bottom: 2px; left: 8px; right: 8px; display: flex; align-items: center; }
.hes-slider * { transition: none !important; }
.hes-slider-text { min-width: 52px; text-align: right; pointer-events: none; }
.hes-table td:not(:first-child), .hes-table th:not(:first-child) { text-align: right; }
"""


def _icon() -> str:
    """The extension's icon, inside the page: a browser asks the server for one that is not named."""
    path = Path(__file__).parent.parent / "HiEndSeg" / "Resources" / "Icons" / "HiEndSeg.png"
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""


class Page:
    """session: what is shown."""

    def __init__(self, session: Any):
        self.session = session
        self.state = state = session.state
        state.trame__title, state.trame__favicon = TITLE, _icon()
        state.update({"theme": "dark", "message": "", "message_shown": False, "message_kind": "info",
                      "layouts": [{"title": title, "value": name} for name, title in LAYOUTS.items()],
                      "layout": "Axial Primary", "sections_open": ["open", "segment", "results"], "drawer": True})
        self.edit = EditPanel(session)
        self.panels = [OpenPanel(session), SegmentPanel(session), ResultPanel(session), self.edit,
                       AdaptPanel(session), AttentionPanel(session), ModelsPanel(session)]
        state.change("layout")(self._on_layout)
        self._build()

    def say(self, sentence: str, error: bool = False) -> None:
        """A message at the bottom of the page."""
        self.state.update({"message": sentence, "message_kind": "error" if error else "info", "message_shown": True})

    def refresh(self) -> None:
        for panel in self.panels:
            panel.refresh()

    def add_routes(self, app: Any) -> None:
        """Uploads and downloads, before the static files."""
        icon = base64.b64decode(_icon().partition(",")[2])

        async def favicon(_request: web.Request) -> web.Response:
            return web.Response(body=icon, content_type="image/png")

        app.router.add_get("/favicon.ico", favicon)         # asked for before the page names its own
        for panel in self.panels:
            panel.add_routes(app)

    def _on_layout(self, layout: str, **_: Any) -> None:
        self.session.views.set_layout(layout)

    def _build(self) -> None:
        session = self.session
        with VAppLayout(session.server, vuetify_config=THEMES) as self.layout:
            self.layout.root.theme = ("theme",)
            client.Style(STYLE)
            with v3.VAppBar(density="compact"):
                v3.VAppBarNavIcon(click="drawer = !drawer", id="b-drawer", raw_attrs=['aria-label="Panel"'])
                v3.VToolbarTitle(TITLE)
                html.Span(DISCLAIMER, classes="text-caption mr-4")
                v3.VSelect(v_model=("layout",), items=("layouts",), density="compact", hide_details=True,
                           variant="outlined", style="max-width: 150px", classes="mr-2", id="s-layout",
                           raw_attrs=['aria-label="Views"'])
                v3.VBtn(icon="mdi-theme-light-dark", click="theme = theme === 'dark' ? 'light' : 'dark'",
                        id="b-theme", title="Light or dark", raw_attrs=['aria-label="Light or dark"'])
                v3.VBtn(icon="mdi-help-circle-outline", click="help_shown = true", id="b-help",
                        title="Keys and mouse (?)", raw_attrs=['aria-label="Keys and mouse"'])
            with v3.VNavigationDrawer(v_model=("drawer",), width=380, permanent=True, location="left"):
                with v3.VExpansionPanels(v_model=("sections_open",), multiple=True, variant="accordion",
                                         classes="hes-panel"):
                    for panel in self.panels:
                        with v3.VExpansionPanel(value=panel.name, id=f"section-{panel.name}",
                                                **({"v_if": (panel.shown,)} if panel.shown else {})):
                            v3.VExpansionPanelTitle(panel.title)
                            with v3.VExpansionPanelText():
                                panel.build()
            with v3.VMain(), html.Div(style="height: calc(100vh - 48px); display: flex", id="views"):
                session.views.layouts.initialize_layout_grid(self.layout)
            build_help(DISCLAIMER, self.state)
            with v3.VSnackbar(v_model=("message_shown",), timeout=MESSAGE_TIME,
                              color=("message_kind === 'error' ? 'error' : undefined",), id="message"):
                html.Span("{{ message }}", raw_attrs=['role="status"'])
