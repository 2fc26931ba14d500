"""What every engine offers: `Engine`, blocking and submitted operations. Each submitted one is a `Job` (job.py)."""

from __future__ import annotations

import abc
import os
import time
from typing import TYPE_CHECKING, Any, Sequence

from ..tasks import CancelToken, Progress, Record, no_progress, no_record
from .attending import Attends
from .job import LOG_LINES, LOOK_AROUND, Job, JobProgress, JobState

if TYPE_CHECKING:
    from ..geometry.labels import Label
    from ..geometry.volume import Volume
    from ..operations.plan import MemoryPlan
    from ..operations.result import SegmentResult
    from .adapting import AdaptResult

__all__ = ["LOG_LINES", "Engine", "Job", "JobProgress", "JobState"]

#: What `segment` passes on to the operation besides its own arguments.
SETTINGS = frozenset({"threads", "precision", "tile_batch", "memory_limit"})


class Engine(Attends, abc.ABC):
    """Segment volumes, adapt models, look at the machine, plan memory. Use it as a context manager, or `close()` it.

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

    def adapt(self, volume: Volume, labels: Volume, legend: Sequence[Label], *, name: str, structures: Sequence[str],
              record: Record = no_record, progress: Progress = no_progress, cancel: CancelToken | None = None,
              **settings: Any) -> AdaptResult:
        """Teach a model from one case and wait; see `submit_adapt`. `record` and `progress` are called on this thread.

        `cancel.finish()` ends it early with the best so far. Raises `Cancelled` after `cancel.cancel()`.
        """
        job = self.submit_adapt(volume, labels, legend, name=name, structures=structures, **settings)
        return self._wait(job, progress, cancel, record)

    def submit_adapt(self, volume: Volume, labels: Volume, legend: Sequence[Label], *, name: str,
                     structures: Sequence[str], model: Any = None, encoder: Any = None, speed: str = "auto",
                     device: str = "auto", steps: int | None = None, seed: int = 0, keep_teaching: bool = False,
                     keep_if_worse: bool = False, sides: str = "ask", threads: int | None = None,
                     memory_limit: int | None = None) -> Job:
        """Teach a model from one case and return at once; `job.result()` is an `AdaptResult`.

        volume, labels: the image and uint8 labels on any lattice, 255 = nobody has said. legend: what the labels'
        values mean; ids that the model does not know are new structures. structures: the ids to teach, all in legend;
        the model's other structures are protected. name: of the new version. encoder: the path of encoder weights to
        start from instead of `model`. speed: "quick", "full" or "auto". sides: "keep", "swap" or "ask" (raises
        OptionError of code "swapped-sides"). keep_teaching: tiles of this case are kept in the new version's folder,
        for the next adaptation. keep_if_worse: keep it whatever the scores say.
        `job.records` are as `operations.adapt` sends them; `job.finish()` stops with the best so far.
        """
        return self._submit("adapt", {
            "volume": volume, "labels": labels, "legend": list(legend), "name": str(name),
            "structures": _ids(structures), "model": model,
            "encoder": None if encoder is None else os.path.abspath(encoder), "speed": speed, "device": device,
            "steps": steps, "seed": int(seed), "keep_teaching": bool(keep_teaching),
            "keep_if_worse": bool(keep_if_worse), "sides": sides, "threads": threads, "memory_limit": memory_limit})

    def submit_keep(self, unsaved: str) -> Job:
        """Keep an adaptation that was not kept because nothing got better: `AdaptResult.unsaved` of the last one.

        The job's result is an `AdaptResult` with its key. Only the last one is remembered, and only while the engine
        lives; EngineError says so.
        """
        return self._submit("keep", {"unsaved": unsaved})

    def submit_plan_adapt(self, volume: Volume, *, model: Any = None, encoder: Any = None,
                          structures: Sequence[str] = (), speed: str = "auto", device: str = "auto") -> Job:
        """Minutes and memory of an adaptation to this case; only the lattice is handed over.

        The job's result is {"quick": AdaptPlan, "full": AdaptPlan, "auto": "quick" or "full"} for speed "auto", and
        the same with one plan for another speed.
        """
        return self._submit("plan_adapt", {
            "shape": tuple(int(n) for n in volume.shape), "ijk_to_ras": volume.ijk_to_ras,
            "dtype": volume.array.dtype.str, "model": model,
            "encoder": None if encoder is None else os.path.abspath(encoder), "structures": _ids(structures),
            "speed": speed, "device": device})

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

    def submit_export(self, model: Any, path: Any) -> Job:
        """Write a version with everything it needs into one file, a model of its own; a file that is there is replaced.
        The job's result is the file's path. See `models.versions.export_version`."""
        return self._submit("export", {"model": model, "path": os.path.abspath(path)})

    def _wait(self, job: Job, progress: Progress = no_progress, cancel: CancelToken | None = None,
              record: Record = no_record) -> Any:
        """Drive `job` to its end on this thread; an exception in here (Ctrl-C too) cancels the job first."""
        try:
            job.poll()
            while True:
                while job._untold:
                    record(job._untold.popleft())
                while job._steps:
                    progress(*job._steps.popleft())
                if job.done:
                    return job.result()
                if cancel is not None and cancel.finishing:
                    job.finish()
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

    def _finish_early(self, job: Job) -> None:
        """An engine whose operations have no "so far" stops them."""
        self._cancel(job)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _ids(only: Any) -> list[str] | None:
    """A list of structure ids; a lone id is not taken for a list of letters."""
    return None if only is None else [only] if isinstance(only, str) else list(only)
