"""Voxels counted by label and answer: exact in any order in memory."""

from __future__ import annotations

import numpy as np
import pytest

from HiEndSegLib.operations.adapt_checks import pair_counts, value_counts


@pytest.mark.parametrize("orders", ["FF", "FC", "CF", "CC"])
@pytest.mark.parametrize("flipped", [False, True])
def test_pairs_and_values_are_counted_exactly(orders, flipped):
    rng = np.random.default_rng(0)
    shape = (7, 8, 9)
    labels = np.array(rng.integers(0, 256, shape), np.uint8, order=orders[0])
    other = np.where(rng.random(shape) < 0.5, labels, rng.integers(0, 256, shape))
    answer = np.array(other, np.uint8, order=orders[1])
    wanted = np.zeros((256, 256), int)
    np.add.at(wanted, (labels.ravel(), answer.ravel()), 1)
    if flipped:
        labels, answer = labels[::-1, :, ::-1], answer[::-1, :, ::-1]
    assert np.array_equal(pair_counts(labels, answer), wanted)
    assert np.array_equal(value_counts(labels), wanted.sum(axis=1))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one lattice"):
        pair_counts(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8))
