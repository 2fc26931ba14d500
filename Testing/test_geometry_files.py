"""Files: every lattice through every format, names and colours kept, bad files refused, nothing half-written."""

from __future__ import annotations

import gzip
import os
import resource
import stat
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from geometry_lattices import LATTICES, make

from HiEndSegLib.errors import InputError, OutputError
from HiEndSegLib.geometry import writing
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.reading import find_cases, read_volume
from HiEndSegLib.geometry.statistics import structure_statistics
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.geometry.writing import read_labels, write_labels, write_volume

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]
ANATOMY = ["SCT", "123037004", "Anatomical Structure"]
LEGEND = [
    Label(1, "liver", "Liver", (221, 130, 101), {"category": ANATOMY, "type": ["SCT", "10200004", "Liver"],
                                                 "modifier": None}, True),
    Label(2, "kidney_left", "Left kidney (Niere links, почка)", (185, 102, 83), {
        "category": ANATOMY, "type": ["SCT", "64033007", "Kidney"], "modifier": ["SCT", "7771000", "Left"]}),
    Label(5, "absent", "Never there", (0, 255, 7)),
]


def labels_like(lattice: str) -> Volume:
    volume = make(lattice, np.uint8)
    return volume.with_array(np.choose(volume.array % 3, [0, 1, 2]).astype(np.uint8))


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


# ---------------------------------------------------------------- label maps

@pytest.mark.parametrize("ending", [".seg.nrrd", *FORMATS])
@pytest.mark.parametrize("lattice", LATTICES)
def test_labels_round_trip_with_names(tmp_path, lattice, ending):
    labels = labels_like(lattice)
    path = tmp_path / f"Ergebnis für {lattice}{ending}"
    write_labels(labels, LEGEND, path)
    back, legend = read_labels(path)
    assert back.same_lattice(labels, 1e-6) and np.array_equal(back.array, labels.array)
    assert back.array.dtype == np.uint8
    assert [(a.value, a.id, a.name, a.color, a.terminology) for a in legend[:2]] == \
        [(a.value, a.id, a.name, a.color, a.terminology) for a in LEGEND[:2]]
    assert [a.id for a in legend] == ["liver", "kidney_left", "absent"]


def test_values_without_a_name_get_one_and_bad_label_maps_are_refused(tmp_path):
    labels = labels_like("LPS")
    labels = labels.with_array(np.where(labels.array == 2, 9, labels.array))
    write_labels(labels, LEGEND, tmp_path / "a.seg.nrrd")
    assert [(x.value, x.id) for x in read_labels(tmp_path / "a.seg.nrrd")[1]][-1] == (9, "label_9")
    for bad in (labels.array.astype(np.int16) - 1, labels.array.astype(np.int32) + 300, labels.array + 0.5):
        with pytest.raises(ValueError):
            write_labels(labels.with_array(bad), LEGEND, tmp_path / "b.seg.nrrd")
    with pytest.raises(ValueError, match="same value or id"):
        write_labels(labels, [LEGEND[0], LEGEND[0]], tmp_path / "b.seg.nrrd")
    assert not (tmp_path / "b.seg.nrrd").exists()
    write_volume(make("LPS"), tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match="not a label map"):
        read_labels(tmp_path / "ct.nii.gz")
    write_labels(labels.with_array(labels.array.astype(np.float32)), LEGEND, tmp_path / "float.nii")
    nib.save(nib.Nifti1Image(labels.array.astype(np.float32), np.eye(4)), tmp_path / "plain.nii")
    volume, legend = read_labels(tmp_path / "plain.nii")
    assert legend == [] and np.array_equal(volume.array, labels.array) and volume.array.dtype == np.uint8


def test_segmentation_with_overlapping_segments_in_layers(tmp_path):
    """What Slicer writes when segments overlap: a fourth axis of layers, the value 1 in each."""
    layers = np.zeros((2, 4, 5, 6), np.uint8, order="F")         # layer, i, j, k
    layers[0, 1:3] = 1
    layers[1, 2:4] = 1
    header = ("NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 4 5 6\n"
              "space directions: none (2,0,0) (0,2,0) (0,0,3)\nkinds: list domain domain domain\nendian: little\n"
              "encoding: raw\nspace origin: (1,2,3)\n")
    for n, name in enumerate(("first", "second")):
        header += (f"Segment{n}_ID:={name}\nSegment{n}_Name:={name}\nSegment{n}_Color:=1 0 0.5\nSegment{n}_Layer:={n}\n"
                   f"Segment{n}_LabelValue:=1\n")
    (tmp_path / "s.seg.nrrd").write_bytes(header.encode() + b"\n" + layers.tobytes(order="F"))
    volume, legend = read_labels(tmp_path / "s.seg.nrrd")
    assert volume.shape == (4, 5, 6) and volume.ijk_to_ras[:3, 3] == pytest.approx([-1, -2, 3])
    assert [(x.id, x.value, x.color) for x in legend] == [("first", 1, (255, 0, 128)), ("second", 2, (255, 0, 128))]
    assert [volume.array[i, 0, 0] for i in range(4)] == [0, 1, 2, 2] and "30 voxels" in volume.notes[0]


