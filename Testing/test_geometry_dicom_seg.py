"""DICOM segmentations lie where they were drawn: read back frame by frame with pydicom alone, and by highdicom."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from geometry_lattices import rotation
from test_geometry_dicom import enhanced, straight, write_series

from HiEndSegLib.errors import OutputError
from HiEndSegLib.geometry import dicom_seg
from HiEndSegLib.geometry.dicom_seg import source_headers, write_dicom_seg
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.geometry.reading import read_volume
from HiEndSegLib.geometry.volume import Volume

pytest.importorskip("highdicom", reason="highdicom is not installed")

LIVER = Label(5, "liver", "Liver", (221, 130, 101), {"category": ["SCT", "123037004", "Anatomical Structure"],
                                                     "type": ["SCT", "10200004", "Liver"], "modifier": None})
KIDNEY = Label(9, "kidney_left", "Left kidney", (185, 102, 83), {
    "category": ["SCT", "123037004", "Anatomical Structure"], "type": ["SCT", "64033007", "Kidney"],
    "modifier": ["SCT", "7771000", "Left"]})
LESION = Label(200, "lesion", "Lesion", (9, 8, 7))
EMPTY = Label(30, "spleen", "Spleen", (1, 2, 3))
LEGEND = [LIVER, KIDNEY, LESION, EMPTY]
#: What a scanner writes beside what the reader looks at.
SCANNER = {"FrameOfReferenceUID": "1.2.9", "PatientID": "7", "PatientName": "Anna^Maria", "PatientBirthDate": "",
           "PatientSex": "F", "StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1", "AccessionNumber": "",
           "ReferringPhysicianName": ""}


def drawn(volume):
    """Three structures in an asymmetric pattern, on the volume's lattice."""
    array = np.zeros(volume.shape, np.uint8)
    i, j, k = volume.shape
    array[1:i // 2, 2:j // 3, :k // 2] = LIVER.value
    array[i // 2:, 1:4, 1:] = KIDNEY.value
    array[i - 3:, j - 2:, k - 1:] = LESION.value
    return volume.with_array(array)


def world_points(labels: Volume, value: int) -> set:
    """LPS positions of a structure's voxels, rounded to hundredths of a mm."""
    ras = np.argwhere(labels.array == value) @ labels.ijk_to_ras[:3, :3].T + labels.ijk_to_ras[:3, 3]
    return {tuple(point) for point in np.round(ras * [-1, -1, 1], 2) + 0.0}


def points_in_file(path, number: int) -> set:
    """The same from the file's frames, by DICOM's own rule (PS3.3 C.7.6.2.1.1), without highdicom."""
    data = pydicom.dcmread(path)
    shared = data.SharedFunctionalGroupsSequence[0]
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    points = []
    for frame, groups in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        turned = np.array((groups.get("PlaneOrientationSequence")
                           or shared.PlaneOrientationSequence)[0].ImageOrientationPatient, float)
        between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
        rows, columns = np.nonzero(frame)
        points.append(position + columns[:, None] * turned[:3] * between_columns
                      + rows[:, None] * turned[3:] * between_rows)
    return {tuple(point) for point in np.round(np.concatenate(points), 2) + 0.0}


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1),
                                         tuple(rotation(10, -5, 20)[:, :2].T.ravel())])
def test_every_voxel_lies_where_it_was_drawn(tmp_path, orientation):
    normal = np.cross(orientation[:3], orientation[3:])
    write_series(tmp_path / "ct", straight(normal=normal), orientation, **SCANNER)
    labels = drawn(read_volume(tmp_path / "ct"))
    write_dicom_seg(labels, LEGEND, source_headers(tmp_path / "ct"), tmp_path / "out.dcm", model="tiny@1.0.0")
    for number, label in enumerate((LIVER, KIDNEY, LESION), 1):
        there, written = world_points(labels, label.value), points_in_file(tmp_path / "out.dcm", number)
        assert len(there) > 5 and len(there ^ written) == 0, (label.id, len(there), len(written))


def test_what_the_file_says_about_itself(tmp_path):
    write_series(tmp_path / "ct", straight(), **SCANNER)
    labels = drawn(read_volume(tmp_path / "ct"))
    headers = source_headers(tmp_path / "ct")
    assert len(headers) == 6 and not any("PixelData" in header for header in headers)
    write_dicom_seg(labels, LEGEND, headers, tmp_path / "out.dcm", description="Anna HiEndSeg", model="tiny@1.0.0")
    data = pydicom.dcmread(tmp_path / "out.dcm")
    assert (data.Modality, data.PatientID, data.StudyInstanceUID) == ("SEG", "7", "1.2")
    assert data.FrameOfReferenceUID == "1.2.9" and data.SeriesInstanceUID != "1.2.3"
    assert [str(one.SegmentLabel) for one in data.SegmentSequence] == ["Liver", "Left kidney", "Lesion"]
    kidney = data.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    assert kidney.CodeValue == "64033007"
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert data.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "tiny@1.0.0"
    named = {one.ReferencedSOPInstanceUID for one in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert named <= {header.SOPInstanceUID for header in headers} and named


def test_highdicom_reads_the_same_volume_back(tmp_path):
    import highdicom

    write_series(tmp_path / "ct", straight(), **SCANNER)
    labels = drawn(read_volume(tmp_path / "ct"))
    write_dicom_seg(labels, LEGEND, source_headers(tmp_path / "ct"), tmp_path / "out.dcm")
    back = highdicom.seg.segread(tmp_path / "out.dcm").get_volume(combine_segments=True)
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ back.affine
    points = np.argwhere(back.array == 2) @ matrix[:3, :3].T + matrix[:3, 3]
    there = {tuple(np.round(np.array(point) * [-1, -1, 1], 2) + 0.0) for point in world_points(labels, KIDNEY.value)}
    assert {tuple(point) for point in np.round(points, 2) + 0.0} == there


def test_a_tilted_series_was_straightened_and_its_segmentation_lies_on_that_lattice(tmp_path):
    positions = [np.array([-15.0, -12.0 + 0.8 * n, 3.0 + 2.5 * n]) for n in range(6)]
    write_series(tmp_path / "ct", positions, **SCANNER)
    labels = drawn(read_volume(tmp_path / "ct"))
    write_dicom_seg(labels, LEGEND, source_headers(tmp_path / "ct"), tmp_path / "out.dcm")
    assert points_in_file(tmp_path / "out.dcm", 1) == world_points(labels, LIVER.value)


def test_nothing_to_write_is_said(tmp_path):
    write_series(tmp_path / "ct", straight(), **SCANNER)
    volume = read_volume(tmp_path / "ct")
    with pytest.raises(OutputError, match="segment the volume first"):
        write_dicom_seg(volume.with_array(np.zeros(volume.shape, np.uint8)), LEGEND, source_headers(tmp_path / "ct"),
                        tmp_path / "out.dcm")
    assert not (tmp_path / "out.dcm").exists()


def test_headers_that_lack_what_is_needed_are_said(tmp_path):
    write_series(tmp_path / "ct", straight())
    labels = drawn(read_volume(tmp_path / "ct"))
    with pytest.raises(OutputError, match="seg.nrrd"):
        write_dicom_seg(labels, LEGEND, source_headers(tmp_path / "ct"), tmp_path / "out.dcm")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    with pytest.raises(OutputError, match="pip install highdicom"):
        dicom_seg.import_highdicom()


def test_an_enhanced_series_in_one_file(tmp_path):
    enhanced(tmp_path / "ct.dcm", straight(), (1, 0, 0, 0, 1, 0))
    assert len(source_headers(tmp_path / "ct.dcm")) == 1
