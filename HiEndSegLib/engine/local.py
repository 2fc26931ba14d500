"""`LocalEngine`: the engine without a process. The same methods; a crash in here takes this process along."""

from __future__ import annotations

import queue
import threading
import traceback
from typing import Any

from ..errors import Cancelled, EngineError, HiEndSegError
from ..tasks import CancelToken
from .failures import as_failure
from .interface import Engine, Job, JobState
from .library import Library
from .redact import redact
from .transfer import plain

#: How long `close` waits for a running operation to notice that it should stop, in seconds.
CLOSE_SECONDS = 5.0


class LocalEngine(Engine):
    """Computes in this process, one job after another on one thread of its own (GPU plans are kept per thread).

    A cancelled job stops when the operation looks at its token, at least twice a second; it cannot be killed.
    """

    def __init__(self, library: Any = None):
        self._library = Library() if library is None else library
        self._lock = threading.RLock()
        self._orders: queue.SimpleQueue[tuple[int, str, dict, CancelToken] | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        self._open: dict[int, tuple[Job, CancelToken]] = {}
        self._thread: threading.Thread | None = None
        self._number = 0
        self._closed = False

    def close(self) -> None:
        """See `Engine.close`; waits up to `CLOSE_SECONDS` for a running operation."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            for _, token in self._open.values():
                token.cancel()
        if thread is not None:
            self._orders.put(None)
            thread.join(CLOSE_SECONDS)
        with self._lock:
            for job, _ in self._open.values():
                job._cancelled()
            self._open.clear()

    def _submit(self, operation: str, arguments: dict) -> Job:
        with self._lock:
            if self._closed:
                raise EngineError("This engine was closed; make a new one.")
            self._number += 1
            job, token = Job(self, self._number, operation), CancelToken()
            self._open[job.number] = (job, token)
            self._orders.put((job.number, operation, arguments, token))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, daemon=True, name="hiendseg-local")
                self._thread.start()
        return job

    def _pump(self, timeout: float) -> None:
        try:
            item = self._arrived.get(timeout > 0, timeout or None)
        except queue.Empty:
            return
        while True:
            with self._lock:
                self._take(*item)
            try:
                item = self._arrived.get(False)
            except queue.Empty:
                return

    def _cancel(self, job: Job) -> None:
        with self._lock:
            _, token = self._open[job.number]
            token.cancel()
            if job.state is JobState.IDLE:
                self._open.pop(job.number)
                job._cancelled()
            else:
                job._move(JobState.CANCELLING)
                job._advance(0.0, "Stopping")

    def _finish_early(self, job: Job) -> None:
        with self._lock:
            if job.state is JobState.IDLE:
                self._cancel(job)
                return
            _, token = self._open[job.number]
            token.finish()
            job._finish_soon()

    def _take(self, number: int, kind: str, value: Any) -> None:
        if number not in self._open:
            return
        job, token = self._open[number]
        if kind == "started":
            job._move(JobState.RUNNING if not token.cancelled else JobState.CANCELLING)
        elif kind == "progress" and job.state is JobState.RUNNING:
            job._advance(*value)
        elif kind == "record" and job.state is JobState.RUNNING:
            job._record(value)
        elif kind == "ended":
            self._open.pop(number)
            late = getattr(value, "lasting", False)       # it lies on the disk: the cancel came too late
            if (token.cancelled and not late) or isinstance(value, Cancelled):
                job._cancelled()
            elif isinstance(value, BaseException):
                for line in traceback.format_exception(value) if not isinstance(value, HiEndSegError) else ():
                    job._note(redact(line.rstrip()))
                job._fail(as_failure(value))
            else:
                job._finish(value)

    # the model's thread
    def _serve(self) -> None:
        while (order := self._orders.get()) is not None:
            number, operation, arguments, token = order
            if token.cancelled:
                self._arrived.put((number, "ended", Cancelled()))
                continue
            self._arrived.put((number, "started", None))
            if operation in getattr(self._library, "RECORDING", ()):
                arguments["record"] = lambda values, number=number: \
                    self._arrived.put((number, "record", plain(values)))
            try:
                value = getattr(self._library, operation)(
                    **arguments, cancel=token,
                    progress=lambda fraction, message, number=number:
                        self._arrived.put((number, "progress", (fraction, message))))
            except BaseException as error:        # noqa: BLE001 - handed to whoever asks for the result
                value = error
            self._arrived.put((number, "ended", value))
            del order, arguments, value           # a waiting thread must not keep volumes
