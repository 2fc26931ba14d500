"""Progress, records and cancellation: what every long operation takes."""

from __future__ import annotations

import threading
from typing import Callable

from .errors import Cancelled

#: Called with a fraction in [0, 1] that never falls, and a short message for a person.
Progress = Callable[[float, str], None]


def no_progress(fraction: float, message: str) -> None:
    """A Progress that goes nowhere, the default of every operation."""


#: Called with a dict that JSON can hold whenever an operation has something to tell while it runs (a step's loss,
#: a score); its "kind" says what. NaN and infinite numbers arrive as None.
Record = Callable[[dict], None]


def no_record(values: dict) -> None:
    """A Record that goes nowhere."""


def subprogress(progress: Progress, start: float, end: float) -> Progress:
    """Map a stage's own 0..1 onto [start, end] of the whole."""
    def report(fraction: float, message: str) -> None:
        progress(start + (end - start) * min(max(fraction, 0.0), 1.0), message)
    return report


class CancelToken:
    """Set from any thread; the working thread calls `check()` at least twice a second.

    `cancel()`: stop, and keep nothing. `finish()`: stop early, and keep the best so far; an operation that has no
    "so far" takes no notice of it. A cancel after a finish wins.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._finish = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def finish(self) -> None:
        self._finish.set()

    @property
    def finishing(self) -> bool:
        """Whether somebody asked for what there is so far."""
        return self._finish.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if somebody asked to stop and keep nothing."""
        if self._event.is_set():
            raise Cancelled()
