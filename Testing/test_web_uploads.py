"""What a browser may send in, and what is refused before anything opens it."""

from __future__ import annotations

import asyncio
import gzip
import io
import stat
import zipfile

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the page's packages are not installed")

from HiEndSegLib.errors import InputError                                               # noqa: E402
from HiEndSegWeb import uploads                                                         # noqa: E402


def nifti(path, shape=(5, 4, 3), dtype=np.int16):
    nib.Nifti1Image(np.zeros(shape, dtype), np.eye(4)).to_filename(path)
    return path


def zipped(path, entries, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name, ending", [("a.nii", ".nii"), ("A.NII.GZ", ".nii.gz"), ("x.nrrd", ".nrrd"),
                                          ("../../etc/a.zip", ".zip")])
def test_endings_that_are_taken(name, ending):
    assert uploads.ending_of(name) == ending


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd", "a.py", "", "nii", "a.gz", "a.zip.exe"])
def test_other_endings_are_refused(name):
    with pytest.raises(InputError, match="NIfTI"):
        uploads.ending_of(name)


def test_a_name_never_leads_anywhere():
    assert uploads.display_name("../../secret/<b>ct</b>.nii.gz") == "b_"
    assert uploads.display_name("C:\\patients\\Jane.zip") == "Jane"
    assert uploads.display_name(".nii") == "Upload"
    assert len(uploads.display_name("x" * 500 + ".nrrd")) == 60


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_passes(tmp_path, ending):
    uploads.check(nifti(tmp_path / f"ct{ending}"), ending)


def test_a_nifti_that_unpacks_to_too_much_is_refused_from_its_header(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header.set_data_dtype(np.int16)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + b"\0" * 4))
    with pytest.raises(InputError, match="4 GB"):
        uploads.check(path, ".nii.gz")


@pytest.mark.parametrize("data", [b"hello", b"\x1f\x8b\x08garbage", b"\0" * 400])
def test_garbage_is_no_nifti(tmp_path, data):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(data)
    with pytest.raises(InputError):
        uploads.check(path, ".nii.gz")
    path.write_bytes(gzip.compress(data))
    with pytest.raises(InputError, match="NIfTI"):
        uploads.check(path, ".nii.gz")


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "x.nrrd"
    path.touch()
    with pytest.raises(InputError, match="empty"):
        uploads.check(path, ".nrrd")


NRRD = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"


def test_a_plain_nrrd_passes(tmp_path):
    path = tmp_path / "x.nrrd"
    path.write_bytes(NRRD + b"\n" + b"\0" * 128)
    uploads.check(path, ".nrrd")


@pytest.mark.parametrize("line", [b"data file: /etc/passwd\n", b"datafile: ../x.raw\n",
                                  b"Data File: LIST\n/etc/hosts\n", b"content: x\rdata file: /etc/passwd\n",
                                  b"\tdata  file : x.raw\n"])
def test_an_nrrd_header_may_not_name_another_file(tmp_path, line):
    path = tmp_path / "x.nrrd"
    path.write_bytes(NRRD + line + b"\n")
    with pytest.raises(InputError, match="another file"):
        uploads.check(path, ".nrrd")


def test_an_nrrd_header_that_hides_behind_its_length_is_refused(tmp_path):
    path = tmp_path / "x.nrrd"
    path.write_bytes(NRRD + b"#" + b"x" * 70_000 + b"\ndata file: /etc/passwd\n\n")
    with pytest.raises(InputError, match="no end"):
        uploads.check(path, ".nrrd")


def test_an_nrrd_counts_its_own_type(tmp_path):
    path = tmp_path / "x.nrrd"
    path.write_bytes(NRRD.replace(b"4 4 4", b"1000 1000 1200") + b"\n")
    uploads.check(path, ".nrrd")                            # 2.4 GB of short; as double it would be too much
    path.write_bytes(path.read_bytes().replace(b"short", b"double"))
    with pytest.raises(InputError, match="GB"):
        uploads.check(path, ".nrrd")


