"""Volumes and crops for pre-training: what is cached, what is left out, and what a sample number means."""

from __future__ import annotations

import gzip
import os
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from pretrain_helpers import torso, write_ct, write_data, write_mr
from test_geometry_dicom import write_slice

from HiEndSegLib.errors import EngineError, InputError, OptionError, OutputError
from training import pretrain_data
from training.pretrain_crops import Augmentation, Batches, Crops
from training.pretrain_data import (
    LEVELS,
    LeftOut,
    Preparation,
    Prepared,
    agree_on_modality,
    find_named,
    looks_like_labels,
    prepare_all,
    split_held_out,
)

HOW = Preparation(spacing=3.0)
PLAIN = Augmentation(flip=0, rotate=0, scale=0, shift=0)


def prepared(folder, tmp_path, how=HOW) -> list:
    return prepare_all(find_named([folder]), how, tmp_path / "cache")


# ----------------------------------------------------------------------------------------------------- the cache


def test_values_are_the_window_scaled_and_axes_are_ras(tmp_path):
    write_ct(tmp_path / "a.nii.gz")
    (volume,) = prepared(tmp_path, tmp_path)
    expected = np.clip((torso().astype(np.float64) + 175) / 425, 0, 1)
    assert np.abs(volume.open() / LEVELS - expected).max() < 1e-5
    assert volume.foreground == pytest.approx((expected > 0).mean(), abs=1e-9) and volume.kind == "CT"


def test_a_second_look_reads_the_cache_and_a_change_does_not(tmp_path, monkeypatch):
    path = write_ct(tmp_path / "data.nii.gz")
    (first,) = prepared(path, tmp_path)
    reads = []
    real = pretrain_data.read_volume
    monkeypatch.setattr(pretrain_data, "read_volume", lambda *a, **k: reads.append(a) or real(*a, **k))
    (again,) = prepared(path, tmp_path)
    assert not reads and again == first
    (other,) = prepared(path, tmp_path, Preparation(spacing=4.0))
    assert len(reads) == 1 and other.array != first.array
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    (changed,) = prepared(path, tmp_path)
    assert len(reads) == 2 and changed.array != first.array


