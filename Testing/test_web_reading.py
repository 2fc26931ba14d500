"""A file is opened in a process of its own: the same volume comes back, and nothing that happens there comes along."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from geometry_lattices import make
from test_geometry_dicom import straight, write_series

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.writing import write_volume
from HiEndSegWeb import reading
from HiEndSegWeb.reading import Reading


def test_the_volume_comes_back_as_it_is_and_nothing_stays(tmp_path):
    write_volume(make("oblique"), tmp_path / "x.nrrd")
    (tmp_path / "private").mkdir()
    got = Reading(tmp_path / "x.nrrd", tmp_path / "private").result()
    expected = read_volume(tmp_path / "x.nrrd")
    assert np.array_equal(got.volume.array, expected.array) and got.volume.array.dtype == expected.array.dtype
    assert np.array_equal(got.volume.ijk_to_ras, expected.ijk_to_ras) and got.headers == ()
    assert (got.volume.name, got.volume.meta) == (expected.name, expected.meta)
    assert list((tmp_path / "private").iterdir()) == []


def test_dicom_brings_its_headers_without_pixels_and_private_tags(tmp_path):
    import pydicom

    write_series(tmp_path / "ct", straight(), PatientID="7")
    (tmp_path / "private").mkdir()
    got = Reading(tmp_path / "ct", tmp_path / "private").result()
    headers = [pydicom.dcmread(io.BytesIO(header), force=True) for header in got.headers]
    assert len(headers) == 6 == got.volume.shape[2] and all(header.PatientID == "7" for header in headers)
    assert not any("PixelData" in header for header in headers) and got.volume.meta["modality"] == "CT"
    positions = [float(header.ImagePositionPatient[2]) for header in headers]
    assert positions == sorted(positions) and list((tmp_path / "private").iterdir()) == []


def test_what_the_reader_says_is_said(tmp_path):
    (tmp_path / "x.nii").write_bytes(b"hello")
    with pytest.raises(InputError, match="NIfTI.*damaged"):
        Reading(tmp_path / "x.nii", tmp_path).result()
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii"]


def test_several_series_are_listed(tmp_path):
    for number in (1, 2):
        write_series(tmp_path / "ct", straight(), uid=f"1.2.{number}", number=number, description=f"Phase {number}")
    with pytest.raises(InputError, match="2 image series.*Phase 1.*Phase 2.*zip of its own"):
        Reading(tmp_path / "ct", tmp_path).result()


@pytest.mark.skipif(os.name != "posix", reason="signals and limits are POSIX")
def test_a_reader_that_dies_is_a_sentence(tmp_path):
    write_volume(make("oblique"), tmp_path / "x.nrrd")
    reader = Reading(tmp_path / "x.nrrd", tmp_path)
    os.kill(reader._process.pid, signal.SIGSTOP)
    os.kill(reader._process.pid, signal.SIGKILL)
    with pytest.raises(InputError, match="could not be opened"):
        reader.result()
    assert [path.name for path in tmp_path.iterdir()] == ["x.nrrd"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such limit")
def test_memory_is_limited(tmp_path):
    volume = make("oblique")
    write_volume(volume.__class__(np.zeros((700, 700, 700), np.int16), volume.ijk_to_ras), tmp_path / "x.nii.gz")
    script = (f"import sys; from HiEndSegWeb import reading; reading.MEMORY = 700_000_000; "
              f"sys.exit(reading.main([{str(tmp_path / 'x.nii.gz')!r}, {str(tmp_path)!r}, '--limited']))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert "memory" in json.loads(done.stdout.splitlines()[-1])["error"], done.stderr


def test_hours_of_unpacking_are_named():
    assert "minutes" in reading._died(-getattr(signal, "SIGXCPU", 24)) or os.name != "posix"
    assert "damaged" in reading._died(-11)
