"""DICOM slices to voxels on a true lattice: sheared, uneven and incomplete stacks are resampled or refused in words."""

from __future__ import annotations

import numpy as np
import pydicom
import SimpleITK as sitk

from ..errors import InputError
from .dicom import SAME_POSITION, Series, Slice, quiet_pydicom
from .rescale import rescale
from .volume import Volume

#: Slices may lie off the even lattice by this part of the step, and off the straight stack by this part of a pixel.
_UNEVEN, _SHIFTED = 0.05, 0.2
#: No invention across more than this (mm), or across two steps where the slices themselves are that far apart.
_LARGEST_HOLE = 25.0
_AIR = -1024
_UNDECODABLE = ("{} has pixels that cannot be decoded (damaged, cut short, or of an unknown compression); export the "
                "series again, uncompressed.")


def build_volume(series: Series, name: str) -> Volume:
    """Decode the slices, apply the rescale values (CT: HU) and place them on a lattice of even, orthogonal axes.

    Raises InputError: undecodable pixels, different images at one position, a hole too wide to fill.
    """
    slices, notes = list(series.slices), list(series.notes)
    slices, array = _without_doubles(slices, _decode(slices), name, notes)
    first = slices[0]
    along = np.array([s.along for s in slices])
    pixel = first.spacing
    # In-plane position of each slice in pixels, relative to the corner of the box that holds all of them.
    shift = np.array([[(s.position @ axis) / size for axis, size in zip((first.row, first.column), pixel)]
                      for s in slices])
    sheared = bool((np.ptp(shift, axis=0) > _SHIFTED).any())
    corner = shift.min(axis=0) if sheared else shift[0]
    if len(slices) == 1:
        step = first.thickness or 1.0
        if first.thickness is None:
            notes.append("The file does not say how thick its slice is; 1 mm was assumed, so volumes in ml are not "
                         "to be trusted.")
        places = along
    else:
        step, places = _even_places(along, series, notes)
    if sheared:
        angle = _tilt(slices)
        notes.append(f"The slices are sheared against each other (gantry tilt of about {angle:.1f} degrees); they were "
                     "resampled onto a straight lattice.")
    if sheared or places is not along:
        array = _resample(array, along, places, shift - corner if sheared else np.zeros_like(shift),
                          _AIR if first.modality == "CT" else None)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([first.row * pixel[0], first.column * pixel[1], first.normal * step], axis=1)
    matrix[:3, 3] = (first.row * pixel[0] * corner[0] + first.column * pixel[1] * corner[1]
                     + first.normal * places[0])
    what = f"DICOM series {series.info.number}" + (f" ({series.info.description})" if series.info.description else "")
    return Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix, name=name,
                  meta={"modality": first.modality, "source": what, "notes": notes})


def _decode(slices: list[Slice]) -> np.ndarray:
    """(columns, rows, slices) in Fortran order: int16 unless a slice needs more."""
    array = np.empty((slices[0].columns, slices[0].rows, len(slices)), dtype=np.int16, order="F")
    cache: tuple = (None, None, None)
    for index, s in enumerate(slices):
        if cache[0] != s.path:
            cache = (s.path, *_pixels(s))
        pixels, header = cache[1:]
        plane = pixels[s.frame] if s.frame is not None and pixels.ndim == 3 else pixels
        if plane.shape != (s.rows, s.columns):
            raise InputError(f"{s.path.name} holds {plane.shape} pixels where its header says "
                             f"{(s.rows, s.columns)}; export it again.")
        if header is not None:
            plane = _modality(plane, s, header)
        kind = np.result_type(array.dtype, plane.dtype) if plane.dtype != np.uint16 or plane.max() > 32767 \
            else array.dtype
        if kind != array.dtype:
            array = array.astype(np.int32 if kind.kind in "iu" else np.float32)
        array[:, :, index] = plane.T
    return array


def _pixels(s: Slice) -> tuple[np.ndarray, pydicom.Dataset | None]:
    """Stored pixels and the header to rescale them by, or, from ITK's decoder, values that need no rescaling."""
    try:
        with quiet_pydicom():
            ds = pydicom.dcmread(s.path, force=True)
            if "PixelData" not in ds:
                raise InputError(f"{s.path.name} holds no pixels, only a header; export it again.")
            return ds.pixel_array, ds
    except (InputError, PermissionError, MemoryError):
        raise
    except Exception as error:      # pydicom and its decoders raise whatever damaged data lead them into
        # JPEG lossless and JPEG-LS need no further package: GDCM inside SimpleITK decodes (and rescales) them.
        pixels = _pixels_by_gdcm(s) if s.frame is None else None
        if pixels is not None:
            return pixels, None
        raise InputError(_UNDECODABLE.format(s.path.name)) from error


def _pixels_by_gdcm(s: Slice) -> np.ndarray | None:
    try:
        with quiet_pydicom():
            ds = pydicom.dcmread(s.path, stop_before_pixels=True, force=True)
            if not ds.file_meta.TransferSyntaxUID.is_compressed:
                return None         # ITK would fill what is missing of a cut file
    except Exception:
        return None
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(s.path))
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        return None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)
    array = array[0] if array.ndim == 3 else array
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _modality(plane: np.ndarray, s: Slice, header: pydicom.Dataset) -> np.ndarray:
    if s.slope is not None:
        return rescale(plane, s.slope, s.intercept)
    try:
        with quiet_pydicom():
            if header.get("ModalityLUTSequence"):
                return pydicom.pixels.apply_modality_lut(plane, header)
            slope = header.get("RescaleSlope")
            slope, intercept = float(1 if slope in (None, "") else slope), float(header.get("RescaleIntercept") or 0)
            if not (np.isfinite([slope, intercept]).all() and slope):
                raise ValueError(f"a rescale slope of {slope}")
    except Exception as error:
        raise InputError(f"{s.path.name} has rescale values that cannot be used; export the series again.") from error
    return rescale(plane, slope, intercept)


