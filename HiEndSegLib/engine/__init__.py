"""Engine: a worker process that keeps a model warm, its torch-free client, and the same interface without a process.

    from HiEndSegLib.engine.client import EngineClient      # what faces use: imports no torch
    from HiEndSegLib.engine.local import LocalEngine        # the same methods, computed in this process

    with EngineClient() as engine:
        result = engine.segment(volume, model="torso-ct-tiny", progress=print)   # blocking
        job = engine.submit_segment(volume)                                       # or: poll from a timer
        while not job.done:
            job.poll()
        job = engine.submit_adapt(volume, labels, legend, name="Mine", structures=["liver"])
        job.records, job.finish(), job.cancel()                  # what it tells while it learns; stop early; stop

`interface.py` says what both offer, `job.py` what a submitted operation is, `protocol.py` what goes over the pipe.
"""

from __future__ import annotations

from .interface import Engine, Job, JobProgress, JobState

__all__ = ["Engine", "Job", "JobProgress", "JobState"]
