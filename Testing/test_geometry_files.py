"""Image files: every lattice through every format, and bad files refused in one sentence."""

from __future__ import annotations

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from geometry_lattices import FORMATS, LATTICES, LEGEND, labels_like, make

from HiEndSegLib.errors import InputError, OutputError
from HiEndSegLib.geometry.reading import find_cases, read_volume
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.geometry.writing import write_labels, write_volume


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("lattice", LATTICES)
def test_volume_round_trip_is_exact(tmp_path, lattice, ending):
    volume = make(lattice)
    path = tmp_path / f"größe {lattice}{ending}"
    write_volume(volume, path)
    back = read_volume(path)
    assert back.same_lattice(volume, 1e-6)
    assert back.array.dtype == np.int16 and np.array_equal(back.array, volume.array)
    assert back.name == f"größe {lattice}" and back.notes == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("lattice", LATTICES)
def test_every_reader_sees_the_same_lattice(tmp_path, lattice, ending):
    """ITK (and so Slicer) and nibabel agree with us on where voxels are, whichever wrote the file."""
    volume = make(lattice)
    path = tmp_path / f"a{ending}"
    write_volume(volume, path)
    image = sitk.ReadImage(str(path))
    corner = [n - 1 for n in volume.shape]
    expected = np.diag([-1, -1, 1]) @ (volume.ijk_to_ras @ [*corner, 1])[:3]
    assert image.TransformIndexToPhysicalPoint(corner) == pytest.approx(expected, abs=1e-3)
    assert image[corner] == volume.array[tuple(corner)]
    sitk.WriteImage(image, str(tmp_path / f"b{ending}"))
    assert read_volume(tmp_path / f"b{ending}").same_lattice(volume, 1e-3)


