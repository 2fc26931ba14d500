"""DICOM series that the tests write themselves: right volumes, or one right sentence."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from geometry_lattices import rotation
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from HiEndSegLib.errors import InputError
from HiEndSegLib.geometry.dicom import is_dicom
from HiEndSegLib.geometry.modality import guess_modality
from HiEndSegLib.geometry.reading import find_cases, list_series, read_volume

ROWS, COLUMNS, PIXEL = 20, 24, (2.0, 1.5)       # PIXEL as in the file: mm between rows, mm between columns


def field(points: np.ndarray) -> np.ndarray:
    """HU at LPS points (…, 3): linear, so that linear interpolation is exact, and within int16 and its rounding."""
    return points @ [2.0, -3.0, 4.0] + 40


def slice_points(position, orientation, pixel=PIXEL, rows=ROWS, columns=COLUMNS) -> np.ndarray:
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.asarray(position, float) + c[..., None] * row * pixel[1] + r[..., None] * column * pixel[0]


def write_slice(path, position, orientation=(1, 0, 0, 0, 1, 0), *, uid="1.2.3", number=4, instance=1,
                description="Test", pixels=None, slope=1, intercept=-1024, thickness=2.5, pixel=PIXEL, rows=ROWS,
                columns=COLUMNS, signed=False, **tags) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = "CT", uid, "1.2"
    ds.SeriesNumber, ds.SeriesDescription, ds.InstanceNumber = number, description, instance
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    ds.PixelSpacing, ds.SliceThickness = list(pixel), thickness
    ds.ImagePositionPatient = [f"{float(v):.10g}"[:16] for v in position]
    ds.ImageOrientationPatient = [f"{float(v):.10g}"[:16] for v in orientation]
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, int(signed)
    if pixels is None:
        pixels = field(slice_points(position, orientation, pixel, rows, columns))
    stored = np.rint((pixels - intercept) / slope)
    ds.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    for key, value in tags.items():
        if value is None:
            delattr(ds, key)
        else:
            setattr(ds, key, value)
    ds.save_as(path, enforce_file_format=True)
    return ds


def write_series(folder, positions, orientation=(1, 0, 0, 0, 1, 0), **keywords) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(positions))        # file names say nothing about the place
    for name, index in enumerate(order):
        write_slice(folder / f"{keywords.get('uid', '')}{name:03d}.dcm", positions[index], orientation,
                    instance=int(index) + 1, **keywords)


def truth_of(volume) -> np.ndarray:
    """The field at every voxel centre of a volume, by its own matrix."""
    ijk = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    ras = ijk @ volume.ijk_to_ras[:3, :3].T + volume.ijk_to_ras[:3, 3]
    return field(ras * [-1, -1, 1])


def straight(count=6, step=2.5, start=(-15.0, -12.0, 3.0), normal=(0, 0, 1)) -> list:
    return [np.asarray(start) + i * step * np.asarray(normal, float) for i in range(count)]


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0), (0, 1, 0, 0, 0, -1),
                                         (0, 0, 1, 1, 0, 0), tuple(rotation(10, -5, 20)[:, :2].T.ravel())])
@pytest.mark.parametrize("slope, intercept, signed", [(1, -1024, False), (1, 0, True), (0.5, -300, False)])
def test_plain_series_any_orientation(tmp_path, orientation, slope, intercept, signed):
    normal = np.cross(orientation[:3], orientation[3:])
    write_series(tmp_path / "Körper 1", straight(normal=normal), orientation, slope=slope, intercept=intercept,
                 signed=signed)
    volume = read_volume(tmp_path / "Körper 1")
    assert volume.shape == (COLUMNS, ROWS, 6) and volume.spacing == pytest.approx((1.5, 2.0, 2.5), abs=1e-6)
    assert volume.array.dtype == (np.float32 if slope == 0.5 else np.int16)
    assert volume.array == pytest.approx(truth_of(volume), abs=0.51)
    assert np.linalg.det(volume.ijk_to_ras[:3, :3]) > 0
    assert volume.meta["modality"] == "CT" and volume.notes == [] and "series 4" in volume.meta["source"]
    assert volume.name == "Test"
    if volume.array.min() < -20:
        assert guess_modality(volume).is_hu


def test_same_lattice_as_simpleitk(tmp_path):
    orientation = tuple(rotation(4, 9, -14)[:, :2].T.ravel())
    write_series(tmp_path, straight(normal=np.cross(orientation[:3], orientation[3:])), orientation)
    volume = read_volume(tmp_path)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    for index in ((0, 0, 0), (COLUMNS - 1, 3, 5)):
        lps = np.diag([-1, -1, 1, 1]) @ volume.ijk_to_ras @ [*index, 1]
        assert image.TransformIndexToPhysicalPoint(index) == pytest.approx(lps[:3], abs=1e-4)
        assert image[index] == volume.array[index]


def test_slices_with_their_own_rescale_values(tmp_path):
    for index, position in enumerate(straight()):
        write_slice(tmp_path / f"{index}", position, slope=1 + index % 2, intercept=-1024 - 2 * index)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16 and volume.array == pytest.approx(truth_of(volume), abs=1.01)


@pytest.mark.parametrize("angle", [18.5, -14.0, 3.0])
def test_gantry_tilt_is_straightened(tmp_path, angle):
    a = np.radians(angle)
    orientation = (1, 0, 0, 0, np.cos(a), -np.sin(a))
    write_series(tmp_path, straight(count=8, step=4), orientation)      # the table moves along z, the slices lean
    volume = read_volume(tmp_path)
    assert f"gantry tilt of about {abs(angle):.1f} degrees" in volume.notes[0] and len(volume.notes) == 1
    unit = volume.ijk_to_ras[:3, :3] / volume.spacing
    assert unit.T @ unit == pytest.approx(np.eye(3), abs=1e-6)
    assert volume.spacing == pytest.approx((1.5, 2.0, 4 * np.cos(a)), abs=1e-5)
    measured = volume.array != -1024            # the corners that no slice covers hold air
    assert 0.5 < measured.mean() < 1.0
    inner = measured & np.roll(measured, 1, axis=1) & np.roll(measured, -1, axis=1)
    inner[:, [0, -1]] = False
    error = np.abs(volume.array - truth_of(volume))[inner]
    assert error.max() <= 1.01 and inner.mean() > 0.5
    # Every slice is there: as many measured voxels as pixels were written, but for the rims.
    assert measured.sum() == pytest.approx(8 * ROWS * COLUMNS, rel=0.12)


def test_tilt_and_changing_spacing_together(tmp_path):
    a = np.radians(18.5)
    places = [0, 4.22, 8.44, 12.66, 16.88, 18.02, 25.4, 32.78, 40.16]
    write_series(tmp_path, [np.array([-15, -12, 3 + p]) for p in places],
                 (1, 0, 0, 0, np.cos(a), -np.sin(a)))
    volume = read_volume(tmp_path)
    assert len(volume.notes) == 2 and "unevenly spaced (1.08 to 7.00 mm)" in volume.notes[0]
    assert volume.spacing[2] * (volume.shape[2] - 1) == pytest.approx(40.16 * np.cos(a), abs=1e-3)
    middle = volume.array[:, 10:16, :]
    assert np.abs(middle - truth_of(volume)[:, 10:16, :]).max() <= 1.01


def test_missing_slices_are_filled_and_said(tmp_path):
    places = straight(count=9)
    write_series(tmp_path, [p for i, p in enumerate(places) if i not in (3, 6, 7)])
    volume = read_volume(tmp_path)
    assert volume.shape == (COLUMNS, ROWS, 9) and volume.spacing[2] == pytest.approx(2.5)
    assert volume.array == pytest.approx(truth_of(volume), abs=1.01)
    sentence, = volume.notes
    assert sentence.startswith("3 missing slices (gaps of up to 7.50 mm where slices are 2.50 mm apart) were filled in")


def test_a_hole_too_wide_to_fill_is_refused(tmp_path):
    write_series(tmp_path, straight(count=4) + straight(count=4, start=(-15, -12, 90)))
    with pytest.raises(InputError, match=r"a hole of 79\.5 mm between slices 4 and 5 of 8"):
        read_volume(tmp_path)


def test_rounding_in_the_header_is_no_unevenness(tmp_path):
    places = [np.array([-15, -12, round(3 + 0.625 * i, 2)]) for i in range(10)]
    write_series(tmp_path, places)
    volume = read_volume(tmp_path)
    assert volume.notes == [] and volume.spacing[2] == pytest.approx(0.625, abs=2e-3)


def test_copied_files_count_once(tmp_path):
    write_series(tmp_path / "a", straight())
    (tmp_path / "b").mkdir()
    for path in list((tmp_path / "a").iterdir())[:2]:
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    volume = read_volume(tmp_path)
    assert volume.shape[2] == 6 and "2 files that repeat" in volume.notes[0]
    # The same picture under another id is a doubled slice.
    write_slice(tmp_path / "again.dcm", straight()[2])
    volume = read_volume(tmp_path)
    assert volume.shape[2] == 6 and "1 slices that were there twice" in volume.notes[-1]


def test_same_position_is_not_a_volume(tmp_path):
    for index in range(4):
        write_slice(tmp_path / f"{index}.dcm", (0, 0, 5), instance=index, AcquisitionNumber=index,
                    pixels=np.full((ROWS, COLUMNS), 10.0 * index))
    with pytest.raises(InputError, match="not a volume: its 4 images lie at one position"):
        read_volume(tmp_path)


def test_two_phases_in_one_series(tmp_path):
    for phase in (1, 2):
        for index, position in enumerate(straight()):
            write_slice(tmp_path / f"{phase}-{index}.dcm", position, instance=phase * 100 + index,
                        pixels=np.full((ROWS, COLUMNS), 100.0 * phase), AcquisitionNumber=phase)
    assert [(s.number, s.slices) for s in list_series(tmp_path)] == [(1, 6), (2, 6)]
    with pytest.raises(InputError, match=r"2 image series; choose one by its number: 1: Test \[acquisition 1\]"):
        read_volume(tmp_path)
    assert (read_volume(tmp_path, series="acquisition 2").array == 200).all()
    # Without anything that tells them apart it is refused.
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        del ds.AcquisitionNumber
        ds.save_as(path)
    with pytest.raises(InputError, match="6 of its 12 images lie at the position of another one but differ"):
        read_volume(tmp_path)


def test_choosing_among_series(tmp_path):
    write_series(tmp_path, straight(), uid="1.2.3", number=2, description="Thorax soft")
    write_series(tmp_path, straight(count=9), uid="1.2.4", number=5, description="Thorax lung")
    write_slice(tmp_path / "scout.dcm", (0, 0, 0), uid="1.2.5", number=1,
                ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert [str(s) for s in list_series(tmp_path)] == ["2: Thorax soft (CT, 6 slices)", "5: Thorax lung (CT, 9 slices)"]
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    assert str(caught.value).endswith(
        "choose one by its number: 2: Thorax soft (CT, 6 slices); 5: Thorax lung (CT, 9 slices).")
    for wanted in (5, "5", "1.2.4", "LUNG", "thorax lung"):
        assert read_volume(tmp_path, series=wanted).shape[2] == 9
    with pytest.raises(InputError, match='2 series of .* match "thorax"'):
        read_volume(tmp_path, series="thorax")
    with pytest.raises(InputError, match="matches \"7\"; it holds 2: Thorax soft"):
        read_volume(tmp_path, series=7)
    # Two series of one number get numbers of their own.
    write_series(tmp_path, straight(), uid="1.2.6", number=5, description="Zugabe")
    assert [(s.number, s.description) for s in list_series(tmp_path)] == [
        (1, "Thorax soft"), (2, "Thorax lung"), (3, "Zugabe")]


def test_other_objects_and_strays_do_not_count_as_series(tmp_path):
    write_series(tmp_path, straight(count=8))
    write_slice(tmp_path / "seg.dcm", (0, 0, 0), uid="1.2.9", Modality="SEG", ImagePositionPatient=None)
    write_slice(tmp_path / "report.dcm", (0, 0, 0), uid="1.2.8", ImagePositionPatient=None)
    write_slice(tmp_path / "stray.dcm", (0, 0, 0), rows=30)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "readme.txt").write_text("hello" * 50)
    volume = read_volume(tmp_path)
    assert volume.shape == (COLUMNS, ROWS, 8)
    assert volume.notes == ["1 image of another size or orientation in the series was left out."]


def test_one_series_with_three_orientations(tmp_path):
    """A scanner's reformats stored under one UID: each is a stack of its own."""
    write_series(tmp_path / "axial", straight())
    write_series(tmp_path / "coronal", straight(count=5, normal=(0, -1, 0)), (1, 0, 0, 0, 0, -1))
    write_series(tmp_path / "sagittal", straight(count=4, normal=(-1, 0, 0)), (0, 1, 0, 0, 0, -1))
    assert [(s.number, s.slices) for s in list_series(tmp_path)] == [(1, 6), (2, 5), (3, 4)]
    for number in (1, 2, 3):
        volume = read_volume(tmp_path, series=number)
        assert volume.array == pytest.approx(truth_of(volume), abs=0.51) and volume.notes == []


