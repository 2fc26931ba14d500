"""What can be taken home: the segmentation in three formats, the scene, and models of the person's own."""

from __future__ import annotations

import asyncio
import inspect
import io
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from HiEndSegLib.errors import HiEndSegError, InputError, OutputError

FORMATS = {"seg.nrrd": "Segmentation (.seg.nrrd)", "nii.gz": "Label map (.nii.gz)", "dcm": "DICOM SEG (.dcm)",
           "mrb": "Scene (.mrb)"}
_CHUNK = 1 << 20


def offered(session: Any) -> list[dict]:
    """Formats for what is there now; a DICOM segmentation only where the volume came as DICOM."""
    state = session.segment.state
    if not state.segmentation_id:
        return []
    return [{"id": id_, "title": title} for id_, title in FORMATS.items()
            if id_ != "dcm" or state.volume_id in session.headers]


def add_routes(app: Any, session: Any) -> None:
    """GET /download/FORMAT: the current result."""
    async def download(request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        if kind not in FORMATS:
            return web.Response(status=404, text="There is no such format.")
        return await send(request, session.folder, lambda folder: write(session, kind, folder))

    app.router.add_get("/download/{kind}", download)


def add_model_route(app: Any, session: Any) -> None:
    """GET /model/KEY: one of the person's own models or versions as a zip, never with a teaching set; with ?whole=1
    a version with everything it needs."""
    async def download(request: web.Request) -> web.StreamResponse:
        def export(folder: Path) -> Callable[[], Path] | Awaitable[Path]:
            from HiEndSegLib.models.versions import export_version

            card = session.registry.get(request.match_info["key"])
            if request.query.get("whole") and card.is_version:
                return whole(card, folder / f"{card.id}-{card.version}-whole.zip")
            return lambda: Path(export_version(card, folder / f"{card.id}-{card.version}.zip"))

        async def whole(card: Any, path: Path) -> Path:
            session.may_open()                              # the engine does one thing at a time
            job = session.engine.submit_export(str(card.folder), path)
            while not job.done:
                await asyncio.sleep(0.05)
                job.poll()
            return Path(job.result())

        return await send(request, session.folder, export)

    app.router.add_get("/model/{key}", download)


async def send(request: web.Request, private: Path,
               make: Callable[[Path], Path | Callable[[], Path] | Awaitable[Path]]) -> web.StreamResponse:
    """A file that `make` writes into a folder, in pieces; nothing of it stays.

    make: gives the file's path, what goes on to write it on a thread (nothing there may touch the scene), or what to
    wait for.
    """
    folder = Path(tempfile.mkdtemp(prefix="download-", dir=private))
    try:
        try:
            made = make(folder)
            path = await made if inspect.isawaitable(made) else await asyncio.to_thread(made) if callable(made) else made
            if not path.is_file():
                raise OutputError("The file could not be written; free some space on this computer and try again.")
        except HiEndSegError as error:
            return web.Response(status=409, text=str(error))
        except OSError as error:
            return web.Response(status=409, text=f"The file could not be written ({error.strerror or error}); free "
                                                 "some space on this computer and try again.")
        from .guard import headers_for

        answer = web.StreamResponse(headers={
            **headers_for(request), "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
            "Content-Disposition": f'attachment; filename="{path.name}"'})
        await answer.prepare(request)
        with open(path, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                await answer.write(chunk)
        await answer.write_eof()
        return answer
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(session: Any, kind: str, folder: Path) -> Path | Callable[[], Path]:
    """The current result as `kind` in `folder`, or what goes on to write it. Raises HiEndSegError."""
    state = session.segment.state
    segmentation = session.scene.GetNodeByID(state.segmentation_id or "")
    volume = session.scene.GetNodeByID(state.volume_id or "")
    if segmentation is None or volume is None:
        raise InputError("There is no result to download; press Segment first.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", segmentation.GetName()).strip("._") or "result"
    path = folder / f"{name}.{kind}"
    if kind == "mrb":
        session.attention.scene_saving()                # a map in front of the volume is not the person's scene
        try:
            session.views.save_scene(str(path))
        finally:
            session.attention.scene_saved()
        return path
    if kind == "seg.nrrd":                              # Slicer's own writer keeps segments that overlap
        session.views.save_segmentation(segmentation, str(path))
        return path
    labels, legend = _labels(session, segmentation, volume)
    if kind == "nii.gz":
        from HiEndSegLib.geometry.writing import write_labels

        return lambda: (write_labels(labels, legend, path), path)[1]
    return lambda: (_write_dicom(labels, legend, session.headers.get(state.volume_id), path, segmentation_name=name,
                                 model=session.model_of(segmentation)), path)[1]


def _labels(session: Any, segmentation: Any, volume: Any) -> tuple[Any, list]:
    """The result as it is now, corrections and new structures included: label map and legend."""
    from HiEndSegLib.bridge.corrections import read_correction
    from HiEndSegLib.bridge.structures import drawn_structures

    drawn = drawn_structures(segmentation, session.legend_of(segmentation))
    correction = read_correction(segmentation, volume, [one.label for one in drawn], drawn=drawn)
    return correction.labels, correction.legend


def _write_dicom(labels: Any, legend: list, headers: tuple[bytes, ...] | None, path: Path, *, segmentation_name: str,
                 model: str) -> None:
    import pydicom

    from HiEndSegLib import __version__
    from HiEndSegLib.geometry.dicom import quiet_pydicom
    from HiEndSegLib.geometry.dicom_seg import write_dicom_seg

    if not headers:
        raise InputError("This volume did not come as DICOM; download the .seg.nrrd instead.")
    with quiet_pydicom():
        images = [pydicom.dcmread(io.BytesIO(header), force=True) for header in headers]
    write_dicom_seg(labels, legend, images, path, description=segmentation_name, model=model, version=__version__)
