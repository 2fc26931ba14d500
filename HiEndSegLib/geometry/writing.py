"""Writing volumes and label maps, and reading label maps back with their names. All writes are atomic."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ..errors import InputError, OutputError
from .files import atomic_target
from .labels import Label
from .reading import LPS_TO_RAS, NIFTI, NIFTI_MATRIX, extension, nifti_extension, read_itk, read_volume, volume_of
from .resample import slabs
from .segnrrd import merge_layers, segment_keys, segments_of
from .volume import Volume

#: What can be written; .nhdr and .mhd are two files each and cannot be replaced in one step.
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".mha")
_ITK_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_LEGEND = "HiEndSegLabel"
#: zlib's fastest level: measured on a 512x512x300 CT it is five times as fast as the default for 5 % more bytes.
_LEVEL = 1


def write_volume(volume: Volume, path) -> None:
    """Write NIfTI (.nii, .nii.gz), NRRD (.nrrd) or MetaImage (.mha), with the exact matrix.

    NIfTI-1 keeps its matrix in 32 bits (about 1e-5 mm at 100 mm); where that is not exact, a header extension holds
    the 64 bits for `read_volume`. (NIfTI-2 would hold them, but ITK 5.4, and so Slicer, does not open it: measured.)
    Raises OutputError (and leaves nothing) for an unknown extension, a missing or unwritable folder, a full disk.
    """
    _write(volume, Path(path), {}, [])


def write_labels(labels: Volume, legend: list[Label], path) -> None:
    """Write a label map (values 0..255) with its names.

    .seg.nrrd: Slicer's own segmentation file with ids, names, colours and terminology; .nrrd holds the same keys;
    .nii, .nii.gz and .mha keep the legend in a header extension that other programs pass over.
    A value without a legend entry gets a neutral one. Raises OutputError as `write_volume`, ValueError for values
    that are no label map or a legend with two equal ids or values.
    """
    array = _as_labels(labels.array)
    legend = _complete(legend, array)
    labels = labels.with_array(array)
    keys = segment_keys(labels, legend) if extension(path) in (".nrrd", ".seg.nrrd") else {}
    _write(labels, Path(path), keys, legend)


def read_labels(path) -> tuple[Volume, list[Label]]:
    """A label map as uint8 and its legend ([] where the file has none).

    Segmentations saved by Slicer may be smaller than the image they belong to, and may have several layers: these
    are merged, where segments overlap the later one wins (with a note in meta["notes"]).
    Raises InputError for whatever is not a label map of values 0..255.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0 or extension(path) not in (".nrrd", ".seg.nrrd", ".nhdr", ".mha"):
        volume = read_volume(path)
        legend = _labels_of(nifti_extension(nib.load(path).header).get(_LEGEND, [])) if extension(path) in NIFTI else []
    else:
        image = read_itk(path)
        keys = _metadata(image)
        segments = segments_of(keys)
        legend = [label for key, text in sorted(keys.items()) if key.startswith(_LEGEND)
                  for label in _labels_from_json(text)]
        if segments:
            return _segmentation(image, segments, path)
        volume = volume_of(image, path)
    try:
        return volume.with_array(_as_labels(volume.array)), sorted(legend, key=lambda label: label.value)
    except ValueError as error:
        raise InputError(f"{path.name} is not a label map: {error}.") from error


def _metadata(image: sitk.Image) -> dict[str, str]:
    keys = {}
    for key in image.GetMetaDataKeys():
        with contextlib.suppress(TypeError, UnicodeDecodeError):        # not UTF-8: somebody else's entry
            keys[key] = image.GetMetaData(key)
    return keys


def _segmentation(image: sitk.Image, segments: list[dict], path: Path) -> tuple[Volume, list[Label]]:
    layers = sitk.GetArrayFromImage(image)
    if image.GetDimension() != 3:
        raise InputError(f"{path.name} is a {image.GetDimension()}D segmentation; give a 3D one.")
    layers = (layers if layers.ndim == 4 else layers[..., None]).transpose(2, 1, 0, 3)
    lattice = volume_of(sitk.VectorIndexSelectionCast(image, 0) if layers.shape[3] > 1 else image, path)
    if layers.shape[3] == 1 and (layers.dtype == np.uint8 or layers.max(initial=0) < 256):
        values = [segment["label"].value for segment in segments]
        if len(set(values)) == len(values):
            return _closed(lattice.with_array(_as_labels(layers[..., 0]))), [segment["label"] for segment in segments]
    try:
        array, legend, overlapped = merge_layers(layers, segments)
    except ValueError as error:
        raise InputError(f"{path.name} holds {error}; split it into two files.") from error
    volume = lattice.with_array(array)
    if overlapped:
        volume = volume.with_note(f"{overlapped} voxels belonged to more than one segment; the later segment kept "
                                  "them.")
    return _closed(volume), legend


