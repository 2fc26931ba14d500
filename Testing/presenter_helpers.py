"""Shared by the presenter's tests: an engine that does what the test says, a clock, small cards, and all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_models import card_dict

from HiEndSegLib.engine.interface import Engine, Job, JobState
from HiEndSegLib.errors import EngineError, HiEndSegError
from HiEndSegLib.geometry.statistics import structure_statistics
from HiEndSegLib.models.card import card_from_dict
from HiEndSegLib.operations.plan import plan_memory
from HiEndSegLib.operations.result import SegmentResult
from HiEndSegLib.presenter.segment import SegmentPresenter

DOCTOR = {"versions": {"torch": "2.13.0", "numpy": "2.4.0"}, "models": [], "problems": [],
          "devices": [{"kind": "cuda:0", "works": True, "sentence": "A card works, 8 GiB.", "memory_bytes": 1 << 33},
                      {"kind": "cpu", "works": True, "sentence": "The CPU works, 2 threads.", "memory_bytes": 1 << 34}],
          "sentences": ["HiEndSeg on Python.", "A card works, 8 GiB.", "The CPU works, 2 threads."]}


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


class FakeEngine(Engine):
    """Jobs wait until the test moves them; doctor and plan answer at the next poll, as they are set to.

    obedient: a cancelled job is over at the next poll, else it stays in "cancelling" until the test ends it.
    """

    def __init__(self, doctor=DOCTOR, obedient=True):
        self.jobs, self.doctor_answer, self.obedient, self.closed = [], doctor, obedient, False
        self.plan_answer = None

    def _submit(self, operation, arguments):
        if self.closed:
            raise EngineError("This engine was closed; make a new one.")
        job = Job(self, len(self.jobs) + 1, operation)
        job.arguments = arguments
        job._move(JobState.RUNNING)
        self.jobs.append(job)
        return job

    def _pump(self, timeout):
        for job in self.jobs:
            if job.done:
                continue
            if job.state is JobState.CANCELLING and self.obedient:
                job._cancelled()
            elif job.operation == "doctor" and self.doctor_answer is not None:
                self._end(job, self.doctor_answer)
            elif job.operation == "plan":
                self._end(job, self.plan_answer or self._plan(**job.arguments))

    def _end(self, job, answer):
        (job._fail if isinstance(answer, HiEndSegError) else job._finish)(answer)

    def _plan(self, shape, ijk_to_ras, dtype, model, device):
        return plan_memory(shape, np.linalg.norm(ijk_to_ras[:3, :3], axis=0), model, "cpu", 8 << 30)

    def _cancel(self, job):
        job._move(JobState.CANCELLING)

    def close(self):
        self.closed = True

    # what a test says
    @property
    def segmenting(self):
        """The segment job that is not over."""
        open_ = [job for job in self.jobs if job.operation == "segment" and not job.done]
        assert len(open_) == 1, [job.state for job in self.jobs]
        return open_[0]

    def count(self, operation):
        return sum(job.operation == operation for job in self.jobs)

    def advance(self, fraction, message="Tile"):
        self.segmenting._advance(fraction, message)

    def finish(self, array=None, **info):
        """End the segment job with `array` (I, J, K) as label map, else with the upper half of the volume as value 1."""
        job = self.segmenting
        job._finish(result_of(job.arguments, array, **info))

    def fail(self, error):
        self.segmenting._fail(error)


def result_of(arguments, array=None, seconds=1.0, device="cpu", messages=()):
    """What the engine would answer to a segment job."""
    card, volume, only, roi = (arguments[key] for key in ("model", "volume", "only", "roi"))
    if array is None:
        array = np.zeros(volume.shape, np.uint8)
        array[:, :, volume.shape[2] // 2:] = 1
    legend = [label for label in card.labels if only is None or label.id in only]
    array = np.where(np.isin(array, [label.value for label in legend]), array, 0).astype(np.uint8)
    labels = volume.with_array(array)
    info = {"model": {"id": card.id, "version": card.version}, "device": device, "parameters": {"roi": roi},
            "input": {"name": volume.name, "shape": list(volume.shape)}, "tiles": {"run": 1, "planned": 1},
            "timings": {"prepare": 0.1 * seconds, "tiles": 0.8 * seconds, "labels": 0.1 * seconds}}
    return SegmentResult(labels, legend, structure_statistics(labels, volume, legend), info, list(messages))


class FakeRegistry:
    """Cards as given; no folder, no file."""

    def __init__(self, *cards, problems=(), user=Path("models-of-the-test")):
        self.cards, self.problems, self.user = list(cards), list(problems), user

    def list(self):
        return list(self.cards)

    def verify(self, id_=None, cancel=None):
        return self.cards[0]

    def is_shipped(self, card):
        return card.id == "tiny"


def card(**changes):
    return card_from_dict(card_dict(**changes))


class Desk:
    """A presenter with everything around it, and what it has shown."""

    def __init__(self, scene, *, cards=None, settings=None, problems=(), **engine):
        self.scene, self.clock, self.engine = scene, Clock(), FakeEngine(**engine)
        self.settings = {} if settings is None else settings
        self.registry = FakeRegistry(*([card()] if cards is None else cards), problems=problems)
        self.presenter = SegmentPresenter(scene=scene, engine=self.engine, registry=self.registry,
                                          settings=self.settings, clock=self.clock)
        self.phases = []
        self.presenter.changed.connect(self.see)
        self.presenter.enter()

    def see(self):
        if self.phases[-1:] != [self.state.phase]:
            self.phases.append(self.state.phase)

    @property
    def state(self):
        return self.presenter.state

    def tick(self, seconds=0.05):
        self.clock.pass_(seconds)
        self.presenter.tick()

    def start(self, node=None, **how):
        """Choose, press, and let the engine have it."""
        if node is not None:
            self.presenter.set_volume(node)
        self.presenter.run(**how)
        self.tick()
        return self.engine.segmenting

    def through(self, array=None, **how):
        """A whole run."""
        self.start(**how)
        self.engine.finish(array)
        self.tick()