def _without_doubles(slices, array, name, notes) -> tuple[list[Slice], np.ndarray]:
    """One slice per position: equal ones once, different ones are refused."""
    keep = [0]
    clashes = 0
    for index in range(1, len(slices)):         # sorted along the normal, so equal positions are neighbours
        if slices[index].along - slices[keep[-1]].along >= SAME_POSITION:
            keep.append(index)
        elif not np.array_equal(array[:, :, index], array[:, :, keep[-1]]):
            clashes += 1
    if clashes and len(keep) == 1:
        raise InputError(f"{name} is not a volume: its {len(slices)} images lie at one position (a time series, "
                         "perfusion or bolus tracking); give a series with slices next to each other.")
    if clashes:
        raise InputError(f"{name} is not one volume: {clashes} of its {len(slices)} images lie at the position of "
                         "another one but differ from it (several phases or time points in one series); export one "
                         "phase.")
    if len(keep) == len(slices):
        return slices, array
    notes.append(f"{len(slices) - len(keep)} slices that were there twice were used once.")
    return [slices[k] for k in keep], np.asfortranarray(array[:, :, keep])


def _even_places(along: np.ndarray, series: Series, notes: list[str]) -> tuple[float, np.ndarray]:
    """Step and positions (mm) of the lattice's slices; the input itself where it is even already."""
    gaps = np.diff(along)
    step = float((along[-1] - along[0]) / len(gaps))
    if np.abs(along - along[0] - step * np.arange(len(along))).max() <= _UNEVEN * step:
        return step, along
    # The finest step that is not a rare exception: the lower end of the gaps, passing over a tenth of them.
    step = float(np.sort(gaps)[round(0.1 * len(gaps))])
    widest = float(gaps.max())
    if widest > max(_LARGEST_HOLE, 2.1 * step):
        at = int(gaps.argmax())
        raise InputError(f"{series.info.description or 'The series'} has a hole of {widest:.1f} mm between slices "
                         f"{at + 1} and {at + 2} of {len(along)} (its slices are {step:g} mm apart); export all slices "
                         "of it.")
    multiple = gaps / step
    count = round(float((along[-1] - along[0]) / step)) + 1
    step = float((along[-1] - along[0]) / (count - 1))
    if np.abs(multiple - np.rint(multiple)).max() <= _UNEVEN:
        missing = count - len(along)
        notes.append(f"{missing} missing slice{'s' * (missing > 1)} (gaps of up to {widest:.2f} mm where slices are "
                     f"{step:.2f} mm apart) {'were' if missing > 1 else 'was'} filled in from the neighbours.")
    else:
        notes.append(f"The slices are unevenly spaced ({gaps.min():.2f} to {widest:.2f} mm); they were resampled to "
                     f"an even spacing of {step:.2f} mm.")
    return step, along[0] + step * np.arange(count)


def _tilt(slices: list[Slice]) -> float:
    """Angle in degrees between the slices' normal and the way from the first to the last."""
    way = slices[-1].position - slices[0].position
    return float(np.degrees(np.arccos(min(1.0, abs(slices[0].normal @ way) / np.linalg.norm(way)))))


def _resample(array, along, places, shift, fill) -> np.ndarray:
    """Put slices, each moved in its plane by `shift` pixels (>= 0), onto `places`; linear in all three directions."""
    whole = np.asarray(array)
    fill = float(whole.min()) if fill is None else fill
    grow = np.ceil(shift.max(axis=0) - 1e-6).astype(int)
    dtype = whole.dtype
    result = np.empty((whole.shape[0] + grow[0], whole.shape[1] + grow[1], len(places)), dtype=dtype, order="F")

    def moved(index: int) -> np.ndarray:
        plane = whole[:, :, index].astype(np.float32)
        for axis in range(2):
            plane = _shift(plane, shift[index][axis], grow[axis], axis, fill)
        return plane

    planes: dict[int, np.ndarray] = {}
    for target, place in enumerate(places):
        low = int(np.clip(np.searchsorted(along, place, side="right") - 1, 0, len(along) - 1))
        high = min(low + 1, len(along) - 1)
        planes = {i: planes[i] if i in planes else moved(i) for i in (low, high)}
        part = 0.0 if high == low else float((place - along[low]) / (along[high] - along[low]))
        plane = planes[low] if part < 1e-6 else (1 - part) * planes[low] + part * planes[high]
        result[:, :, target] = np.rint(plane) if dtype.kind in "iu" else plane
    return result


def _shift(plane: np.ndarray, shift: float, grow: int, axis: int, fill: float) -> np.ndarray:
    """Move by `shift` >= 0 pixels along `axis` into an array larger by `grow`; what comes in is `fill`."""
    whole = int(np.floor(shift + 1e-6))
    part = max(0.0, shift - whole)
    pad = [(0, 0), (0, 0)]
    pad[axis] = (whole, grow - whole)
    result = np.pad(plane, pad, constant_values=fill)
    if part < 1e-6:
        return result
    before = np.roll(result, 1, axis=axis)
    before[(0, slice(None)) if axis == 0 else (slice(None), 0)] = fill
    return (1 - part) * result + part * before
