"""What every engine offers: `Engine` (blocking and submitted operations) and `Job` (one submitted operation).

Nothing here calls back from a thread. A job moves only inside `poll()`, `result()` or `cancel()`, on the thread
that calls them, so a face may drive it from a timer on its main thread.
"""

from __future__ import annotations

import abc
import math
import os
import time
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Cancelled, HiEndSegError
from ..tasks import CancelToken, Progress, no_progress

if TYPE_CHECKING:
    from ..geometry.volume import Volume
    from ..operations.plan import MemoryPlan
    from ..operations.result import SegmentResult

#: How long a blocking call sleeps at most before it looks at the caller's cancel token again, in seconds.
LOOK_AROUND = 0.05
#: What `segment` passes on to the operation besides its own arguments.
SETTINGS = frozenset({"threads", "precision", "tile_batch", "memory_limit"})
#: How many log lines a job keeps.
LOG_LINES = 500


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


class Engine(abc.ABC):
    """Segment volumes, look at the machine, plan memory. Use it as a context manager, or `close()` it.

    `model` is a model's id, its folder, a `ModelCard`, or None for the default. `device` is "auto", "cuda",
    "cuda:1", "mps" or "cpu". `only` lists structure ids. `roi` is ((R0, R1), (A0, A1), (S0, S1)) in mm, RAS.
    All methods raise `HiEndSegError`s whose sentence says what to do.
    """

    def segment(self, volume: Volume, *, model: Any = None, device: str = "auto", only: list[str] | None = None,
                roi: tuple | None = None, progress: Progress = no_progress, cancel: CancelToken | None = None,
                **settings: Any) -> SegmentResult:
        """Segment `volume` (I, J, K) and wait. `progress` is called on this thread. Raises `Cancelled`.

        settings: any of `SETTINGS`, as `operations.segment` takes them.
        """
        job = self.submit_segment(volume, model=model, device=device, only=only, roi=roi, **settings)
        return self._wait(job, progress, cancel)

    def submit_segment(self, volume: Volume, *, model: Any = None, device: str = "auto",
                       only: list[str] | None = None, roi: tuple | None = None, **settings: Any) -> Job:
        """Start a segmentation and return at once; `job.result()` is a `SegmentResult`.

        Do not change the volume's voxels in place while the job runs: they are handed over on another thread.
        """
        unknown = set(settings) - SETTINGS
        if unknown:
            raise TypeError(f"segment() has no setting {', '.join(sorted(unknown))}; there are "
                            f"{', '.join(sorted(SETTINGS))}")
        return self._submit("segment", {"volume": volume, "model": model, "device": device, "only": _ids(only),
                                        "roi": roi, **settings})

    def doctor(self) -> dict:
        """Versions, devices (tried out, not just listed), models and their problems; "sentences" is for a person.

        Keys: "versions" {name: text or None}, "devices" [{kind, works, sentence, memory_bytes}],
        "models" [{id, version, title}], "problems" [text], "sentences" [text].
        """
        return self._wait(self.submit_doctor())

    def submit_doctor(self) -> Job:
        """`doctor()` without waiting: the first look at the devices takes seconds."""
        return self._submit("doctor", {})

    def plan(self, volume: Volume, *, model: Any = None, device: str = "auto") -> MemoryPlan:
        """Memory that a segmentation of the whole volume would take now. Only its lattice and dtype are looked at."""
        return self._wait(self.submit_plan(volume, model=model, device=device))

    def submit_plan(self, volume: Volume, *, model: Any = None, device: str = "auto") -> Job:
        """`plan()` without waiting."""
        return self._submit("plan", {"shape": tuple(int(n) for n in volume.shape), "ijk_to_ras": volume.ijk_to_ras,
                                     "dtype": volume.array.dtype.str, "model": model, "device": device})

    def submit_recognize(self, path: Any) -> Job:
        """What a weights file from elsewhere is; the job's result is the dict of `models.recognize.recognize`."""
        return self._submit("recognize", {"path": os.path.abspath(path)})

    def _wait(self, job: Job, progress: Progress = no_progress, cancel: CancelToken | None = None) -> Any:
        """Drive `job` to its end on this thread; an exception in here (Ctrl-C too) cancels the job first."""
        try:
            job.poll()
            while True:
                while job._steps:
                    progress(*job._steps.popleft())
                if job.done:
                    return job.result()
                if cancel is not None and cancel.cancelled and job.state is not JobState.CANCELLING:
                    job.cancel()
                self._pump(LOOK_AROUND)
        except BaseException:
            job.cancel()
            deadline = time.monotonic() + 2.0
            while not job.done and time.monotonic() < deadline:
                self._pump(LOOK_AROUND)
            raise

    @abc.abstractmethod
    def close(self) -> None:
        """Stop what runs and give everything back. Jobs that were not over become cancelled. May be called twice."""

    @abc.abstractmethod
    def _submit(self, operation: str, arguments: dict) -> Job:
        ...

    @abc.abstractmethod
    def _pump(self, timeout: float) -> None:
        """Move jobs by what has arrived; if nothing has, wait for up to `timeout` seconds for something."""

    @abc.abstractmethod
    def _cancel(self, job: Job) -> None:
        ...

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _ids(only: Any) -> list[str] | None:
    """A list of structure ids; a lone id is not taken for a list of letters."""
    return None if only is None else [only] if isinstance(only, str) else list(only)
