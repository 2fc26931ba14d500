"""Preparing real CT volumes for training, on small phantoms made here."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from training import cases, classical, evaluate, lattice, seeds
from training.structures import ALL_BITS, CLASSES, STRUCTURES, VALUE, bit, card_labels, certain, certain_labels, without


def phantom() -> np.ndarray:
    """A chest at 3 mm, RAS+: body, two unequal lungs that touch in front, trachea, spine, sternum, fat, a stomach
    bubble; the heart full of contrast that is as dense as bone."""
    i, j, k = np.indices((100, 70, 44)).astype(float)
    hu = np.full(i.shape, -1000.0)
    hu[((i - 50) / 44) ** 2 + ((j - 35) / 30) ** 2 < 1] = -100          # fat
    hu[((i - 50) / 38) ** 2 + ((j - 35) / 25) ** 2 < 1] = 50            # muscle and viscera
    upper = k > 12
    for centre, radius in ((32.0, 13.0), (69.0, 14.0)):
        hu[(((i - centre) / radius) ** 2 + ((j - 37) / 18) ** 2 < 1) & upper] = -820
    hu[(np.abs(i - 50) < 8) & (np.abs(j - 49) < 2.0) & (np.abs(k - 30) < 8) & upper] = -820    # lungs touch
    hu[((i - 50) ** 2 + (j - 40) ** 2 < 12) & (k > 24)] = -990           # trachea
    hu[((i - 50) ** 2 + (j - 37) ** 2 < 60) & (k > 4) & (k < 20)] = 420  # contrast
    hu[(np.abs(i - 50) < 5) & (j > 15) & (j < 25)] = 350                 # vertebral bodies
    hu[(np.abs(i - 50) < 2) & (j > 9) & (j < 15)] = 600
    hu[(np.abs(i - 50) < 4) & (j > 55) & (j < 58) & upper] = 500         # sternum
    hu[((i - 32) ** 2 + (j - 40) ** 2 + (k - 4) ** 2) < 25] = -1000      # gas in the stomach
    return np.clip(np.rint(hu + np.random.default_rng(1).normal(0, 6, hu.shape)), -1024, 3071).astype(np.int16)


@pytest.fixture(scope="module")
def chest():
    hu = phantom()
    return hu, classical.classical(hu)


def test_table_matches_the_card():
    assert [s.value for s in STRUCTURES] == list(range(1, 20)) and CLASSES == 20
    assert ALL_BITS == 2 ** 20 - 1 and bit("background") == 1 and bit("spleen", "esophagus") == 2 | 2 ** 19
    assert without("liver") == ALL_BITS - 2 ** 5
    left = card_labels()[VALUE["kidney_left"] - 1]
    assert left["terminology"]["modifier"] == ["SCT", "7771000", "Left"] and left["largest_component"]
    assert not card_labels()[VALUE["colon"] - 1]["largest_component"]


def test_certain_is_exactly_one_bit():
    possible = np.array([0, 1, 2, 3, int(bit("bone")), int(ALL_BITS)], np.uint32)
    assert certain(possible).tolist() == [False, True, True, False, True, False]
    assert certain_labels(possible).tolist() == [255, 0, 1, 255, VALUE["bone"], 255]


def test_lungs_sides_trachea_and_gas(chest):
    hu, found = chest
    labels = certain_labels(found.possible)
    assert labels[32, 37, 25] == VALUE["lung_left"]          # i grows to the right
    assert labels[67, 37, 25] == VALUE["lung_right"]
    aerated = (hu < -700) & (hu > -900)
    index = np.arange(100)[:, None, None]
    assert (labels[aerated & (index < 42)] == VALUE["lung_left"]).mean() > 0.97
    assert (labels[aerated & (index > 58)] == VALUE["lung_right"]).mean() > 0.97
    assert found.possible[50, 40, 40] == bit("background")                                         # trachea
    bubble = found.possible[32, 40, 4]
    assert bubble & bit("stomach") and not bubble & bit("lung_left", "liver")


def test_bone_is_told_from_contrast_and_by_place(chest):
    _, found = chest
    assert found.possible[50, 12, 25] == bit("vertebrae")
    assert found.possible[50, 56, 25] == bit("bone")
    heart = found.possible[50, 37, 12]
    assert heart & bit("heart") and not heart & bit("bone", "vertebrae")


def test_air_fat_and_soft_tissue(chest):
    hu, found = chest
    assert (found.possible[:4] == bit("background")).all()
    assert found.possible[9, 35, 6] == bit("background") and -160 < hu[9, 35, 6] < -60
    soft = found.possible[50, 45, 2]
    assert soft & bit("liver") and soft & bit("background") and not soft & bit("lung_right")
    assert (found.possible != 0).all()


def test_bowel_gas_alone_is_no_lung():
    i, j, k = np.indices((60, 50, 30)).astype(float)
    hu = np.where(((i - 30) / 26) ** 2 + ((j - 25) / 20) ** 2 < 1, 40, -1000)
    hu[((i - 30) ** 2 + (j - 25) ** 2 < 100) & (k > 5) & (k < 25)] = -1000
    found = classical.classical(hu.astype(np.int16))
    assert found.lungs is None
    assert found.possible[30, 25, 15] & bit("colon") and not found.possible[30, 25, 15] & bit("liver")


def test_drawn_labels_win_over_classical():
    drawn = np.array([bit("liver"), ALL_BITS, bit("stomach", "duodenum")])
    found = np.array([bit("lung_left"), bit("bone", "vertebrae"), without("duodenum")])
    assert cases.combine(drawn, found).tolist() == [bit("liver"), bit("bone", "vertebrae"), bit("stomach")]


def test_names_of_the_full_label_set():
    expected = {"lung_upper_lobe_left": "lung_left", "vertebrae_T12": "vertebrae", "vertebrae_S1": "bone",
                "rib_left_7": "bone", "hip_right": "bone", "costal_cartilages": "background",
                "gluteus_maximus_left": "background", "duodenum": "duodenum"}
    assert {name: cases.structure_of(name) for name in expected} == expected


def test_codes_take_the_largest_share():
    codes = np.zeros((40, 40, 40), np.uint32)
    codes[10:13] = bit("stomach", "duodenum")              # 3 mm thick at 1 mm
    volume = lattice.Volume(codes.astype(np.float32), np.eye(4))
    small = lattice.resample_codes(volume, codes, 3.0)
    assert set(np.unique(small)) == {0, int(bit("stomach", "duodenum"))} and small.shape == (14, 14, 14)
    assert 0.5 < (small != 0).mean() * 14 < 1.6


def test_a_labelled_case_end_to_end(tmp_path, monkeypatch):
    hu = phantom()
    flipped = np.diag([-3.0, -3.0, 3.0, 1.0])              # stored LPS
    folder = tmp_path / "ct-thorax-01"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(hu[::-1, ::-1], flipped), folder / "image.nii.gz")
    labels = np.zeros(hu.shape, np.uint8)
    labels[44:57, 31:43, 6:18] = 1
    labels[48:53, 45:48, 20:30] = 2
    nibabel.save(nibabel.Nifti1Image(labels[::-1, ::-1], flipped), folder / "labels.nii.gz")
    (folder / "labels.json").write_text(json.dumps(
        {"0": "background", "1": "heart", "2": "pulmonary_artery", "3": "aorta", "4": "vertebrae_T12"}))
    monkeypatch.setattr(seeds, "marked", lambda name: None)
    case = cases.load_case(cases.prepare(folder).save(tmp_path / "cache"))
    assert case.image.dtype == np.int16 and case.possible.dtype == np.uint32 and case.image.shape == hu.shape
    np.testing.assert_array_equal(case.image, hu)
    assert case.possible[50, 37, 12] == bit("heart") and case.possible[50, 46, 25] == bit("background")
    elsewhere = case.possible[50, 45, 2]
    assert elsewhere & bit("liver") and not elsewhere & bit("heart") and not elsewhere & bit("aorta")
    assert case.possible[32, 37, 25] == bit("lung_left") and case.weight == pytest.approx(2.0)
    assert not list((tmp_path / "cache").glob(".*"))


def test_development_and_sample_are_never_prepared(tmp_path):
    for name in ("ct-abdomen-02", "ct-chest-01", "ct-abdomen-09"):
        with pytest.raises(ValueError, match="never prepared"):
            cases.prepare(tmp_path / name)
        assert seeds.marked(name) is None


def test_extent_takes_away_what_cannot_be_there(monkeypatch):
    monkeypatch.setitem(cases.EXTENT, "x", (3, 1, 4, 0))
    possible = np.full((1, 1, 5), ALL_BITS, np.uint32)
    possible[0, 0, 4] = bit("heart")
    column = cases.within_extent("x", possible)[0, 0]
    assert [bool(v & bit("heart")) for v in column] == [False, True, True, True, True]      # a drawn label stays
    assert [bool(v & bit("liver")) for v in column] == [True, True, True, False, False]
    assert not (column & bit("urinary_bladder")).any()
    assert cases.within_extent("unknown case", possible) is possible

def test_growing_from_points():
    i, j, k = np.indices((50, 50, 30))
    hu = np.full(i.shape, 40.0)
    organ = (i - 20) ** 2 + (j - 25) ** 2 + ((k - 15) * 1.3) ** 2 < 144
    other = (i - 40) ** 2 + (j - 25) ** 2 + (k - 15) ** 2 < 49
    hu[organ], hu[other] = 130, 130
    hu += np.random.default_rng(0).normal(0, 8, hu.shape)
    possible = np.full(hu.shape, ALL_BITS, np.uint32)
    points = {"liver": [[15, 20, 25, 5]], "other": [[15, 40, 25, 2], [2, 5, 5, 3], [15, 45, 5, 4], [15, 33, 45, 3]]}
    masks = seeds.grow(hu, possible, points)
    assert evaluate.dice(masks["liver"], organ) > 0.93
    result = seeds.apply(possible, masks, [])
    inside = result == bit("liver")
    assert inside[20, 25, 15] and not (inside & ~organ).any() and inside.sum() > 0.6 * organ.sum()
    assert not result[40, 25, 15] & bit("liver")
    assert result[20, 25 + 12, 15] & bit("liver") and result[20, 25 + 12, 15] & bit("background")
    assert seeds.apply(possible, masks, ["liver"])[40, 25, 15] == ALL_BITS
    rough = seeds.apply(possible, masks, [], ["liver"])
    assert rough[20 + 18, 25, 15] == ALL_BITS and not rough[20 + 26, 25, 15] & bit("liver")


def test_marked_points_lie_inside_their_volumes():
    records = json.loads(seeds.SEEDS.read_text())
    assert records and not set(records) & cases.EXCLUDED
    for name, record in records.items():
        assert set(record["partial"]) | set(record["rough"]) | set(record["reach"]) <= set(record["seeds"]), name
        for structure, balls in record["seeds"].items():
            assert structure == "other" or structure in VALUE
            for ball_k, ball_i, ball_j, radius in balls:
                inside = [0 <= c < n for c, n in zip((ball_i, ball_j, ball_k), record["shape"])]
                assert all(inside) and 0 < radius < 20, (name, structure)


def test_dice_by_hand():
    a, b = np.zeros((4, 4, 1), bool), np.zeros((4, 4, 1), bool)
    a[:2], b[1:3] = True, True                             # 8 and 8 voxels, 4 shared
    assert evaluate.dice(a, b) == pytest.approx(0.5)
    ignore = np.zeros_like(a)
    ignore[0] = True                                       # 4 and 8 left, 4 shared
    assert evaluate.dice(a, b, ignore) == pytest.approx(8 / 12)
    assert evaluate.dice(a, a) == 1.0 and evaluate.dice(a, ~a) == 0.0
    assert np.isnan(evaluate.dice(a & ~a, a & ~a))
    with pytest.raises(ValueError):
        evaluate.dice(a, b[:3])


def test_scores_of_a_case_leave_out_what_is_not_annotated(tmp_path):
    folder = tmp_path / "ct-abdomen-02"
    folder.mkdir()
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[:5], truth[5] = 5, 255
    nibabel.save(nibabel.Nifti1Image(truth, np.eye(4)), folder / "labels_auto.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(truth, np.int16), np.eye(4)), folder / "image.nii.gz")
    (folder / "labels_auto.json").write_text(json.dumps({"0": "background", "5": "liver", "255": "ignore"}))
    found = np.zeros_like(truth)
    found[1:6] = 7
    score, = evaluate.score_case(folder, found, {7: "liver"})
    assert score.dice == pytest.approx(2 * 400 / 900) and not score.trained_on
    assert score.truth_ml == pytest.approx(0.5) and score.predicted_ml == pytest.approx(0.4)
    assert "liver" in evaluate.table([score])


def test_development_scores_use_only_their_structures(tmp_path):
    (tmp_path / "dev").mkdir()
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2] = VALUE["liver"]
    np.savez(tmp_path / "dev" / "case.npz", image=np.zeros((4, 4, 4), np.int16), labels=labels,
             classes=np.array([VALUE["liver"]], np.uint8))
    result = evaluate.score_development(tmp_path, lambda image: labels)
    assert result == {"case": {"liver": 1.0}}
