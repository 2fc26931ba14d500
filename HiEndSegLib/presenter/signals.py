"""`Signal`: a list of functions to call, in place of the signals of a particular toolkit."""

from __future__ import annotations

import logging
import weakref
from typing import Any, Callable

_log = logging.getLogger(__name__)


class Signal:
    """Calls its listeners in the order in which they were connected.

    A bound method is held weakly: its object may die, and the listener then goes with it. Functions and lambdas are
    held until `disconnect`. A listener that raises is logged and does not stop the others.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[[], Callable | None]] = []

    def connect(self, listener: Callable) -> None:
        """Call `listener` on every emit; connecting it again changes nothing."""
        if listener not in self:
            self._listeners.append(_hold(listener))

    def disconnect(self, listener: Callable) -> None:
        """Call it no longer; unknown listeners are ignored."""
        self._listeners = [held for held in self._listeners if held() not in (None, listener)]

    def disconnect_all(self) -> None:
        self._listeners = []

    def emit(self, *arguments: Any) -> None:
        """Call everybody who is connected now; who disconnects meanwhile is not called any more."""
        for held in tuple(self._listeners):
            listener = held()
            if listener is None:
                self._listeners = [other for other in self._listeners if other is not held]
            elif held in self._listeners:
                try:
                    listener(*arguments)
                except Exception:           # noqa: BLE001 - one widget's mistake must not silence the others
                    _log.exception("A listener failed")

    def __contains__(self, listener: Callable) -> bool:
        return any(held() == listener for held in self._listeners)

    def __len__(self) -> int:
        return sum(held() is not None for held in self._listeners)


def _hold(listener: Callable) -> Callable[[], Callable | None]:
    try:
        return weakref.WeakMethod(listener)
    except TypeError:                       # a function, a lambda, a partial, a method of something built in
        return lambda: listener
