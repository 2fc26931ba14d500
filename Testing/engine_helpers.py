"""What the engine's tests share: a small volume, a client on the fake operations, waiting for events."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psutil

from HiEndSegLib.engine.client import EngineClient, Patience
from HiEndSegLib.engine.folder import PREFIX
from HiEndSegLib.geometry.volume import Volume

FAKES = str(Path(__file__).with_name("engine_fakes.py"))


def volume(shape=(20, 21, 22), name="Anna^Maria"):
    """An oblique CT of random HU."""
    matrix = np.array([[0.7, 0.1, 0.0, -90.0], [-0.1, 0.7, 0.2, 12.5], [0.0, -0.4, 2.5, 1 / 3], [0, 0, 0, 1]])
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    return Volume(array, matrix, name, {"modality": "CT"})


def fake_client(temporary, **patience):
    """A client of a worker with the fake operations, whose private folders lie in `temporary`."""
    return EngineClient(temporary=temporary, patience=Patience(**patience) if patience else None,
                        worker_arguments=("--test-operations", FAKES))


def until(condition, job=None, seconds=60.0):
    """Poll until `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting; {job and (job.state, job.progress, job.error, job.log)}"
        if job is not None:
            job.poll()
        time.sleep(0.005)


def finish(job):
    """Poll until the job is over, however it ends."""
    until(lambda: job.done, job)


def working(job):
    """Wait until the operation itself runs (it has said so)."""
    until(lambda: job.progress.message != "" and job.progress.fraction > 0 or job.done, job)
    assert not job.done, (job.state, job.error)


def leftovers(folder):
    """Private folders that are still there."""
    return [path for path in Path(folder).iterdir() if path.name.startswith(PREFIX)]


def gone(pid):
    """Wait until the process is gone (a zombie counts as gone)."""
    def dead():
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    until(dead)
    return True
