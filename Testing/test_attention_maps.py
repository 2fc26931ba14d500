"""Attention maps on the patient's own grid: a planted token is found at its millimetre in every kind of lattice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attention_models as am
import numpy as np
import pytest
import torch
from geometry_lattices import LATTICES, rotation
from nibabel import orientations
from torch.utils._python_dispatch import TorchDispatchMode

from HiEndSegLib.errors import Cancelled, InputError, ModelError, OptionError
from HiEndSegLib.geometry.resample import resample_like
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.operations.attend import attend, default_layers, inside_cells
from HiEndSegLib.operations.attend_result import AttentionMap, AttentionResult, on_lattice
from HiEndSegLib.operations.attend_session import AttendSession, coarser, window_start
from HiEndSegLib.operations.attend_words import map_sentence
from HiEndSegLib.operations.inspect_queries import inspect_queries
from HiEndSegLib.tasks import CancelToken

ROOT = Path(__file__).resolve().parents[1]
P, TILE, SPACING = 4, 16, 2.0
ORIENTATIONS = {"RAS": "RAS", "left-handed": "LAS", "permuted": "PIR", "all turned": "SLA"}


def matrix(directions=None, spacing=(SPACING,) * 3, origin=(-31.25, 12.5, 400.0)):
    result = np.eye(4)
    result[:3, :3] = (np.eye(3) if directions is None else directions) * np.asarray(spacing)
    result[:3, 3] = origin
    return result


def planted(low, shape=(TILE,) * 3, ijk_to_ras=None, codes="RAS", edge=P):
    """Water at -175 HU (black) with one bright cube; its centre in mm, found without any of the code under test."""
    array = np.full(shape, -175.0, dtype=np.float32)
    array[tuple(slice(a, a + edge) for a in low)] = 250.0
    place = matrix() if ijk_to_ras is None else ijk_to_ras
    centre = (place @ [*(a + (edge - 1) / 2 for a in low), 1.0])[:3]
    turn = orientations.ornt_transform(orientations.io_orientation(np.eye(4)), orientations.axcodes2ornt(codes))
    turned = orientations.apply_orientation(array, turn)
    return Volume(turned, place @ orientations.inv_ornt_aff(turn, shape), "planted", {"modality": "CT"}), centre


def look(volume, at=None, net=None, tile=TILE, **options):
    return attend(am.model(net or am.PeakedNet(img_size=tile), tile=tile, spacing=SPACING), volume, at=at, **options)


# ------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("codes", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("place", [
    matrix(),
    matrix(rotation(12, -7, 21)),                                                                   # oblique
    np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -3], [0, 0, 1, 90], [0, 0, 0, 1.0]]) @ matrix(rotation(12, -7, 21)),
], ids=["axis-aligned", "oblique", "oblique and transformed"])
@pytest.mark.parametrize("low", [(8, 4, 4), (4, 8, 8)])
def test_a_planted_token_is_found_to_the_micrometre(place, codes, low):
    volume, centre = planted(low, ijk_to_ras=place, codes=codes)
    query = (volume.ijk_to_ras @ [1, 2, 3, 1.0])[:3]
    result = look(volume, query, layers=[0, 2])
    for one in result.maps:
        assert one.weights.max() > 0.999 and abs(one.weights.sum() - 1) < 1e-5
        np.testing.assert_allclose(one.peak, centre, atol=1e-6)
        heat = result.as_volume(one, volume)
        assert heat.same_lattice(volume) and heat.array.dtype == np.float32
        inside = np.argwhere(heat.array > 0.6)                    # one token wide, around the same centre
        np.testing.assert_allclose((volume.ijk_to_ras @ [*inside.mean(0), 1.0])[:3], centre, atol=1e-5)
    box = result.query_corners
    assert (query >= box.min(0) - 1e-6).all() and (query <= box.max(0) + 1e-6).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.9, 3.0), (2.5, 2.5, 2.5)])
def test_at_any_spacing_the_peak_lies_within_the_planted_cube(spacing):
    """The image is resampled, so cells and cube no longer coincide; the centre of the cell holds the cube's middle."""
    shape = [round(TILE * SPACING / s) for s in spacing]
    array = np.full(shape, -175.0, dtype=np.float32)
    place = matrix(rotation(5, 10, -15), spacing)
    index = np.indices(shape).reshape(3, -1)
    points = (place[:3, :3] @ index).T + place[:3, 3]
    middle = (place @ [*((n - 1) / 2 for n in shape), 1.0])[:3]
    # the cube of one token whose corner is the middle of the volume
    along = (points - middle) @ rotation(5, 10, -15)
    array.reshape(-1)[((along > 0) & (along < P * SPACING)).all(1)] = 250.0
    centre = middle + rotation(5, 10, -15) @ np.full(3, P * SPACING / 2)
    result = look(Volume(array, place, "fine", {"modality": "CT"}), middle - 5)
    assert np.abs(result.maps[0].peak - centre).max() <= max(SPACING, *spacing)


