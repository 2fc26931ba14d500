"""The README's pictures of the page: `python Testing/web/pictures.py [--only NAME …] [--steps N] [FOLDER]`.

The shipped sample and the default model in headless Chromium; nothing is made up. FOLDER: Resources/Screenshots,
unless another is given. A few minutes, most of them the adaptation.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from page_tools import LATER, LONG, Chrome, Site, Tab                       # noqa: E402

NAMES = ("start", "result", "correct", "adapt", "attention")
#: A README's picture should not be larger, bytes.
LIMIT = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parents[1] / "Resources" / "Screenshots")
    parser.add_argument("--only", action="append", choices=NAMES, help="only this picture")
    parser.add_argument("--steps", type=int, default=0, help="steps of the adaptation (default: as many as it plans)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ["HIENDSEG_TEST_STEPS"] = str(options.steps or "")
    with tempfile.TemporaryDirectory() as folder:
        site, chrome = Site(Path(folder), Path(folder) / "models", file=None), Chrome()
        try:
            tab = Tab(chrome.context, site.address)
            take(tab, options.folder, options.only or NAMES)
            assert tab.complaints == [], tab.complaints
        finally:
            chrome.close()
            site.close()


def take(tab: Tab, folder: Path, names) -> None:
    """Work like a person, and leave the pictures named."""
    theme(tab, "light")
    if "start" in names:
        keep(tab, folder, "start")
    theme(tab, "dark")
    tab.click("open-sample")
    tab.first_picture()
    tab.click("seg-run", LATER)
    tab.wait_state("s.seg_phase === 'done'", LONG)
    if "result" in names:
        tab.only("results")                                 # the time a run took is this machine's own
        tab.click("res-3d")
        tab.until(lambda: tab.facts()["surfaces"] >= 10, 120)
        keep(tab, folder, "result")
        tab.click("res-3d")
        tab.until(lambda: tab.facts()["surfaces"] == 0)
    if {"correct", "adapt"} & set(names):
        correct(tab)
        if "correct" in names:
            keep(tab, folder, "correct")
        tab.page.keyboard.press("Escape")
        tab.until(lambda: tab.facts()["tool"] == "none")
    if "attention" in names:
        tab.only("attention")
        tab.click("att-show")
        tab.seen("att-legend").wait_for(timeout=LONG)
        tab.click("att-place")
        tab.wait_state("s.att_placing")
        words = tab.text("att-headline")
        tab.drag("axial", (0.3, 0.45))
        tab.until(lambda: tab.text("att-headline") != words, 60)
        tab.wait_state("!s.att_working && !s.att_placing", LONG)
        keep(tab, folder, "attention")
        tab.click("att-show")
        tab.until(lambda: tab.facts()["foreground"] == [None] * 3)
    if "adapt" in names:
        theme(tab, "light")
        tab.only("adapt")
        tab.click("ada-compare", LATER)
        tab.wait_state("s.ada_phase === 'ready'", LONG)
        tab.seen("ada-name").fill("Liver as we draw it")
        tab.click("ada-run")
        tab.wait_state("s.ada_phase === 'done'", 3 * LONG)
        tab.seen("ada-result").scroll_into_view_if_needed()     # the table, and the curve above it
        keep(tab, folder, "adapt")
        theme(tab, "dark")


def correct(tab: Tab) -> None:
    """Cut off a part of the liver, as somebody who does not count it would, and paint at its edge."""
    tab.only("edit")
    tab.seen("edit-segment").wait_for()
    tab.page.locator(".v-select:has(#edit-segment)").click()
    tab.page.get_by_role("option", name="Liver", exact=True).click()
    tab.until(lambda: tab.facts()["segment"] == "liver")
    before = tab.segments()["liver"]
    tab.click("edit-scissors")
    tab.until(lambda: tab.facts()["tool"] == "scissors")
    if tab.seen("edit-one-slice").is_checked():
        tab.click("edit-one-slice")
    tab.drag("axial", (0.02, 0.2), (0.22, 0.2), (0.22, 0.8), (0.02, 0.8), (0.02, 0.2))
    tab.until(lambda: tab.segments()["liver"] != before)
    cut = tab.segments()["liver"]
    tab.click("edit-paint")
    tab.until(lambda: tab.facts()["tool"] == "paint")
    tab.drag("axial", (0.205, 0.46), (0.205, 0.56))
    tab.until(lambda: tab.segments()["liver"] != cut)


def theme(tab: Tab, name: str) -> None:
    if tab.wait_state("s.theme") != name:
        tab.click("b-theme")
        tab.wait_state(f"s.theme === '{name}'")


def keep(tab: Tab, folder: Path, name: str) -> None:
    """256 colors are enough for gray and a few organs; fewer where the file would be large."""
    from PIL import Image

    tab.page.wait_for_timeout(1500)                         # until what moves has settled
    if name != "correct":                                   # where the brush is seen
        tab.page.mouse.move(640, 24)                        # over nothing
        tab.page.wait_for_timeout(500)
    image = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
    for colors in (256, 128, 64):
        data = io.BytesIO()
        image.quantize(colors, dither=Image.Dither.NONE).save(data, "png", optimize=True)
        if data.tell() < LIMIT:
            break
    path = folder / f"web-{name}.png"
    path.write_bytes(data.getvalue())
    print(f"{path}: {data.tell() / 1000:.0f} kB, {colors} colors", flush=True)


if __name__ == "__main__":
    main()
