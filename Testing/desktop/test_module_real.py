"""The module from start to end: real Qt, real MRML, the real engine in its process, the model that ships, a real CT.

The desktop application around it is a stand-in; README.md says what that cannot prove.
"""

from __future__ import annotations

import acts
import numpy as np
import pytest


@pytest.fixture
def volume(desk):
    from HiEndSegPanel.scenarios import sampleVolume

    return sampleVolume()


@pytest.fixture(scope="module")
def plain(slicerApp):
    """Label map of the sample as it is; the first test fills it."""
    return {}


def same(array, other):
    """Share of voxels with the same label."""
    return float((array == other).mean())


def test_segment_to_finished_nodes(desk, volume, plain):
    node, array = acts.segment(desk, volume)
    plain["labels"] = array
    assert desk.longest < 1.0, "the slices were blocked"
    liver = next(label.value for label in desk.segment._catalogue.card.labels if label.id == "liver")
    assert (array == liver).sum() > 10000
    acts.show_and_edit(desk, volume, node)


def test_cancel_within_a_second(desk, volume):
    # twice, because other programs may want the processor at the same moment
    assert acts.cancel(desk, volume) < acts.PROMISED or acts.cancel(desk, volume) < acts.PROMISED


def test_scene_closed_while_it_runs(desk, volume):
    acts.scene_closed(desk, volume)


def test_volume_deleted_while_it_runs(desk, volume):
    acts.volume_deleted(desk, volume)


def test_under_a_linear_transform(desk, volume, plain):
    array = acts.under_transform(desk, volume, acts.linear_transform(desk), "linear-transform")
    assert np.array_equal(array, plain["labels"])


def test_under_a_grid_transform(desk, volume, plain):
    transform = acts.grid_transform(desk, volume)
    array = acts.under_transform(desk, volume, transform, "grid-transform", answer="as_is")
    assert np.array_equal(array, plain["labels"])


def test_left_handed(desk, volume, plain):
    flipped = acts.like(desk, volume, flip=True)
    assert np.linalg.det(acts.volume_matrix(flipped)[:3, :3]) * np.linalg.det(acts.volume_matrix(volume)[:3, :3]) < 0
    desk.choose(flipped)
    node = desk.run()
    array = acts.check_result(desk, flipped, node)
    desk.picture("left-handed", flipped, node)
    assert same(array[::-1], plain["labels"]) > 0.999


def test_oblique(desk, volume, plain):
    turned = acts.like(desk, volume, turn=acts.rotation(8))
    desk.choose(turned)
    node = desk.run()
    array = acts.check_result(desk, turned, node)
    desk.picture("oblique", turned, node)
    assert same(array, plain["labels"]) > 0.9


def test_broken_checksum(desk, volume, monkeypatch, tmp_path):
    monkeypatch.setattr(desk.segment._catalogue._registry, "user", tmp_path)
    acts.broken_checksum(desk, volume, tmp_path)


def test_worker_killed_while_it_runs(desk, volume):
    acts.worker_killed(desk, volume)


def test_a_corrected_case_teaches_the_model(desk, volume):
    acts.adapt(desk, volume, steps=3)
    assert desk.longest < 1.0, "the slices were blocked"
