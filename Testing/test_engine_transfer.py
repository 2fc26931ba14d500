"""Values and arrays across the process border, and the private folders they lie in."""

from __future__ import annotations

import collections
import errno
import json
import os
import stat
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from HiEndSegLib.engine import folder as folders
from HiEndSegLib.engine import transfer
from HiEndSegLib.engine.folder import PrivateFolder, remove_tree, sweep
from HiEndSegLib.errors import Cancelled, EngineError, OutputError
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.operations.plan import MemoryPlan, Step
from HiEndSegLib.operations.result import SegmentResult
from HiEndSegLib.tasks import CancelToken

ROOT = Path(__file__).resolve().parent.parent


def cross(value, folder, mapped=False):
    """Through the border and back, JSON text included."""
    encoded, arrays = transfer.encode(value, "test")
    transfer.write_arrays(arrays, folder, lambda: None)
    return transfer.decode(json.loads(json.dumps(encoded, allow_nan=False)), folder, mapped=mapped)


def oblique():
    matrix = np.eye(4)
    matrix[:3] = np.random.default_rng(1).normal(size=(3, 4)) * 3
    return matrix


def test_plain_values_come_back_exactly(tmp_path):
    value = {"a": [1, 2.5, None, True, "ä"], "t": (1, (2, [3])), "n": 0.1 + 0.2, 5: "int key", "$": "marked", "e": {}}
    assert cross(value, tmp_path) == value
    assert type(cross((1,), tmp_path)) is tuple and type(cross({"x": np.int64(3)}, tmp_path)["x"]) is int


def test_nan_and_infinity_become_none(tmp_path):
    assert cross({"m": float("nan"), "i": [np.float32("inf")]}, tmp_path) == {"m": None, "i": [None]}
    assert transfer.plain({"m": (np.nan, np.float64(2.0)), "k": [float("-inf")]}) == {"m": (None, 2.0), "k": [None]}


@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", ">i2", "bool"])
def test_volumes_come_back_bit_for_bit(tmp_path, order, mapped, dtype):
    array = (np.random.default_rng(2).normal(size=(14, 16, 18)) * 1000).astype(dtype)
    if dtype == "float32":
        array[3, 3, 3] = np.nan
    array = {"C": array, "F": np.asfortranarray(array), "strided": array[::2, :, 1:], "reversed": array[::-1]}[order]
    volume = Volume(array, oblique(), "Ä volume", {"modality": "CT", "notes": ["one"]})
    back = cross(volume, tmp_path, mapped)
    assert back.array.dtype == array.dtype and back.array.shape == array.shape
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_array_equal(back.ijk_to_ras, volume.ijk_to_ras)
    assert (back.name, back.meta) == (volume.name, volume.meta)
    assert back.array.flags.f_contiguous == (order == "F")


def test_a_mapped_volume_may_be_changed_and_its_file_stays(tmp_path):
    array = np.arange(4096, dtype=np.int16).reshape(16, 16, 16)
    encoded, arrays = transfer.encode(Volume(array, np.eye(4)), "v")
    transfer.write_arrays(arrays, tmp_path, lambda: None)
    transfer.decode(encoded, tmp_path, mapped=True).array[:] = 0
    np.testing.assert_array_equal(transfer.decode(encoded, tmp_path).array, array)


@pytest.mark.parametrize("shape", [(0, 3, 3), (1, 1, 1), (5000,), ()])
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_of_odd_shapes(tmp_path, shape, mapped):
    array = np.full(shape, np.nan, np.float32)
    back = cross(array, tmp_path, mapped)
    assert back.shape == shape and back.dtype == array.dtype


def test_a_whole_result_and_a_plan_come_back_equal(tmp_path):
    labels = Volume(np.random.default_rng(0).integers(0, 3, (20, 20, 20)).astype(np.uint8), oblique(), "labels")
    legend = [Label(1, "liver", "Liver", (221, 130, 101), {"category": ["SCT", "1", "a"], "modifier": None}, True),
              Label(2, "spleen", "Spleen", (157, 108, 162))]
    result = SegmentResult(labels=labels, legend=legend, statistics=[{"id": "liver", "mean_hu": 51.25}],
                           info={"roi": ((0.0, 1.0), (2.0, 3.0), (4.0, 5.0))}, messages=["One."])
    back = cross(result, tmp_path)
    assert isinstance(back, SegmentResult) and back.legend == legend and back.legend[0].color == (221, 130, 101)
    assert (back.statistics, back.info, back.messages) == (result.statistics, result.info, result.messages)
    np.testing.assert_array_equal(back.labels.array, labels.array)
    plan = MemoryPlan(1, 2, 3, 4, (Step("cpu", 1, "cpu", "float32"),), "A sentence.", 5, 6, (7, 8, 9), True)
    assert cross(plan, tmp_path) == plan


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.array(["text"]), {1, 2}, b"bytes",
                                   types.SimpleNamespace(array=1)])
