"""`Job`: one operation that an engine was asked for, and the states it goes through.

Nothing here calls back from a thread. A job moves only inside `poll()`, `result()`, `finish()` or `cancel()`, on the
thread that calls them, so a face may drive it from a timer on its main thread.
"""

from __future__ import annotations

import math
import time
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Cancelled, HiEndSegError

if TYPE_CHECKING:
    from .interface import Engine

#: How long a blocking call sleeps at most before it looks at the caller's cancel token again, in seconds.
LOOK_AROUND = 0.05
#: How many log lines a job keeps.
LOG_LINES = 500
#: How many records a job keeps.
RECORDS = 2000


class JobState(str, Enum):
    """The life of a job: idle → running → (cancelling →) finished | failed | cancelled. Compares equal to its text."""

    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    def __str__(self) -> str:
        return self.value


OVER = frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED})


class JobProgress(NamedTuple):
    """fraction in [0, 1], never falling; message for a person."""

    fraction: float
    message: str


class Job:
    """One operation that an engine was asked for. Made by `Engine.submit_…`, never directly."""

    def __init__(self, engine: Engine, number: int, operation: str):
        self.number = number
        self.operation = operation
        self._engine = engine
        self._state = JobState.IDLE
        self._progress = JobProgress(0.0, "Waiting")
        self._steps: deque[JobProgress] = deque(maxlen=LOG_LINES)      # not yet told by a blocking call
        self._records: deque[dict] = deque(maxlen=RECORDS)
        self._untold: deque[dict] = deque(maxlen=RECORDS)              # records not yet told by a blocking call
        self._finishing = False
        self._log: list[str] = []
        self._result: Any = None
        self._error: HiEndSegError | None = None
        self._began = time.monotonic()
        self._ended: float | None = None

    # what a face reads; none of these moves the job
    @property
    def state(self) -> JobState:
        return self._state

    @property
    def done(self) -> bool:
        return self._state in OVER

    @property
    def progress(self) -> JobProgress:
        return self._progress

    @property
    def log(self) -> tuple[str, ...]:
        """Lines for a log window: no paths, no names of volumes. The last `LOG_LINES` of them."""
        return tuple(self._log)

    @property
    def records(self) -> tuple[dict, ...]:
        """What the operation told while it ran, in order (see `tasks.Record`). The last `RECORDS` of them."""
        return tuple(self._records)

    @property
    def finishing(self) -> bool:
        """Whether `finish()` was asked for; the job is still running then."""
        return self._finishing

    @property
    def error(self) -> HiEndSegError | None:
        """Why the job failed or was cancelled; None otherwise."""
        return self._error

    @property
    def seconds(self) -> float:
        """Wall time since submission, until now or until the end."""
        return (self._ended or time.monotonic()) - self._began

    def poll(self) -> JobState:
        """Take in what has arrived, without waiting, and return the state. Call it every 30 to 100 ms."""
        if not self.done:
            self._engine._pump(0.0)
        return self._state

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the result.

        Raises the job's `HiEndSegError` if it failed, `Cancelled` if it was cancelled, and the built-in
        `TimeoutError` if it is still going after `timeout` seconds (it keeps going).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self.poll()
        while not self.done:
            left = LOOK_AROUND if deadline is None else min(LOOK_AROUND, deadline - time.monotonic())
            if left <= 0:
                raise TimeoutError(f"Job {self.number} is still {self._state} after {timeout:g} s.")
            self._engine._pump(left)
        if self._error is not None:
            raise self._error
        return self._result

    def cancel(self) -> None:
        """Ask the job to stop; returns at once. A job that is over stays as it is."""
        if not self.done:
            self._engine._cancel(self)

    def finish(self) -> None:
        """Ask the job to stop early with the best so far; returns at once. It then ends as finished.

        A job that has not begun has nothing so far, and is cancelled. An operation that makes its result in one piece
        (a segmentation) takes no notice. `cancel()` still works afterwards.
        """
        if not (self.done or self._finishing or self._state is JobState.CANCELLING):
            self._engine._finish_early(self)

    # what engines write
    def _move(self, state: JobState) -> None:
        if not self.done:
            self._state = state

    def _advance(self, fraction: float, message: str) -> None:
        if self.done:
            return
        fraction = float(fraction)
        if not math.isfinite(fraction):
            fraction = 0.0
        fraction = max(self._progress.fraction, min(fraction, 1.0))
        self._progress = JobProgress(fraction, str(message))
        self._steps.append(self._progress)

    def _record(self, values: dict) -> None:
        if not self.done:
            self._records.append(values)
            self._untold.append(values)

    def _finish_soon(self) -> None:
        self._finishing = True
        self._advance(0.0, "Finishing with the best so far")

    def _note(self, line: str) -> None:
        self._log.append(line)
        del self._log[:-LOG_LINES]

    def _finish(self, result: Any) -> None:
        self._advance(1.0, "Done")
        self._end(JobState.FINISHED, result=result)

    def _fail(self, error: HiEndSegError) -> None:
        self._end(JobState.FAILED, error=error)

    def _cancelled(self) -> None:
        self._end(JobState.CANCELLED, error=Cancelled())

    def _end(self, state: JobState, *, result: Any = None, error: HiEndSegError | None = None) -> None:
        if self.done:
            return
        self._result, self._error, self._ended = result, error, time.monotonic()
        self._state = state      # last: a reader on another thread that sees the state also sees the result
