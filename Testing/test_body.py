"""The body mask on phantoms: what is patient, what is table, what is air."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from HiEndSegLib.geometry.body import body_mask


def volume(array, spacing=(3.0, 3.0, 3.0), codes=None):
    matrix = np.diag([*spacing, 1.0])
    if codes is not None:
        matrix = codes @ matrix
    return SimpleNamespace(array=array, ijk_to_ras=matrix, spacing=tuple(np.linalg.norm(matrix[:3, :3], axis=0)),
                           shape=array.shape)


def ellipse(shape, centre, radii):
    """Elliptic cylinder along the last axis."""
    x, y = np.ogrid[:shape[0], :shape[1]]
    flat = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
    return np.repeat(flat[:, :, None], shape[2], axis=2)


def phantom(shape=(100, 80, 30), noise=20.0):
    """A chest with two lungs and an arm on a table of shell and foam; (HU, true body)."""
    hu = np.full(shape, -1000.0, np.float32)
    body = ellipse(shape, (50, 44), (34, 22)) | ellipse(shape, (92, 44), (5, 6))
    hu[body] = 40
    hu[ellipse(shape, (34, 44), (12, 14))] = -850
    hu[ellipse(shape, (66, 44), (12, 14))] = -850
    hu[10:90, 19:21] = -50                   # the table's upper shell: touches the back
    hu[10:90, 12:19] = -920                  # foam
    hu[10:90, 11:12] = -50
    hu += np.random.default_rng(1).normal(0, noise, shape).astype(np.float32)
    return hu, body


def agreement(mask, truth):
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


def test_chest_on_a_table():
    hu, body = phantom()
    mask = body_mask(volume(hu))
    assert mask.dtype == bool and mask.shape == hu.shape
    assert agreement(mask, body) > 0.985
    assert mask[34, 44].all() and mask[66, 44].all()           # lungs are filled, in the end slices too
    assert mask[92, 44].all()                                  # the arm stays
    assert mask[10:90, 11:19].mean() < 0.01                    # shell and foam go
    assert not mask[:, 70:].any()


@pytest.mark.parametrize("low", [-1024, -3024])
def test_scanner_circle_and_clipping(low):
    hu, body = phantom()
    outside = ~ellipse(hu.shape, (50, 40), (55, 46))
    hu[outside] = low
    mask = body_mask(volume(np.clip(hu, -1024 if low == -1024 else low, 3071).astype(np.int16)))
    assert agreement(mask, body & ~outside) > 0.98


def test_lung_cut_open_by_the_field_of_view():
    hu, body = phantom()
    cut = slice(30, 92)                                        # the left chest wall and half a lung are outside
    mask = body_mask(volume(hu[cut]))
    assert agreement(mask, body[cut]) > 0.98
    assert mask[0, 44].all()


def test_any_axis_order_and_finer_spacing():
    hu, body = phantom()
    turned = np.zeros((4, 4))
    turned[0, 1] = turned[1, 2] = -1
    turned[2, 0] = turned[3, 3] = 1
    mask = body_mask(volume(np.ascontiguousarray(hu.transpose(2, 0, 1)), codes=turned))
    assert np.array_equal(mask, body_mask(volume(hu)).transpose(2, 0, 1))
    fine = body_mask(volume(np.repeat(np.repeat(hu, 3, 0), 3, 1), spacing=(1.0, 1.0, 3.0)))
    assert fine.shape == (300, 240, 30)
    assert agreement(fine, np.repeat(np.repeat(body, 3, 0), 3, 1)) > 0.98


def test_crops_without_air_are_all_body():
    rng = np.random.default_rng(0)
    assert body_mask(volume(rng.normal(40, 15, (20, 20, 20)))).all()
    assert body_mask(volume(rng.normal(-850, 40, (20, 20, 20)))).all()        # inside a lung
    assert body_mask(volume(rng.uniform(0, 900, (20, 20, 20)))).all()         # MR
    assert body_mask(volume(np.full((1, 1, 1), 30.0))).all()


def test_air_is_empty():
    assert not body_mask(volume(np.full((40, 40, 40), -1000, np.int16))).any()
    assert not body_mask(volume(np.full((1, 1, 1), -1000.0))).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice(axis):
    hu, body = phantom(noise=5.0)
    one = np.moveaxis(hu[:, :, 10:11], 2, axis)
    truth = np.moveaxis(body[:, :, 10:11], 2, axis)
    spacing = [3.0, 3.0, 3.0]
    spacing[axis] = 8.0
    assert agreement(body_mask(volume(one, spacing)), truth) > 0.95


def test_nan_counts_as_air():
    hu, body = phantom()
    hu[:5] = np.nan
    assert agreement(body_mask(volume(hu)), body) > 0.98


def test_lung_that_leaks_out_of_single_slices():
    """Two neighbouring slices without most of a lung and its wall: what lies above and below closes them."""
    hu, body = phantom()
    hu[62:, :, 14:16] = -1000
    mask = body_mask(volume(hu))
    lung = ellipse(hu.shape, (66, 44), (11, 13))[:, :, 14:16]
    assert mask[:, :, 14:16][lung].mean() > 0.99
    assert agreement(mask, body) > 0.97
