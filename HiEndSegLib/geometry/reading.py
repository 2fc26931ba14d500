"""Reading image files and folders into a `Volume`, and finding the cases a person meant.

Only here and in `dicom` is LPS known: everything that leaves this file is RAS.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.wrapstruct import WrapStructError

from ..errors import InputError
from . import dicom
from .rescale import rescale
from .volume import Volume, check_matrix, check_volume

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
#: Extensions that are read as image files; everything else is tried as DICOM.
EXTENSIONS = (*NIFTI, *ITK)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: The key of our NIfTI header extension that holds the matrix in 64 bits.
NIFTI_MATRIX = "ijk_to_ras"
_META_NUMBERS = {b"dimsize", b"elementspacing", b"elementsize", b"offset", b"origin", b"position", b"transformmatrix",
                 b"rotation", b"orientation", b"centerofrotation"}
#: Deflate cannot pack better than this, so a smaller .gz than its header asks for has been cut.
_GZIP_LIMIT = 1032


@dataclass(frozen=True)
class Case:
    """One thing to segment. kind: "file" (an image or single DICOM file), "dicom" (a folder of DICOM images), or
    "nothing" (a path that does not exist or a folder without images: `read_volume` says so in words)."""

    path: Path
    name: str
    kind: str


def extension(path) -> str:
    """The image extension, lower case and with both parts where there are two (".nii.gz", ".seg.nrrd"), or ""."""
    name = Path(path).name.lower()
    for ending in (".nii.gz", ".seg.nrrd", *EXTENSIONS):
        if name.endswith(ending) and name != ending:
            return ending
    return Path(name).suffix


def stem(path) -> str:
    """The file's name without its image extension; a folder's name."""
    path = Path(path)
    ending = extension(path)
    return path.name[:-len(ending)] if ending and not path.is_dir() else path.name


def read_volume(path, *, series: str | int | None = None) -> Volume:
    """Read NIfTI, NRRD, MHA/MHD, one DICOM file, or a folder of DICOM images.

    series: which DICOM series of a folder with several: its number, UID, or part of its description.
    Result: any orientation, voxels as stored where that is exact (int16 CT stays int16), else float32; CT in HU;
    NaN and infinite voxels replaced (`check_volume`); notes on what was changed in meta["notes"].
    Raises InputError with one sentence for whatever is not a single grey-scale 3D volume.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; check the name.")
    try:
        if path.is_dir():
            return check_volume(dicom.read_folder(path, series=series))
        if path.stat().st_size == 0:
            raise InputError(f"{path.name} is empty (0 bytes); copy or export it again.")
        ending = extension(path)
        if ending in NIFTI:
            volume = read_nifti(path)
        elif ending in (*ITK, ".seg.nrrd"):
            volume = volume_of(read_itk(path), path)
        elif dicom.is_dicom(path):
            volume = dicom.read_file(path, series=series)
        else:
            raise InputError(f"{path.name} is not an image this program reads; give NIfTI (.nii, .nii.gz), NRRD, MHA, "
                             "or DICOM.")
        return check_volume(volume)
    except PermissionError:
        raise InputError(f"{path.name} may not be read by this user; change its permissions.") from None
    except MemoryError:
        raise InputError(f"{path.name} does not fit into this computer's memory; crop it or use a larger "
                         "computer.") from None


def list_series(folder) -> list[dicom.SeriesInfo]:
    """The image series below a folder of DICOM files; see `dicom.list_series`."""
    return dicom.list_series(folder)


