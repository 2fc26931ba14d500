"""The one engine of this Slicer, shared by panel and scripts: its worker starts with the first job and stays warm."""

from __future__ import annotations

import slicer

_engine = None


def engine():
    """The shared `EngineClient`; made, and connected to Slicer's end, when it is first asked for."""
    global _engine
    if _engine is None:
        from HiEndSegLib.engine.client import EngineClient

        _engine = EngineClient(temporary=slicer.app.temporaryPath)
        slicer.app.connect("aboutToQuit()", closeEngine)
    return _engine


def renewEngine():
    """Close the engine, whose worker holds what was installed before, and give a new one."""
    closeEngine()
    return engine()


def closeEngine():
    """Stop the worker; takes a second at most. Safe to call twice, and while Slicer quits."""
    global _engine
    if _engine is not None:
        old, _engine = _engine, None
        slicer.app.disconnect("aboutToQuit()", closeEngine)
        old.close()
