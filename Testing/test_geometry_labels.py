"""Label maps: names, colours and terminology kept, Slicer reads what we write, volumes and means by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from geometry_lattices import FORMATS, LATTICES, LEGEND, labels_like, make

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.labels import Label, parse_terminology_tag, terminology_tag
from HiEndSegLib.geometry.statistics import structure_statistics
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.geometry.writing import read_labels, write_labels, write_volume


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
    slicer = pytest.importorskip("slicer", reason="needs the slicer-core package")
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
            tag = vtk.reference("")
            assert segment.GetTag("TerminologyEntry", tag) and str(tag) == terminology_tag(label)
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


def test_terminology_tag_has_seven_parts_and_comes_back():
    kidney = Label(3, "kidney_left", "Left kidney", (1, 2, 3), {
        "category": ["SCT", "123037004", "Anatomical Structure"], "type": ["SCT", "64033007", "Kidney"],
        "modifier": ["SCT", "7771000", "Left"]})
    tag = terminology_tag(kidney)
    assert tag == ("Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure"
                   "~SCT^64033007^Kidney~SCT^7771000^Left~Anatomic codes - DICOM master list~^^~^^")
    assert parse_terminology_tag(tag + "|") == kidney.terminology
    plain = Label(1, "liver", "Liver", (1, 2, 3), {**kidney.terminology, "modifier": None})
    assert parse_terminology_tag(terminology_tag(plain))["modifier"] is None
    assert terminology_tag(Label(1, "x", "X", (0, 0, 0))).count("~") == 6
    assert parse_terminology_tag("nonsense") is None
    assert Label.from_dict(kidney.to_dict()) == kidney
