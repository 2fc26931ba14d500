"""Writing: a file is whole or not there, whatever goes wrong."""

from __future__ import annotations

import os
import stat

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from geometry_lattices import FORMATS, make

from HiEndSegLib.errors import OutputError
from HiEndSegLib.geometry import writing
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.geometry.writing import write_labels, write_volume


@pytest.mark.parametrize("ending", [".seg.nrrd", *FORMATS])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, ending):
    path = tmp_path / f"result{ending}"
    path.write_bytes(b"precious")
    noise = Volume(np.random.default_rng(0).integers(0, 200, (60, 60, 60)).astype(np.uint8), np.eye(4))
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(OutputError, match="disk is full") as caught:
            write_labels(noise, [], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"precious"


@pytest.mark.parametrize("ending", [".seg.nrrd", *FORMATS])
def test_a_writer_that_breaks_leaves_nothing(tmp_path, ending, monkeypatch):
    def broken(*args, **keywords):
        name = args[1] if not str(args[0]).endswith(ending) else args[0]
        with open(name, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(sitk, "WriteImage", broken)
    monkeypatch.setattr(nib, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        write_volume(make("LPS"), tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    volume = make("LPS")
    with pytest.raises(OutputError, match="does not exist"):
        write_volume(volume, tmp_path / "no such folder" / "a.nii")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_volume(volume, tmp_path / "folder.nii")
    with pytest.raises(OutputError, match=r"no extension .*\.seg\.nrrd"):
        write_volume(volume, tmp_path / "a.jpg")
    with pytest.raises(OutputError, match="too long"):
        write_volume(volume, tmp_path / ("a" * 300 + ".nii"))
    assert [p.name for p in tmp_path.iterdir()] == ["folder.nii"]

    def refuse(source, target):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="may not be written"):
        write_volume(volume, tmp_path / "a.nii")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.nii"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_unwritable_folder(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        for ending in FORMATS:
            with pytest.raises(OutputError, match="may not be written|write-protected"):
                write_volume(make("LPS"), tmp_path / f"a{ending}")
    finally:
        tmp_path.chmod(0o700)


def test_atomic_target_replaces_what_a_link_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    try:
        (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    except OSError:
        pytest.skip("no symbolic links here")
    with atomic_target(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "real" / "a.txt").read_text() == "old"
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "a.txt").read_text() == "new"


def test_writable_list_is_what_the_sentence_says():
    assert set(writing.WRITABLE) == {".seg.nrrd", *FORMATS}
