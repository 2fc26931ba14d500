"""Synthetic cases: anatomy invented around organs, images drawn from it. Phantoms of ellipsoids; nothing is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from training import tissues as t
from training.anatomy import complete_anatomy
from training.cases import load_case
from training.chest import diaphragm
from training.rendering import smooth_noise, synthesize_image
from training.synthesis import deform, invent, make_case, random_view
from training.template import Template, cavity_of, fine_code, fine_map, hull
from training.tissues import POSSIBLE, draw_look, possible_classes
from training.variety import add_arms, add_fluid, add_table, fat_layer, new_small_bowel

MIDDLE = 55


def _ellipsoid(shape, centre, radii):
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


def _organs(shape, stretch=1.0, shift=(0, 0, 0)):
    """Organs of a patient lying in RAS+: the liver on the right has high i."""
    fine = np.zeros(shape, np.uint8)
    for code, centre, radii in (
        (t.STOMACH, (38, 58, 78), (12, 10, 12)),
        (t.LIVER, (78, 50, 80), (22, 24, 20)),
        (t.SPLEEN, (24, 36, 82), (9, 11, 12)),
        (t.KIDNEY_LEFT, (34, 30, 62), (7, 8, 15)),
        (t.PANCREAS, (55, 52, 64), (14, 4, 4)),
        (t.DUODENUM, (68, 50, 56), (4, 5, 9)),
        (t.GALLBLADDER, (76, 66, 62), (4, 4, 6)),
    ):
        centre = [(c - m) * stretch + m + s for c, m, s in zip(centre, (MIDDLE, 45, 62), shift, strict=True)]
        fine[_ellipsoid(shape, centre, [r * stretch for r in radii])] = code
    return fine


@pytest.fixture(scope="module")
def template() -> Template:
    shape = (112, 92, 96)
    fine = np.zeros(shape, np.uint8)
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    around = ((x - MIDDLE) / 1.25) ** 2 + (y - 46) ** 2 + 0 * z
    fine[around <= 42**2] = t.FAT
    fine[around <= 38**2] = t.MUSCLE
    fine[around <= 35**2] = t.CAVITY
    organs = _organs(shape)
    fine[organs > 0] = organs[organs > 0]
    fine[_ellipsoid(shape, (76, 30, 60), (7, 8, 15))] = t.KIDNEY_RIGHT
    fine[_ellipsoid(shape, (MIDDLE, 55, 38), (25, 14, 12))] = t.SMALL_BOWEL
    fine[_ellipsoid(shape, (90, 48, 38), (6, 7, 22))] = t.COLON
    fine[_ellipsoid(shape, (MIDDLE, 55, 12), (12, 12, 9))] = t.BLADDER
    column = (x - MIDDLE) ** 2 + (y - 30) ** 2 + 0 * z
    fine[(column <= 64) & (np.mod(z, 11) < 9)] = t.VERTEBRAE
    fine[(column <= 64) & (np.mod(z, 11) >= 9)] = t.DISC
    fine[(x - MIDDLE) ** 2 + (y - 19) ** 2 + 0 * z <= 9] = t.CANAL
    fine[(np.abs(x - MIDDLE) < 3) & (y < 17) & (y > 8) & (z > -1)] = t.VERTEBRAE
    lung = (around <= 35**2) & (z > 88) & np.isin(fine, (t.CAVITY,))
    fine[lung & (x < MIDDLE)] = t.LUNG_LEFT
    fine[lung & (x >= MIDDLE)] = t.LUNG_RIGHT
    return Template(fine, cavity_of(fine))


@pytest.fixture(scope="module")
def patient():
    organs = _organs((120, 100, 120), 1.05, (4, 6, 5))
    gullet = np.ogrid[:120, :100, :120]
    tube = (gullet[0] - 57) ** 2 + (gullet[1] - 52) ** 2 + 0 * gullet[2] <= 6
    organs[tube & (gullet[2] > 92) & (gullet[2] < 106) & (organs == 0)] = t.ESOPHAGUS
    return organs


@pytest.fixture(scope="module")
def whole(patient, template):
    return complete_anatomy(patient, template, np.random.default_rng(3))


def _centre(fine, code):
    return np.argwhere(fine == code).mean(0)


def test_invents_every_class_in_range(whole):
    counts = np.bincount(whole.ravel(), minlength=t.FINE_CODES)
    expected = set(range(1, 20))
    assert {code for code in expected if counts[code] < 20} == set()
    assert counts[t.OUTSIDE] > 0.1 * whole.size  # air around the body
    assert not np.isin(whole[0], range(1, 20)).any()


def test_expert_organs_stay_whole(whole, patient):
    for code in (t.SPLEEN, t.LIVER, t.STOMACH, t.PANCREAS, t.KIDNEY_LEFT, t.GALLBLADDER, t.DUODENUM):
        assert (whole == code).sum() == pytest.approx((patient == code).sum(), rel=0.03)


def test_left_is_left(whole):
    middle = _centre(whole, t.CANAL)[0]
    for right in (t.LIVER, t.KIDNEY_RIGHT, t.LUNG_RIGHT, t.VENA_CAVA):
        assert _centre(whole, right)[0] > middle
    for left in (t.SPLEEN, t.KIDNEY_LEFT, t.LUNG_LEFT, t.AORTA, t.HEART):
        assert _centre(whole, left)[0] < middle


def test_up_is_up_and_front_is_front(whole):
    heights = [_centre(whole, code)[2] for code in (t.BLADDER, t.KIDNEY_RIGHT, t.LIVER, t.HEART)]
    assert heights == sorted(heights)
    assert _centre(whole, t.LUNG_LEFT)[2] > _centre(whole, t.SPLEEN)[2]
    assert _centre(whole, t.AORTA)[1] > _centre(whole, t.VERTEBRAE)[1]
    spine = np.argwhere(whole == t.VERTEBRAE)
    assert spine[:, 2].max() > np.argwhere(whole == t.LIVER)[:, 2].max() + 5  # carried upward through the chest


def test_sizes_are_plausible(whole):
    left, right = ((whole == code).sum() for code in (t.KIDNEY_LEFT, t.KIDNEY_RIGHT))
    assert 0.6 < right / left < 1.4
    slices = (whole == t.AORTA).sum((0, 1))
    diameter = 3.0 * 2 * np.sqrt(np.median(slices[slices > 0]) / np.pi)
    assert 16 <= diameter <= 30  # mm
    assert 100 < 0.027 * (whole == t.HEART).sum() < 900  # ml


def test_same_seed_same_case(patient, template):
    def case(seed):
        rng = np.random.default_rng(seed)
        return make_case("phantom", invent(patient, template, rng), rng)

    first, again = case(1), case(1)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.possible, again.possible)


def test_case_is_a_prepared_case(whole, tmp_path):
    case = make_case("phantom", whole[:, :, 60:100], np.random.default_rng(0))
    back = load_case(case.save(tmp_path))
    assert back.image.dtype == np.int16 and back.possible.dtype == np.uint32
    assert back.image.shape == back.possible.shape == whole[:, :, 60:100].shape
    liver = whole[:, :, 60:100] == t.LIVER
    assert (back.possible[liver] == 1 << 5).all()
    assert back.possible.min() > 0


def test_possible_classes():
    assert [int(POSSIBLE[code]) for code in range(20)] == [1 << code for code in range(20)]
    assert int(POSSIBLE[t.SACRUM]) == 1 << t.BONE
    assert int(POSSIBLE[t.DISC]) == 1 | 1 << t.VERTEBRAE
    background = [t.FAT, t.MUSCLE, t.SKIN, t.SOFT, t.CANAL, t.VEIN, t.ARTERY, t.AIRWAY, t.CAVITY, t.TABLE,
                  t.PULMONARY, t.FLUID]
    assert (possible_classes(np.array(background, np.uint8)) == 1).all()


@pytest.mark.parametrize(
    ("phase", "code", "low", "high"),
    [
        ("plain", t.LIVER, 0, 75), ("portal", t.LIVER, 45, 145), ("plain", t.AORTA, 25, 55),
        ("arterial", t.AORTA, 180, 430), ("portal", t.SPLEEN, 90, 155), ("plain", t.KIDNEY_LEFT, 0, 50),
        ("portal", t.KIDNEY_LEFT, 90, 240), ("portal", t.MUSCLE, 30, 85), ("plain", t.FAT, -130, -60),
        ("plain", t.LUNG_LEFT, -920, -650), ("plain", t.VERTEBRAE, 80, 600), ("plain", t.OUTSIDE, -1024, -960),
        ("plain", t.GALLBLADDER, -25, 120), ("plain", t.BLADDER, -25, 60),
    ],
)  # fmt: skip
def test_tissues_look_like_themselves(whole, phase, code, low, high):
    fine = whole[:, :, 4:130:2]
    image = synthesize_image(fine, np.random.default_rng(code), phase=phase)
    inner = ndimage.binary_erosion(fine == code)
    assert inner.any()
    assert low <= np.median(image[inner]) <= high


def test_draws_differ(whole):
    fine = whole[30:80, 30:80, 70:90]
    images = [synthesize_image(fine, np.random.default_rng(seed)) for seed in range(3)]
    liver = [float(image[fine == t.LIVER].mean()) for image in images]
    assert len(set(liver)) == 3


def test_noise_follows_the_look(whole):
    fine = whole[:, :, 70:90]
    quiet = draw_look(np.random.default_rng(0), phase="plain")
    quiet = replace(quiet, noise_hu=0.5, sharp=0.0)
    loud = replace(quiet, noise_hu=30.0)
    air = fine == t.OUTSIDE
    spread = [synthesize_image(fine, np.random.default_rng(1), look=look)[air].std() for look in (quiet, loud)]
    assert spread[1] > spread[0] + 8  # the air next to the skin is blurred in both, and -1024 clips


def test_gas_in_the_stomach_lies_in_front(whole):
    fine = whole[20:80, 40:110, 65:105]
    stomach = fine == t.STOMACH
    front = np.nonzero(stomach)[1].mean()
    seen = 0
    for seed in range(6):
        image = synthesize_image(fine, np.random.default_rng(seed), phase="plain")
        gas = stomach & (image < -600)
        if gas.sum() > 200:
            seen += 1
            assert np.nonzero(gas)[1].mean() > front
    assert seen >= 1


def test_smooth_noise_is_standard_and_smooth():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_noise((30, 30, 30), 3.0, rng) for _ in range(40)])
    assert abs(fields.mean()) < 0.1 and fields.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(fields, axis=1)).mean() < 0.4


def test_deform_keeps_codes_and_scales(whole):
    rng = np.random.default_rng(0)
    small = deform(whole, rng, amount=0, scale=(0.8, 0.8))
    assert set(np.unique(small)) <= set(np.unique(whole))
    assert (small == t.LIVER).sum() == pytest.approx((whole == t.LIVER).sum() * 0.8**3, rel=0.05)
    assert small.shape == tuple(round(n * 0.8) for n in whole.shape)


def test_view_cuts_air_and_slices(whole):
    shapes = {random_view(whole, np.random.default_rng(seed)).shape[2] for seed in range(8)}
    assert min(shapes) >= 30 and max(shapes) <= whole.shape[2] and len(shapes) > 2


def test_fat_layer_grows_and_shrinks(whole):
    fine = whole[:, :, 60:90]
    rng = np.random.default_rng(0)
    size = (fine != t.OUTSIDE).sum()
    thick, thin = fat_layer(fine, 4.0, rng), fat_layer(fine, -2.0, rng)
    assert (thick != t.OUTSIDE).sum() > 1.1 * size
    assert (thin != t.OUTSIDE).sum() < size
    for code in (t.LIVER, t.VERTEBRAE, t.BONE, t.SPLEEN):
        assert (thick == code).sum() == (thin == code).sum() == (fine == code).sum()


def test_new_loops_take_only_fat(whole):
    fine = whole.copy()
    new_small_bowel(fine, np.random.default_rng(0))
    changed = fine != whole
    assert changed.any() and (fine == t.SMALL_BOWEL).sum() > 100
    assert np.isin(whole[changed], (t.CAVITY, t.SMALL_BOWEL)).all()


@pytest.mark.parametrize(
    ("kind", "from_codes"),
    [("effusion", t.LUNGS), ("ascites", (t.CAVITY,)), ("cyst", (t.CAVITY, t.SMALL_BOWEL, t.COLON, t.FAT))],
)
def test_fluid_takes_only_its_place(whole, kind, from_codes):
    fine = whole.copy()
    add_fluid(fine, kind, np.random.default_rng(0))
    changed = fine != whole
    assert changed.sum() > 50 and (fine[changed] == t.FLUID).all()
    assert np.isin(whole[changed], from_codes).all()


def test_arms_and_table_stay_outside_the_body(whole):
    fine = whole[:, :, 60:80]
    arms = add_arms(fine, np.random.default_rng(0))
    assert (arms == t.BONE).sum() > (fine == t.BONE).sum() + 200
    assert (arms == t.LIVER).sum() == (fine == t.LIVER).sum()
    table = add_table(fine, np.random.default_rng(0))
    assert (table == t.TABLE).any()
    assert np.nonzero(table == t.TABLE)[1].mean() < np.nonzero(np.isin(table, (t.LIVER,)))[1].mean()


def test_diaphragm_bridges_dips():
    organs = np.zeros((60, 60, 40), np.uint8)
    organs[10:28, 10:50, 5:30] = t.LIVER
    organs[34:50, 10:50, 5:30] = t.SPLEEN
    assert diaphragm(organs)[31, 30] > 27


def test_unlabelled_tissue_is_sorted_by_hu():
    image = np.full((40, 40, 12), -1000, np.int16)
    image[8:32, 8:32] = -100
    image[12:28, 12:28] = 50
    image[18:22, 18:22] = 600
    codes = np.zeros(image.shape, np.uint8)
    codes[14:16, 14:16] = t.LIVER
    fine = fine_map(codes, image)
    assert fine[20, 20, 6] == t.BONE and fine[25, 25, 6] == t.MUSCLE and fine[10, 20, 6] == t.FAT
    assert fine[15, 15, 6] == t.LIVER and fine[2, 2, 6] == t.OUTSIDE and fine[8, 20, 6] == t.SKIN


def test_names_become_codes():
    assert fine_code("vertebrae_L3") == t.VERTEBRAE and fine_code("sacrum") == t.SACRUM
    assert fine_code("rib_left_8") == t.BONE and fine_code("gluteus_maximus_left") == t.MUSCLE
    assert fine_code("lung_lower_lobe_right") == t.LUNG_RIGHT and fine_code("iliac_artery_left") == t.ARTERY


def test_hull_of_two_blocks():
    mask = np.zeros((20, 20), bool)
    mask[2:5, 2:5] = mask[15:18, 2:5] = True
    filled = hull(mask)
    assert filled[10, 3] and not filled[10, 10] and filled[mask].all()