def find_cases(paths) -> list[Case]:
    """Files, folders of DICOM images, and folders of either (recursive), in a stable order without repetition.

    A folder that directly holds DICOM files is one case (kind "dicom"), however many files it has; every image file
    in a folder is one. Segmentations (.seg.nrrd) and hidden files are passed over in folders, linked folders are gone
    into once. A path that leads to nothing becomes a case of kind "nothing", so that a batch can report it and go on.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    cases: dict[Path, Case] = {}
    for path in map(Path, paths):
        found = list(_cases_below(path)) if path.is_dir() else [Case(path, stem(path), "file" if path.exists()
                                                                     else "nothing")]
        for case in found or [Case(path, path.name, "nothing")]:
            cases.setdefault(case.path.resolve(), case)
    return list(cases.values())


def _cases_below(folder: Path):
    seen = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:                                    # a link that leads back up
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        current, holds_dicom = Path(current), False
        for name in sorted(files):
            path, ending = current / name, extension(name)
            if name.startswith(".") or ending == ".seg.nrrd":
                continue
            if ending in EXTENSIONS:
                yield Case(path, stem(path), "file")
            elif not holds_dicom and dicom.is_dicom(path):
                holds_dicom = True
        if holds_dicom:
            yield Case(current, current.resolve().name, "dicom")


def read_nifti(path: Path) -> Volume:
    """NIfTI-1 and -2. The matrix is nibabel's `affine`: sform if it is set, else qform, else pixdim."""
    try:
        with (gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file,
              nib.imageglobals.LoggingOutputSuppressor(), np.errstate(all="ignore")):
            start = file.read(4)
            file.seek(0)
            sizes = [int.from_bytes(start, order) for order in ("little", "big")]
            kind = nib.Nifti2Image if 540 in sizes else nib.Nifti1Image
            raw = kind.header_class(file.read(kind.header_class.sizeof_hdr), check=False)
            file.seek(0)
            image = kind.from_file_map(kind.make_file_map({"image": file, "header": file}), mmap=False)
            shape = _three_dimensions(image.shape, path.name)
            _check_nifti_header(image, raw, path)
            array = _nifti_array(image).reshape(shape, order="F")
            while file.read(1 << 20):       # to the end of a .gz, so that its check sum is compared
                pass
    except PermissionError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, zlib.error, nib.filebasedimages.ImageFileError,
            nib.spatialimages.HeaderDataError, nib.spatialimages.HeaderTypeError, WrapStructError) as error:
        raise InputError(f"{path.name} cannot be read as NIfTI: the file is damaged or cut short; copy or export it "
                         "again.") from error
    return Volume(array, _nifti_matrix(image), name=stem(path), meta={"source": f"NIfTI file {path.name}"})


def nifti_extension(header) -> dict:
    """What this program left in a NIfTI header's comment, {} where there is none."""
    for part in header.extensions:
        try:
            content = part.get_content()
            data = json.loads(content if isinstance(content, str) else bytes(content).rstrip(b"\0").decode())
            if isinstance(data, dict):
                return data
        except (ValueError, TypeError, UnicodeError):
            continue
    return {}


def _nifti_matrix(image) -> np.ndarray:
    """nibabel's affine, in 64 bits where our own extension has them and nobody has moved the image since."""
    try:
        exact = np.array(nifti_extension(image.header)[NIFTI_MATRIX], dtype=np.float64)
        if exact.shape == (4, 4) and np.array_equal(exact.astype(np.float32), image.affine.astype(np.float32)):
            return exact
    except (KeyError, ValueError, TypeError):
        pass
    return image.affine


def _check_nifti_header(image, raw, path: Path) -> None:
    name, dtype = path.name, image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        raise InputError(f"{name} is a colour or complex image; give a grey-scale volume.")
    needed = int(np.prod(image.shape, dtype=np.int64)) * dtype.itemsize
    have = path.stat().st_size * (_GZIP_LIMIT if name.lower().endswith(".gz") else 1)
    if have < needed:
        raise InputError(f"{name} is cut short: its header asks for {needed} bytes of voxels; copy or export it again.")
    # nibabel mends a bad pixdim silently (zero becomes 1 mm); a valid sform does not use it.
    steps = np.asarray(raw["pixdim"], dtype=np.float64)[1:1 + min(3, len(image.shape))]
    if int(raw["sform_code"]) == 0 and not (np.isfinite(steps).all() and (steps > 0).all()):
        raise InputError(f"{name} has a voxel spacing of {' x '.join(f'{s:g}' for s in steps)} mm; spacing must be "
                         "positive, so export it again.")
    check_matrix(image.affine, name)


