"""One tab's process: a scene, an engine, the presenters and the page that shows them.

Started by the lobby as `python -m HiEndSegWeb.session`, with its key in the environment and not on the command line,
where other users of the computer could read it. Prints one line of JSON with its port once it listens, and ends when
its tab has been gone for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.errors import HiEndSegError, InputError
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.presenter.adapt import AdaptPresenter
from HiEndSegLib.presenter.attention import AttentionPresenter
from HiEndSegLib.presenter.models import ModelsPresenter
from HiEndSegLib.presenter.segment import SegmentPresenter

from .reading import Opened, Reading

KEY_VARIABLE = "HIENDSEG_SESSION_KEY"
#: Window and level of a CT, HU.
WINDOWS = {"Soft tissue": (400, 40), "Liver": (160, 90), "Lung": (1500, -600), "Bone": (1800, 400)}
#: Seconds between two looks at the engine while it computes and otherwise, and without a tab until the process ends.
TICK, IDLE, ALONE = 0.04, 0.12, 20
_log = logging.getLogger("hiendseg.web")


class Session:
    """What one tab works on. server: a trame server that is not started yet."""

    WINDOWS = WINDOWS

    def __init__(self, server: Any, *, folder: Path, engine: Any = None):
        from .page import Page
        from .views import Views

        self.server, self.state, self.folder = server, server.state, folder
        self.views = Views(server)
        self.scene = self.views.scene
        self.settings: dict[str, Any] = {}
        self.registry = registry = Registry()
        self.engine = engine or EngineClient(temporary=folder)     # whoever removes the folder removes its voxels, too
        self.segment = SegmentPresenter(scene=self.scene, engine=self.engine, registry=registry,
                                        settings=self.settings)
        self.models = ModelsPresenter(registry=registry, engine=self.engine, settings=self.settings)
        self.models.models_changed.connect(self.segment.refresh)
        self.adapt = AdaptPresenter(scene=self.scene, engine=self.engine, registry=registry, settings=self.settings,
                                    segment=self.segment)
        self.attention = AttentionPresenter(scene=self.scene, engine=self.engine, registry=registry,
                                            settings=self.settings, segment=self.segment)
        self.adapt.models_changed.connect(self.models.refresh)
        self.adapt.models_changed.connect(self.segment.refresh)
        self.presenters = [self.segment, self.models, self.adapt, self.attention]
        #: Of volumes that came as DICOM, by node id: headers of their images, without pixels.
        self.headers: dict[str, tuple[bytes, ...]] = {}
        #: Ids of volumes in Hounsfield units.
        self.hounsfield: set[str] = set()
        self.page = Page(self)
        self._closed = False
        self.views.on_removed(self._on_removed)

    @property
    def volume(self) -> Any:
        id_ = self.segment.state.volume_id
        return self.scene.GetNodeByID(id_) if id_ else None

    def volumes(self) -> list:
        """Volume nodes that can be segmented; helpers such as heat maps are hidden from editors."""
        scene, class_name = self.scene, "vtkMRMLScalarVolumeNode"
        count = scene.GetNumberOfNodesByClass(class_name)
        nodes = [scene.GetNthNodeByClass(index, class_name) for index in range(count)]
        return [node for node in nodes if not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetHideFromEditors()]

    def model_of(self, segmentation: Any) -> str:
        """Key of the model that made a segmentation; of the chosen one where nobody knows."""
        from HiEndSegLib.bridge.results import MODEL

        return segmentation.GetAttribute(MODEL) or self.segment.state.model_id or ""

    def legend_of(self, segmentation: Any) -> list:
        """Structures of that model."""
        try:
            return self.registry.get(self.model_of(segmentation)).labels
        except HiEndSegError:
            return []

    # ------------------------------------------------------------------------------------------ opening

    def may_open(self) -> None:
        """Raises InputError while something computes: its result would come for another volume than is shown."""
        if self.segment.state.busy or self.adapt.state.busy:
            raise InputError("Something is being computed; wait for it or stop it, then open the volume.")

    def open_read(self, reading: Reading, name: str | None = None) -> None:
        """Show what a file's process has read. Raises InputError."""
        self._place(reading.result(), name)

    async def open_in_background(self, path: str | os.PathLike, name: str, limited: bool = True) -> None:
        """Read a volume (NIfTI, NRRD, a DICOM file or folder) and show it. Raises InputError."""
        self.state.update({"opening": name})
        self.state.flush()
        reading = Reading(path, self.folder, limited=limited)
        try:
            opened = await asyncio.to_thread(reading.result)
            self.may_open()
            self._place(opened, name)
        finally:
            reading.close()
            self.state.update({"opening": ""})

    async def open_sample(self) -> None:
        """The CT that ships. Raises InputError where it is missing."""
        from HiEndSegLib.desktop.samples import SAMPLE_NAME, sample_path

        self.may_open()
        await self.open_in_background(sample_path(), SAMPLE_NAME, limited=False)

    def open_result(self, path: str | os.PathLike) -> None:
        """A label map of the shown volume, made before, as its result. Raises HiEndSegError."""
        from HiEndSegLib.bridge.results import mark_result
        from HiEndSegLib.bridge.segmentations import segmentation_from_labels
        from HiEndSegLib.bridge.tables import measure_segments, write_table
        from HiEndSegLib.geometry.writing import read_labels

        node = self.volume
        if node is None:
            raise InputError("There is no volume that the result could belong to; open the volume first.")
        labels, legend = read_labels(path)
        segmentation = segmentation_from_labels(labels, legend, node)
        mark_result(segmentation, self.segment.state.model_id or "")
        write_table(segmentation, node, measure_segments(segmentation, node), unit="HU")
        self.segment.refresh()

    def choose_volume(self, node_id: str | None) -> None:
        """Segment and show another volume of the scene."""
        node = self.scene.GetNodeByID(node_id) if node_id else None
        self.views.show_volume(node)
        self.segment.set_volume(node)

    def _place(self, opened: Opened, name: str | None) -> None:
        from HiEndSegLib.bridge.volumes import node_from_volume
        from HiEndSegLib.geometry.modality import guess_modality

        from .views import set_window

        node = node_from_volume(opened.volume, self.scene, name=name)
        if guess_modality(opened.volume).is_hu:
            self.hounsfield.add(node.GetID())
            set_window(node, *WINDOWS["Soft tissue"])
        if opened.headers:
            self.headers[node.GetID()] = opened.headers
        self.views.show_volume(node)
        self.segment.set_volume(node)
        if opened.volume.notes:
            self.page.say(" ".join(opened.volume.notes))

    def set_window(self, name: str) -> None:
        """One of the windows of a CT."""
        from .views import set_window

        if self.volume is not None and name in WINDOWS and self.volume.GetID() in self.hounsfield:
            set_window(self.volume, *WINDOWS[name])

    def next_window(self) -> None:
        """The one after the one that is on; the first where the person has made one."""
        if self.volume is not None:
            names, now = list(WINDOWS), self.window_name()
            self.set_window(names[(names.index(now) + 1) % len(names)] if now else names[0])

    def window_name(self) -> str:
        """Of the shown volume, "" where it is none of them."""
        if self.volume is None or self.volume.GetID() not in self.hounsfield:
            return ""
        display = self.volume.GetDisplayNode()
        now = (display.GetWindow(), display.GetLevel())
        return next((name for name, values in WINDOWS.items() if values == now), "")

    def remove_volume(self) -> None:
        """Take the shown volume out of the scene, with its results; another one is shown if there is one."""
        from HiEndSegLib.bridge.results import results_of, table_of

        self.may_open()
        node = self.volume
        if node is None:
            return
        self.views.end_editing()
        for segmentation in results_of(node):
            for other in (table_of(segmentation), segmentation):
                if other is not None:
                    self.scene.RemoveNode(other)
        self.scene.RemoveNode(node)
        left = self.volumes()
        self.choose_volume(left[-1].GetID() if left else None)

    def _on_removed(self, node_id: str) -> None:
        self.headers.pop(node_id, None)
        self.hounsfield.discard(node_id)
        for presenter in (self.segment, self.adapt, self.attention):
            presenter.node_removed(node_id)

    def key(self, action: str, view: str = "axial") -> None:
        """What a key of the page does; unknown ones do nothing. view: the one under the mouse."""
        views, steps = self.views, {"next": 1, "previous": -1, "next10": 10, "previous10": -10}
        if action in steps:
            views.step(steps[action], view)
        elif action in ("undo", "redo", "fit", "window"):
            {"undo": views.undo, "redo": views.redo, "fit": views.fit, "window": self.next_window}[action]()
        elif action == "segmentation":
            views.toggle(self.segment.state.segmentation_id)
        elif action in ("larger", "smaller"):
            self.page.edit.resize_brush(action == "larger")
        elif action in ("paint", "erase", "scissors", "none") and views.edited() is not None:
            views.set_tool(action)

    def tick(self) -> None:
        """Let every presenter take in what has arrived, and send what changed."""
        for presenter in self.presenters:
            presenter.tick()
        self.page.refresh()
        self.state.flush()

    async def run(self) -> None:
        """Tick until closed. A slip in one turn is logged and does not end the page."""
        for presenter in (self.segment, self.adapt, self.attention):
            presenter.enter()
        self.models.refresh()
        while not self._closed:
            try:
                self.tick()
            except Exception:                       # noqa: BLE001
                _log.exception("A turn of the session failed")
            busy = any(getattr(presenter.state, "busy", False) for presenter in self.presenters)
            await asyncio.sleep(TICK if busy else IDLE)

    def close(self) -> None:
        """Stop what runs and give everything back."""
        if not self._closed:
            self._closed = True
            for presenter in self.presenters:
                presenter.close()
            self.engine.close()


