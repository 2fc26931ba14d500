"""The plan of an adaptation: numbers a person can check, fewer crops when memory is short, and no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from segment_networks import make_card

from HiEndSegLib.operations import adapt_plan
from HiEndSegLib.operations.adapt_plan import plan_adapt, too_large

GB = 10 ** 9
ABDOMEN = ((120, 100, 110), (3.0, 3.0, 3.0))
TORSO = ((512, 512, 300), (0.8, 0.8, 1.0))


def card(kind="maskmed", bytes=11_600_000, **changes):
    made = make_card(structures=19, tile=96, windows=((-175, 250), (-1000, 1000)))
    return replace(made, network={**made.network, "kind": kind},
                   weights={**made.weights, "bytes": bytes, "dtype": "float16"}, **changes)


def test_torch_is_not_imported():
    code = "import sys, HiEndSegLib.operations.adapt_plan; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_the_numbers_are_the_loops_own():
    from HiEndSegLib.operations.adapt_recipe import recipe_for

    for speed in adapt_plan.SPEEDS:
        recipe, fresh = recipe_for(speed, False), recipe_for(speed, True)
        assert (fresh.steps, fresh.every) == (adapt_plan.FRESH_STEPS, adapt_plan.FRESH_EVERY)
        assert (recipe.steps, recipe.crop, recipe.every) == (adapt_plan.STEPS[speed], adapt_plan.CROP,
                                                             adapt_plan.EVERY), speed
        assert recipe.curve_steps == adapt_plan.CURVE_STEPS and fresh.curve_steps == recipe.curve_steps
        assert recipe.crops == (adapt_plan.CROPS if speed == "quick" else 0) and recipe.batch == 1


def test_a_torso_on_the_cpu():
    quick, full = (plan_adapt(*TORSO, card(), "cpu", 16 * GB, speed) for speed in adapt_plan.SPEEDS)
    assert quick.fits and full.fits and quick.bytes_device == full.bytes_device == 0
    assert quick.crops == adapt_plan.CROPS and full.crops == 0
    kept = 160 * 72 ** 3 * (adapt_plan.KEPT_BYTES + 20 * adapt_plan.KEPT_CLASS_BYTES)
    assert kept + 72 ** 3 * 900 < quick.bytes_host < 3 * GB
    assert quick.minutes < full.minutes < 60
    assert quick.sentence.startswith("Quick: about ") and "400 steps" in quick.sentence
    assert "16.0 GB free" in quick.sentence and quick.sentence.endswith(".")
    json.dumps(quick.to_dict())


def test_short_memory_keeps_fewer_crops_and_then_says_no():
    plenty = plan_adapt(*ABDOMEN, card(), "cpu", 16 * GB, "quick")
    short = plan_adapt(*ABDOMEN, card(), "cpu", int(plenty.bytes_host / 0.85) - 200_000_000, "quick")
    assert short.fits and adapt_plan.FEWEST_CROPS <= short.crops < plenty.crops
    assert short.bytes_host < plenty.bytes_host and f"so {short.crops} varied crops" in short.sentence
    none = plan_adapt(*ABDOMEN, card(), "cpu", GB // 4, "quick")
    assert not none.fits and none.crops == adapt_plan.FEWEST_CROPS
    assert "0.2 GB are free" in too_large(none) and "adapt quickly" not in too_large(none)


def test_a_large_network_is_refused_in_full_and_pointed_to_quick():
    big = card("unetr16", bytes=2 * 360_000_000)
    quick, full = (plan_adapt(*TORSO, big, "cpu", 10 * GB, speed) for speed in adapt_plan.SPEEDS)
    assert quick.fits and not full.fits and full.bytes_host > 360_000_000 * 24
    assert "adapt quickly instead of fully" in too_large(full, quick)


def test_a_graphics_card_has_memory_of_its_own():
    plan = plan_adapt(*TORSO, card(), "cuda:0", 8 * GB, "full", {"host_bytes": 16 * GB})
    assert plan.fits and 0 < plan.bytes_device < 2 * GB and plan.device == "cuda:0"
    assert "on cuda:0 (8.0 GB free)" in plan.sentence
    tight = plan_adapt(*TORSO, card(), "cuda:0", GB // 4, "full", {"host_bytes": 16 * GB})
    assert not tight.fits and "on cuda:0 and 0.2 GB are free" in too_large(tight)
    assert plan.minutes < plan_adapt(*TORSO, card(), "cpu", 16 * GB, "full").minutes / 5


@pytest.mark.parametrize("options, factor", [({"tile_seconds": 20.0}, (5, 50)), ({"steps": 40}, (0.1, 0.6)),
                                             ({"threads": 4}, (0.2, 0.6)), ({"teaching": 3}, (1.0, 1.5))])
def test_time_follows_what_is_known(options, factor):
    usual = plan_adapt(*TORSO, card(), "cpu", 16 * GB, "quick").minutes
    assert factor[0] * usual < plan_adapt(*TORSO, card(), "cpu", 16 * GB, "quick", options).minutes < factor[1] * usual


def test_around_an_encoder_more_learns_and_for_longer():
    known = plan_adapt(*TORSO, card(), "cpu", 16 * GB, "quick", {"parameters": 90_000_000})
    fresh = plan_adapt(*TORSO, card(labels=[]), "cpu", 16 * GB, "quick", {"parameters": 90_000_000})
    assert fresh.steps == 1200 and fresh.minutes > 2 * known.minutes
    small = plan_adapt(*TORSO, card(), "cpu", 16 * GB, "quick", {"parameters": 6_000_000})
    assert known.minutes > 2 * small.minutes and known.bytes_host > small.bytes_host + 800_000_000


def test_a_version_is_planned_by_its_whole_network():
    delta = card(bytes=300_000)
    small, whole = (plan_adapt(*TORSO, delta, "cpu", 16 * GB, "full", options).bytes_host
                    for options in ({}, {"parameters": 50_000_000}))
    assert whole - small > 20 * 49_000_000