def _nifti_array(image) -> np.ndarray:
    """Stored integers where slope and intercept keep them exact (int16 for CT), else float32."""
    raw = image.dataobj.get_unscaled()
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return rescale(np.asarray(raw), slope, intercept)


def read_itk(path: Path) -> sitk.Image:
    """NRRD or MetaImage as a SimpleITK image (its header checked); InputError where it cannot be read."""
    if extension(path) in (".mha", ".mhd"):
        _check_metaimage(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    warnings = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(_itk_sentence(path.name, str(error))) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warnings)


def _check_metaimage(path: Path) -> None:
    """ITK's MetaImage reader (5.4) corrupts memory on some damaged headers (found by trying): refuse these before."""
    with open(path, "rb") as file:
        lines = file.read(1 << 20).split(b"\n")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        key, found, value = line.partition(b"=")
        if not found or any(byte < 32 and byte not in b"\t\r" or byte in (127, 255) for byte in line):
            break
        fields[key.strip().lower()] = value.split()
        if key.strip().lower() == b"elementdatafile":
            break
    dimensions = fields.get(b"ndims", [b""])[:1]
    if b"elementdatafile" not in fields or dimensions not in ([b"2"], [b"3"], [b"4"], [b"5"]) \
            or fields.get(b"objecttype", [b"Image"]) != [b"Image"] \
            or any(len(values) > int(dimensions[0]) ** 2 for key, values in fields.items() if key in _META_NUMBERS):
        raise InputError(f"{path.name} cannot be read: its header is damaged or cut short; copy or export it again.")


def _itk_sentence(name: str, message: str) -> str:
    text = message.lower()
    if "zero-valued spacing" in text or "spacing (0) invalid" in text:
        return f"{name} has a voxel spacing of zero; export it again."
    if "determinant is 0" in text:
        return f"{name} has axes that lie in one plane, so its voxels have no volume; export it again."
    if "bad_alloc" in text or "failed to allocate memory" in text:
        return f"{name} does not fit into this computer's memory; crop it or use a larger computer."
    return (f"{name} cannot be read: the file is damaged, cut short, or its data file is missing; copy or export it "
            "again.")


def volume_of(image: sitk.Image, path: Path) -> Volume:
    """A SimpleITK image (LPS) as a Volume (RAS); InputError if it is not 3D and grey-scale."""
    name = path.name
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{name} has {image.GetNumberOfComponentsPerPixel()} numbers per voxel (colour or vector "
                         "image); give a grey-scale volume.")
    shape = _three_dimensions(image.GetSize(), name)
    dimension = image.GetDimension()
    direction = np.asarray(image.GetDirection()).reshape(dimension, dimension)
    matrix = np.eye(4)
    n = min(3, dimension)
    matrix[:n, :n] = direction[:n, :n] * np.asarray(image.GetSpacing())[:n]
    matrix[:n, 3] = np.asarray(image.GetOrigin())[:n]
    array = sitk.GetArrayFromImage(image).T.reshape(shape, order="F")
    return Volume(array, LPS_TO_RAS @ matrix, name=stem(path), meta={"source": f"image file {name}"})


def _three_dimensions(shape, name: str) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in shape)
    if 0 in shape or not shape:
        raise InputError(f"{name} has no voxels (shape {shape}); export it again.")
    if any(n > 1 for n in shape[3:]):
        raise InputError(f"{name} is {len(shape)}D with shape {' x '.join(map(str, shape))}, that is "
                         f"{int(np.prod(shape[3:]))} volumes; export the one you want as a 3D file.")
    return (*shape[:3], *(1,) * (3 - len(shape)))[:3]