def test_a_nifti_with_an_endless_header_is_refused(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((2, 2, 2))
    for offset in (3e9, -5.0):
        header["vox_offset"] = offset
        path = tmp_path / "x.nii"
        path.write_bytes(header.binaryblock + b"\0" * 400)
        with pytest.raises(InputError, match="header|no NIfTI"):
            uploads.check(path, ".nii")


def test_an_nrrd_of_absurd_size_is_refused(tmp_path):
    path = tmp_path / "x.nrrd"
    path.write_bytes(NRRD.replace(b"4 4 4", b"99999 99999 99999") + b"\n")
    with pytest.raises(InputError, match="GB"):
        uploads.check(path, ".nrrd")


def test_a_zip_is_unpacked_under_numbers(tmp_path):
    path = zipped(tmp_path / "x.zip", [("../../../evil", b"1"), ("/abs/b", b"22"), ("C:\\c", b"333")])
    uploads.check(path, ".zip")
    folder = uploads.unpack(path, tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == ["000000", "000001", "000002"]
    assert [p.stat().st_size for p in sorted(folder.iterdir())] == [1, 2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "x.zip"]


def test_a_zip_bomb_is_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", [("a", b"\0" * 50_000_000)], zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="far more"):
        uploads.check(path, ".zip")


def test_a_zip_whose_list_of_sizes_lies_stops_while_it_unpacks(tmp_path):
    path = zipped(tmp_path / "x.zip", [("a", bytes(range(256)) * 4000)])
    with pytest.raises(InputError, match="GB"):
        uploads.unpack(path, tmp_path / "out", most=100_000)


def test_links_passwords_and_floods_in_a_zip_are_refused(tmp_path, monkeypatch):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(InputError, match="links"):
        uploads.check(zipped(tmp_path / "l.zip", [(link, "/etc/passwd")]), ".zip")
    with pytest.raises(InputError, match="empty"):
        uploads.check(zipped(tmp_path / "e.zip", []), ".zip")
    monkeypatch.setattr(uploads, "MAX_FILES", 2)
    with pytest.raises(InputError, match="3 files"):
        uploads.check(zipped(tmp_path / "f.zip", [(str(n), b"x") for n in range(3)]), ".zip")


def test_a_zip_with_an_endless_list_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.zip", [(str(n), b"x") for n in range(200)])
    data = path.read_bytes()
    path.write_bytes(data[:-22] + b"PK\x06\x07" + b"\0" * 16 + data[-22:])
    with pytest.raises(InputError, match="too many"):
        uploads.check(path, ".zip")
    path.write_bytes(data)
    uploads.check(path, ".zip")
    monkeypatch.setattr(uploads, "MAX_LIST", 5000)
    with pytest.raises(InputError, match="too many"):
        uploads.check(path, ".zip")


def test_dicom_that_unpacks_to_too_much_is_refused(tmp_path):
    pytest.importorskip("pydicom")
    from pydicom.uid import UID
    from test_geometry_dicom import write_slice

    folder = tmp_path / "dicom"
    folder.mkdir()
    data = write_slice(folder / "0", (0, 0, 0))
    (folder / "1").write_bytes(b"no DICOM")
    uploads.check_dicom(folder)
    with pytest.raises(InputError, match="GB"):
        uploads.check_dicom(folder, most=100)
    write_slice(folder / "2", (0, 0, 1), NumberOfFrames=30_000_000)
    with pytest.raises(InputError, match="GB"):
        uploads.check_dicom(folder)
    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    (folder / "2").unlink()
    data.save_as(folder / "3")
    with pytest.raises(InputError, match="deflated"):
        uploads.check_dicom(folder)


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_long_is_not_kept(tmp_path, told):
    class Content:
        async def iter_chunked(self, _size):
            for _ in range(5):
                yield b"x" * 100

    request = type("Request", (), {"content_length": 500 if told else None, "content": Content()})
    with pytest.raises(InputError, match="larger than"):
        asyncio.run(uploads.receive(request, tmp_path / "x", most=300))
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size <= 300
    assert asyncio.run(uploads.receive(request, tmp_path / "y", most=500)).stat().st_size == 500


def test_no_zip_at_all(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(InputError, match="no readable zip"):
        uploads.check(path, ".zip")


def test_a_damaged_entry_is_said(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", np.random.default_rng(0).bytes(5000))
    data = bytearray(buffer.getvalue())
    data[2000:2100] = b"\0" * 100
    path = tmp_path / "x.zip"
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        uploads.unpack(path, tmp_path / "out")
