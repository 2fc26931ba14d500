"""What can be taken home: the segmentation as .seg.nrrd and NIfTI, and the scene."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web

from HiEndSegLib.errors import HiEndSegError

FORMATS = {"seg.nrrd": "Segmentation (.seg.nrrd)", "nii.gz": "Label map (.nii.gz)", "mrb": "Scene (.mrb)"}


def offered(session: Any) -> list[dict]:
    """Formats for what is there now."""
    return [{"id": id_, "title": title} for id_, title in FORMATS.items()] \
        if session.segment.state.segmentation_id else []


def add_routes(app: Any, session: Any) -> None:
    async def download(request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        if kind not in FORMATS:
            return web.Response(status=404, text="There is no such format.")
        with tempfile.TemporaryDirectory(dir=session.folder) as folder:
            try:
                path = write(session, kind, Path(folder))
            except HiEndSegError as error:
                return web.Response(status=409, text=str(error))
            return web.Response(body=path.read_bytes(), content_type="application/octet-stream",
                                headers={"Content-Disposition": f'attachment; filename="{path.name}"'})

    app.router.add_get("/download/{kind}", download)


def write(session: Any, kind: str, folder: Path) -> Path:
    """Write the current result as `kind` into `folder`. Raises HiEndSegError."""
    from HiEndSegLib.bridge.corrections import read_correction
    from HiEndSegLib.bridge.structures import drawn_structures
    from HiEndSegLib.errors import InputError, OutputError
    from HiEndSegLib.geometry.writing import write_labels

    state = session.segment.state
    segmentation = session.scene.GetNodeByID(state.segmentation_id or "")
    volume = session.scene.GetNodeByID(state.volume_id or "")
    if segmentation is None or volume is None:
        raise InputError("There is no result to download; press Segment first.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", segmentation.GetName()).strip("._") or "result"
    path = folder / f"{name}.{kind}"
    if kind == "mrb":
        written = session.views.save_scene(str(path))
    elif kind == "seg.nrrd":                        # Slicer's own writer keeps segments that overlap
        written = session.views.save_segmentation(segmentation, str(path))
    else:
        drawn = drawn_structures(segmentation, session.legend_of(segmentation))
        correction = read_correction(segmentation, volume, [one.label for one in drawn], drawn=drawn)
        write_labels(correction.labels, correction.legend, path)
        written = True
    if not written or not path.is_file():
        raise OutputError("The file could not be written; free some space on this computer and try again.")
    return path


def add_model_route(app: Any, session: Any) -> None:
    """GET /model/KEY: one of the person's own models or versions as a zip, never with a teaching set."""
    async def download(request: web.Request) -> web.StreamResponse:
        from HiEndSegLib.models.versions import export_version

        with tempfile.TemporaryDirectory(dir=session.folder) as folder:
            try:
                card = session.registry.get(request.match_info["key"])
                path = export_version(card, Path(folder) / f"{card.id}-{card.version}.zip")
            except HiEndSegError as error:
                return web.Response(status=409, text=str(error))
            return web.Response(body=Path(path).read_bytes(), content_type="application/zip",
                                headers={"Content-Disposition": f'attachment; filename="{Path(path).name}"'})

    app.router.add_get("/model/{key}", download)