def _closed(volume: Volume) -> Volume:
    """Marked as a map that is all there is: Slicer saves the box of the segments, and beyond it nothing is drawn."""
    return replace(volume, meta={**volume.meta, "beyond": 0})


def _as_labels(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"its values are {array.dtype}")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(f"its values run from {array.min():g} to {array.max():g}, not within 0 to 255")
    result = array.astype(np.uint8)
    if array.dtype.kind == "f" and not np.array_equal(result, array):
        raise ValueError("its values are not whole numbers")
    return result


def _complete(legend: list[Label], array: np.ndarray) -> list[Label]:
    values, ids = [label.value for label in legend], [label.id for label in legend]
    if not all(0 < value < 256 for value in values):
        raise ValueError("a label of the legend has a value outside 1 to 255")
    if len(set(values)) < len(values) or len(set(ids)) < len(ids):
        raise ValueError("two labels of the legend have the same value or id")
    present = np.zeros(256, dtype=bool)
    for part in slabs(array.shape):
        present[array[:, :, part]] = True
    extra = [int(v) for v in np.flatnonzero(present) if v and v not in values]
    return [*legend, *(Label(v, f"label_{v}", f"Label {v}", (127, 127, 127)) for v in extra)]


def _write(volume: Volume, path: Path, keys: dict[str, str], legend: list[Label]) -> None:
    ending = extension(path)
    if ending not in WRITABLE:
        raise OutputError(f"{path.name} has no extension this program writes; use one of {', '.join(WRITABLE)}.")
    if volume.array.ndim != 3 or volume.array.size == 0:
        raise ValueError(f"only a 3D volume with voxels can be written, not one of shape {volume.shape}")
    volume = volume.with_array(_storable(volume.array))
    with atomic_target(path, ending) as temporary:
        if ending in NIFTI:
            _write_nifti(volume, temporary, legend)
        else:
            keys = keys or {f"{_LEGEND}{label.value:03d}": json.dumps(label.to_dict()) for label in legend}
            _write_itk(volume, temporary, keys, path)


def _storable(array: np.ndarray) -> np.ndarray:
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name in _ITK_TYPES:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and -2**31 <= array.min() and array.max() < 2**31:
        return array.astype(np.int32)
    raise ValueError(f"voxels of type {array.dtype} cannot be written")


def _write_nifti(volume: Volume, path: Path, legend: list[Label]) -> None:
    image = nib.Nifti1Image(volume.array, volume.ijk_to_ras)
    image.header.set_xyzt_units("mm")
    # Both forms, so that readers which prefer the qform (ITK, and with it Slicer) see the same lattice.
    image.set_sform(volume.ijk_to_ras, code=1)
    unit = volume.ijk_to_ras[:3, :3] / volume.spacing
    if np.allclose(unit.T @ unit, np.eye(3), atol=1e-5):       # a quaternion cannot hold a sheared lattice
        image.set_qform(volume.ijk_to_ras, code=1)
    kept = {}
    if not np.array_equal(volume.ijk_to_ras.astype(np.float32), volume.ijk_to_ras):
        kept[NIFTI_MATRIX] = volume.ijk_to_ras.tolist()
    if legend:
        kept[_LEGEND] = [label.to_dict() for label in legend]
    if kept:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(kept).encode()))
    nib.save(image, path)


def _write_itk(volume: Volume, path: Path, keys: dict[str, str], final: Path) -> None:
    image = sitk.GetImageFromArray(volume.array.T)
    matrix = LPS_TO_RAS @ volume.ijk_to_ras
    image.SetSpacing(volume.spacing)
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / volume.spacing).ravel().tolist())
    for key, value in keys.items():
        image.SetMetaData(key, value)
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=_LEVEL)
    except RuntimeError as error:
        raise OutputError(f"{final} could not be written (the disk is full or its folder write-protected); make room "
                          "or choose another place.") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)


def _labels_of(entries) -> list[Label]:
    """Labels of our own header entry; [] for anybody else's."""
    try:
        return [Label.from_dict(entry) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _labels_from_json(text: str) -> list[Label]:
    try:
        return _labels_of([json.loads(text)])
    except ValueError:
        return []
