"""`EngineClient`: the engine whose work is done by a worker process. Imports neither torch nor Qt.

The worker starts with the first job, stays warm, and is replaced after it died, hung or did not stop when asked; that
costs the running job and nothing else. Every state change happens in `_turn`, under one lock, on the thread that polls;
threads only carry bytes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import Cancelled, EngineError, HiEndSegError, from_code
from . import protocol, transfer
from .failures import as_failure
from .inhand import Bell, Given, Task
from .interface import Engine, Job, JobState
from .process import START_SCRIPT, WorkerProcess, choose_interpreter, describe_exit, inside_slicer, worker_environment
from .redact import redact


@dataclass(frozen=True)
class Patience:
    """Waiting times in seconds."""

    start: float = 90.0      # from starting Python to its first line; a cold disk or a virus scanner takes its time
    silence: float = 60.0    # without any line although it lives: it hangs (one beat is due every half second)
    cancel: float = 0.7      # from asking to stop to killing it; with `gone`, less than the second that is promised
    close: float = 1.0       # from closing its stdin to killing it
    gone: float = 0.2        # for a killed process to disappear; then somebody else waits for it


class EngineClient(Engine):
    """Client of one worker process. Jobs run one after another; cheap to make, nothing starts before the first job.

    interpreter: the worker's Python (None: PythonSlicer inside Slicer, else this one).
    temporary: where private folders are made (None: the system's; inside Slicer pass `slicer.app.temporaryPath`).
    worker_arguments: passed on to the worker, for tests.
    """

    def __init__(self, *, interpreter: str | os.PathLike | None = None, temporary: str | os.PathLike | None = None,
                 patience: Patience | None = None, worker_arguments: tuple[str, ...] = ()):
        self._interpreter = None if interpreter is None else os.fspath(interpreter)
        self._temporary = None if temporary is None else Path(temporary)
        self._patience = patience or Patience()
        self._worker_arguments = tuple(worker_arguments)
        self._lock = threading.RLock()
        self._bell = Bell()
        self._waiting: deque[Task] = deque()
        self._task: Task | None = None
        self._number = 0
        self._worker: WorkerProcess | None = None
        self._greeted = False
        self._ended = False                       # the worker's stdout has ended
        self._silent = 0.0                        # seconds of silence that this side has seen
        self._looked = 0.0
        self._end_seen = float("inf")
        self._closed = False
        self._given = Given()
        self._finalizer = weakref.finalize(self, self._given.release)      # also at interpreter exit

    # what a face may ask
    @property
    def worker_state(self) -> str:
        """"none", "starting", "ready", "busy" or "silent" (no sign of life for ten seconds), for a status line."""
        with self._lock:
            if self._worker is None:
                return "none"
            if not self._greeted:
                return "starting"
            if self._silent > 10.0:
                return "silent"
            return "busy" if self._task is not None and self._task.sent else "ready"

    @property
    def worker_pid(self) -> int | None:
        """Process number of the worker (of its launcher inside Slicer), None when there is none."""
        with self._lock:
            return None if self._worker is None else self._worker.pid

    def worker_output(self) -> list[str]:
        """The last lines of the worker's stderr, without paths and names, for a log window or a bug report."""
        with self._lock:
            secrets = self._task.secrets if self._task is not None else ()
            lines = self._worker.stderr_tail() if self._worker is not None else []
            return [redact(line, secrets) for line in lines]

    def close(self) -> None:
        """See `Engine.close`; takes at most `patience.close` seconds and a little."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            worker, self._worker = self._worker, None
            for task in filter(None, [self._task, *self._waiting]):
                task.token.cancel()
                task.job._cancelled()
            if worker is not None:
                worker.close_input()
                if not worker.wait_gone(self._patience.close):
                    worker.kill()
                    worker.wait_gone(self._patience.gone)
            if self._task is not None:
                self._task.stored.wait(self._patience.close)
            self._task = None
            self._waiting.clear()
            self._finalizer()

    # what Engine asks for
    def _submit(self, operation: str, arguments: dict) -> Job:
        if "model" in arguments:
            arguments = {**arguments, "model": _model_reference(arguments["model"])}
        with self._lock:
            if self._closed:
                raise EngineError("This engine was closed; make a new one.")
            self._number += 1
            job = Job(self, self._number, operation)
            self._waiting.append(Task(job, arguments))
            self._turn()
        return job

    def _pump(self, timeout: float) -> None:
        with self._lock:
            seen = self._bell.count
            self._turn()
        if timeout > 0:
            self._bell.wait(seen, timeout)
            with self._lock:
                self._turn()

    def _cancel(self, job: Job) -> None:
        with self._lock:
            if job.done or job.state is JobState.CANCELLING:
                return
            task = self._task
            if task is None or task.job is not job:
                self._waiting = deque(other for other in self._waiting if other.job is not job)
                job._cancelled()
                return
            task.token.cancel()
            if not task.sent:
                self._finish(task, Cancelled())
                return
            job._move(JobState.CANCELLING)
            job._advance(0.0, "Stopping")
            task.kill_at = time.monotonic() + self._patience.cancel
            if self._worker is not None:
                self._worker.send({"type": protocol.CANCEL, "job": job.number})

    def _finish_early(self, job: Job) -> None:
        with self._lock:
            task = self._task
            if task is None or task.job is not job or not task.sent:
                self._cancel(job)
                return
            job._finish_soon()                    # no deadline: the best so far takes a while to write
            if self._worker is not None:
                self._worker.send({"type": protocol.FINISH, "job": job.number})

    # the one place where things move
    def _turn(self) -> None:
        if self._closed:
            return
        self._read_worker()
        self._watch_worker()
        self._move_task()

    def _read_worker(self) -> None:
        worker = self._worker
        while worker is not None and worker is self._worker and not worker.arrived.empty():
            kind, item = worker.arrived.get()
            if kind == "end":
                self._ended = True
                continue
            self._silent = 0.0
            if kind == "message":
                self._take(item)
            elif self._task is not None:
                self._task.job._note(f"worker: {item}")

    def _take(self, message: dict) -> None:
        kind, task = message["type"], self._task
        if kind == protocol.HELLO:
            self._greet(message)
            return
        if kind == protocol.LOG and message.get("job") is None and task is not None:
            task.job._note(str(message.get("message", "")))
        if task is None or not task.sent or message.get("job") != task.job.number:
            return                                # about a job that is over
        job, task.begun = task.job, True
        if kind == protocol.PROGRESS and job.state is JobState.RUNNING:
            fraction = message.get("fraction")
            job._advance(fraction if isinstance(fraction, (int, float)) else 0.0, str(message.get("message", "")))
        elif kind == protocol.RECORD and job.state is JobState.RUNNING:
            if isinstance(message.get("values"), dict):
                job._record(message["values"])
        elif kind == protocol.LOG:
            job._note(str(message.get("message", "")))
        elif kind in (protocol.FINISHED, protocol.FAILED, protocol.CANCELLED):
            self._take_end(task, kind, message)

    def _take_end(self, task: Task, kind: str, message: dict) -> None:
        outcome: Any = Cancelled()
        if kind == protocol.FINISHED:
            try:
                outcome = transfer.decode(message.get("result"), task.folder.path)
            except (HiEndSegError, MemoryError) as error:
                outcome = as_failure(error)
        elif kind == protocol.FAILED:
            outcome = from_code(str(message.get("code")), str(message.get("sentence")))
        if task.job.state is JobState.CANCELLING and not getattr(outcome, "lasting", False):
            outcome = Cancelled()                 # what lasts lies on the disk: the cancel came too late
        self._finish(task, outcome)
        if message.get("fatal"):
            self._drop_worker()

    def _greet(self, message: dict) -> None:
        theirs = (message.get("protocol"), message.get("library"))
        if theirs != (protocol.PROTOCOL_VERSION, __version__):
            self._lose(EngineError(f"The worker is HiEndSeg {theirs[1]} (protocol {theirs[0]}) and this program is "
                                   f"{__version__} (protocol {protocol.PROTOCOL_VERSION}); restart the program, so "
                                   "that both are the version that is installed now."))
            return
        self._greeted = True

    def _watch_worker(self) -> None:
        worker, now, task = self._worker, time.monotonic(), self._task
        # a pause of this side (a modal dialog, a sleeping laptop) is not the worker's silence
        self._silent += min(now - self._looked, 1.0)
        self._looked = now
        if task is not None and task.sent and now >= task.kill_at:
            self._finish(task, Cancelled(), kill=True)
            return
        if worker is None:
            return
        code = worker.returncode
        if code is not None or self._ended:
            self._end_seen = min(self._end_seen, now)
            if (code is not None and self._ended) or now - self._end_seen > self._patience.gone:
                if not worker.arrived.empty():
                    self._read_worker()           # its last words may be the result
                if worker is self._worker:
                    self._mourn(worker, code)
        elif not self._greeted and self._silent > self._patience.start:
            self._lose(EngineError(f"The worker did not start within {self._patience.start:g} s and was stopped; start "
                                   "again, and if it stays so, look whether a virus scanner checks Python."))
        elif self._greeted and self._silent > self._patience.silence:
            self._lose(EngineError(f"The worker gave no sign of life for {self._patience.silence:g} s and was stopped; "
                                   "start again, and choose the device cpu if it happens again."))

    def _mourn(self, worker: WorkerProcess, code: int | None) -> None:
        """The worker died by itself."""
        task = self._task
        if task is not None and self._greeted and not (task.begun or task.spared) \
                and task.job.state is JobState.RUNNING:
            task.spared, task.sent = True, False          # it died idle: a new one may have the job
            self._drop_worker()
            return
        words = describe_exit(code, "\n".join(worker.stderr_tail()[-5:]))
        if task is not None:
            for line in worker.stderr_tail()[-20:]:
                task.job._note("worker: " + redact(line, task.secrets))
        when = "stopped unexpectedly" if self._greeted else "could not start"
        self._lose(EngineError(f"The worker {when} ({words}); only this job is lost, the next one starts a new worker. "
                               "If it happens again, choose a smaller region, fewer structures or the device cpu."))

    def _lose(self, error: HiEndSegError) -> None:
        """Give up the worker, and the job with it."""
        task = self._task
        if task is not None:
            self._finish(task, Cancelled() if task.job.state is JobState.CANCELLING else error, kill=True)
        else:
            self._drop_worker()

    def _drop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            if not worker.wait_gone(self._patience.gone):
                self._given.wait_for_end(worker)

    def _finish(self, task: Task, outcome: Any, *, kill: bool = False) -> None:
        """The end of the current job: worker, folder and state, in this order."""
        if kill:
            self._drop_worker()
        self._task = None
        task.token.cancel()
        self._given.give_back(task.folder)
        if isinstance(outcome, Cancelled):
            task.job._cancelled()
        elif isinstance(outcome, HiEndSegError):
            task.job._fail(outcome)
        else:
            task.job._finish(outcome)

    def _move_task(self) -> None:
        if self._task is None and self._waiting:
            self._begin(self._waiting.popleft())
        task = self._task
        if task is None:
            return
        if self._worker is None and not self._start_worker(task):
            return
        if not task.sent and task.stored.is_set():
            if task.error is not None:
                self._finish(task, as_failure(task.error))
            elif self._greeted and not self._ended and self._worker.returncode is None:
                self._hand_over(task)             # a dead worker is first mourned and replaced

    def _begin(self, task: Task) -> None:
        self._task = task
        task.job._move(JobState.RUNNING)
        task.job._advance(0.0, "Starting the engine" if self._worker is None else "Handing over the volume")
        task.thread = threading.Thread(target=task.store, args=(self._temporary, self._given, self._bell),
                                       daemon=True, name="hiendseg-store")
        task.thread.start()

    def _start_worker(self, task: Task) -> bool:
        try:
            python = self._interpreter or choose_interpreter(inside_slicer(), sys.executable)
            self._worker = WorkerProcess([python, str(START_SCRIPT), *self._worker_arguments],
                                         worker_environment(os.environ), self._bell.ring)
        except EngineError as error:
            self._finish(task, error)
            return False
        self._given.add(self._worker)
        self._greeted = self._ended = False
        self._silent, self._looked, self._end_seen = 0.0, time.monotonic(), float("inf")
        return True

    def _hand_over(self, task: Task) -> None:
        try:
            self._worker.send({"type": protocol.JOB, "job": task.job.number, "operation": task.job.operation,
                               "folder": str(task.folder.path), "arguments": task.encoded})
        except protocol.ProtocolError as error:
            self._finish(task, error)
            return
        task.sent = True


def _model_reference(model: Any) -> str | None:
    """What names the model in another process: a card by its folder, a path in full, an id as it is."""
    folder = getattr(model, "folder", None)
    if folder is not None:
        return os.path.abspath(folder)
    if isinstance(model, os.PathLike):
        return os.path.abspath(model)
    return model
