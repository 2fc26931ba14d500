"""Shared by the Adapt section's tests: both presenters on one engine that obeys the test, and a corrected case."""

from __future__ import annotations

import dataclasses

import numpy as np
from presenter_helpers import Clock, FakeEngine, FakeRegistry, card, result_of
from test_bridge_structures import add_segment

from HiEndSegLib.bridge.results import mark_result
from HiEndSegLib.bridge.segmentations import segmentation_from_labels
from HiEndSegLib.engine.adapting import AdaptResult
from HiEndSegLib.errors import ModelError
from HiEndSegLib.operations.adapt_plan import AdaptPlan
from HiEndSegLib.presenter.adapt import AdaptPresenter
from HiEndSegLib.presenter.segment import SegmentPresenter

SIDED = card(labels=[{"value": value, "id": id_, "name": name, "color": [40 * value, 90, 60]} for value, id_, name in (
    (1, "liver", "Liver"), (2, "kidney_left", "Left kidney"), (3, "kidney_right", "Right kidney"))])


def model_answer(shape):
    """Three blocks along i."""
    array = np.zeros(shape, np.uint8)
    array[0:4], array[5:7], array[9:12] = 1, 2, 3
    return array


def plan(speed="quick", fits=True, minutes=5.0, **changes):
    values = {"speed": speed, "device": "cpu", "steps": 100, "crops": 10, "minutes": minutes,
              "bytes_host": 2_000_000_000, "bytes_device": 0, "host_bytes": 8_000_000_000, "device_bytes": 0,
              "fits": fits, "sentence": f"{speed}: about {minutes:g} minutes and 2.0 GB."}
    return AdaptPlan(**{**values, **changes})


def version(parent, id_="mine", title="Mine", **changes):
    """The card of a version of `parent`."""
    reference = {"id": parent.id, "version": parent.version, "sha256": parent.checksum, "title": parent.title}
    adaptation = {"base": reference, "parent": reference, "name": title, "date": "2026-08-31T12:00:00+02:00",
                  "teaching_cases": 0}
    weights = {**parent.weights, "sha256": format(abs(hash(id_)) % 16**12, "012x") * 5 + "0000"}
    return dataclasses.replace(parent, id=id_, title=title, adaptation=adaptation, weights=weights, **changes)


def report(better=True, **changes):
    taught = [{"id": "liver", "name": "Liver", "new": False, "voxels": 100, "held_out_voxels": 20, "dice_before": 0.5,
               "dice_after": 0.75 if better else 0.5, "surface_before_mm": 6.0, "surface_after_mm": 2.5}]
    protected = [{"id": "kidney_left", "name": "Left kidney", "agreement": 0.99, "dice_before": None,
                  "dice_after": None}]
    return {"speed": "quick", "device": "cpu", "steps": 100, "seconds": 50.0, "stopped": "end", "sentence": "Said so.",
            "taught": taught, "protected": protected, "worse": [], "better": better, **changes}


class AdaptEngine(FakeEngine):
    """Adapt jobs wait until the test moves them; plans answer at the next poll."""

    def __init__(self, **how):
        super().__init__(**how)
        self.plans = {"quick": plan(), "full": plan("full", minutes=60.0), "auto": "quick"}

    def _pump(self, timeout):
        super()._pump(timeout)
        for job in self.jobs:
            if not job.done and job.operation == "plan_adapt":
                self._end(job, self.plans)

    def _finish_early(self, job):
        job._finish_soon()

    def open(self, operation):
        """The job of this kind that is not over."""
        found = [job for job in self.jobs if job.operation == operation and not job.done]
        assert len(found) == 1, [(job.operation, job.state) for job in self.jobs]
        return found[0]


class AdaptDesk:
    """Both sections with everything around them. A case: `volume` and a segmentation that the model made."""

    def __init__(self, scene, *, cards=(SIDED,), settings=None, **engine):
        self.scene, self.clock, self.engine = scene, Clock(), AdaptEngine(**engine)
        self.settings = {} if settings is None else settings
        self.registry = Removing(*cards)
        shared = {"scene": scene, "engine": self.engine, "registry": self.registry, "settings": self.settings,
                  "clock": self.clock}
        self.segment = SegmentPresenter(**shared)
        self.presenter = AdaptPresenter(segment=self.segment, **shared)
        self.phases, self.changes = [], 0
        self.presenter.changed.connect(self.see)
        self.segment.enter()
        self.tick()

    @property
    def state(self):
        return self.presenter.state

    def see(self):
        self.changes += 1
        if self.phases[-1:] != [self.state.phase]:
            self.phases.append(self.state.phase)

    def tick(self, seconds=0.05, times=1):
        for _ in range(times):
            self.clock.pass_(seconds)
            self.segment.tick()
            self.presenter.tick()

    def case(self, volume, array=None, legend=SIDED.labels, name="CT HiEndSeg", made_by="tiny@1.0.0"):
        """A segmentation of `volume` that holds `array` (default: the model's own answer)."""
        from HiEndSegLib.bridge.volumes import volume_from_node

        image = volume_from_node(volume)
        array = model_answer(image.shape) if array is None else array
        node = segmentation_from_labels(image.with_array(array.astype(np.uint8)), legend, volume, name=name)
        if made_by:
            mark_result(node, made_by)
        return node

    def compared(self, volume, array=None, answer=None):
        """Choose the case and have it compared; the segmentation node."""
        node = self.case(volume, array)
        self.segment.set_volume(volume)
        self.presenter.enter()
        self.presenter.compare()
        self.tick()
        self.end_segment(answer)
        self.tick()
        return node

    def end_segment(self, answer=None):
        """The engine's segmentation is over, with `answer` (default: the model's own)."""
        job = self.engine.open("segment")
        job._finish(result_of(job.arguments, model_answer(job.arguments["volume"].shape) if answer is None else answer))

    def start(self, volume, array=None, **how):
        """Compare and press; the engine has it."""
        self.compared(volume, array)
        self.presenter.run(**how)
        self.tick()
        return self.engine.open("adapt")

    def learn(self, job, steps=4, dice=0.6, best=True):
        """Some steps and one score."""
        for step in range(1, steps + 1):
            job._record({"kind": "step", "step": step, "of": 100, "loss": 2.0 / step, "seconds": 0.1 * step})
        job._record({"kind": "score", "step": steps, "dice": {"liver": dice}, "mean": dice, "agreement": 0.97,
                     "best": best})
        job._advance(steps / 100, f"Step {steps} of 100")

    def end(self, job, key="mine@1.0.0", better=True, **changes):
        """The adaptation is over; its version is in the registry."""
        if key is not None:
            self.registry.cards.append(version(self.registry.cards[0], key.partition("@")[0],
                                               job.arguments.get("name", "Mine")))
        job._finish(AdaptResult(key, report(better, **changes), ["A message."], None if key else "unsaved-1"))
        self.tick()


class Removing(FakeRegistry):
    """As the real one does it: what ships cannot be removed."""

    def remove(self, id_):
        found = [card for card in self.cards if card.key == id_]
        if not found or id_ == "tiny@1.0.0":
            raise ModelError(f"Model {id_} came with HiEndSeg and cannot be removed.")
        self.cards.remove(found[0])


def paint(desk, volume, node, mask, name, id_=""):
    """One more segment, drawn by the person."""
    from HiEndSegLib.bridge.volumes import lattice_of

    add_segment(node, mask, lattice_of(volume)[1], name, id_)
