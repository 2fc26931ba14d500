"""Volumes and lattices: what is refused, what is kept, and that resampling puts things where they are."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_lattices import LATTICES, affine, make, rotation

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.resample import resample_like, resample_to_spacing, to_ras_axes
from HiEndSegLib.geometry.volume import Volume, check_volume


@pytest.fixture(params=LATTICES)
def lattice(request) -> str:
    return request.param


def test_properties_of_a_volume():
    volume = make("LPS")
    assert volume.shape == (9, 8, 7)
    assert volume.spacing == pytest.approx((0.7, 0.8, 5))
    assert volume.voxel_ml == pytest.approx(0.7 * 0.8 * 5 / 1000)
    assert volume.axis_codes == "LPS" and make("PIR").axis_codes == "PIR"
    assert volume.ras_to_ijk @ volume.ijk_to_ras == pytest.approx(np.eye(4))
    other = volume.with_array(np.zeros(volume.shape, np.uint8), name="labels")
    assert other.name == "labels" and other.same_lattice(volume)
    moved = volume.ijk_to_ras.copy()
    moved[0, 3] += 1e-5
    assert not Volume(volume.array, moved).same_lattice(volume)
    assert not Volume(volume.array[1:], volume.ijk_to_ras).same_lattice(volume)
    with pytest.raises(ValueError):
        volume.with_array(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError):
        volume.ijk_to_ras[0, 0] = 7         # a lattice shared by many volumes cannot be changed under them


@pytest.mark.parametrize("array, matrix, word", [
    (np.zeros((4, 4, 4, 2)), np.eye(4), "4 dimensions"),
    (np.zeros((0, 4, 4)), np.eye(4), "no voxels"),
    (np.zeros((4, 4, 4), complex), np.eye(4), "colour or complex"),
    (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4), "colour"),
    (np.zeros((4, 4, 4)), np.diag([1.0, 0, 1, 1]), "spacing of zero"),
    (np.zeros((4, 4, 4)), np.diag([1.0, np.nan, 1, 1]), "not a finite"),
    (np.zeros((4, 4, 4)), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "one plane"),
    (np.full((4, 4, 4), np.nan), np.eye(4), "no finite voxel"),
])
def test_check_volume_refuses_in_one_sentence(array, matrix, word):
    with pytest.raises(InputError, match=word) as caught:
        check_volume(Volume(array, matrix, name="brain.nii"))
    assert str(caught.value).startswith("brain.nii") and "\n" not in str(caught.value)


def test_check_volume_mends_nan_and_infinity_without_touching_the_input():
    array = np.arange(60, dtype=np.float64).reshape(3, 4, 5) - 7
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    before = array.copy()
    volume = check_volume(Volume(array, np.eye(4)))
    assert np.array_equal(array, before, equal_nan=True)
    assert volume.array.dtype == np.float32
    assert (volume.array[0, 0, :3] == -4).all() and volume.array[2, 3, 4] == 52
    assert volume.notes == ["3 voxels that were NaN or infinite were set to the smallest finite value, -4."]


def test_check_volume_keeps_integers_as_they_are():
    for dtype in (np.int16, np.uint8, np.uint16, np.int32, np.float32):
        array = np.ones((2, 2, 2), dtype)
        assert check_volume(Volume(array, np.eye(4))).array is array
    assert check_volume(Volume(np.ones((2, 2, 2), bool), np.eye(4))).array.dtype == np.uint8


def test_to_ras_axes_is_exact_and_a_view(lattice):
    volume = make(lattice)
    ras = to_ras_axes(volume)
    assert ras.axis_codes == "RAS"
    assert np.shares_memory(ras.array, volume.array)
    index = np.array([s - 1 for s in volume.shape])
    there = np.rint(ras.ras_to_ijk @ volume.ijk_to_ras @ [*index, 1])[:3].astype(int)
    assert ras.array[tuple(there)] == volume.array[tuple(index)]
    back = resample_like(ras, volume, order=0)
    assert back.same_lattice(volume) and np.array_equal(back.array, volume.array)


def ramp(shape, matrix, coefficients=(2.0, -3.0, 5.0), constant=10.0) -> np.ndarray:
    """A field that is linear in RAS, so that linear interpolation reproduces it anywhere."""
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ras = ijk @ matrix[:3, :3].T + matrix[:3, 3]
    return (ras @ np.asarray(coefficients) + constant).astype(np.float32)


@pytest.mark.parametrize("spacing", [(3, 3, 3), (0.5, 0.6, 0.7), (1.5, 4, 0.9), (100, 100, 100)])
def test_resample_to_spacing_keeps_place_extent_and_directions(lattice, spacing):
    shape, matrix = LATTICES[lattice]
    volume = Volume(ramp(shape, matrix), matrix)
    result = resample_to_spacing(volume, spacing)
    ras = to_ras_axes(volume)
    assert result.spacing == pytest.approx(spacing, abs=1e-9)
    assert result.array.dtype == np.float32 and result.axis_codes == "RAS"
    unit = ras.ijk_to_ras[:3, :3] / ras.spacing
    assert result.ijk_to_ras[:3, :3] / result.spacing == pytest.approx(unit, abs=1e-9)
    centre = [v.ijk_to_ras @ [*((np.array(v.shape) - 1) / 2), 1] for v in (volume, result)]
    assert centre[0] == pytest.approx(centre[1], abs=1e-9)
    for n, m, s, t in zip(ras.shape, result.shape, ras.spacing, spacing):
        assert m * t >= n * s - 1e-3 * t and (m - 1) * t < n * s
    # Away from the border (where the outermost voxels are repeated) the linear field is reproduced exactly.
    truth = ramp(result.shape, result.ijk_to_ras)
    reach = [4 * (t / s) + 2 if t > s * (1 + 1e-6) else 0 for s, t in zip(ras.spacing, spacing)]
    position = np.stack(np.meshgrid(*map(np.arange, result.shape), indexing="ij"), -1)
    position = position @ (ras.ras_to_ijk @ result.ijk_to_ras)[:3, :3].T + (ras.ras_to_ijk @ result.ijk_to_ras)[:3, 3]
    deep = np.all((position >= reach) & (position <= np.array(ras.shape) - 1 - reach), axis=-1)
    assert result.array[deep] == pytest.approx(truth[deep], abs=2e-3)
    assert result.array.min() >= volume.array.min() - 1e-2 and result.array.max() <= volume.array.max() + 1e-2


def test_resample_to_spacing_antialiases():
    checker = (np.indices((64, 64, 64)).sum(axis=0) % 2 * 1000).astype(np.int16)
    volume = Volume(checker, np.eye(4))
    smooth = resample_to_spacing(volume, 4).array[4:-4, 4:-4, 4:-4]
    assert smooth == pytest.approx(500, abs=2)
    assert resample_to_spacing(volume, 4.5, antialias=False).array.std() > 10


def test_resample_to_spacing_same_as_scipy_for_one_axis():
    from scipy import ndimage
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(0, 300, (60, 4, 4)).astype(np.float32), np.diag([1.0, 3, 3, 1]))
    result = resample_to_spacing(volume, 3)
    sigma = np.sqrt(8) / np.sqrt(8 * np.log(2))
    blurred = ndimage.gaussian_filter1d(volume.array, sigma, axis=0, mode="nearest", truncate=4.0)
    assert result.array == pytest.approx(blurred[1::3], abs=1.0)


def test_resample_to_spacing_of_labels_and_with_fill_and_nan():
    labels = make("LPS", np.uint8)
    assert resample_to_spacing(labels, 2, order=0).array.dtype == np.uint8
    assert set(np.unique(resample_to_spacing(labels, 0.3, order=0).array)) == set(np.unique(labels.array))
    flat = Volume(np.full((20, 20, 20), 100, np.int16), np.eye(4))
    filled = resample_to_spacing(flat, 4, fill=-1000)
    assert filled.array[2, 2, 2] == pytest.approx(100, abs=5) and filled.array[0, 2, 2] < 50
    assert resample_to_spacing(flat, 4).array == pytest.approx(100, abs=1e-3)
    holes = flat.array.astype(np.float32)
    holes[10, 10, 10] = np.nan
    assert resample_to_spacing(flat.with_array(holes), 2).array == pytest.approx(100, abs=1e-3)
    with pytest.raises(ValueError):
        resample_to_spacing(flat, 0)
    with pytest.raises(ValueError):
        resample_to_spacing(flat, 2, order=3)


@pytest.mark.parametrize("other", LATTICES)
def test_resample_like_reproduces_a_linear_field(lattice, other):
    shape, matrix = LATTICES[lattice]
    source_matrix = affine(LATTICES[other][1][:3, :3] / np.linalg.norm(LATTICES[other][1][:3, :3], axis=0), (2, 2, 2))
    # The source is centred on the reference and wide enough to cover it.
    centre = matrix @ [*((np.array(shape) - 1) / 2), 1]
    size = 48
    source_matrix[:3, 3] = centre[:3] - source_matrix[:3, :3] @ np.full(3, (size - 1) / 2)
    reference = Volume(np.zeros(shape, np.uint8), matrix)
    source = Volume(ramp((size,) * 3, source_matrix), source_matrix, name="source")
    result = resample_like(source, reference, order=1)
    assert result.same_lattice(reference, 0) and result.name == "source" and result.array.dtype == np.float32
    assert result.array == pytest.approx(ramp(shape, matrix), abs=5e-3)


def test_resample_like_nearest_and_fill():
    source = Volume(np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2), np.diag([2.0, 2, 2, 1]), name="labels")
    fine = Volume(np.zeros((8, 8, 8), np.uint8), affine(np.eye(3), (1, 1, 1), (-2.5, -2.5, -2.5)))
    for turn in (np.eye(4), affine(rotation(0.3, 0.3, 0.3), (1, 1, 1))):    # separable, and by scipy
        result = resample_like(source, Volume(fine.array, turn @ fine.ijk_to_ras), order=0, fill=99)
        assert result.array.dtype == np.uint8
        # the source covers [-1, 3): two of eight voxels on either side are outside
        assert (result.array[2:6, 2:6, 2:6] == np.kron(source.array, np.ones((2, 2, 2)))).all()
        outside = np.ones((8, 8, 8), bool)
        outside[2:6, 2:6, 2:6] = False
        assert (result.array[outside] == 99).all()
    far = Volume(fine.array, affine(np.eye(3), (1, 1, 1), (500, 0, 0)))
    assert (resample_like(source, far, order=0).array == 0).all()
    assert (resample_like(source, far, order=1, fill=-1024).array == -1024).all()


def test_resample_like_repeats_the_outermost_half_voxel():
    source = Volume(np.full((4, 4, 4), 100, np.int16), np.diag([2.0, 2, 2, 1]))
    for angle in (0, 1):
        fine = Volume(np.zeros((16, 16, 16), np.uint8),
                      affine(rotation(angle, angle, angle), (0.5, 0.5, 0.5), (-0.74, -0.74, -0.74)))
        assert resample_like(source, fine, order=1, fill=-1024).array == pytest.approx(100, abs=1e-3)


def test_resampling_in_slabs_is_the_same_as_at_once(monkeypatch):
    from HiEndSegLib.geometry import resample
    volume, turned, straight = make("LPS"), make("oblique"), make("axis-aligned RAS")
    straight = Volume(straight.array, volume.ijk_to_ras @ affine(np.eye(3), (0.5, 0.7, 0.9), (1, 2, 3)))

    def everything():
        return [resample_to_spacing(volume, 2).array, resample_like(volume, straight, order=1, fill=5).array,
                resample_like(volume, straight, order=0, fill=5).array,
                resample_like(volume, Volume(turned.array, turned.ijk_to_ras * 0.1 + volume.ijk_to_ras * 0.9),
                              order=1, fill=5).array]
    once = everything()
    monkeypatch.setattr(resample, "_SLAB_VOXELS", 60)
    monkeypatch.setattr(resample, "slabs", lambda shape, voxels=60, axis=2, f=resample.slabs: f(shape, voxels, axis))
    for a, b in zip(once, everything()):
        assert a == pytest.approx(b, abs=1e-3)
