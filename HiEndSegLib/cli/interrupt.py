"""Ctrl-C: a cancel token for whatever runs, and a way to stop waiting for code that cannot be interrupted."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import Any, Callable, Iterator

from ..errors import Cancelled
from ..tasks import CancelToken

_LOOK = 0.05  # seconds


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a cancelled `token`, and a second one into KeyboardInterrupt."""

    def __init__(self) -> None:
        self.token = CancelToken()
        self._before: dict[int, Any] = {}
        self._threads: list[threading.Thread] = []
        self._finish_first = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._pressed)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pressed(self, number: int, frame: Any) -> None:
        if self._finish_first and number == signal.SIGINT and not (self.token.finishing or self.token.cancelled):
            self.token.finish()
            return
        if self.token.cancelled:
            raise KeyboardInterrupt
        self.token.cancel()

    @contextmanager
    def finish_first(self) -> Iterator[CancelToken]:
        """In here the first Ctrl-C asks for the best so far (`token.finish()`), and the second one cancels."""
        self._finish_first = True
        try:
            yield self.token
        finally:
            self._finish_first = False

    @property
    def left_behind(self) -> bool:
        """Whether something that was given up still runs in this process."""
        return any(thread.is_alive() for thread in self._threads)

    def wait_for(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """`function(…)`, given up with `Cancelled` when the token is set. Only for functions that write nothing.

        A library that decodes a file does not look at any token; so it runs on a thread that may be left behind.
        """
        self.token.check()
        outcome: list[tuple[bool, Any]] = []

        def run() -> None:
            try:
                outcome.append((True, function(*arguments, **options)))
            except BaseException as error:  # noqa: BLE001 - raised again on the thread that waits
                outcome.append((False, error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK)
            if self.token.cancelled and thread.is_alive():
                self._threads.append(thread)
                raise Cancelled()
        good, value = outcome[0]
        if good:
            return value
        raise value
