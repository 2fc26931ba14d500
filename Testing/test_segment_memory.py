"""Memory: planned before, kept below the plan, and stepped down when a device has less than it said.

There is no graphics card in the suite. `HungryNetwork` raises torch's own out-of-memory error, and `place` puts what a
step calls "cuda:0" on the CPU: a stand-in that exercises the steps, not CUDA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from HiEndSegLib.errors import OutOfMemoryError
from HiEndSegLib.operations import running
from HiEndSegLib.operations import segment as segment_module
from HiEndSegLib.operations.devices import DeviceStatus
from HiEndSegLib.operations.scores import ScoreGrid
from HiEndSegLib.operations.segment import segment
from segment_networks import BandNetwork, HungryNetwork, lattice, make_model, phantom

SHAPE = (70, 60, 60)


@pytest.fixture(scope="module")
def scan():
    return phantom(SHAPE, lattice(SHAPE, (3, 3, 3)), [((12, 12, 12), (34, 34, 40), 300)])


@pytest.fixture(scope="module")
def expected(scan):
    return segment(make_model(), scan, device="cpu").labels.array


@pytest.fixture
def pretend_card(monkeypatch):
    """A "cuda:0" with 2 GB that computes on the CPU; a device move is recorded, tensors stay where they are."""
    status = DeviceStatus("cuda:0", True, "A pretended card works, 2 GiB.", 2 << 30)
    monkeypatch.setattr(segment_module, "choose_device", lambda name: status)
    real_free = segment_module.free_bytes
    monkeypatch.setattr(segment_module, "free_bytes", lambda kind: 2 << 30 if kind == "cuda:0" else real_free(kind))
    monkeypatch.setattr(running, "half_type", lambda kind: None)
    monkeypatch.setattr(running, "place", lambda kind: torch.device("cpu"))


def test_enough_memory_takes_the_first_step(scan, expected, pretend_card):
    network = BandNetwork()
    result = segment(make_model(network), scan, device="cuda")
    assert np.array_equal(result.labels.array, expected)
    assert result.info["device"] == "cuda:0" and not any("memory" in m for m in result.messages)
    assert network.calls[0][0] == 8 == result.info["plan"]["tile_batch"]


def test_smaller_tile_batches(scan, expected, pretend_card):
    network = HungryNetwork(most=2)
    result = segment(make_model(network), scan, device="cuda")
    assert np.array_equal(result.labels.array, expected)
    assert [m for m in result.messages if "memory" in m] == [
        "cuda:0 ran out of memory at tile 1 of 27; going on with 4 tiles at a time.",
        "cuda:0 ran out of memory at tile 1 of 27; going on with 2 tiles at a time."]
    assert max(call[0] for call in network.calls) == 2
    assert result.info["device"] == "cuda:0"


def test_batches_then_main_memory_then_the_cpu(scan, expected, pretend_card, monkeypatch):
    class Hungry(HungryNetwork):
        def scores(self, x):
            if x.shape[0] > 1 or running_device[0] != "cpu" and len(self.calls) >= 5:
                raise torch.OutOfMemoryError("CUDA out of memory (stand-in)")
            return BandNetwork.scores(self, x)

    running_device = [None]
    enter = running.TileJob._enter

    def spy(self, step, grid):
        running_device[0] = step.device
        return enter(self, step, grid)

    monkeypatch.setattr(running.TileJob, "_enter", spy)
    network = Hungry()
    result = segment(make_model(network), scan, device="cuda", precision="float32")
    assert np.array_equal(result.labels.array, expected)
    said = [m for m in result.messages if "memory" in m]
    assert said[-2:] == ["cuda:0 ran out of memory at tile 6 of 27; going on with collecting the scores in main "
                         "memory.", "cuda:0 ran out of memory at tile 6 of 27; going on with computing on the CPU."]
    assert len(network.calls) == 27                 # tiles that were done are not done again
    assert result.info["device"] == "cpu"


def test_nothing_left_to_try_names_both_numbers(scan):
    class Never(BandNetwork):
        def scores(self, x):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")

    with pytest.raises(OutOfMemoryError, match=r"not enough memory on cpu: about .*B are needed and .*B are free"):
        segment(make_model(Never()), scan, device="cpu")


def test_main_memory_that_runs_out_elsewhere_is_a_sentence(scan, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(segment_module, "body_mask", fail)
    with pytest.raises(OutOfMemoryError, match="Main memory ran out: about .* are needed and .* are free"):
        segment(make_model(), scan, device="cpu")


def test_other_errors_are_not_taken_for_memory(scan):
    class Wrong(BandNetwork):
        def scores(self, x):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        segment(make_model(Wrong()), scan, device="cpu")


def test_a_cpu_batch_that_does_not_fit_is_halved(scan, expected):
    network = HungryNetwork(most=1)
    result = segment(make_model(network), scan, device="cpu", tile_batch=4)
    assert np.array_equal(result.labels.array, expected)
    assert "cpu ran out of memory at tile 1 of 27; going on with 2 tiles at a time." \
        in result.messages


def test_half_storage_of_scores_gives_the_same_labels(scan, expected, monkeypatch):
    made = []
    init = ScoreGrid.__init__

    def spy(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self.values.dtype)

    monkeypatch.setattr(ScoreGrid, "__init__", spy)
    monkeypatch.setattr("HiEndSegLib.operations.plan.FLOAT32_SHARE", 0.0)
    result = segment(make_model(), scan, device="cpu")
    assert made == [torch.float16]
    assert np.array_equal(result.labels.array, expected)


def test_overflow_in_half_precision_is_repeated_in_full(scan, expected, pretend_card, monkeypatch):
    class Overflowing(BandNetwork):
        def scores(self, x):
            scores = super().scores(x)
            return scores * float("inf") if torch.is_autocast_enabled("cpu") else scores

    monkeypatch.setattr(running, "half_type", lambda kind: torch.bfloat16)
    result = segment(make_model(Overflowing()), scan, device="cuda")
    assert np.array_equal(result.labels.array, expected)
    assert any("overflowed in half precision" in m for m in result.messages)


def test_peak_stays_below_the_plan():
    """16 million voxels and 40 classes: 2.6 GB if the scores were ever brought to full resolution at once."""
    code = textwrap.dedent("""
        import json
        import psutil
        from segment_networks import BandNetwork, lattice, make_model, phantom
        from HiEndSegLib.operations.segment import segment
        network = BandNetwork(tuple(range(20, 800, 20)))
        model = make_model(network, structures=39, tile=64, largest=True, overlap=0.25)
        shape = (280, 260, 220)
        blocks = [((40 + 10 * n, 50, 60), (49 + 10 * n, 200, 160), 30 + 20 * n) for n in range(20)]
        scan = phantom(shape, lattice(shape, (1, 1, 1)), blocks, margin=20, noise=2)
        small = phantom((50, 50, 50), lattice((50,) * 3, (3, 3, 3)), [])
        segment(model, small, device="cpu")                  # libraries load before the measurement
        before = psutil.Process().memory_info().rss
        result = segment(model, scan, device="cpu")
        print(json.dumps({"peak": result.info["peak_memory_bytes"] - before, "plan": result.info["plan"]["bytes_host"],
                          "found": sum(row["voxels"] > 0 for row in result.statistics)}))
    """)
    root = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root.parent,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root.parent), str(root)])})
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert numbers["found"] >= 20
    assert 0.1 * numbers["plan"] < numbers["peak"] < numbers["plan"] < 1e9
