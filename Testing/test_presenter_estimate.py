"""Seconds: remembered from what was measured, and counted down without jumping."""

from __future__ import annotations

import json

import numpy as np
from presenter_helpers import card

from HiEndSegLib.presenter.estimate import SETTING, Speeds, TimeLeft


def info(tiles=8.0, run=4, planned=8, rest=2.0, shape=(100, 100, 100), roi=None, device="cpu"):
    return {"model": {"id": "tiny", "version": "1.0.0"}, "device": device, "parameters": {"roi": roi},
            "tiles": {"run": run, "planned": planned}, "input": {"shape": list(shape)},
            "timings": {"prepare": rest / 2, "tiles": tiles, "labels": rest / 2}}


def test_what_was_measured_is_expected_again_and_scales():
    settings = {}
    speeds = Speeds(settings)
    model = card(spacing=[3, 3, 3], tile=[24, 24, 24], overlap=0.5)
    shape, spacing = (100, 100, 100), (3.0, 3.0, 3.0)
    assert speeds.expected(model, "cpu", shape, spacing) is None
    speeds.remember(info())
    assert isinstance(settings[SETTING], str), "text, as every settings store can hold it"
    once = speeds.expected(model, "cpu", shape, spacing)
    tiles = 8 ** 3                     # 100 voxels with tiles of 24 every 12 take 8 along an axis
    assert np.isclose(once, tiles * 0.5 * (8.0 / 4) + 2.0)
    assert speeds.expected(model, "cuda:0", shape, spacing) is None, "another device is another speed"
    assert speeds.expected(card(version="1.1.0"), "cpu", shape, spacing) is None
    assert speeds.expected(model, "cpu", (200, 100, 100), spacing) > 1.8 * once
    assert Speeds(settings).expected(model, "cpu", shape, spacing) == once, "the next session knows it too"


def test_new_measurements_pull_halfway_and_regions_say_only_how_long_a_tile_takes():
    settings, model = {}, card()
    speeds = Speeds(settings)
    speeds.remember(info(roi=[[0, 1]] * 3))
    assert SETTING not in settings
    speeds.remember(info(tiles=4.0, rest=2.0))
    speeds.remember(info(tiles=8.0, rest=6.0, roi=[[0, 1]] * 3))
    entry = json.loads(settings[SETTING])["tiny@1.0.0|cpu"]
    assert entry == {"tile": 1.5, "voxel": 2.0, "share": 0.5}
    assert speeds.expected(model, "cpu", (10, 10, 10), (3.0, 3.0, 3.0)) > 0


def test_nonsense_in_settings_or_answers_is_passed_over():
    for stored in ("", "{", "[1]", '{"tiny@1.0.0|cpu": 3}', '{"tiny@1.0.0|cpu": {"tile": 1e999, "voxel": 1, "share": 1}}',
                   '{"tiny@1.0.0|cpu": {"tile": "x", "voxel": 1, "share": 1}}', None, 7):
        settings = {SETTING: stored}
        assert Speeds(settings).expected(card(), "cpu", (9, 9, 9), (1.0, 1.0, 1.0)) is None
        Speeds(settings).remember(info())
        assert Speeds(settings).expected(card(), "cpu", (9, 9, 9), (1.0, 1.0, 1.0)) is not None
    settings = {}
    for odd in ({}, {**info(), "timings": {"tiles": "fast"}}, {**info(), "tiles": {"run": 0, "planned": 0}}, None):
        Speeds(settings).remember(odd)
    assert settings == {}


def test_only_the_last_hundred_are_kept():
    settings = {}
    for number in range(130):
        Speeds(settings).remember(info(device=f"cuda:{number}"))
    kept = json.loads(settings[SETTING])
    assert len(kept) == 100 and "tiny@1.0.0|cuda:129" in kept and "tiny@1.0.0|cuda:3" not in kept


def run_down(left, total, fraction_at, step=0.05):
    """(time, shown) of a job that takes `total` seconds, looked at every `step`."""
    shown, now = [], 0.0
    while now < total:
        now += step
        shown.append((now, left.update(fraction_at(now / total), now)))
    return shown


def test_nothing_is_said_before_something_is_known():
    shown = run_down(TimeLeft(0.0), 40.0, lambda t: t)
    first = next(now for now, value in shown if value is not None)
    assert 3.0 <= first <= 3.5, "8 % of 40 s"
    assert all(abs(value - (40 - now)) < 1.5 for now, value in shown if value is not None)


def test_tiles_in_steps_do_not_make_it_jump():
    rng = np.random.default_rng(1)
    ends = np.cumsum(rng.uniform(0.5, 1.5, 30))
    ends /= ends[-1]
    shown = run_down(TimeLeft(0.0), 60.0, lambda t: np.searchsorted(ends, t) / 30)
    values = [value for _now, value in shown if value is not None]
    assert np.diff(values).max() <= 1e-9, "it never climbs"
    assert all(abs(value - (60 - now)) < 9 for now, value in shown if value is not None and now > 15)
    assert values[-1] < 4


def test_an_earlier_run_counts_at_the_start_and_yields_to_what_is_seen():
    shown = run_down(TimeLeft(0.0, expected=30.0), 30.0, lambda t: 0.0 if t < 0.1 else t)
    assert shown[0][1] == 30.0 - 0.05 and all(abs(value - (30 - now)) < 2 for now, value in shown)
    slow = run_down(TimeLeft(0.0, expected=10.0), 60.0, lambda t: t)
    assert slow[0][1] < 10.1
    assert abs(slow[len(slow) // 2][1] - 30) < 10, "it took six times as long, and this was noticed"


def test_a_job_that_hangs_never_shows_less_than_nothing():
    left = TimeLeft(0.0, expected=5.0)
    assert all(left.update(0.3, now) >= 0 for now in np.arange(0.1, 100, 0.5))
    assert left.update(1.0, 100.0) < left.update(0.3, 100.0) + 1e-9
