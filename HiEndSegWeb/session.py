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
from pathlib import Path
from typing import Any

from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.errors import HiEndSegError
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.presenter.adapt import AdaptPresenter
from HiEndSegLib.presenter.attention import AttentionPresenter
from HiEndSegLib.presenter.models import ModelsPresenter
from HiEndSegLib.presenter.segment import SegmentPresenter

KEY_VARIABLE = "HIENDSEG_SESSION_KEY"
#: Seconds between two looks at the engine, and without a tab after which the process ends.
TICK, ALONE = 0.04, 20
_log = logging.getLogger("hiendseg.web")


class Session:
    """What one tab works on. server: a trame server that is not started yet."""

    def __init__(self, server: Any, *, folder: Path, engine: Any = None):
        from .page import Page
        from .views import Views

        self.server, self.state, self.folder = server, server.state, folder
        self.views = Views(server)
        self.scene = self.views.scene
        self.settings: dict[str, Any] = {}
        self.registry = registry = Registry()
        self.engine = engine or EngineClient()
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
        self.page = Page(self)
        self._closed = False

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

    def legend_of(self, segmentation: Any) -> list:
        """Structures of the model that made a segmentation; of the chosen one where nobody knows."""
        from HiEndSegLib.bridge.results import MODEL

        try:
            return self.registry.get(segmentation.GetAttribute(MODEL) or self.segment.state.model_id).labels
        except HiEndSegError:
            return []

    # ------------------------------------------------------------------------------------------ opening

    def open_file(self, path: str | os.PathLike, name: str | None = None) -> str | None:
        """Read a volume (NIfTI, NRRD, a DICOM file or folder) and show it; the sentence where that failed."""
        from HiEndSegLib.geometry.reading import read_volume

        try:
            self._place(read_volume(path), name)
        except HiEndSegError as error:
            return str(error)
        return None

    async def open_in_background(self, path: Path, name: str) -> str | None:
        """As `open_file`; the reading happens on a thread, so that the page stays alive."""
        from HiEndSegLib.geometry.reading import read_volume

        try:
            self._place(await asyncio.to_thread(read_volume, path), name)
        except HiEndSegError as error:
            return str(error)
        return None

    def open_sample(self) -> None:
        """The CT that ships. Raises InputError where it is missing."""
        from HiEndSegLib.desktop.samples import SAMPLE_NAME, sample_path
        from HiEndSegLib.geometry.reading import read_volume

        self._place(read_volume(sample_path()), SAMPLE_NAME)

    def open_result(self, path: str | os.PathLike) -> str | None:
        """A label map of the shown volume, made before, as its result; the sentence where that failed."""
        from HiEndSegLib.bridge.results import mark_result
        from HiEndSegLib.bridge.segmentations import segmentation_from_labels
        from HiEndSegLib.bridge.tables import measure_segments, write_table
        from HiEndSegLib.geometry.writing import read_labels

        node = self.volume
        if node is None:
            return "There is no volume that the result could belong to; open the volume first."
        try:
            labels, legend = read_labels(path)
            segmentation = segmentation_from_labels(labels, legend, node)
            mark_result(segmentation, self.segment.state.model_id or "")
            write_table(segmentation, node, measure_segments(segmentation, node), unit="HU")
        except HiEndSegError as error:
            return str(error)
        self.segment.refresh()
        return None

    def choose_volume(self, node_id: str | None) -> None:
        """Segment and show another volume of the scene."""
        node = self.scene.GetNodeByID(node_id) if node_id else None
        if node is not None:
            self.views.show_volume(node)
            self.segment.set_volume(node)

    def _place(self, volume: Any, name: str | None) -> None:
        from HiEndSegLib.bridge.volumes import node_from_volume
        from HiEndSegLib.geometry.modality import guess_modality

        from .views import ct_window

        node = node_from_volume(volume, self.scene, name=name)
        if guess_modality(volume).is_hu:
            ct_window(node)
        self.views.show_volume(node)
        self.segment.set_volume(node)

    def key(self, action: str) -> None:
        """What a key of the page does; unknown ones do nothing."""
        views, steps = self.views, {"next": 1, "previous": -1, "next10": 10, "previous10": -10}
        if action in steps:
            views.step(steps[action])
        elif action == "undo":
            views.undo()
        elif action == "redo":
            views.redo()
        elif action == "segmentation":
            views.toggle(self.segment.state.segmentation_id)
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
            await asyncio.sleep(TICK)

    def close(self) -> None:
        """Stop what runs and give everything back."""
        if not self._closed:
            self._closed = True
            for presenter in self.presenters:
                presenter.close()
            self.engine.close()


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="hiendseg-session", description="One tab of the browser face; started by "
                                     "'hiendseg app', of no use by hand.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="a private folder for uploads and downloads")
    parser.add_argument("--file", help="a volume to open")
    parser.add_argument("--result", help="a label map of that volume to show with it")
    parser.add_argument("--alone", type=float, default=ALONE, help="seconds without a tab before it ends")
    options = parser.parse_args(argv)
    key = os.environ.pop(KEY_VARIABLE, "") or secrets.token_urlsafe(24)
    sys.argv = sys.argv[:1]                         # trame reads it, too
    os.environ.setdefault("WSLINK_READY_MSG", "")
    from trame.app import get_server

    from .guard import protect

    server = get_server(f"hiendseg-{secrets.token_hex(4)}", client_type="vue3")
    server.enable_module({"serve": {"__hiendseg": str(Path(__file__).with_name("serve"))},
                          "scripts": ["__hiendseg/hiendseg.js"]})
    session = Session(server, folder=options.folder)
    controller = server.controller
    controller.trigger("key")(session.key)

    @controller.add("on_server_bind")
    def bind(wslink_server: Any) -> None:
        protect(wslink_server.app, key, options.host)
        session.page.add_routes(wslink_server.app)

    @controller.add("on_server_ready")
    def ready(**_: Any) -> None:
        asyncio.get_event_loop().create_task(session.run())
        print(json.dumps({"port": server.port, "pid": os.getpid()}), flush=True)

    if options.file:
        sentence = session.open_file(options.file)
        if options.result and not sentence:
            session.segment.enter()
            sentence = session.open_result(options.result)
        if sentence:
            session.page.say(sentence, error=True)
    try:
        server.start(host=options.host, port=options.port, open_browser=False, show_connection_info=False,
                     timeout=options.alone, disable_logging=True)
    finally:
        session.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
