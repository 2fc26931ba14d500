"""The picture of three slices: the right way round in every orientation, true to millimetres, and really drawn."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest

from HiEndSegLib import figures

pytest.importorskip("matplotlib", reason="matplotlib is not installed: no pictures to test")

from matplotlib.image import imread                                                 # noqa: E402

from HiEndSegLib.errors import InputError, OutputError                              # noqa: E402
from HiEndSegLib.geometry.labels import Label                                       # noqa: E402
from HiEndSegLib.geometry.volume import Volume                                      # noqa: E402

LEGEND = [Label(1, "liver", "Liver", (250, 20, 30), None), Label(4, "spleen", "Milz – left", (20, 60, 250), None),
          Label(9, "colon", "Colon", (0, 200, 0), None)]
CODES = {"RAS": np.eye(3), "LPS": np.diag([-1, -1, 1]), "LAS": np.diag([-1, 1, 1]),
         "PIR": [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], "SAR": [[0, 0, 1], [0, 1, 0], [1, 0, 0]]}
SPACING = (2.0, 3.0, 4.0)       # along R, A and S


def phantom(codes="RAS", tilt=0.0):
    """A patient of 20x24x28 voxels, -80 HU: the liver right, front, low; the spleen left, back, high."""
    array = np.full((20, 24, 28), -80, np.int16)
    labels = np.zeros(array.shape, np.uint8)
    labels[11:18, 13:21, 3:12] = 1
    labels[2:8, 3:9, 16:25] = 4
    array[labels == 1] = 60
    ras = np.eye(4)
    ras[:3, :3] = np.diag(SPACING)
    ras[:3, 3] = -10, -20, 30
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]]
    ras = turn @ ras
    directions = np.asarray(CODES[codes], float)
    axes, flips = np.abs(directions).argmax(axis=0), directions.sum(axis=0)
    matrix = np.eye(4)
    for new, (axis, flip) in enumerate(zip(axes, flips)):
        matrix[:3, new] = ras[:3, axis] * flip
    corner = [array.shape[axis] - 1 if directions[axis].sum() < 0 else 0 for axis in range(3)]
    matrix[:3, 3] = (ras @ [*corner, 1])[:3]
    step = [slice(None, None, -1) if flip < 0 else slice(None) for flip in flips]
    return [Volume(np.ascontiguousarray(a.transpose(axes)[tuple(step)]), matrix, codes) for a in (array, labels)]


@pytest.mark.parametrize("codes", CODES)
def test_slices_are_seen_as_a_radiologist_does(codes):
    ct, labels = phantom(codes)
    assert ct.axis_codes == codes
    axial = figures.extract_slice(ct, labels, "axial", 6)
    coronal = figures.extract_slice(ct, labels, "coronal", 15)
    sagittal = figures.extract_slice(ct, labels, "sagittal", 14)
    assert axial.letters == ("R", "L", "A", "P") and axial.pixel_mm == (3.0, 2.0)
    assert coronal.letters == ("R", "L", "S", "I") and coronal.pixel_mm == (4.0, 2.0)
    assert sagittal.letters == ("A", "P", "S", "I") and sagittal.pixel_mm == (4.0, 3.0)
    assert np.allclose([axial.position_mm, coronal.position_mm, sagittal.position_mm], [30 + 24, -20 + 45, -10 + 28])
    # the liver is right (columns from 19 - 17), front (rows from 23 - 20) and low (rows from 27 - 11)
    for view, rows, columns in ((axial, (3, 11), (2, 9)), (coronal, (16, 25), (2, 9)), (sagittal, (16, 25), (3, 11))):
        expected = np.zeros(view.labels.shape, np.uint8)
        expected[slice(*rows), slice(*columns)] = 1
        assert np.array_equal(view.labels, expected)
        assert np.array_equal(view.pixels, np.where(expected, 60, -80))


def test_an_oblique_volume_is_cut_along_its_own_axes():
    ct, labels = phantom("LPS", tilt=0.3)
    view = figures.extract_slice(ct, labels, "axial", 6)
    assert view.letters == ("R", "L", "A", "P") and view.labels[3:11, 2:9].all() and view.labels.sum() == 56


def test_labels_on_another_lattice_are_brought_onto_the_volumes():
    ct, _ = phantom("PIR")
    _, labels = phantom("RAS")
    assert np.array_equal(figures.extract_slice(ct, labels, "coronal", 15).labels,
                          figures.extract_slice(phantom()[0], labels, "coronal", 15).labels)


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_the_slices_show_the_structures(codes):
    ct, labels = phantom(codes)
    axial, coronal, sagittal = figures.choose_slices(ct, labels)
    assert 3 <= axial < 12 or 16 <= axial < 25
    seen = [set(np.unique(figures.extract_slice(ct, labels, name, index).labels)) - {0}
            for name, index in zip(("axial", "coronal", "sagittal"), (axial, coronal, sagittal))]
    assert all(seen)
    marks = np.zeros((20, 24, 28), np.uint8)
    marks[4:16, 5:9, 5:20], marks[4:16, 9:15, 10:14] = 1, 4
    assert figures.choose_slices(phantom()[0], phantom()[0].with_array(marks))[0] == 12     # 10 to 13 hold both


def test_without_structures_the_middle_of_the_patient():
    array = np.full((20, 24, 28), -1000, np.int16)
    array[10:19, 2:9, 4:15] = 40
    ct = Volume(array, np.eye(4))
    assert figures.choose_slices(ct, None) == (9, 5, 14)
    assert figures.choose_slices(ct, ct.with_array(np.zeros(array.shape, np.uint8))) == (9, 5, 14)
    assert figures.choose_slices(ct.with_array(np.full(array.shape, 7, np.int16)), None) == (14, 12, 10)


def pixels(path):
    return (imread(path)[..., :3] * 255).round().astype(int)


def test_outline_fill_legend_and_the_ct_below(tmp_path):
    ct, labels = phantom("LAS")
    with_labels, without = tmp_path / "mit Umlaut ä.png", tmp_path / "b.png"
    figures.slices_figure(ct, labels, LEGEND, with_labels, title="A $case$ with_signs")
    figures.slices_figure(ct, None, LEGEND, without, title="A $case$ with_signs")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "mit Umlaut ä.png"]      # nothing temporary
    drawn, plain = pixels(with_labels), pixels(without)
    assert (drawn[0, 0] == (16, 18, 20)).all() and drawn.shape[1] == plain.shape[1] > 1000
    # below the fill: 60 HU in a window of -160 to 240 is grey 140
    assert (np.abs(plain - 140).max(axis=2) <= 1).sum() > 5000
    fill = 140 * 0.72 + np.array([250, 20, 30]) * 0.28
    assert (np.abs(drawn - fill).max(axis=2) <= 2).sum() > 5000
    assert (np.abs(drawn - 140).max(axis=2) <= 1).sum() < 500       # every voxel of the liver is filled
    for label in LEGEND[:2]:
        outline = np.abs(drawn - np.array(label.color)).max(axis=2) <= 12
        assert outline.sum() > 300 and (np.abs(plain - np.array(label.color)).max(axis=2) <= 12).sum() == 0
        assert outline[int(0.8 * len(drawn)):].any()                # and a patch in the legend
    assert (np.abs(drawn - (0, 200, 0)).max(axis=2) <= 12).sum() == 0      # absent: neither drawn nor listed


@pytest.mark.parametrize("codes", ["LAS", "RAS"])
def test_the_patients_right_is_on_the_left_of_the_picture(tmp_path, codes):
    """Left-handed and right-handed voxel order; the axial slice is the first of the three."""
    marks = np.zeros((20, 24, 28), np.uint8)
    marks[12:18, 5:20, 5:20], marks[2:8, 5:20, 5:20] = 1, 4         # right and left in RAS
    matrix, flip = np.diag([*SPACING, 1.0]), slice(None, None, -1 if codes == "LAS" else 1)
    if codes == "LAS":
        matrix[0] = -SPACING[0], 0, 0, 19 * SPACING[0]
    ct = Volume(np.full(marks.shape, 40, np.int16), matrix)
    figures.slices_figure(ct, ct.with_array(marks[flip]), LEGEND, tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")[:, :380]
    right, left = (np.flatnonzero((np.abs(picture - (128 * 0.72 + np.array(label.color) * 0.28)).max(axis=2) <= 2)
                                  .sum(axis=0) > 100) for label in LEGEND[:2])
    assert len(right) > 50 and len(left) > 50 and right.max() < left.min()


def test_millimetres_are_true(tmp_path):
    """A cube of 24 mm in voxels of 2x3x4 mm is drawn as a square in each slice, at one scale within a slice."""
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[4:16, 8:16, 10:16] = 1
    ct = phantom()[0].with_array(np.full(labels.shape, 40, np.int16))
    figures.slices_figure(ct, ct.with_array(labels), LEGEND, tmp_path / "a.png")
    picture = pixels(tmp_path / "a.png")
    fill = 128 * 0.72 + np.array([250, 20, 30]) * 0.28
    mask = np.abs(picture - fill).max(axis=2) <= 2
    columns = np.flatnonzero(mask.sum(axis=0) > 20)
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 20) + 1)
    assert len(groups) == 3
    for group in groups:
        rows = np.flatnonzero(mask[:, group].any(axis=1))
        assert abs((rows[-1] - rows[0]) / (group[-1] - group[0]) - 1) < 0.05


@pytest.mark.parametrize("shape", [(1, 1, 1), (30, 30, 1), (1, 40, 300)])
def test_the_smallest_and_the_flattest(tmp_path, shape):
    ct = Volume(np.zeros(shape, np.int16), np.diag([1.0, 1, 5, 1]))
    figures.slices_figure(ct, ct.with_array(np.ones(shape, np.uint8)), LEGEND, tmp_path / "a.png")
    assert (np.abs(pixels(tmp_path / "a.png") - (250, 20, 30)).max(axis=2) <= 12).sum() > 50


def test_many_structures_and_no_window(tmp_path):
    ct, labels = phantom()
    array = (np.arange(labels.array.size) // 224 % 61).reshape(labels.shape).astype(np.uint8)
    legend = [Label(v, f"s{v}", f"structure number {v}", (v * 4, 255 - v * 4, 90), None) for v in range(1, 61)]
    noisy = ct.with_array(np.random.default_rng(1).normal(3000, 40, ct.shape).astype(np.float32))
    noisy.array[0, 0, 0] = np.nan
    figures.slices_figure(noisy, ct.with_array(array), legend, tmp_path / "a.png", window=None)
    picture = pixels(tmp_path / "a.png")
    assert picture.shape[0] > 900 and picture.std() > 20      # taller by its legend; not all white


def test_no_global_state_of_matplotlib_is_used(tmp_path):
    ct, labels = phantom()
    before = sys.modules.get("matplotlib.pyplot")
    figures.slices_figure(ct, labels, LEGEND, tmp_path / "a.png")
    assert sys.modules.get("matplotlib.pyplot") is before


def test_what_cannot_be_drawn_or_written_is_a_sentence(tmp_path, monkeypatch):
    ct, labels = phantom()
    (tmp_path / "old.png").write_bytes(b"old")
    with pytest.raises(InputError, match="dimensions"):
        figures.slices_figure(Volume(np.zeros((3, 4, 5, 2)), np.eye(4)), None, [], tmp_path / "old.png")
    with pytest.raises(InputError, match="int16"):
        figures.slices_figure(ct, ct, LEGEND, tmp_path / "old.png")
    with pytest.raises(OutputError, match="does not exist"):
        figures.slices_figure(ct, labels, LEGEND, tmp_path / "none" / "a.png")
    from matplotlib.figure import Figure

    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", full)
        with pytest.raises(OutputError, match="disk is full"):
            figures.slices_figure(ct, labels, LEGEND, tmp_path / "old.png")
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"] and (tmp_path / "old.png").read_bytes() == b"old"
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *a, **k: (_ for _ in ()).throw(ImportError(name))
                        if name.startswith("matplotlib") else real(name, *a, **k))
    with pytest.raises(OutputError, match="pip install matplotlib"):
        figures.slices_figure(ct, labels, LEGEND, tmp_path / "new.png")
