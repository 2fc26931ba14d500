"""Progress and cancellation: the two things every long operation takes."""

from __future__ import annotations

import threading
from typing import Callable

from .errors import Cancelled

#: Called with a fraction in [0, 1] that never falls, and a short message for a person.
Progress = Callable[[float, str], None]


def no_progress(fraction: float, message: str) -> None:
    """A Progress that goes nowhere, the default of every operation."""


def subprogress(progress: Progress, start: float, end: float) -> Progress:
    """Map a stage's own 0..1 onto [start, end] of the whole."""
    def report(fraction: float, message: str) -> None:
        progress(start + (end - start) * min(max(fraction, 0.0), 1.0), message)
    return report


class CancelToken:
    """Set from any thread; the working thread calls `check()` at least twice a second."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if somebody asked to stop."""
        if self._event.is_set():
            raise Cancelled()
