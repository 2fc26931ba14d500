"""Shared by the Attention section's tests: answers as the library gives them, a fake engine, and a whole desk."""

from __future__ import annotations

import numpy as np
from bridge_scene import slicer
from presenter_helpers import Clock, FakeEngine, FakeRegistry, card
from tiny_models import card_dict

from HiEndSegLib.bridge.volumes import node_from_volume
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.card import card_from_dict
from HiEndSegLib.operations.attend_result import (AttentionMap, AttentionResult, LayerRank, QueriesResult, QueryView,
                                                  UncertaintyResult)
from HiEndSegLib.presenter.attention import AttentionPresenter

#: The volume of the tests: 60 x 50 x 40 mm with a bright ball, axes as in a DICOM series (left-handed would do too).
SHAPE, MATRIX = (30, 25, 20), np.array([[-2.0, 0, 0, 29], [0, -2.0, 0, 24], [0, 0, 2.0, -19], [0, 0, 0, 1]])
CELL, DEPTH, HEADS = 5, 12, 3
TAPS = (2, 5, 8, 11)
OTHER = card_from_dict(card_dict(id="second", title="A second model", version="2.0.0"))


def a_volume(scene, name="CT"):
    """A node with the tests' volume."""
    array = np.full(SHAPE, -1000, np.int16)
    array[5:25, 4:21, 3:17] = 40
    node = node_from_volume(Volume(array, MATRIX, name), scene)
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevel(400, 40)
    return node


def token_matrix():
    own = np.eye(4)
    own[:3, :3] *= CELL
    own[:3, 3] = (CELL - 1) / 2
    return MATRIX @ own


def attended(what, shift=0):
    """What the engine would answer: most of the attention goes to the query's own cell, the rest by layer and head.

    shift: cells along i that the answer of another model is off.
    """
    grid = tuple(n // CELL for n in SHAPE)
    matrix = token_matrix()
    point = what["at"] or (0.0, 0.0, 0.0)
    index = np.clip(np.round((np.linalg.inv(matrix) @ [*point, 1.0])[:3]).astype(int), 0, np.array(grid) - 1)
    depth, heads = (2, 1) if what["kind"] == "head" else (DEPTH, HEADS)
    layers = what["layers"] if what["layers"] is not None else [0, 1] if what["kind"] == "head" else list(TAPS)
    wanted = [None] if what["heads"] == "mean" else [None, *range(heads)]
    maps = []
    for layer in layers:
        for head in wanted:
            weights = np.full(grid, 1.0, np.float32)
            at = (index + [shift + layer % 2, 0 if head is None else head, 0]) % grid
            weights[tuple(at)] = 50.0 + layer
            maps.append(AttentionMap(layer, head, weights / weights.sum(), matrix, f"Block {layer} says so."))
    query = np.zeros(grid, np.float32)
    query[tuple(index)] = 1
    return AttentionResult(what["kind"], maps, tuple(point), query, matrix, MATRIX, SHAPE, depth, heads,
                           what["query"] if what["kind"] == "head" else None, {"seconds": 0.01},
                           ["Brighter means more.", "A note on this map."])


def ranks():
    return [LayerRank(n, 10.0 + n, 96, [1.0]) for n in range(DEPTH)]


def inspected(what):
    views = [QueryView(n, [("liver", 0.9 - 0.1 * n), ("background", 0.1)], 100 - n, ["liver"] if n == 1 else [],
                       [((n + 1) % 4, 0.95)], [((n + 2) % 4, 0.5)], (float(n), float(n % 2), -float(n), 0.5 * n * n))
             for n in range(4)]
    return QueriesResult(views, [(1, 0.8), (0, 0.2)], "liver", {"liver": [(1, 0.8)]}, tuple(what["at"]),
                         sentences=["Query 1 made 80 % of Liver here."])


def uncertain(what):
    volume = what["volume"]
    entropy = np.zeros(volume.shape, np.float32)
    entropy[10:20, 8:14, 6:12] = 0.7
    return UncertaintyResult(volume.with_array(entropy), [
        {"id": "liver", "name": "Liver", "voxels": 9, "confidence": 0.8, "unsure": 0.1, "entropy": 0.2},
        {"id": "spleen", "name": "Spleen", "voxels": 9, "confidence": 0.6, "unsure": 0.4, "entropy": 0.5}],
        sentences=["Sure in most places."])


ANSWERS = {"attend": attended, "ranks": lambda what: ranks(), "inspect_queries": inspected, "uncertainty": uncertain}


class Looks(FakeEngine):
    """The presenter tests' engine, whose looks into models wait until the test says `answer()`."""

    @property
    def looking(self):
        """The look that is not over; there is never more than one."""
        open_ = [job for job in self.jobs if job.operation in ANSWERS and job.operation != "uncertainty"
                 and not job.done]
        assert len(open_) <= 1, "one question in flight"
        return open_[0] if open_ else None

    def answer(self, **changes):
        job = self.looking
        job._finish(ANSWERS[job.operation](job.arguments, **changes))


class AttentionDesk:
    """A presenter with everything around it. tick(answer=True) lets the engine answer what it was asked."""

    def __init__(self, scene, *, cards=None, segment=None):
        self.scene, self.clock, self.engine = scene, Clock(), Looks()
        self.registry = FakeRegistry(*([card(), OTHER] if cards is None else cards))
        self.presenter = AttentionPresenter(scene=scene, engine=self.engine, registry=self.registry, segment=segment,
                                            clock=self.clock)
        self.changes = 0
        self.presenter.changed.connect(self._count)
        self.presenter.enter()

    def _count(self):
        self.changes += 1

    @property
    def state(self):
        return self.presenter.state

    def tick(self, answer=True, **changes):
        self.presenter.tick()
        if answer and self.engine.looking is not None:
            self.engine.answer(**changes)
            self.presenter.tick()

    def settle(self, most=8):
        """Until nothing is asked any more."""
        for _turn in range(most):
            if not self.state.busy and self.engine.looking is None:
                return
            self.tick()
        assert not self.state.busy, self.state.headline

    def show(self, node):
        self.presenter.set_volume(node)
        self.presenter.press()
        self.settle()
        assert self.state.phase == "shown", self.state.headline

    def asked(self, operation="attend"):
        """Arguments of the looks so far."""
        return [job.arguments for job in self.engine.jobs if job.operation == operation]


def a_view(scene, volume, name="Red"):
    """A slice view without a window that has the volume as background: composite and slice node."""
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    node = slicer.vtkMRMLSliceNode()
    node.SetLayoutName(name)
    node.SetSingletonTag(name)
    scene.AddNode(node)
    node.SetOrientationToAxial()
    view = slicer.vtkMRMLSliceCompositeNode()
    view.SetLayoutName(name)
    view.SetSingletonTag(name)
    scene.AddNode(view)
    view.SetBackgroundVolumeID(volume.GetID())
    return view, node
