"""What the client keeps in hand: the job on its way (`Task`), what must be given back (`Given`), a `Bell`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..tasks import CancelToken
from . import transfer
from .folder import PrivateFolder, sweep
from .interface import Job
from .process import WorkerProcess


class Bell:
    """Wakes a waiting `_pump` when a thread has put something into a queue."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self.count = 0

    def ring(self) -> None:
        with self._condition:
            self.count += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self.count != seen, timeout)


class Given:
    """What must be given back whatever happens: folders and processes. Outlives the client, knows nothing of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: set[PrivateFolder] = set()         # made and not yet removed
        self._over: set[PrivateFolder] = set()            # those of jobs that are over
        self._processes: set[WorkerProcess] = set()

    def add(self, thing: PrivateFolder | WorkerProcess) -> None:
        with self._lock:
            (self._folders if isinstance(thing, PrivateFolder) else self._processes).add(thing)

    def give_back(self, folder: PrivateFolder | None = None) -> None:
        """Remove the folder of a job that is over, and those that were still in use the last time."""
        with self._lock:
            self._processes = {process for process in self._processes if process.returncode is None}
            if folder is not None:
                self._over.add(folder)
            removed = {folder for folder in self._over if folder.remove()}
            self._over -= removed
            self._folders -= removed

    def wait_for_end(self, process: WorkerProcess) -> None:
        """On a thread of its own: a killed process is slow to go (a driver frees its memory); then tidy up after it."""
        def wait() -> None:
            process.wait_gone(60.0)
            self.give_back()

        threading.Thread(target=wait, daemon=True, name="hiendseg-end").start()

    def release(self) -> None:
        """Everything, at the end of the client or of the program."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait_gone(1.0)
        with self._lock:
            self._over |= self._folders
        self.give_back()


class Task:
    """A job on its way through the worker. Its fields are moved by the client alone, but for `store`'s."""

    def __init__(self, job: Job, arguments: dict):
        self.job = job
        self.arguments = arguments
        self.encoded: Any = None
        self.folder: PrivateFolder | None = None
        self.token = CancelToken()               # stops the writing of its voxels
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.stored = threading.Event()
        self.sent = False
        self.begun = False                       # the worker has said something about it
        self.spared = False                      # got a second worker because the first died before it had begun
        self.kill_at = float("inf")
        self.secrets = tuple(value.name for value in arguments.values() if getattr(value, "name", None))

    def store(self, parent: Path | None, given: Given, bell: Bell) -> None:
        """On a thread of its own: make the private folder and write the voxels."""
        try:
            sweep(parent)
            self.folder = PrivateFolder(parent)
            given.add(self.folder)
            try:
                self.encoded, arrays = transfer.encode(self.arguments, "argument")
            except TypeError as error:
                raise EngineError(f"The job's arguments cannot be handed over: {error}") from None
            transfer.write_arrays(arrays, self.folder.path, self.token.check)
        except Exception as error:               # noqa: BLE001 - raised where the job is polled
            self.error = error
        finally:
            self.arguments = {}
            if self.token.cancelled and self.folder is not None:
                self.folder.remove()
            self.stored.set()
            bell.ring()