@pytest.mark.parametrize("name", LATTICES)
def test_cells_reach_any_lattice_as_resampling_does(name):
    shape, place = LATTICES[name]
    like = Volume(np.zeros(shape, np.int16), place)
    rng = np.random.default_rng(0)
    cells = Volume(rng.random((3, 2, 4)).astype(np.float32), coarser(place @ np.diag([1, 1, 1, 1]), (2, 3, 1)))
    np.testing.assert_allclose(on_lattice(cells, like).array, resample_like(cells, like, order=1).array, atol=1e-6)
    turned = Volume(cells.array, matrix(rotation(3, 4, 5)) @ np.diag([4, 4, 4, 1.0]))
    np.testing.assert_allclose(on_lattice(turned, like).array, resample_like(turned, like, order=1).array, atol=1e-6)


def test_a_window_follows_the_point_in_steps_and_stays_inside():
    for position in range(0, 300):
        start = window_start((position, 20, 3), (300, 40, 5), (96, 40, 12), (12, 8, 4))
        assert start[1:] == (0, -3) and 0 <= start[0] <= 204
        assert start[0] % 24 == 0 or start[0] == 204
        if 48 <= position < 252:
            assert 36 <= position - start[0] <= 60                # in the middle quarter, but at the volume's ends
    assert len({window_start((p, 0, 0), (300, 9, 9), (96, 9, 9), (12, 9, 9))[0] for p in range(200, 224)}) <= 2


def test_a_large_volume_is_seen_through_the_window_around_the_point():
    low = (32, 20, 28)
    volume, centre = planted(low, shape=(48, 44, 52))
    result = look(volume, centre + (9, 1, 1), layers=[1])
    np.testing.assert_allclose(result.maps[0].peak, centre, atol=1e-6)
    assert result.maps[0].weights.max() > 0.999
    far = look(volume, (volume.ijk_to_ras @ [2, 2, 2, 1.0])[:3], layers=[1])      # the cube is not in that window
    assert far.maps[0].weights.max() < 0.02
    heat = far.as_volume(far.maps[0], volume)
    assert not heat.array[17:].any() and heat.array[1:15, 1:15, 1:15].all()       # nothing outside the window


# ------------------------------------------------------------------------------------------------ what is asked


def test_heads_layers_and_the_mean():
    model = am.model(am.RandomVitNet(), tile=16)
    volume, _ = planted((4, 4, 4))
    session = AttendSession(model, volume)
    result = attend(model, None, at=session.middle, layers=(1, -1), heads="all", session=session)
    assert [(m.layer, m.head) for m in result.maps] == [(n, h) for n in (1, 3) for h in (None, 0, 1, 2)]
    every = [result.find(3, head).weights for head in range(3)]
    np.testing.assert_allclose(result.find(3).weights, np.mean(every, axis=0), atol=1e-6)
    assert all(abs(m.weights.sum() - 1) < 1e-5 and (m.weights >= 0).all() for m in result.maps)
    assert result.layers == 4 and result.heads == 3 and result.kind == "encoder"
    one = attend(model, None, at=session.middle, layers=[1], heads=2, session=session)
    np.testing.assert_array_equal(one.maps[0].weights, result.find(1, 2).weights)
    assert one.info["window_was_warm"] and not result.info["window_was_warm"]
    with pytest.raises(OptionError, match="no map of block 2"):
        result.find(2)


def test_default_layers_are_the_papers():
    assert default_layers(12) == (2, 5, 8, 11)
    assert default_layers(8) == (1, 3, 5, 7) and default_layers(3) == (0, 1, 2) and default_layers(1) == (0,)