def test_slicer_reads_our_segmentation(tmp_path):
    slicer = pytest.importorskip("slicer", reason="needs the slicer-core package", exc_type=ImportError)
    if not hasattr(slicer, "vtkMRMLSegmentationStorageNode"):
        pytest.skip("this slicer package has no segmentation nodes")
    import vtk
    from vtkmodules.util.numpy_support import vtk_to_numpy
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    for name in ("oblique", "left-handed oblique", "LPS", "one slice"):
        labels = labels_like(name)
        write_labels(labels, LEGEND, tmp_path / "ä b.seg.nrrd")
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetFileName(str(tmp_path / "ä b.seg.nrrd"))
        assert storage.ReadData(node) == 1
        segmentation = node.GetSegmentation()
        assert segmentation.GetNumberOfSegments() == 3
        for label in LEGEND:
            segment = segmentation.GetSegment(label.id)
            assert segment.GetName() == label.name and segment.GetLabelValue() == label.value
            assert segment.GetColor() == pytest.approx([c / 255 for c in label.color], abs=1e-5)
            assert not segment.GetNameAutoGenerated() and not segment.GetColorAutoGenerated()
        assert segmentation.GetSegment("kidney_left").GetTerminology().AsString().split("~")[2:4] == \
            ["SCT^64033007^Kidney", "SCT^7771000^Left"] if hasattr(
                segmentation.GetSegment("kidney_left").GetTerminology(), "AsString") else True
        tag = vtk.mutable("") if hasattr(vtk, "mutable") else None
        if segmentation.GetSegment("kidney_left").GetTag("TerminologyEntry", tag):
            assert "SCT^64033007^Kidney~SCT^7771000^Left" in str(tag)
        image = slicer.vtkOrientedImageData()
        matrix = vtk.vtkMatrix4x4()
        shared = segmentation.GetSegment("liver").GetRepresentation(
            slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName())
        shared.GetImageToWorldMatrix(matrix)
        found = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
        extent = shared.GetExtent()
        assert found == pytest.approx(labels.ijk_to_ras, abs=1e-6)
        voxels = vtk_to_numpy(shared.GetPointData().GetScalars()).reshape(shared.GetDimensions(), order="F")
        window = tuple(slice(a, b + 1) for a, b in zip(extent[::2], extent[1::2]))
        assert np.array_equal(voxels, labels.array[window]) and voxels.size == labels.array.size
        # The reference geometry names the same lattice.
        text = segmentation.GetConversionParameter(
            slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName())
        slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image, False)
        image.GetImageToWorldMatrix(matrix)
        found = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
        assert found == pytest.approx(labels.ijk_to_ras, abs=1e-6) and image.GetDimensions() == labels.shape
        # And what Slicer writes, we read.
        out = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        out.SetFileName(str(tmp_path / "slicer.seg.nrrd"))
        assert out.WriteData(node) == 1
        back, legend = read_labels(tmp_path / "slicer.seg.nrrd")
        assert back.same_lattice(labels, 1e-6) and np.array_equal(back.array, labels.array)
        assert [(x.id, x.name, x.color, x.terminology) for x in legend[:2]] == \
            [(x.id, x.name, x.color, x.terminology) for x in LEGEND[:2]]


# ---------------------------------------------------------------- nothing half-written

@pytest.mark.parametrize("ending", [".seg.nrrd", *FORMATS])
@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are a POSIX matter")
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, ending):
    path = tmp_path / f"result{ending}"
    path.write_bytes(b"precious")
    noise = Volume(np.random.default_rng(0).integers(0, 200, (60, 60, 60)).astype(np.uint8), np.eye(4))
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


# ---------------------------------------------------------------- statistics

def test_statistics_by_hand():
    array = np.zeros((4, 5, 6), np.uint8)
    array[0, 0, :3], array[1] = 1, 2
    image = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    matrix = np.diag([2.0, 2, 2.5, 1])
    for flip in (lambda a: a, np.asfortranarray):
        rows = structure_statistics(Volume(flip(array), matrix), Volume(image, matrix), LEGEND)
        assert [row["id"] for row in rows] == ["liver", "kidney_left", "absent"]
        assert rows[0] == {"id": "liver", "name": "Liver", "value": 1, "voxels": 3,
                           "volume_ml": pytest.approx(0.03), "mean_hu": 1.0}
        assert rows[1]["voxels"] == 30 and rows[1]["mean_hu"] == pytest.approx(np.arange(30, 60).mean())
        assert rows[2]["voxels"] == 0 and rows[2]["mean_hu"] is None
    assert structure_statistics(Volume(array, matrix), None, LEGEND)[0]["mean_hu"] is None
    with pytest.raises(ValueError):
        structure_statistics(Volume(array, matrix), Volume(image[1:], matrix), LEGEND)


def test_statistics_in_slabs_are_the_same(monkeypatch):
    from HiEndSegLib.geometry import statistics
    labels, image = labels_like("LPS"), make("LPS")
    once = structure_statistics(labels, image, LEGEND)
    monkeypatch.setattr(statistics, "slabs", lambda shape, axis, f=statistics.slabs: f(shape, 50, axis))
    again = structure_statistics(labels, image, LEGEND)
    assert [(r["voxels"], pytest.approx(r["mean_hu"])) for r in once] == [(r["voxels"], r["mean_hu"]) for r in again]


def test_writable_list_is_what_the_sentence_says():
    assert set(writing.WRITABLE) == {".seg.nrrd", *FORMATS}