def test_what_is_left_out_is_decoded_once_and_the_modality_asked_for_changes_no_entry(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    write_ct(data / "ct.nii.gz")
    nib.save(nib.Nifti1Image((torso() > 100).astype(np.int16), np.eye(4)), data / "labels.nii.gz")
    write_ct(data / "thin.nii.gz", (40, 34, 3))
    write_mr(data / "mr.nii.gz")
    first = {how.modality: prepared(data, tmp_path, how) for how in (HOW, Preparation(3.0, modality="MR"))}
    reads, real = [], pretrain_data.read_volume
    monkeypatch.setattr(pretrain_data, "read_volume", lambda *a, **k: reads.append(a) or real(*a, **k))
    for modality, results in first.items():
        assert prepared(data, tmp_path, Preparation(3.0, modality=modality)) == results
    only_ct = {r.name: r for r in prepared(data, tmp_path, Preparation(3.0, modality="CT"))}
    assert not reads and only_ct["ct"] == {r.name: r for r in first[None]}["ct"]
    assert isinstance(only_ct["mr"], LeftOut) and isinstance(only_ct["thin"], LeftOut)
    assert [r.name for r in first["MR"] if isinstance(r, Prepared)] == ["mr"]
    write_ct(data / "thin.nii.gz")                                                     # changed, so looked at again
    again = {r.name: r for r in prepared(data, tmp_path)}
    assert len(reads) == 1 and isinstance(again["thin"], Prepared)


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    path, real = write_ct(tmp_path / "a.nii.gz"), pretrain_data.read_volume

    def refused(*args, **keywords):
        raise InputError("a.nii.gz may not be read by this user; change its permissions.")

    monkeypatch.setattr(pretrain_data, "read_volume", refused)
    assert "permissions" in prepared(path, tmp_path)[0].sentence
    monkeypatch.setattr(pretrain_data, "read_volume", real)
    assert isinstance(prepared(path, tmp_path)[0], Prepared)


def test_a_killed_process_that_prepares_is_a_sentence(tmp_path, monkeypatch):
    write_data(tmp_path / "data", 2)
    monkeypatch.setattr(pretrain_data, "prepare", _die)
    with pytest.raises(EngineError, match="fewer --workers"):
        prepare_all(find_named([tmp_path / "data"]), HOW, tmp_path / "cache", workers=1)


def _die(*args):
    os.kill(os.getpid(), 9)


def test_a_damaged_entry_is_made_again(tmp_path):
    path = write_ct(tmp_path / "data.nii.gz")
    (volume,) = prepared(path, tmp_path)
    whole = volume.open().copy()
    with open(volume.array, "rb+") as file:
        file.truncate(os.path.getsize(volume.array) // 2)
    with pytest.raises(InputError, match="damaged"):
        volume.open()
    (again,) = prepared(path, tmp_path)
    assert np.array_equal(again.open(), whole)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    path = write_ct(tmp_path / "data.nii.gz")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot be made"):
        prepared(path, tmp_path)


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path):
    data = write_data(tmp_path / "data", 1)
    cut = write_ct(data / "cut.nii.gz").read_bytes()
    (data / "cut.nii.gz").write_bytes(cut[:len(cut) // 2])
    (data / "empty.nrrd").write_bytes(b"")
    write_ct(data / "thin.nii.gz", (40, 34, 3))
    labels = write_ct(data / "labels.nii.gz")
    nib.save(nib.Nifti1Image((torso() > 100).astype(np.uint8), np.eye(4)), labels)
    results = prepared(data, tmp_path)
    usable = [r.name for r in results if isinstance(r, Prepared)]
    reasons = {r.name: r.sentence for r in results if isinstance(r, LeftOut)}
    assert usable == ["case-0"] and set(reasons) == {"cut", "empty", "thin", "labels"}
    assert "damaged or cut short" in reasons["cut"] and "empty" in reasons["empty"]
    assert "40 x 34 x 3" in reasons["thin"] and "not Hounsfield" in reasons["labels"]


def test_label_maps_beside_their_images_are_no_mr(tmp_path):
    data = write_data(tmp_path / "data", 1)
    body = torso()
    many = np.where(body > 100, 110, np.where(body > 0, 60, np.where(body > -200, 7, 0))).astype(np.uint8)
    nib.save(nib.Nifti1Image(many, np.eye(4)), data / "labels.nii.gz")
    write_mr(data / "mr.nii.gz")
    for modality, usable in ((None, {"case-0", "mr"}), ("MR", {"mr"}), ("CT", {"case-0"})):
        found = prepared(data, tmp_path, Preparation(spacing=3.0, modality=modality))
        assert {r.name for r in found if isinstance(r, Prepared)} == usable
        assert "label map" in next(r.sentence for r in found if r.name == "labels")
    noise = np.random.default_rng(0).normal(100, 20, (30, 30, 30))
    assert not looks_like_labels(noise.astype(np.int16)) and not looks_like_labels(noise.astype(np.float32))
    assert not looks_like_labels(np.zeros((9, 9, 9), np.uint8)) and looks_like_labels(many.astype(np.float32))


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="file names there are Unicode")
def test_file_names_that_are_no_utf8_get_names_that_can_be_written(tmp_path):
    data = write_data(tmp_path / "data", 1)
    os.rename(os.fsencode(data / "case-0.nii.gz"), os.path.join(os.fsencode(data), b"caf\xe9.nii.gz"))
    (name, case), = find_named([data])
    assert name == "caf?" and case.path.exists()
    (volume,) = prepared(data, tmp_path)
    assert isinstance(volume, Prepared)
    crops = Crops([volume], seed=1, size=24, patches=64)
    assert crops.held_out(0, 0)[0].shape == (1, 24, 24, 24) and name.encode("utf-8")


def test_workers_give_the_same_as_this_process(tmp_path):
    data = write_data(tmp_path / "data", 2)
    alone = prepared(data, tmp_path)
    others = prepare_all(find_named([data]), HOW, tmp_path / "other", workers=1)
    assert [(r.name, r.shape, r.foreground) for r in others] == [(r.name, r.shape, r.foreground) for r in alone]
    assert np.array_equal(others[1].open(), alone[1].open())


def test_every_series_of_a_dicom_folder_counts(tmp_path):
    hu = torso((24, 20, 16))
    for series in (1, 2):
        for k in range(16):
            write_slice(tmp_path / f"{series}-{k}.dcm", (0, 0, 3.0 * k), uid=f"1.2.{series}", number=series, instance=k,
                        description=f"Series {series}", pixels=hu[:, :, k].T.astype(float), pixel=(3.0, 3.0),
                        thickness=3.0, rows=20, columns=24)
    results = prepare_all(find_named([tmp_path]), HOW, tmp_path / "cache")
    assert [r.name.rpartition("#")[2] for r in results] == ["1", "2"]
    assert all(isinstance(r, Prepared) and r.shape == (24, 20, 16) for r in results)


# ------------------------------------------------------------------------------------------- names and modalities


def test_names_tell_volumes_apart(tmp_path):
    for case in ("one", "two"):
        (tmp_path / case).mkdir()
        write_ct(tmp_path / case / "image.nii.gz")
    named = [name for name, _ in find_named([tmp_path])]
    assert named == ["one/image", "two/image"]
    assert [name for name, _ in find_named([tmp_path / "one", tmp_path / "two", tmp_path])] == [
        "image", "image~2"]         # the same file again, through another folder, is not a third volume
    volumes = [r for r in prepared(tmp_path, tmp_path)]
    kept, held = split_held_out(volumes, ["two"])
    assert [v.name for v in kept] == ["one/image"] and [v.name for v in held] == ["two/image"]
    with pytest.raises(OptionError, match="three fits no readable volume; there are one/image, two/image"):
        split_held_out(volumes, ["three"])
    with pytest.raises(OptionError, match="leaves no volume"):
        split_held_out(volumes, ["*"])


def test_ct_and_mr_are_not_mixed_unasked(tmp_path):
    data = write_data(tmp_path / "data", 2)
    write_mr(data / "mr.nii.gz")
    with pytest.raises(InputError, match="2 CT .case-0, …. and 1 MR .mr, …..*--modality CT or --modality MR"):
        agree_on_modality(prepared(data, tmp_path))
    for modality, names in (("CT", ["case-0", "case-1"]), ("MR", ["mr"])):
        results = prepared(data, tmp_path, Preparation(3.0, modality=modality))
        assert agree_on_modality(results) == modality
        assert [r.name for r in results if isinstance(r, Prepared)] == names


def test_mr_is_scaled_between_its_own_percentiles(tmp_path):
    write_mr(tmp_path / "mr.nii.gz")
    (volume,) = prepared(tmp_path, tmp_path)
    values = volume.open() / LEVELS
    assert volume.kind == "MR" and values.min() == 0 and values.max() == 1 and 0.2 < volume.foreground < 0.8
    assert 0.001 < (values == 1).mean() < 0.02


def test_no_readable_volume_is_an_error_that_names_the_first(tmp_path):
    with pytest.raises(InputError, match="There is no volume to train on;"):
        agree_on_modality(prepared(tmp_path, tmp_path))
    (tmp_path / "bad.nii.gz").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(InputError, match="the first of 1: bad: .*damaged"):
        agree_on_modality(prepared(tmp_path, tmp_path))
    with pytest.raises(InputError, match="There is no folder or file .*missing"):
        find_named([tmp_path / "missing"])


# --------------------------------------------------------------------------------------------------------- crops


@pytest.fixture()
def volumes(tmp_path):
    return prepared(write_data(tmp_path / "data"), tmp_path)


def test_a_sample_depends_on_seed_and_number_alone(volumes):
    one, two = (Crops(volumes, seed=5, size=24, patches=64, per_volume=2) for _ in range(2))
    forwards = [one[g] for g in range(20)]
    for g in reversed(range(20)):
        crop, shuffle = two[g]
        assert torch.equal(crop, forwards[g][0]) and torch.equal(shuffle, forwards[g][1])
        assert sorted(shuffle.tolist()) == list(range(64))
    other = Crops(volumes, seed=6, size=24, patches=64, per_volume=2)
    assert not any(torch.equal(other[g][0], forwards[g][0]) for g in range(20))
    assert len({tuple(shuffle.tolist()) for _, shuffle in forwards}) == 20


def test_an_epoch_takes_every_volume_as_often(volumes):
    crops = Crops(volumes, seed=1, size=24, patches=64, per_volume=4)
    for epoch in range(5):
        drawn = [crops.volume_of(g) for g in range(12 * epoch, 12 * epoch + 12)]
        assert sorted(drawn) == [0] * 4 + [1] * 4 + [2] * 4
        assert all(len(set(drawn[i:i + 4])) == 1 for i in (0, 4, 8))
    weighted = Crops(volumes, seed=1, size=24, patches=64, per_volume=1, weights=[3.0, 0.0, 1.0])
    counts = np.bincount([weighted.volume_of(g) for g in range(2000)], minlength=3)
    assert counts[1] == 0 and 0.70 < counts[0] / 2000 < 0.80


def test_three_centres_of_four_lie_in_the_foreground(volumes):
    crops = Crops(volumes[:1], seed=3, size=24, patches=64)
    array = volumes[0].open()
    assert 0.2 < volumes[0].foreground < 0.6
    hits = [array[crops._centre(array, volumes[0], np.random.default_rng(g), 0.75)] > 0 for g in range(2000)]
    assert 0.72 < np.mean(hits) < 0.78


def test_a_crop_is_a_part_of_its_volume_or_padded_with_air(volumes):
    array = volumes[1].open()
    assert array.shape == (37, 34, 28)
    crops = Crops(volumes[1:2], seed=3, size=24, patches=64, augmentation=PLAIN)
    crop = np.rint(crops[0][0][0].numpy() * LEVELS).astype(np.uint16)
    windows = np.lib.stride_tricks.sliding_window_view(array, (24, 24, 24))
    assert any(np.array_equal(windows[i, j, k], crop) for i, j, k in np.ndindex(*windows.shape[:3]))
    large = Crops(volumes[1:2], seed=3, size=36, patches=216, augmentation=PLAIN)[0][0][0].numpy()
    assert large.shape == (36, 36, 36)
    inside = large[:, 1:35, 4:32]
    assert not large[:, :1].any() and not large[:, 35:].any() and not large[:, :, :4].any() and not large[:, :, 32:].any()
    assert any(np.allclose(inside, array[i:i + 36] / LEVELS, atol=1e-5) for i in range(2))


def test_turning_moves_voxels_and_intensity_changes_them_a_little(volumes):
    plain = Crops(volumes, seed=3, size=24, patches=64, augmentation=PLAIN)
    turned = Crops(volumes, seed=3, size=24, patches=64, augmentation=Augmentation(flip=1, rotate=1, scale=0, shift=0))
    bright = Crops(volumes, seed=3, size=24, patches=64, augmentation=Augmentation(flip=0, rotate=0, scale=1, shift=1))
    moved = 0
    for g in range(6):
        crop = plain[g][0]
        other, brighter = turned[g][0], bright[g][0]
        assert torch.equal(other.flatten().sort().values, crop.flatten().sort().values)
        moved += not torch.equal(other, crop)
        mirrored = torch.flip(crop[0], (0, 1, 2))                           # on every axis, then turned in the first two
        assert any(torch.equal(other[0], torch.rot90(mirrored, turns, (0, 1))) for turns in (1, 2, 3))
        assert 0 < float((brighter - crop).abs().max()) <= 0.2 + 1e-6
    assert moved >= 5


def test_held_out_crops_do_not_depend_on_the_run(volumes):
    one = Crops(volumes, seed=1, size=24, patches=64)
    two = Crops(volumes[::-1], seed=2, size=24, patches=64, per_volume=3, augmentation=Augmentation(foreground=0.1))
    for number in range(3):
        (a, shuffle), (b, same) = one.held_out(0, number), two.held_out(2, number)
        assert torch.equal(a, b) and torch.equal(shuffle, same)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_same_micro_batches(processes):
    parts = [list(Batches(batch=8, micro=2, first_step=1, steps=3, rank=r, processes=processes))
             for r in range(processes)]
    assert all(len(part) == len(Batches(batch=8, micro=2, first_step=1, steps=3, rank=0, processes=processes))
               for part in parts)
    woven = [part[turn] for turn in range(len(parts[0])) for part in parts]
    assert woven == [[g, g + 1] for g in range(8, 24, 2)]
    with pytest.raises(ValueError, match="do not divide"):
        Batches(batch=8, micro=3, first_step=0, steps=1)