def test_nifti_matrix_in_64_bits_unless_somebody_moved_the_image(tmp_path):
    volume = make("oblique")
    write_volume(volume, tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    assert type(image) is nib.Nifti1Image and not np.array_equal(image.affine, volume.ijk_to_ras)
    assert np.array_equal(read_volume(tmp_path / "a.nii.gz").ijk_to_ras, volume.ijk_to_ras)
    moved = image.affine.copy()
    moved[0, 3] += 0.5
    image.set_sform(moved)
    nib.save(image, tmp_path / "b.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "b.nii.gz").ijk_to_ras, nib.load(tmp_path / "b.nii.gz").affine)
    # What came from NIfTI goes back into NIfTI bit by bit.
    nib.save(nib.Nifti1Image(volume.array, volume.ijk_to_ras), tmp_path / "in.nii")
    write_volume(read_volume(tmp_path / "in.nii"), tmp_path / "out.nii")
    assert np.array_equal(nib.load(tmp_path / "out.nii").affine, nib.load(tmp_path / "in.nii").affine)


def test_nifti_2_and_big_endian(tmp_path):
    volume = make("oblique")
    nib.save(nib.Nifti2Image(volume.array, volume.ijk_to_ras), tmp_path / "two.nii.gz")
    assert read_volume(tmp_path / "two.nii.gz").same_lattice(volume, 0)
    image = nib.Nifti1Image(volume.array, volume.ijk_to_ras)
    nib.save(nib.Nifti1Image(volume.array, volume.ijk_to_ras, image.header.as_byteswapped(">")), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    back = read_volume(tmp_path / "big.nii")
    assert np.array_equal(back.array, volume.array) and back.array.dtype == np.dtype(np.int16)


def test_a_damaged_gz_is_noticed_by_its_check_sum(tmp_path):
    write_volume(make("LPS"), tmp_path / "a.nii.gz")
    data = bytearray((tmp_path / "a.nii.gz").read_bytes())
    data[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(data)
    refused(tmp_path / "a.nii.gz", "damaged")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32, bool, np.int64,
                                   np.float16, ">i2"])
@pytest.mark.parametrize("ending", FORMATS)
def test_voxel_types(tmp_path, dtype, ending):
    volume = make("LPS", np.uint8)
    volume = volume.with_array((volume.array % 2 if dtype is bool else volume.array // 2).astype(dtype))
    write_volume(volume, tmp_path / f"a{ending}")
    assert np.array_equal(read_volume(tmp_path / f"a{ending}").array, volume.array)


def test_sheared_nifti_keeps_its_matrix(tmp_path):
    matrix = np.array([[1, 0.25, 0, 5], [0, 1, 0.5, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    write_volume(Volume(np.ones((4, 5, 6), np.int16), matrix), tmp_path / "a.nii")
    assert np.array_equal(read_volume(tmp_path / "a.nii").ijk_to_ras, matrix)
    assert int(nib.load(tmp_path / "a.nii").header["qform_code"]) == 0      # a quaternion cannot say it
    write_volume(make("oblique"), tmp_path / "b.nii")
    header = nib.load(tmp_path / "b.nii").header
    assert int(header["qform_code"]) == 1 and header.get_qform() == pytest.approx(make("oblique").ijk_to_ras, abs=1e-3)


def test_arrays_do_not_hang_on_to_the_file(tmp_path):
    """A memory map would crash the program when the file is cut or replaced later."""
    for ending in FORMATS:
        write_volume(make("LPS"), tmp_path / f"a{ending}")
        array = read_volume(tmp_path / f"a{ending}").array
        while array is not None:
            assert not isinstance(array, np.memmap)
            array = array.base if isinstance(array.base, np.ndarray) else None


def test_nan_voxels_are_read_with_a_note(tmp_path):
    for ending in FORMATS:
        array = np.random.default_rng(0).normal(0, 100, (5, 6, 7)).astype(np.float32)
        array[2, 2, 2], array[3, 3, 3] = np.nan, np.inf
        write_volume(Volume(array, LATTICES["oblique"][1]), tmp_path / f"nan{ending}")
        volume = read_volume(tmp_path / f"nan{ending}")
        assert np.isfinite(volume.array).all() and volume.array[2, 2, 2] == volume.array.min()
        assert "2 voxels" in volume.notes[0] and volume.same_lattice(Volume(array, LATTICES["oblique"][1]))


def nifti(path, raw, slope=1.0, inter=0.0, **header):
    image = nib.Nifti1Image(raw, np.diag([-1.0, -1, 2, 1]))
    for key, value in header.items():
        image.header[key] = value
    image.header.set_slope_inter(slope, inter)
    nib.save(image, path)
    # nibabel resets the scaling of an image it makes itself: put it into the header's bytes
    blob = bytearray(path.read_bytes())
    blob[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(blob)
    return path


@pytest.mark.parametrize("raw_type, slope, inter, expected", [
    (np.int16, 1, 0, np.int16), (np.uint16, 1, -1024, np.int16), (np.int16, 2, -1024, np.int16),
    (np.uint16, 1, -32768, np.int16), (np.int16, 100, 0, np.int32), (np.int16, 0.5, 0.25, np.float32)])
def test_rescaled_nifti_stays_integer_where_that_is_exact(tmp_path, raw_type, slope, inter, expected):
    raw = np.array([0, 1, 2000, 4095, 40000 if raw_type == np.uint16 and inter == -32768 else 7, 9, 10, 11],
                   dtype=raw_type).reshape(2, 2, 2)
    volume = read_volume(nifti(tmp_path / "a.nii", raw, slope, inter))
    assert volume.array.dtype == expected
    assert volume.array == pytest.approx(raw.astype(float) * slope + inter)


def test_nifti_affine_choice_is_nibabels(tmp_path):
    sform, qform = LATTICES["oblique"][1], LATTICES["LPS"][1]
    for s_code, q_code in ((1, 1), (0, 1), (2, 0), (0, 0)):
        image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
        image.header.set_zooms((0.7, 0.8, 5))
        image.header.set_qform(qform, q_code)
        image.header.set_sform(sform, s_code)
        nib.save(image, tmp_path / "a.nii")
        assert np.array_equal(read_volume(tmp_path / "a.nii").ijk_to_ras, nib.load(tmp_path / "a.nii").affine)


def test_trailing_single_dimensions_and_a_flat_picture(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5, 1, 1), np.int16), np.eye(4)), tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").shape == (3, 4, 5)
    nib.save(nib.Nifti1Image(np.ones((3, 4), np.int16), np.eye(4)), tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").shape == (3, 4, 1)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 3), np.int16)), str(tmp_path / "c.mha"))
    assert read_volume(tmp_path / "c.mha").shape == (3, 4, 1)


# ---------------------------------------------------------------- what cannot be read

def refused(path, word: str) -> str:
    with pytest.raises(InputError, match=word) as caught:
        read_volume(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and path.name in sentence and len(sentence) < 300
    return sentence


@pytest.mark.parametrize("ending", FORMATS)
def test_empty_and_cut_files(tmp_path, ending):
    write_volume(Volume(np.random.default_rng(0).integers(-1000, 1000, (40, 40, 10)).astype(np.int16), np.eye(4)),
                 tmp_path / f"whole{ending}")
    data = (tmp_path / f"whole{ending}").read_bytes()
    for number, size in enumerate((1, 100, len(data) // 2, len(data) - (2 if ending == ".nii.gz" else 40))):
        path = tmp_path / f"naïve cut {number}{ending}"
        path.write_bytes(data[:size])
        refused(path, "damaged|cut short")
    path = tmp_path / f"empty{ending}"
    path.write_bytes(b"")
    refused(path, "empty")
    path = tmp_path / f"prose{ending}"
    path.write_bytes(b"This is not an image. " * 50)
    refused(path, "damaged")
    refused(tmp_path / f"nothing there{ending}", "does not exist")


def test_a_header_that_asks_for_the_moon(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    image.header["dim"][1:4] = 32000
    blob = image.header.binaryblock + bytes(4)
    (tmp_path / "moon.nii").write_bytes(blob)
    (tmp_path / "moon.nii.gz").write_bytes(gzip.compress(blob))
    refused(tmp_path / "moon.nii", "cut short")
    refused(tmp_path / "moon.nii.gz", "cut short")


def test_four_dimensions_and_colour(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 6), np.int16), np.eye(4)), tmp_path / "4d.nii.gz")
    refused(tmp_path / "4d.nii.gz", "6 volumes")
    rgb = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    refused(tmp_path / "rgb.nii", "colour")
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4)), tmp_path / "complex.nii")
    refused(tmp_path / "complex.nii", "complex")
    for ending in (".nrrd", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.uint8), isVector=True),
                        str(tmp_path / f"rgb{ending}"))
        refused(tmp_path / f"rgb{ending}", "3 numbers per voxel")
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False),
                        str(tmp_path / f"4d{ending}"))
        refused(tmp_path / f"4d{ending}", "2 volumes")


def test_zero_and_negative_spacing(tmp_path):
    raw = np.zeros((3, 4, 5), np.int16)
    for value in (0.0, -1.0, np.nan):
        image = nib.Nifti1Image(raw, None)
        nib.save(image, tmp_path / "a.nii")
        blob = bytearray((tmp_path / "a.nii").read_bytes())
        blob[84:88] = np.array([value], "<f4").tobytes()         # pixdim[2]
        (tmp_path / "bad.nii").write_bytes(blob)
        refused(tmp_path / "bad.nii", "spacing")
    image = nib.Nifti1Image(raw, np.diag([1.0, 1, 1, 1]))
    image.header["srow_z"] = 0, 0, 0, 0
    nib.save(image, tmp_path / "flat.nii")
    header = nib.load(tmp_path / "flat.nii").header
    if header["srow_z"].any():      # nibabel rewrote it from the affine: put zeros into the bytes
        blob = bytearray((tmp_path / "flat.nii").read_bytes())
        blob[312:328] = bytes(16)
        (tmp_path / "flat.nii").write_bytes(blob)
    refused(tmp_path / "flat.nii", "zero|one plane")
    start = "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 4 5\nencoding: raw\nendian: little\n"
    for line in ("spacings: 1 0 1", "space: LPS\nspace directions: (1,0,0) (0,0,0) (0,0,1)\nspace origin: (0,0,0)",
                 "space: LPS\nspace directions: (1,0,0) (1,0,0) (0,0,1)\nspace origin: (0,0,0)"):
        (tmp_path / "bad.nrrd").write_bytes((start + line + "\n\n").encode() + raw.tobytes())
        refused(tmp_path / "bad.nrrd", "zero|one plane")
    start = "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = False\nDimSize = 3 4 5\n"
    for line in ("ElementSpacing = 1 0 1", "TransformMatrix = 1 0 0 1 0 0 0 0 1"):
        (tmp_path / "bad.mha").write_bytes(
            f"{start}{line}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode() + raw.tobytes())
        refused(tmp_path / "bad.mha", "zero|one plane")
    # A negative step is an axis that runs the other way.
    (tmp_path / "flip.mha").write_bytes(
        f"{start}ElementSpacing = -1 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode() + raw.tobytes())
    assert read_volume(tmp_path / "flip.mha").axis_codes == "RPS"


@pytest.mark.parametrize("old, new", [(b"NDims = 3", b"NDims = 99"), (b"ObjectType = Image", b"ObjectType = Ima-e"),
                                      (b"LOCAL\n", b"LOCAL\xff"), (b"ElementDataFile", b"Elementxxxxxxxx"),
                                      (b"TransformMatrix = 1", b"TransformMatrix =" + b" 1" * 50)])
def test_metaimage_headers_that_break_the_reader_below(tmp_path, old, new):
    write_volume(make("LPS"), tmp_path / "a.mha")
    data = (tmp_path / "a.mha").read_bytes()
    assert old in data
    (tmp_path / "a.mha").write_bytes(data.replace(old, new))
    refused(tmp_path / "a.mha", "header is damaged")


def test_missing_data_file_foreign_files_and_folders_without_images(tmp_path):
    write = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    sitk.WriteImage(write, str(tmp_path / "two.mhd"))
    assert read_volume(tmp_path / "two.mhd").shape == (5, 4, 3)
    (tmp_path / "two.raw").unlink()
    refused(tmp_path / "two.mhd", "data file is missing")
    (tmp_path / "notes.txt").write_text("hello " * 100)
    refused(tmp_path / "notes.txt", "not an image")
    (tmp_path / "empty folder").mkdir()
    refused(tmp_path / "empty folder", "no DICOM images")
    with pytest.raises(OutputError):
        write_volume(make("LPS"), tmp_path / "a.nhdr")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write_volume(make("LPS"), tmp_path / "a.nii")
    (tmp_path / "a.nii").chmod(0)
    refused(tmp_path / "a.nii", "permissions")


def test_find_cases(tmp_path):
    (tmp_path / "b folder" / "deep").mkdir(parents=True)
    for name in ("z.nii.gz", "b folder/a ü.mha", "b folder/deep/c.nrrd"):
        write_volume(make("LPS"), tmp_path / name)
    write_labels(labels_like("LPS"), LEGEND, tmp_path / "z.seg.nrrd")
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / ".hidden.nii").write_bytes(b"x")
    cases = find_cases([tmp_path, tmp_path / "z.nii.gz", tmp_path / "not there.nii"])
    assert [(c.name, c.kind) for c in cases] == [
        ("z", "file"), ("a ü", "file"), ("c", "file"), ("not there", "nothing")]
    assert find_cases(tmp_path / "b folder" / "deep")[0].path.name == "c.nrrd"
    (tmp_path / "hollow").mkdir()
    assert [(c.path, c.kind) for c in find_cases([tmp_path / "hollow"])] == [(tmp_path / "hollow", "nothing")]


def test_linked_folders_are_gone_into_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write_volume(make("LPS"), tmp_path / "elsewhere" / "a.nrrd")
    (tmp_path / "data" / "own").mkdir(parents=True)
    try:
        (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "data" / "own" / "back").symlink_to(tmp_path / "data", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    assert [case.path for case in find_cases(tmp_path / "data")] == [tmp_path / "data" / "linked" / "a.nrrd"]
