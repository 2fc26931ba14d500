"""One slow function at a time (copying or hashing files) on a thread, looked at from the face's timer.

Only functions that touch no MRML, Qt or VTK may run here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..engine.failures import as_failure
from ..errors import HiEndSegError
from ..tasks import CancelToken


class Background:
    """`start(function)`, then `poll()` until it answers. function(cancel): raises HiEndSegErrors."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._token = CancelToken()
        self._answer: list = []
        self._then: Callable[[Any, HiEndSegError | None], None] | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def start(self, function: Callable[[CancelToken], Any],
              then: Callable[[Any, HiEndSegError | None], None]) -> None:
        """Run `function`; `then(result, error)` is called by the `poll()` that finds it over."""
        if self._thread is not None:
            raise RuntimeError("something is running already")
        token, answer = CancelToken(), []
        self._token, self._answer, self._then = token, answer, then

        def work() -> None:
            try:
                answer.append((function(token), None))
            except BaseException as error:      # noqa: BLE001 - handed to whoever polls
                answer.append((None, as_failure(error)))

        self._thread = threading.Thread(target=work, daemon=True, name="hiendseg-files")
        self._thread.start()

    def poll(self) -> bool:
        """True where it was over and `then` was called."""
        if self._thread is None or not self._answer:
            return False
        self._thread.join()
        then, self._thread, self._then = self._then, None, None
        then(*self._answer[0])
        return True

    def wait(self, timeout: float | None = None) -> None:
        """For scripts: until the function is over, at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def cancel(self) -> None:
        self._token.cancel()

    def drop(self) -> None:
        """Stop it, and listen to no answer."""
        self._token.cancel()
        self._thread = self._then = None
