"""A session's process as it is served, with routes that let a test see what the server holds. Never part of the page.

GET /probe/facts, GET /probe/segments (voxels of every segment, as Slicer reads them), GET /probe/array/ID (.npy).
HIENDSEG_TEST_STEPS: steps of every adaptation (4, unless it is set).
"""

from __future__ import annotations

import hashlib
import io
import os
import sys

import numpy as np
from aiohttp import web

from HiEndSegLib.engine.folder import LOCK_NAME, PREFIX
from HiEndSegWeb import session as served
from HiEndSegWeb.panels.base import Panel

KINDS = ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLTableNode", "vtkMRMLSegmentationDisplayNode",
         "vtkMRMLScalarVolumeDisplayNode", "vtkMRMLMarkupsFiducialNode", "vtkMRMLStorageNode", "vtkMRMLModelNode",
         "vtkMRMLPlotSeriesNode", "vtkMRMLColorTableNode", "vtkMRMLNode")


#: What a page can be shown without.
SLOW = ("torch", "scipy.ndimage", "nibabel", "SimpleITK", "matplotlib", "highdicom")


class Probe(Panel):
    name = "probe"

    def add_routes(self, app):
        app.router.add_get("/probe/facts", self.facts)
        app.router.add_get("/probe/segments", self.segments)
        app.router.add_get("/probe/array/{id}", self.array)

    async def facts(self, _request):
        import psutil

        session, scene = self.session, self.session.scene
        surfaces = points = 0
        for view in session.views.app.view_manager.get_threed_views():
            actors = view.renderer().GetActors()
            actors.InitTraversal()
            for _ in range(actors.GetNumberOfItems()):
                actor = actors.GetNextActor()
                data = actor.GetMapper().GetInput() if actor.GetMapper() is not None else None
                shown = actor.GetVisibility() and data is not None and data.GetNumberOfPolys() > 100
                surfaces += bool(shown)
                points += data.GetNumberOfPoints() if shown else 0
        return web.json_response({
            "pid": os.getpid(), "worker": session.engine.worker_pid, "torch": "torch" in sys.modules,
            "slow": [name for name in SLOW if name in sys.modules],
            "nodes": {kind: scene.GetNumberOfNodesByClass(kind) for kind in KINDS},
            "slices": [view.get_slice_value() for view in session.views.slice_views()],
            "window": [session.volume.GetDisplayNode().GetWindow(), session.volume.GetDisplayNode().GetLevel()]
            if session.volume is not None else None,
            "fields": [list(view.get_view_node().GetFieldOfView()) for view in session.views.slice_views()],
            "origins": [list(view.get_view_node().GetXYZOrigin()) for view in session.views.slice_views()],
            "foreground": [view.get_foreground_volume_id() for view in session.views.slice_views()],
            "volumes": [node.GetName() for node in session.volumes()],
            "shape": list(session.volume.GetImageData().GetDimensions()) if session.volume is not None else None,
            "tool": session.views.tool(), "segment": session.views.segment(), "surfaces": surfaces,
            "surface_points": points,
            "phase": session.segment.state.phase, "point": session.attention.state.point,
            "resident": psutil.Process().memory_info().rss,
            "folder": [name for name in sorted(os.listdir(session.folder))
                                                  if name != LOCK_NAME and not name.startswith(PREFIX)]})

    def _arrays(self):
        import types

        import slicer.util

        logic = self.session.views.app.segmentations_logic
        slicer.modules = types.SimpleNamespace(segmentations=types.SimpleNamespace(logic=lambda: logic))
        session = self.session
        node = session.scene.GetNodeByID(session.segment.state.segmentation_id or "")
        if node is None:
            return {}
        segmentation = node.GetSegmentation()
        ids = [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]
        return {id_: slicer.util.arrayFromSegmentBinaryLabelmap(node, id_, session.volume) for id_ in ids}

    async def segments(self, _request):
        return web.json_response({id_: {"voxels": int(np.count_nonzero(array)),
                                        "hash": hashlib.sha256(np.packbits(array > 0).tobytes()).hexdigest()}
                                  for id_, array in self._arrays().items()})

    async def array(self, request):
        buffer = io.BytesIO()
        np.save(buffer, self._arrays()[request.match_info["id"]] > 0)
        return web.Response(body=buffer.getvalue())


class ProbedSession(served.Session):
    def __init__(self, server, **more):
        super().__init__(server, **more)
        self.page.panels.append(Probe(self))
        steps = os.environ.get("HIENDSEG_TEST_STEPS")
        if steps:
            submit = self.engine.submit_adapt
            self.engine.submit_adapt = lambda *arguments, **options: submit(*arguments, **{**options,
                                                                                          "steps": int(steps)})


if __name__ == "__main__":
    served.Session = ProbedSession
    sys.exit(served.main())
