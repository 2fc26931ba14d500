"""segment's options, messages, progress and cancellation."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from scipy import ndimage

from HiEndSegLib.errors import Cancelled, ModelError, OptionError, OutOfMemoryError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.operations.result import SegmentResult
from HiEndSegLib.operations.segment import segment
from HiEndSegLib.tasks import CancelToken
from segment_networks import BandNetwork, lattice, make_model, phantom, rotation

SHAPE = (60, 50, 70)
#: The metal lies inside the stone, so that dropping one of them shows at the other's border.
BLOCKS = [((12, 12, 12), (34, 34, 40), 300), ((20, 20, 20), (28, 28, 30), 600), ((40, 30, 52), (50, 40, 60), 900)]


@pytest.fixture(scope="module")
def scan():
    return phantom(SHAPE, lattice(SHAPE, (2.5, 2.5, 2.5)), BLOCKS)


@pytest.fixture(scope="module")
def whole(scan):
    return segment(make_model(), scan, device="cpu")


def test_everything_found(whole):
    assert [row["voxels"] > 100 for row in whole.statistics] == [True] * 3
    assert [label.id for label in whole.legend] == ["stone", "metal", "tooth"]
    assert whole.info["model"] == {"id": "test-bands", "version": "1.0", "title": "Bands", "sha256": "0" * 64}
    assert whole.info["device"] == "cpu" and whole.info["precision"] == "float32"
    assert set(whole.info["timings"]) == {"prepare", "tiles", "labels", "clean", "measure"}
    assert whole.info["peak_memory_bytes"] > 10e6


def test_result_survives_json(whole):
    again = SegmentResult.from_dict(json.loads(json.dumps(whole.to_dict())), whole.labels)
    assert again.legend == whole.legend and again.statistics == whole.statistics
    assert again.info == whole.info and again.messages == whole.messages


def test_only_leaves_the_borders_where_they_are(scan, whole):
    result = segment(make_model(), scan, device="cpu", only=["tooth", "stone"])
    assert [label.id for label in result.legend] == ["stone", "tooth"]
    expected = whole.labels.array.copy()
    expected[expected == 2] = 0
    assert np.array_equal(result.labels.array, expected)
    assert [row["id"] for row in result.statistics] == ["stone", "tooth"]


def test_unknown_structure_is_named(scan):
    with pytest.raises(OptionError, match="no structure 'stonne'.*did you mean stone.*metal"):
        segment(make_model(), scan, device="cpu", only=["stonne"])


def test_roi_is_the_whole_result_inside_and_nothing_outside(scan, whole):
    network = BandNetwork()
    roi = ((40.0, 56.0), (20.0, 40.0), (60.0, 80.0))
    # full precision: trying the half one out would be calls that are no tiles
    result = segment(make_model(network), scan, device="cpu", roi=roi, precision="float32")
    i, j, k = np.indices(SHAPE)
    ras = np.einsum("ab,bijk->aijk", scan.ijk_to_ras, np.stack([i, j, k, np.ones_like(i)]))[:3]
    inside = np.all([(r >= low) & (r <= high) for r, (low, high) in zip(ras, roi)], axis=0)
    assert result.labels.array[inside].any()
    assert np.array_equal(result.labels.array, np.where(inside, whole.labels.array, 0))
    assert 0 < result.info["tiles"]["run"] < whole.info["tiles"]["run"]
    assert len(network.calls) == result.info["tiles"]["run"]


def test_roi_on_an_oblique_volume():
    matrix = lattice(SHAPE, (2.5, 2.5, 2.5), rotation(20, -15, 40))
    scan = phantom(SHAPE, matrix, BLOCKS)
    whole = segment(make_model(), scan, device="cpu").labels.array
    centre = (matrix @ [24, 24, 28, 1])[:3]
    roi = [(c - 15, c + 18) for c in centre]
    result = segment(make_model(), scan, device="cpu", roi=roi).labels.array
    ras = np.einsum("ab,bijk->aijk", matrix, np.stack([*np.indices(SHAPE), np.ones(SHAPE)]))[:3]
    inside = np.all([(r >= low) & (r <= high) for r, (low, high) in zip(ras, roi)], axis=0)
    assert np.array_equal(result, np.where(inside, whole, 0)) and result.any()


@pytest.mark.parametrize("roi, words", [
    (((900, 950), (0, 10), (0, 10)), "holds no voxel of the volume, which covers right"),
    (((10, 0), (0, 10), (0, 10)), "from 10 to 0 mm along right"),
    (((0, 1), (2, 3)), "six numbers"), (((0, float("nan")), (2, 3), (0, 1)), "six numbers")])
def test_bad_roi(scan, roi, words):
    with pytest.raises(OptionError, match=words):
        segment(make_model(), scan, device="cpu", roi=roi)


def test_largest_part_only_where_the_card_says_so(scan, whole):
    array = scan.array.copy()
    array[50:54, 8:11, 8:11] = 300                        # a stray stone
    kept = segment(make_model(), scan.with_array(array), device="cpu")
    cleaned = segment(make_model(largest=True), scan.with_array(array), device="cpu")
    assert kept.labels.array[50:54, 8:11, 8:11].any()
    assert not cleaned.labels.array[48:56, 6:13, 6:13].any()
    expected = kept.labels.array.copy()
    for value in (1, 2, 3):
        parts, count = ndimage.label(expected == value, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        expected[(parts > 0) & (parts != sizes.argmax() + 1)] = 0
    assert np.array_equal(cleaned.labels.array, expected)
    assert cleaned.info["removed_voxels"]["stone"] > 0


def test_progress_never_falls_and_starts_with_the_plan(scan):
    seen = []
    segment(make_model(largest=True), scan, device="cpu", progress=lambda f, m: seen.append((f, m)))
    fractions = [f for f, _ in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert "of main memory" in seen[0][1]
    assert any(m.startswith("Tile 2 of ") for _, m in seen)


@pytest.mark.parametrize("stage", ["Resampling", "Finding", "Tile 2", "Bringing", "Keeping", "Measuring"])
def test_cancel_at_every_stage(scan, stage):
    token, network = CancelToken(), BandNetwork()
    asked = []

    def progress(fraction, message):
        if message.startswith(stage):
            asked.append(time.monotonic())
            token.cancel()

    with pytest.raises(Cancelled):
        segment(make_model(network, largest=True), scan, device="cpu", progress=progress, cancel=token,
                precision="float32")
    assert time.monotonic() - asked[0] < 1
    assert stage != "Tile 2" or len(network.calls) == 1


def test_air_runs_no_tile_and_says_so():
    network = BandNetwork()
    shape = (256, 256, 400)                               # a tenth of a gigabyte as int16
    air = Volume(np.full(shape, -1000, np.int16), lattice(shape, (1, 1, 1)))
    begin = time.process_time()
    result = segment(make_model(network), air, device="cpu")
    assert time.process_time() - begin < 3
    assert not network.calls and not result.labels.array.any()
    assert any("no body in this volume" in message for message in result.messages)
    assert all(row["voxels"] == 0 and row["mean_hu"] is None for row in result.statistics)


def test_air_around_the_body_costs_no_tiles():
    shape = (150, 150, 60)
    matrix = lattice(shape, (3, 3, 3))
    array = np.full(shape, -1000, np.int16)
    array[10:40, 100:130, 10:50] = 40
    array[20:30, 110:120, 20:30] = 300
    result = segment(make_model(), Volume(array, matrix), device="cpu")
    assert result.info["tiles"]["run"] <= 3 and result.info["tiles"]["planned"] > 100
    assert (result.labels.array == 1).sum() == 1000


def test_mr_given_to_a_ct_model_is_said_and_done():
    rng = np.random.default_rng(0)
    array = (400 + 100 * rng.random((40, 40, 40))).astype(np.int16)
    array[:10] = 5
    scan = Volume(array, lattice(array.shape, (3, 3, 3)), meta={"modality": "MR"})
    result = segment(make_model(), scan, device="cpu")
    assert any("made for CT in Hounsfield units" in message for message in result.messages)
    assert result.labels.array.any()


def test_nothing_found_is_said(scan):
    result = segment(make_model(BandNetwork((2000.0, 2500.0, 2900.0))), scan, device="cpu")
    assert "None of the structures was found." in result.messages
    result = segment(make_model(BandNetwork((150.0, 450.0, 2900.0))), scan, device="cpu")
    assert "Not found: Tooth." in result.messages


def test_model_that_does_not_fit_its_card(scan):
    with pytest.raises(ModelError, match="do not belong together"):
        segment(make_model(BandNetwork((100.0, 200.0))), scan, device="cpu")

    class Broken(BandNetwork):
        def scores(self, x):
            return super().scores(x) * float("nan")

    with pytest.raises(ModelError, match="not numbers"):
        segment(make_model(Broken()), scan, device="cpu")


def test_too_little_memory_is_said_with_both_numbers(scan):
    with pytest.raises(OutOfMemoryError, match=r"needs about [0-9.]+ [GM]B of memory and 50 MB are free"):
        segment(make_model(), scan, device="cpu", memory_limit=50_000_000)


def test_a_region_fits_where_the_whole_does_not():
    model = make_model(BandNetwork(tuple(range(150, 750, 3))), structures=200, overlap=0.25)
    shape = (150, 150, 150)
    scan = phantom(shape, lattice(shape, (3, 3, 3), origin=(0, 0, 0)), [((60, 60, 60), (70, 70, 70), 300)])
    with pytest.raises(OutOfMemoryError, match="give a region of interest"):
        segment(model, scan, device="cpu", memory_limit=900_000_000)
    result = segment(model, scan, device="cpu", memory_limit=900_000_000, roi=((175, 212),) * 3)
    assert result.labels.array[60:70, 60:70, 60:70].all()


def test_bad_precision(scan):
    with pytest.raises(OptionError, match="precision 'double'"):
        segment(make_model(), scan, device="cpu", precision="double")