def test_other_things_do_not_cross(value):
    with pytest.raises(TypeError, match="cannot be passed"):
        transfer.encode({"value": value}, "x")


@pytest.mark.parametrize("value", [
    {"$": "file", "name": "../secret.npy"}, {"$": "file", "name": "/etc/passwd"}, {"$": "file", "name": "x.txt"},
    {"$": "file", "name": "missing.npy"}, {"$": "Popen", "fields": {}}, {"$": "Volume", "fields": {"nonsense": 1}},
    {"$": "array", "dtype": "object", "shape": [1], "items": [1]}, {"$": "tuple"}, {"$": ["x"]},
    {"$": "array", "dtype": "int8", "shape": [4], "items": [1]},
])
def test_crafted_messages_are_refused(tmp_path, value):
    (tmp_path.parent / "secret.npy").write_bytes(b"x")
    with pytest.raises(EngineError):
        transfer.decode(value, tmp_path)


def test_pickles_are_not_read(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(EngineError):
        transfer.decode({"$": "file", "name": "evil.npy"}, tmp_path)


def test_cancel_is_seen_between_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PIECE_BYTES", 4096)
    token, seen = CancelToken(), []

    def check():
        seen.append(1)
        if len(seen) == 3:
            token.cancel()
        token.check()

    with pytest.raises(Cancelled):
        transfer.write_arrays({"a.npy": np.zeros((100, 64, 64), np.uint8)}, tmp_path, check)
    assert len(seen) == 3


def test_a_full_disk_is_a_sentence_with_the_size(tmp_path, monkeypatch):
    array = {"a.npy": np.zeros((100, 100, 100), np.int16)}
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(OutputError, match="2 MB"):
        transfer.write_arrays(array, tmp_path, lambda: None)
    monkeypatch.undo()

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="not enough room"):
        transfer.write_arrays(array, tmp_path, full)


# ------------------------------------------------------------------------------------------------- folders


def test_a_private_folder_is_private_and_goes(tmp_path):
    folder = PrivateFolder(tmp_path)
    assert folder.path.parent == tmp_path and stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    transfer.write_arrays({"a.npy": np.zeros(3000)}, folder.path, lambda: None)
    if os.name == "posix":
        assert stat.S_IMODE((folder.path / "a.npy").stat().st_mode) == 0o600
    assert folder.remove() and folder.remove() and not list(tmp_path.iterdir())


def test_a_temporary_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(OutputError, match="TMPDIR"):
        PrivateFolder(tmp_path / "missing")


def test_sweeping_takes_folders_of_dead_processes_only(tmp_path):
    alive = PrivateFolder(tmp_path)
    code = ("import os, sys; from HiEndSegLib.engine.folder import PrivateFolder; "
            "f = PrivateFolder(sys.argv[1]); (f.path / 'voxels.npy').write_bytes(b'x'); os._exit(9)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    other = tmp_path / "somebody-elses"
    other.mkdir()
    just_made = tmp_path / (folders.PREFIX + "young")
    just_made.mkdir()
    old = tmp_path / (folders.PREFIX + "old")
    old.mkdir()
    os.utime(old, (0, 0))
    (tmp_path / (folders.PREFIX + "link")).symlink_to(other)
    assert len(list(tmp_path.iterdir())) == 6
    assert sweep(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        alive.path.name, other.name, just_made.name, folders.PREFIX + "link"}
    alive.remove()
    assert sweep(tmp_path / "missing") == 0


def test_only_private_folders_are_ever_removed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    link = tmp_path / (folders.PREFIX + "link")
    link.symlink_to(precious)
    assert not remove_tree(precious) and not remove_tree(link) and precious.exists()
    assert remove_tree(tmp_path / (folders.PREFIX + "gone"))
