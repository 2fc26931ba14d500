"""segment: a planted block comes back where it was, on the input's own lattice, whatever that lattice is."""

from __future__ import annotations

import numpy as np
import pytest

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.operations.segment import segment
from segment_networks import RampNetwork, centre_mm, lattice, make_model, phantom, rotation

LEFT_HANDED = [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]
PERMUTED = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]      # i to the back, j to the feet, k to the right
CASES = {
    "model lattice": ((48, 40, 44), (3, 3, 3), None),
    "LPS, fine": ((120, 110, 60), (1.2, 1.2, 2.0), np.diag([-1, -1, 1])),
    "left-handed": ((60, 60, 40), (2, 2, 3), LEFT_HANDED),
    "permuted": ((50, 70, 60), (3.0, 1.5, 2.0), PERMUTED),
    "oblique": ((90, 80, 50), (1.5, 1.5, 2.5), rotation(15, -20, 30)),
    "oblique left-handed": ((70, 80, 50), (2, 1.5, 2.5), rotation(-12, 8, 100) @ np.array(LEFT_HANDED)),
    "thick slices": ((110, 100, 24), (1, 1, 7), np.diag([-1, -1, 1])),
    "coarse": ((40, 40, 40), (4.5, 4.5, 4.5), None),
}


def planted(shape, spacing, directions, order="C"):
    matrix = lattice(shape, spacing, directions)
    low = [n * 2 // 5 for n in shape]
    high = [a + max(2, n // 4) for a, n in zip(low, shape)]
    volume = phantom(shape, matrix, [(low, high, 300)])
    if order == "F":
        volume = volume.with_array(np.asfortranarray(volume.array))
    block = np.zeros(shape, dtype=bool)
    block[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return volume, block


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_block_comes_back(name, order):
    shape, spacing, directions = CASES[name]
    volume, block = planted(shape, spacing, directions, order)
    result = segment(make_model(RampNetwork()), volume, device="cpu")
    found = result.labels.array == 1
    assert result.labels.array.dtype == np.uint8
    assert result.labels.shape == volume.shape
    assert np.array_equal(result.labels.ijk_to_ras, volume.ijk_to_ras)
    assert np.linalg.norm(centre_mm(found, volume.ijk_to_ras) - centre_mm(block, volume.ijk_to_ras)) < 0.25
    for axis in range(3):       # every face within half a model voxel (or half of the input's, where that is coarser)
        others = tuple(a for a in range(3) if a != axis)
        middle = found.sum(axis=others) > 0.5 * block.sum(axis=others).max()
        truth = block.any(axis=others)
        faces = np.flatnonzero(middle)[[0, -1]] - np.flatnonzero(truth)[[0, -1]]
        assert np.abs(faces).max() * spacing[axis] <= 1.5 + 1e-6
    assert 2 * (found & block).sum() / (found.sum() + block.sum()) > 0.85
    assert not (result.labels.array > 1).any()
    row = result.statistics[0]
    assert row["id"] == "stone" and row["voxels"] == found.sum()
    assert row["volume_ml"] == pytest.approx(found.sum() * volume.voxel_ml)
    assert row["mean_hu"] == pytest.approx(volume.array[found].mean())


def test_equals_thresholding_on_the_model_lattice():
    """At the model's own spacing nothing is interpolated: the answer is the thresholded image, voxel by voxel."""
    blocks = [((6, 6, 6), (20, 20, 20), 300), ((30, 8, 30), (40, 20, 40), 600), ((12, 30, 12), (20, 36, 30), 900)]
    volume = phantom((48, 42, 50), lattice((48, 42, 50), (3, 3, 3)), blocks)
    result = segment(make_model(), volume, device="cpu")
    assert np.array_equal(result.labels.array, np.digitize(volume.array, [150, 450, 750]))
    assert result.info["tiles"]["run"] == 8


def test_flipped_lattices_give_flipped_answers():
    """The same patient stored in other axis orders gets the same voxels."""
    blocks = [((10, 10, 10), (25, 19, 22), 300), ((24, 30, 24), (30, 36, 31), 600)]
    volume = phantom((60, 50, 40), lattice((60, 50, 40), (2.2, 2.6, 3.1)), blocks)
    reference = segment(make_model(), volume, device="cpu").labels.array
    for order, flips in (((1, 2, 0), (True, False, True)), ((2, 1, 0), (False, True, False))):
        array, matrix = volume.array.transpose(order), np.eye(4)
        matrix[:3, :3] = volume.ijk_to_ras[:3, order]
        matrix[:3, 3] = volume.ijk_to_ras[:3, 3]
        for axis, flip in enumerate(flips):
            if flip:
                matrix[:3, 3] += matrix[:3, axis] * (array.shape[axis] - 1)
                matrix[:3, axis] *= -1
                array = np.flip(array, axis)
        answer = segment(make_model(), Volume(array, matrix), device="cpu").labels.array
        for axis, flip in enumerate(flips):
            answer = np.flip(answer, axis) if flip else answer
        # Rounding may decide the one or other tie differently.
        assert np.mean(answer.transpose(np.argsort(order)) != reference) < 1e-4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice(axis):
    shape = [64, 56, 48]
    spacing = [2.0, 2.0, 2.0]
    shape[axis], spacing[axis] = 1, 6.0
    low, high = [20] * 3, [36] * 3
    low[axis], high[axis] = 0, 1
    volume = phantom(shape, lattice(shape, spacing), [(low, high, 300)])
    result = segment(make_model(RampNetwork()), volume, device="cpu")
    block = np.zeros(shape, dtype=bool)
    block[tuple(slice(a, b) for a, b in zip(low, high))] = True
    found = result.labels.array == 1
    assert result.labels.shape == tuple(shape)
    assert np.linalg.norm(centre_mm(found, volume.ijk_to_ras) - centre_mm(block, volume.ijk_to_ras)) < 0.25
    assert 2 * (found & block).sum() / (found.sum() + block.sum()) > 0.85
    assert any("surrounded with air" in message for message in result.messages)


@pytest.mark.parametrize("hu, value", [(300, 1), (600, 2), (0, 0)])
def test_one_voxel(hu, value):
    result = segment(make_model(), Volume(np.full((1, 1, 1), hu, np.int16), np.diag([2.0, 2.0, 5.0, 1])), device="cpu")
    assert result.labels.array.tolist() == [[[value]]]


def test_nan_voxels_become_air_and_are_said():
    shape = (48, 40, 44)
    clean = phantom(shape, lattice(shape, (3, 3, 3)), [((20, 20, 20), (30, 30, 30), 300)], dtype=np.float32)
    broken = clean.array.copy()
    broken[:3] = np.nan
    broken[25, 25, 25] = np.inf
    result = segment(make_model(), clean.with_array(broken), device="cpu")
    assert any("NaN" in message for message in result.messages)
    changed = result.labels.array != np.digitize(clean.array, [150, 450, 750])
    assert changed[25, 25, 25] and changed.sum() == 1
    assert np.isnan(broken[0, 0, 0])        # the caller's voxels are not touched


def test_four_dimensions_are_refused():
    with pytest.raises(InputError):
        segment(make_model(), Volume(np.zeros((4, 4, 4, 2)), np.eye(4)), device="cpu")


def test_overlapping_tiles_leave_no_seams():
    """A long block across many tiles is one piece without gaps or steps."""
    shape = (40, 40, 150)
    volume = phantom(shape, lattice(shape, (3, 3, 3)), [((10, 10, 6), (30, 30, 144), 300)])
    result = segment(make_model(tile=24, overlap=0.25), volume, device="cpu")
    assert result.info["tiles"]["run"] > 20
    assert (result.labels.array[10:30, 10:30, 6:144] == 1).all()
