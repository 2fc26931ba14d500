"""The memory plan: numbers a person can check, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from HiEndSegLib.operations.plan import gigabytes, plan_memory, tile_bytes
from segment_networks import make_card

GB = 10 ** 9
CARD = make_card(structures=19, tile=96, windows=((-175, 250), (-1000, 1000)))
TORSO = ((512, 512, 300), (0.8, 0.8, 1.0))


def test_torch_is_not_imported():
    code = "import sys, HiEndSegLib.operations.plan, HiEndSegLib.operations.result; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_cpu_plan_of_a_torso():
    plan = plan_memory(*TORSO, CARD, "cpu", 16 * GB)
    assert plan.model_shape == (137, 137, 100)
    assert plan.tiles == 2 * 2 * 2
    assert plan.bytes_device == 0 and plan.fits and plan.tile_batch == 1
    assert plan.steps[0].device == "cpu" and plan.steps[0].storage == "float32"
    scores = 137 * 137 * 100 * 20 * 4
    assert scores + tile_bytes(CARD, 4) < plan.bytes_host < 2.5 * GB      # classes x input voxels would be 6.3 GB
    assert plan.sentence.startswith("512 x 512 x 300 voxels become 137 x 137 x 100 at 3 mm: at most 8 tiles, about ")
    assert "16.0 GB free" in plan.sentence
    json.dumps(plan.to_dict())


def test_host_memory_grows_with_the_volume_not_with_classes_times_voxels():
    """Ten times the classes: only the scores at the model's spacing and the tile grow."""
    many = make_card(structures=199, tile=96)
    few, lots = (plan_memory(*TORSO, card, "cpu", 64 * GB).bytes_host for card in (CARD, many))
    grown = 180 * (137 * 137 * 100 * 4) + tile_bytes(many, 4) - tile_bytes(CARD, 4)
    assert lots - few <= grown
    half = plan_memory((512, 512, 150), TORSO[1], CARD, "cpu", 16 * GB).bytes_host
    assert half < few


def test_a_region_takes_less():
    card = make_card(structures=100, tile=32)
    shape = ((400, 400, 900), (1.5, 1.5, 1.5))
    whole = plan_memory(*shape, card, "cpu", 60 * GB)
    part = plan_memory(*shape, card, "cpu", 60 * GB, {"box": (40, 50, 1000)})
    assert whole.bytes_host - part.bytes_host > 0.9 * 4 * 101 * (200 * 200 * 450 - 40 * 50 * 450) * 0.5


def test_little_memory_takes_half_precision_scores():
    card = make_card(structures=100, tile=32)
    shape = ((400, 400, 900), (1.5, 1.5, 1.5))
    plenty, little = (plan_memory(*shape, card, "cpu", free) for free in (60 * GB, 12 * GB))
    assert plenty.steps[0].storage == "float32" and little.steps[0].storage == "float16"
    assert little.bytes_host < 0.7 * plenty.bytes_host and little.fits
    nothing = plan_memory(*shape, card, "cpu", 1 * GB)
    assert not nothing.fits and nothing.steps


def test_card_plan_steps_down_in_order():
    plan = plan_memory((600, 600, 900), (0.7, 0.7, 0.7), CARD, "cuda:0", 24 * GB, {"host_bytes": 32 * GB})
    assert plan.tile_batch == 8 and plan.fits and 0 < plan.bytes_device < 24 * GB
    assert [(s.device, s.tile_batch, s.accumulate) for s in plan.steps] == [
        ("cuda:0", 8, "device"), ("cuda:0", 4, "device"), ("cuda:0", 2, "device"), ("cuda:0", 1, "device"),
        ("cuda:0", 1, "cpu"), ("cpu", 1, "cpu"), ("cpu", 1, "cpu")]
    assert "on cuda:0 (24.0 GB free)" in plan.sentence
    assert [new.instead_of(old) for old, new in zip(plan.steps, plan.steps[1:])] == [
        "4 tiles at a time", "2 tiles at a time", "one tile at a time", "collecting the scores in main memory",
        "computing on the CPU", "keeping the scores in half precision"]


def test_small_cards_start_further_down():
    plan = plan_memory((600, 600, 900), (0.7, 0.7, 0.7), CARD, "cuda:0", int(1.3 * GB), {"host_bytes": 32 * GB})
    assert plan.steps[0].device == "cuda:0" and plan.steps[0].accumulate == "cpu"
    plan = plan_memory((600, 600, 900), (0.7, 0.7, 0.7), CARD, "cuda:0", int(0.3 * GB), {"host_bytes": 32 * GB})
    assert plan.steps[0].device == "cpu" and "so the CPU is used" in plan.sentence


def test_mps_keeps_the_scores_in_main_memory():
    plan = plan_memory(*TORSO, CARD, "mps", 8 * GB, {"host_bytes": 8 * GB})
    assert {(s.device, s.accumulate) for s in plan.steps} == {("mps", "cpu"), ("cpu", "cpu")}


@pytest.mark.parametrize("shape", [(1, 1, 1), (512, 512, 1), (2000, 2000, 2000)])
def test_any_shape_has_a_plan(shape):
    plan = plan_memory(shape, (0.5, 0.5, 5), CARD, "cpu", 16 * GB)
    assert plan.tiles >= 1 and plan.bytes_host > 0 and plan.fits == (shape[2] < 2000)


def test_gigabytes():
    assert [gigabytes(n) for n in (1_340_000_000, 50_000_000, 10)] == ["1.3 GB", "50 MB", "1 MB"]