def test_a_structure_is_the_mean_of_its_tokens_by_how_much_they_hold():
    model = am.model(am.RandomVitNet(), tile=16)
    volume, _ = planted((4, 4, 4))
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[0:4, 0:4, 0:4] = 1          # one whole token
    mask[0:4, 0:4, 4:6] = 1          # and half of another
    result = attend(model, volume, mask=volume.with_array(mask), layers=[2])
    np.testing.assert_allclose(result.query[0, 0, :2], [2 / 3, 1 / 3], rtol=1e-5)
    rows = [attend(model, volume, at=(volume.ijk_to_ras @ [1, 1, k, 1.0])[:3], layers=[2]).maps[0].weights
            for k in (1, 5)]
    np.testing.assert_allclose(result.maps[0].weights, (2 * rows[0] + rows[1]) / 3, atol=1e-6)
    np.testing.assert_allclose(result.point, (volume.ijk_to_ras @ [1.5, 1.5, 2.5, 1.0])[:3], atol=1e-5)
    # drawn on another lattice, the same structure gives the same tokens
    other = Volume(np.kron(mask, np.ones((2, 2, 2), np.uint8)),
                   volume.ijk_to_ras @ np.array([[.5, 0, 0, -.25], [0, .5, 0, -.25], [0, 0, .5, -.25], [0, 0, 0, 1]]))
    again = attend(model, volume, mask=other, layers=[2])
    np.testing.assert_allclose(again.query, result.query, atol=0.05)


def test_rollout_reaches_the_bright_token_and_refuses_single_heads():
    volume, centre = planted((8, 4, 0))
    result = look(volume, (volume.ijk_to_ras @ [1, 1, 1, 1.0])[:3], layers=[2], kind="rollout")
    one = result.maps[0]
    np.testing.assert_allclose(one.peak, centre, atol=1e-6)
    # each of three blocks moves half of what is not there yet to the bright token: 1 - 1/8
    assert one.weights.max() == pytest.approx(0.875, abs=1e-3)
    assert result.kind == "rollout" and one.weights[0, 0, 0] == pytest.approx(0.125, abs=1e-3)
    with pytest.raises(OptionError, match="mean"):
        look(volume, kind="rollout", heads="all")


def test_head_queries_by_number_point_and_structure():
    model = am.model(am.maskmed(), tile=24)
    volume, _ = planted((4, 4, 4), shape=(24, 24, 24))
    session = AttendSession(model, volume)
    result = attend(model, None, at=session.middle, kind="head", query=3, session=session)
    assert result.object_query == 3 and result.kind == "head" and result.layers == 4 and result.heads == 2
    assert [m.weights.shape for m in result.maps] == 2 * [(3, 3, 3), (6, 6, 6)]
    for one in result.maps:          # centres of cells of 8 and 4 voxels of 2 mm
        edge = 24 // one.weights.shape[0]
        wanted = (volume.ijk_to_ras @ [*[(edge - 1) / 2] * 3, 1.0])[:3]
        np.testing.assert_allclose(one.ijk_to_ras[:3, 3], wanted, atol=1e-6)
    by_point = attend(model, None, at=session.middle, kind="head", session=session)
    assert by_point.object_query in range(4) and "of the answer at the point" in by_point.sentences[0]
    with pytest.raises(OptionError, match="no object query 4"):
        attend(model, None, kind="head", query=4, session=session)
    with pytest.raises(OptionError, match="no structure 'spleen'"):
        attend(model, None, kind="head", structure="spleen", session=session)
    with pytest.raises(OptionError, match="no layer 4"):
        attend(model, None, kind="head", query=0, layers=[4], session=session)


# --------------------------------------------------------------------------------------------------- bad input


def test_a_point_outside_is_refused_with_the_extent():
    volume, _ = planted((4, 4, 4))
    with pytest.raises(OptionError, match=r"L 500, A 20, S 410 mm lies outside .* right -32 to"):
        look(volume, (-500, 20, 410))
    with pytest.raises(OptionError, match="three numbers"):
        look(volume, (1, 2))
    with pytest.raises(OptionError, match="three numbers"):
        look(volume, (1, float("nan"), 2))


def test_the_very_edge_of_the_volume_is_inside():
    volume, _ = planted((4, 4, 4), shape=(17, 23, 9))
    for corner in ([-0.5, -0.5, -0.5], [16.5, 22.5, 8.5], [16.5, -0.5, 8.5]):
        result = look(volume, (volume.ijk_to_ras @ [*corner, 1.0])[:3])
        assert result.query.sum() == 1


@pytest.mark.parametrize("options, words", [
    ({"layers": [3]}, "no block 3; this model has the blocks 0 to 2"), ({"layers": [-4]}, "no block -4"),
    ({"layers": []}, "No block was asked for"), ({"layers": ["two"]}, "no block two"),
    ({"heads": 1}, "no head 1; choose mean, all or a number from 0 to 0"), ({"heads": "some"}, "no head some"),
    ({"heads": True}, "no head True"), ({"kind": "gradient"}, "no view 'gradient'")])
