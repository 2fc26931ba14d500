"""The page's keys, and the dialog that lists them."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

#: What is pressed, what it does; serve/hiendseg.js knows the same keys.
KEYS = (
    ("↑ ↓", "Next and previous slice of the view under the mouse, else the axial one"),
    ("Page ↑ Page ↓", "Ten slices at a time"),
    ("F", "Fit the views"),
    ("W", "Next window of a CT: soft tissue, liver, lung, bone"),
    ("S", "Show or hide the segmentation"),
    ("1 2 3", "Paint, erase, cut"),
    ("+ −", "Larger and smaller brush"),
    ("Esc", "Put the tool away"),
    ("Ctrl Z, Ctrl Y", "Take back a correction, and do it again"),
    ("?", "This list"),
)
MOUSE = (
    ("Wheel", "Next and previous slice"),
    ("Left button, drag", "Brightness and contrast; with a tool: draw"),
    ("Right button, drag", "Zoom"),
    ("Middle button, drag", "Move"),
)


def build_help(disclaimer: str, state: Any) -> None:
    """The dialog; `help_shown` opens it."""
    state.help_shown = False
    with v3.VDialog(v_model=("help_shown",), max_width=560), v3.VCard(id="help"):
        v3.VCardTitle("Keys and mouse")
        with v3.VCardText():
            for rows in (KEYS, MOUSE):
                with html.Table(classes="hes-keys"), html.Tbody():
                    for keys, what in rows:
                        with html.Tr():
                            html.Th(keys, scope="row")
                            html.Td(what)
            html.P(f"{disclaimer} Images stay on the computer that HiEndSeg runs on, in memory; closing this page "
                   "forgets them. Models that you adapt are kept in your model folder.", classes="mt-3 hes-sentence")
        with v3.VCardActions():
            v3.VSpacer()
            v3.VBtn("Close", click="help_shown = false", id="help-close")
