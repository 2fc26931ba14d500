"""What HiEndSeg does once Slicer has started: its terminology and its sample data. Takes milliseconds, breaks nothing.

The module connects `completed` to Slicer's `startupCompleted()`; earlier, other modules may not exist yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..resources import resource
from .samples import register_samples

TERMINOLOGY = "SegmentationCategoryTypeModifier-HiEndSeg.term.json"


def completed(slicer: Any = None, sample_data: Any = None) -> None:
    """Load the terminology and register the sample CT. Each failure is logged in one line and stops nothing else."""
    if slicer is None:
        import slicer
    _attempt("The terminology of HiEndSeg was not loaded", lambda: load_terminology(slicer))
    _attempt("The sample CT of HiEndSeg was not registered", lambda: register_samples(sample_data))


def load_terminology(slicer: Any) -> str | None:
    """Names and colors of our structures in the terminology selector; the context's name, None without that module."""
    module = getattr(slicer.modules, "terminologies", None)     # can be switched off in Slicer's settings
    if module is None:
        return None
    from ..bridge.scene import load_terminology as load  # imports slicer, nothing else

    return load(module.logic(), resource(TERMINOLOGY))


def _attempt(what: str, action: Callable[[], Any]) -> None:
    try:
        action()
    except Exception:
        logging.getLogger(__name__).warning(what, exc_info=True)