def test_only_other_objects(tmp_path):
    write_slice(tmp_path / "seg.dcm", (0, 0, 0), Modality="SEG")
    with pytest.raises(InputError, match="no image slices of a volume, only 1 file with SEG objects"):
        read_volume(tmp_path)
    write_slice(tmp_path / "seg.dcm", (0, 0, 0), PixelSpacing=None)
    with pytest.raises(InputError, match="without position, orientation or pixel spacing"):
        read_volume(tmp_path)
    assert list_series(tmp_path) == []
    write_slice(tmp_path / "seg.dcm", (0, 0, 0), SamplesPerPixel=3)
    with pytest.raises(InputError, match="colour"):
        read_volume(tmp_path / "seg.dcm")
    write_slice(tmp_path / "seg.dcm", (0, 0, 0), PixelSpacing=[0, 0])
    with pytest.raises(InputError, match="damaged"):
        read_volume(tmp_path)


def test_one_file(tmp_path):
    write_series(tmp_path, straight())
    path = min(tmp_path.iterdir())
    volume = read_volume(path)
    assert volume.shape == (COLUMNS, ROWS, 1) and volume.spacing[2] == 2.5
    assert volume.array == pytest.approx(truth_of(volume), abs=0.51) and "give the folder" in volume.notes[-1]
    write_slice(tmp_path / "thin", (0, 0, 0), SliceThickness=None)
    assert "1 mm was assumed" in read_volume(tmp_path / "thin").notes[0]


