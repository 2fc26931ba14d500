"""What PythonQt would print and swallow: exceptions in slots and callbacks. Recorded here, so that a test fails."""

from __future__ import annotations

import sys
import threading
import traceback

_recorded: list[str] = []


def record(error: BaseException) -> None:
    """Keep an exception of a slot with its traceback; a `KeyboardInterrupt` goes through."""
    if not isinstance(error, Exception):
        raise error
    _recorded.append("".join(traceback.format_exception(type(error), error, error.__traceback__)))


def taken() -> list[str]:
    """What was recorded since the last call."""
    found = list(_recorded)
    _recorded.clear()
    return found


def _hook(kind, value, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, value, trace)
        return
    _recorded.append("".join(traceback.format_exception(kind, value, trace)))
    sys.__excepthook__(kind, value, trace)


def install() -> None:
    """VTK observers, Python threads and PySide's own connections end up in these hooks."""
    sys.excepthook = _hook
    sys.unraisablehook = lambda item: _hook(item.exc_type, item.exc_value, item.exc_traceback)
    threading.excepthook = lambda item: _hook(item.exc_type, item.exc_value, item.exc_traceback)