class Watch:
    """Ends the process when its page has been gone for `seconds`, or whoever started it is gone before a page came."""

    def __init__(self, seconds: float, end: Callable[[], Any]):
        self._seconds, self._end = seconds, end
        self._pages, self._timer = 0, None
        self._parent = os.getppid()

    def page(self, change: int) -> None:
        """A page came (1) or went (-1)."""
        self._pages += change
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pages == 0:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._finish)

    def _finish(self) -> None:
        asyncio.get_running_loop().create_task(self._end())

    async def parent(self) -> None:
        """Until the parent is gone and no page is left."""
        while os.getppid() == self._parent or self._pages:
            await asyncio.sleep(1.0)
        await self._end()


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="hiendseg-session", description="One tab of the browser face; started by "
                                     "'hiendseg app', of no use by hand.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="a private folder for uploads and downloads")
    parser.add_argument("--file", help="a volume to open")
    parser.add_argument("--result", help="a label map of that volume to show with it")
    parser.add_argument("--home", type=int, default=0, help="port where a new tab can be had")
    parser.add_argument("--alone", type=float, default=ALONE, help="seconds without a tab before it ends")
    options = parser.parse_args(argv)
    key = os.environ.pop(KEY_VARIABLE, "") or secrets.token_urlsafe(24)
    # Reads while this process gets ready.
    reading = Reading(options.file, options.folder, limited=False) if options.file else None
    sys.argv = sys.argv[:1]                         # trame reads it, too
    os.environ.setdefault("WSLINK_READY_MSG", "")
    os.environ.setdefault("WSLINK_WS_COMPRESS", "0")    # pictures are packed already
    from trame.app import get_server

    from .guard import protect

    server = get_server(f"hiendseg-{secrets.token_hex(4)}", client_type="vue3")
    server.enable_module({"serve": {"__hiendseg": str(Path(__file__).with_name("serve"))},
                          "scripts": ["__hiendseg/hiendseg.js"]})
    session = Session(server, folder=options.folder)
    session.state.home = options.home
    controller = server.controller
    controller.trigger("key")(session.key)
    watch = Watch(options.alone, server.stop)
    waiting = []                                    # tasks, which nobody else keeps

    @controller.add("on_server_bind")
    def bind(wslink_server: Any) -> None:
        protect(wslink_server.app, key, options.host, watch.page)
        session.page.add_routes(wslink_server.app)

    @controller.add("on_server_ready")
    def ready(**_: Any) -> None:
        loop = asyncio.get_running_loop()
        waiting.extend(loop.create_task(work) for work in (session.run(), watch.parent()))
        print(json.dumps({"port": server.port, "pid": os.getpid()}), flush=True)

    if reading is not None:
        try:
            session.open_read(reading)
            if options.result:
                session.segment.enter()
                session.open_result(options.result)
        except HiEndSegError as error:
            session.page.say(str(error), error=True)
    try:
        server.start(host=options.host, port=options.port, open_browser=False, show_connection_info=False,
                     timeout=0, disable_logging=True)
    finally:
        session.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