def test_unknown_layers_heads_and_kinds(options, words):
    with pytest.raises(OptionError, match=words):
        look(planted((4, 4, 4))[0], **options)


def test_air_is_said_and_not_refused():
    volume, _ = planted((4, 4, 4))
    array = np.where(volume.array > 0, volume.array, 20.0)
    array[:, :, 8:] = -1000.0
    result = look(volume.with_array(array), (volume.ijk_to_ras @ [8, 8, 13, 1.0])[:3])
    assert any("lies in air (-1000 HU)" in s for s in result.sentences) and result.maps
    dark = look(volume, (volume.ijk_to_ras @ [1, 1, 1, 1.0])[:3])
    assert any("darker than -175" in s for s in dark.sentences)
    bright = look(volume, (volume.ijk_to_ras @ [5, 5, 5, 1.0])[:3])
    assert not any("darker" in s or "air" in s for s in bright.sentences)


def test_other_images_are_said():
    volume, _ = planted((4, 4, 4))
    mr = Volume(volume.array + 175, volume.ijk_to_ras, "mr", {"modality": "MR"})
    assert "The file says that this is an MR image." in look(mr).sentences


def test_a_volume_smaller_than_a_token():
    small = Volume(np.full((3, 2, 40), 100, np.int16), matrix(), "small", {"modality": "CT"})
    result = look(small)
    assert any("(6 x 4 x 80 mm) is smaller than one token of this model (8 x 8 x 8 mm)" in s for s in result.sentences)
    assert abs(result.maps[0].weights.sum() - 1) < 1e-5
    assert result.as_volume(result.maps[0], small).shape == (3, 2, 40)
    one = look(Volume(np.full((1, 1, 1), 7, np.int16), matrix(), "voxel"))
    assert one.query.sum() == 1


def test_a_structure_says_the_same_of_the_volume_and_is_called_a_structure():
    small = Volume(np.full((3, 2, 40), 100, np.int16), matrix(), "small", {"modality": "CT"})
    result = look(small, mask=small.with_array(np.ones(small.shape, np.uint8)))
    assert any("smaller than one token" in s for s in result.sentences)
    assert "the structure's cubes of 8 x 8 x 8 mm" in result.sentences[0] and "marked" not in result.sentences[0]


def test_air_put_around_the_volume_is_counted_and_never_named():
    volume, centre = planted((4, 0, 4), shape=(16, 8, 16))
    net = am.PeakedNet(img_size=TILE)
    result = look(volume, centre, net)
    inside = inside_cells(AttendSession(am.model(net, tile=TILE, spacing=SPACING), volume).window(centre), (4, 4, 4))
    assert inside.sum() == 32 and inside[:, 1:3].all(), "8 of 16 voxels along the second axis, in the middle"
    # Where all goes to the volume nothing is said; where all is even, half of it is air.
    assert not any("air that was put" in one.sentence for one in result.maps)
    even = AttentionMap(0, None, np.full((4, 4, 4), 1 / 64, np.float32), matrix())
    said = map_sentence(even, "encoder", 3, 1, None, inside)
    assert "50 % goes to the air that was put around the volume" in said
    loud = np.full((4, 4, 4), 0.01, np.float32)
    loud[0, 0, 0], loud[2, 1, 3] = 0.2, 0.17
    named = AttentionMap(0, None, loud / loud.sum(), np.diag([8.0, 8.0, 8.0, 1.0]))
    said = map_sentence(named, "encoder", 3, 1, None, inside)
    assert named.peak == (0.0, 0.0, 0.0) and "at R 16, A 8, S 24 mm" in said


def test_the_end_of_what_the_model_sees_is_said():
    volume, centre = planted((4, 4, 4), shape=(40, 16, 16))
    assert "The model sees 32 x 32 x 32 mm at a time; the map ends there." in look(volume, centre).sentences
    assert not any("map ends" in sentence for sentence in look(planted((4, 4, 4))[0]).sentences)