def test_file_without_the_magic_word(tmp_path):
    write_series(tmp_path, straight())
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    assert all(is_dicom(path) for path in tmp_path.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_volume(tmp_path).shape == (COLUMNS, ROWS, 6)


def test_damaged_files(tmp_path):
    write_series(tmp_path, straight(), uid="1.2.3")
    paths = sorted(tmp_path.iterdir())
    middle = next(path for path in paths if pydicom.dcmread(path).InstanceNumber == 3)
    data = middle.read_bytes()
    middle.write_bytes(data[:-200])
    with pytest.raises(InputError, match=f"{middle.name} has pixels that cannot be decoded"):
        read_volume(tmp_path)
    middle.write_bytes(data[:400])      # cut within the header: the gap is noticed and filled
    volume = read_volume(tmp_path)
    assert volume.shape[2] == 6 and volume.array == pytest.approx(truth_of(volume), abs=1.01)
    assert "could not be read" in volume.notes[0] and "1 missing slice" in volume.notes[1]
    for path in paths:
        path.write_bytes(b"\0" * 128 + b"DICM" + b"rubbish" * 20)
    with pytest.raises(InputError, match="damaged|no image slices"):
        read_volume(tmp_path)


def enhanced(path, positions, orientation, phases=1) -> None:
    """One Enhanced CT object with a frame per position (and phase), in mixed order."""
    first = write_slice(path, positions[0], orientation)
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(first, key)
    shared = Dataset()
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(PIXEL), 2.5
    plane = Dataset()
    plane.ImageOrientationPatient = [f"{v:.9f}" for v in orientation]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    first.SharedFunctionalGroupsSequence = [shared]
    frames, pixels = [], []
    order = np.random.default_rng(1).permutation(len(positions) * phases)
    for index in order:
        phase, place = divmod(int(index), len(positions))
        frame, position, transform, content = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{v:.9g}"[:16] for v in positions[place]]
        transform.RescaleSlope, transform.RescaleIntercept = 2, -1000 - 2 * place
        content.TemporalPositionIndex = phase + 1
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [transform]
        frame.FrameContentSequence = [content]
        frames.append(frame)
        pixels.append(np.rint((field(slice_points(positions[place], orientation)) + 1000 + 2 * place) / 2))
    first.PerFrameFunctionalGroupsSequence, first.NumberOfFrames = frames, len(frames)
    first.PixelData = np.stack(pixels).astype("<u2").tobytes()
    first.save_as(path)


def test_enhanced_multiframe(tmp_path):
    orientation = tuple(rotation(5, 6, 7)[:, :2].T.ravel())
    places = straight(normal=np.cross(orientation[:3], orientation[3:]))
    enhanced(tmp_path / "e.dcm", places, orientation)
    for path in (tmp_path, tmp_path / "e.dcm"):
        volume = read_volume(path)
        assert volume.shape == (COLUMNS, ROWS, 6) and volume.notes == [] and volume.array.dtype == np.int16
        assert volume.array == pytest.approx(truth_of(volume), abs=1.01)
    enhanced(tmp_path / "e.dcm", places, orientation, phases=2)
    assert [s.description for s in list_series(tmp_path)] == ["Test [time point 1]", "Test [time point 2]"]
    assert read_volume(tmp_path, series=2).array == pytest.approx(truth_of(volume), abs=1.01)


@pytest.mark.parametrize("slope", ["0", "nan"])
def test_useless_rescale_values(tmp_path, slope):
    write_slice(tmp_path / "a.dcm", (0, 0, 0), pixels=np.zeros((ROWS, COLUMNS)))
    data = pydicom.dcmread(tmp_path / "a.dcm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.RescaleSlope = slope
        data.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match="rescale values"):
        read_volume(tmp_path / "a.dcm")


def test_frames_without_positions(tmp_path):
    write_slice(tmp_path / "a.dcm", (0, 0, 0), NumberOfFrames=3, ImagePositionPatient=None)
    with pytest.raises(InputError, match="frames without positions"):
        read_volume(tmp_path / "a.dcm")


def test_compressed_pixels(tmp_path):
    """RLE by pydicom, JPEG 2000 and JPEG lossless as GDCM writes them: the same Hounsfield units."""
    write_series(tmp_path / "plain", straight())
    expected = read_volume(tmp_path / "plain").array
    for name in ("rle", "JPEG2000", "JPEG"):
        (tmp_path / name).mkdir()
        for path in (tmp_path / "plain").iterdir():
            ds = pydicom.dcmread(path)
            if name == "rle":
                ds.compress(pydicom.uid.RLELossless)
                ds.save_as(tmp_path / name / path.name)
                continue
            writer = sitk.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.KeepOriginalImageUIDOn()
            writer.UseCompressionOn()
            writer.SetCompressor(name)
            writer.SetFileName(str(tmp_path / name / path.name))
            writer.Execute(sitk.ReadImage(str(path), sitk.sitkInt16))
            written = pydicom.dcmread(tmp_path / name / path.name)
            assert written.file_meta.TransferSyntaxUID.is_compressed
            for tag in ("ImagePositionPatient", "ImageOrientationPatient", "SeriesInstanceUID", "Modality"):
                setattr(written, tag, getattr(ds, tag))
            written.save_as(tmp_path / name / path.name)
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.array, expected), name


def test_find_cases_takes_dicom_folders(tmp_path):
    write_series(tmp_path / "patient" / "a b", straight(count=2))
    write_series(tmp_path / "patient" / "ü", straight(count=2), uid="1.2.7")
    found = find_cases([tmp_path])
    assert [(c.path.relative_to(tmp_path).as_posix(), c.name, c.kind) for c in found] == [
        ("patient/a b", "a b", "dicom"), ("patient/ü", "ü", "dicom")]
    assert all(read_volume(c.path).shape[2] == 2 for c in found)
