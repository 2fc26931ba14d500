"""What the page's tests share: the server in a process, the browser, and one tab with what it complained about."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "Resources" / "Sample" / "ct-abdomen-09.nii.gz"
#: The part of the sample with liver, kidneys, pancreas and aorta: 96 x 96 x 67 voxels of the model.
PART = (slice(24, 120), slice(10, 106), slice(50, 130))
#: The page is said to be usable at this size.
SIZE = {"width": 1280, "height": 720}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
#: Milliseconds that something quick, something slow and something that computes may take on a loaded machine.
SOON, LATER, LONG = 30_000, 120_000, 600_000
FIRST_PICTURE = "Array.from(document.images).filter(i => i.naturalWidth > 100 && i.src.startsWith('blob')).length > 2"


def chromium_path() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    return None


class Site:
    """The server's process. address: with its token, good for one browser. file: what its first page opens, or None."""

    def __init__(self, folder, models, *arguments, file=SAMPLE):
        self.folder = folder
        environment = {"HIENDSEG_TEST_STEPS": "4", **os.environ, "HIENDSEG_MODELS": str(models),
                       "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
                       "HIENDSEG_TEST_FOLDER": str(folder)}
        self._errors = open(folder / "errors.txt", "w+", encoding="utf-8")
        opened = ["--file", str(file)] if file else []
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("serve_probed.py")),
                                         *opened, *arguments], cwd=folder, env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=self._errors)
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:"), self.errors()
        self.home = self.address.partition("?")[0]

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()
        self._errors.close()


class Chrome:
    """Headless Chromium with one context; whatever a page asks for outside the server is noted."""

    def __init__(self):
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        self.context = self.new_context()

    def new_context(self, **more):
        return self._browser.new_context(viewport=SIZE, accept_downloads=True, **more)

    def close(self) -> None:
        self._browser.close()
        self._playwright.stop()


class Tab:
    """One page. complaints: console errors, failed scripts, and requests to any other host."""

    def __init__(self, context, address):
        self.page = page = context.new_page()
        self.complaints: list[str] = []
        page.set_default_timeout(SOON)
        page.on("console", lambda message: self._note(message.type == "error", f"console: {message.text}"))
        page.on("pageerror", lambda error: self._note(True, f"script: {error}"))
        page.on("request", lambda request: self._note(
            urlsplit(request.url).scheme in ("http", "https", "ws", "wss")
            and urlsplit(request.url).hostname != "127.0.0.1", f"asked elsewhere: {request.url}"))
        page.on("response", lambda response: self._note(response.status >= 400,
                                                        f"{response.status}: {response.url}"))
        page.goto(address)
        page.wait_for_function("document.title === 'HiEndSeg' && window.trame", timeout=LATER)

    def _note(self, wrong: bool, what: str) -> None:
        if wrong:
            self.complaints.append(what)

    # ------------------------------------------------------------------------------------------ what the page shows

    def seen(self, id_: str):
        return self.page.locator(f'[id="{id_}"]')

    def text(self, id_: str) -> str:
        return self.seen(id_).inner_text().strip()

    def click(self, id_: str, timeout: float = SOON) -> None:
        self.seen(id_).click(timeout=timeout)

    def wait(self, expression: str, timeout: float = SOON):
        """Until a JavaScript expression about the page holds; its value."""
        try:
            return self.page.wait_for_function(expression, timeout=timeout).json_value()
        except Exception:
            words = {id_: self.text(id_) for id_ in ("seg-headline", "seg-detail", "ada-headline", "ada-detail",
                                                     "att-headline", "message") if self.seen(id_).is_visible()}
            raise AssertionError(f"waited {timeout / 1000:g} s in vain for: {expression}; the page says {words} and "
                                 f"complained {self.complaints}") from None

    def wait_state(self, condition: str, timeout: float = SOON):
        """As `wait`, about the page's state, as `s`."""
        return self.wait(f"(() => {{ const s = window.trame?.state?.state; return s && ({condition}); }})()", timeout)

    def first_picture(self) -> None:
        """Until the views show pictures of the scene."""
        self.wait(FIRST_PICTURE, LATER)

    def section(self, name: str, opened: bool = True) -> None:
        """Open or close a section of the panel."""
        header = self.page.locator(f"#section-{name} > button").first
        header.wait_for()
        if (header.get_attribute("aria-expanded") == "true") != opened:
            header.click()

    def only(self, *names: str) -> None:
        """Close all sections but these."""
        for header in self.page.locator("[id^=section-]").all():
            name = header.get_attribute("id").removeprefix("section-")
            self.section(name, name in names)

    def view(self, name: str) -> dict:
        """The box of a view on the page: "axial", "coronal", "sagittal", "3d"."""
        return self.seen(f"view-{name}").locator("..").bounding_box()

    def drag(self, name: str, *points) -> None:
        """Press, move and release in a view; points from 0, 0 (top left) to 1, 1."""
        box, mouse = self.view(name), self.page.mouse
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        mouse.move(*places[0])
        mouse.down()
        for place in places[1:] or places:
            mouse.move(*place, steps=8)
        mouse.up()

    # ------------------------------------------------------------------------------------------ what the server holds

    def get(self, path: str):
        return self.page.request.get(self.page.url.split("/index.html")[0] + path)

    def facts(self) -> dict:
        return self.get("/probe/facts").json()

    def segments(self) -> dict:
        return self.get("/probe/segments").json()

    def until(self, condition, seconds: float = 30.0):
        """Ask the server until `condition()` is true; its value."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, "still waiting"
            self.page.wait_for_timeout(50)
        return value

    def steady(self, look) -> None:
        """Until `look()` gives the same for half a second: the last events of a drag come late on a busy machine."""
        before = object()
        while (now := look()) != before:
            before = now
            self.page.wait_for_timeout(500)

    def download(self, id_: str, folder: Path) -> Path:
        with self.page.expect_download(timeout=LATER) as waiting:
            self.click(id_)
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    def close(self) -> None:
        self.page.close()