class NoFloat64(TorchDispatchMode):
    """What Apple's GPUs do to a program that asks them for float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if (kwargs or {}).get("dtype") is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{"kind": "encoder", "heads": "all"}, {"kind": "rollout"}, {"kind": "head"},
                                     {"kind": "head", "structure": "part_1"}, {"kind": "sensitivity"}],
                         ids=lambda options: " ".join(options.values()))
def test_devices_without_float64_will_do(options):
    network = am.maskmed()
    array = np.random.default_rng(0).normal(40, 60, (24, 24, 24)).astype(np.float32)
    volume = Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]), "noise", {"modality": "CT"})
    session = AttendSession(am.model(network, tile=24), volume)
    session.window(session.middle).states()                     # tables are made once, on the CPU
    try:
        with NoFloat64():
            attend(session.model, volume, session=session, **options)
            inspect_queries(session.model, volume, session=session)
    except OptionError as error:
        assert "finds no 'part_1'" in str(error)


def test_a_network_without_object_queries_is_not_asked_about_one():
    with pytest.raises(OptionError, match="has no object queries, so it cannot be asked about 'part_1'"):
        look(planted((4, 4, 4))[0], kind="head", structure="part_1")
    with pytest.raises(OptionError, match="asked about query 3"):
        look(planted((4, 4, 4))[0], kind="head", query=3)


def test_a_network_without_attention_shows_its_sensitivity_and_says_so():
    volume, centre = planted((8, 4, 0))
    array = volume.array + np.random.default_rng(0).normal(0, 30, volume.shape).astype(np.float32)
    at = (volume.ijk_to_ras @ [9, 6, 2, 1.0])[:3]
    result = attend(am.model(am.ConvNet(), title="Plain net"), volume.with_array(array), at=at)
    assert result.kind == "sensitivity" and len(result.maps) == 1 and result.maps[0].layer == -1
    assert any("Plain net has no transformer" in s and "shown instead" in s for s in result.sentences)
    one = result.maps[0]
    assert abs(one.weights.sum() - 1) < 1e-5
    marked = np.argwhere(one.weights > 0)                         # a 3^3 kernel sees the voxel's own surroundings only
    assert len(marked) <= 2
    with pytest.raises(ModelError, match="nothing to show"):
        attend(am.model(_Constant()), volume)
    no_queries = attend(am.model(am.PeakedNet()), volume, kind="head")
    assert no_queries.kind == "encoder" and any("no object queries" in s for s in no_queries.sentences)


class _Constant(torch.nn.Module):
    num_classes = 3

    def scores(self, x):
        return torch.full((1, 3, *x.shape[2:]), 1 / 3)


def test_masks_that_are_no_query():
    volume, _ = planted((4, 4, 4))
    empty = volume.with_array(np.zeros(volume.shape, np.uint8))
    with pytest.raises(InputError, match="no voxels"):
        look(volume, mask=empty)
    away = Volume(np.ones((4, 4, 4), np.uint8), matrix(origin=(900, 0, 0)))
    with pytest.raises(InputError, match="outside the volume"):
        look(volume, mask=away)
    with pytest.raises(InputError, match="3D volume"):
        look(Volume(np.zeros((4, 4)), np.eye(4)))


def test_a_cancelled_look_stops():
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        look(planted((4, 4, 4))[0], cancel=token)


def test_units_of_a_map():
    one = AttentionMap(0, None, np.array([[[0.1, 0.2], [0.3, 0.4]]], np.float32), np.eye(4))
    np.testing.assert_allclose(one.as_cells("times").array.ravel(), [0.4, 0.8, 1.2, 1.6], rtol=1e-6)
    np.testing.assert_allclose(one.as_cells("unit").array.ravel(), [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    assert one.peak == (0, 1, 1) and 3 < one.spread < 4
    with pytest.raises(OptionError, match="no unit"):
        one.as_cells("percent")


def test_a_result_survives_the_process_border(tmp_path):
    from HiEndSegLib.engine import transfer

    result = look(planted((4, 4, 4))[0])
    encoded, arrays = transfer.encode(result, "result")
    transfer.write_arrays(arrays, tmp_path, lambda: None)
    back = transfer.decode(encoded, tmp_path)
    assert isinstance(back, AttentionResult) and back.sentences == result.sentences and back.window == result.window
    for a, b in zip(back.maps, result.maps):
        np.testing.assert_array_equal(a.weights, b.weights)
        assert (a.layer, a.head, a.sentence) == (b.layer, b.head, b.sentence) and a.weights.dtype == np.float32


def test_results_are_read_where_there_is_neither_torch_nor_nibabel():
    """A face holds them, in a Slicer that was not set up too."""
    code = ("import sys, numpy as np\n"
            "for name in ('torch', 'nibabel', 'scipy', 'SimpleITK'): sys.modules[name] = None\n"
            "from HiEndSegLib.operations.attend_result import AttentionMap\n"
            "from HiEndSegLib.operations.attend_result import on_lattice\n"
            "import HiEndSegLib.engine.attending\n"
            "cells = AttentionMap(0, None, np.ones((2, 2, 2), np.float32) / 8, np.eye(4)).as_cells()\n"
            "print(on_lattice(cells, cells).array.sum())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "1.0", done.stderr
