"""The engine tests' operations for the presenter: the name of the model's folder says what happens."""

from __future__ import annotations

import dataclasses
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from engine_fakes import FakeLibrary        # noqa: E402 - a worker has no test folder on its path


class Operations(FakeLibrary):
    def doctor(self, *, progress, cancel):
        return {"versions": {"torch": "2.0"}, "models": [], "problems": [], "sentences": [],
                "devices": [{"kind": "cpu", "works": True, "sentence": "The CPU works.", "memory_bytes": 1}]}

    def plan(self, *, model, progress, cancel, **arguments):
        from HiEndSegLib.operations.plan import MemoryPlan

        return MemoryPlan(1, 0, 1, 1, (), f"A plan for {os.path.basename(model)}.", 1, 0, (1, 1, 1), True)

    def segment(self, *, model, **arguments):
        result = super().segment(model=os.path.basename(model), **arguments)
        voxels = int((result.labels.array == 1).sum())
        row = {"id": "liver", "name": "Liver", "value": 1, "voxels": voxels, "volume_ml": voxels / 1000, "mean_hu": None}
        return dataclasses.replace(result, statistics=[row])


def make_library():
    return Operations()
