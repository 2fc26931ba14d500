"""DICOM: which series of slices there are in files and folders, and the choice of one of them.

`dicom_volume` turns the chosen slices into voxels on a true lattice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom

from ..errors import InputError
from .volume import Volume

#: Objects that refer to images but are none a person would segment.
NOT_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "AU", "ECG", "FID"}
_TAGS = ["SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
         "InstanceNumber", "AcquisitionNumber", "ImageType", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
         "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
         "ConvolutionKernel", "TemporalPositionIdentifier", "EchoNumbers", "SharedFunctionalGroupsSequence",
         "PerFrameFunctionalGroupsSequence", "RescaleSlope", "RescaleIntercept"]
#: What tells the passes of one series apart where several images share a position.
_PASSES = {"acquisition": "AcquisitionNumber", "time point": "TemporalPositionIdentifier", "echo": "EchoNumbers",
           "kernel": "ConvolutionKernel", "image type": "ImageType"}
#: Two positions closer than this (mm, along the normal) are one.
SAME_POSITION = 0.01


@dataclass(frozen=True)
class SeriesInfo:
    """One choosable stack of slices. number: the series' own where these differ within the folder, else 1, 2, …;
    modality as in the file ("CT", "MR"); slices: how many images."""

    number: int
    uid: str
    description: str
    modality: str
    slices: int

    def __str__(self) -> str:
        slices = f"{self.slices} slice{'s' * (self.slices != 1)}"
        return f"{self.number}: {self.description or 'no description'} ({self.modality}, {slices})"


@dataclass(frozen=True)
class Slice:
    """One image plane. position: (3,) LPS mm of its first pixel; row, column: (3,) unit vectors along which the
    column index and the row index grow; spacing: (mm along row, mm along column); frame: index in a multi-frame file;
    thickness: mm or None; slope, intercept: of a multi-frame file's frame, None where the whole file has one."""

    path: Path
    uid: str
    number: int | None
    description: str
    modality: str
    instance: int
    sop: str
    rows: int
    columns: int
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing: tuple[float, float]
    frame: int | None = None
    thickness: float | None = None
    slope: float | None = None
    intercept: float | None = None
    passes: dict = field(default_factory=dict)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    @property
    def along(self) -> float:
        """Position along the normal, mm."""
        return float(self.position @ self.normal)


@dataclass(frozen=True)
class Series:
    """The slices of one choosable stack, sorted along their normal, and what was set aside on the way."""

    info: SeriesInfo
    slices: list[Slice]
    notes: list[str]


def is_dicom(path) -> bool:
    """Whether a file is DICOM: by the magic word, or, for old files without it, by parsing the first elements."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(132)
        if start[128:132] == b"DICM":
            return True
        if path.suffix.lower() not in ("", ".dcm", ".dicom", ".ima") or len(start) < 132:
            return False
        return "SOPClassUID" in _header(path, force=True)
    except Exception:       # pydicom raises whatever a foreign file leads it into
        return False


def read_folder(folder, *, series: str | int | None = None) -> Volume:
    """The only image series below `folder`, or the one asked for by number, UID or part of its description.

    Raises InputError: no images, several series and none chosen, none that matches, or slices that form no volume.
    """
    from .dicom_volume import build_volume
    folder = Path(folder)
    chosen = chosen_series(folder, series=series)
    return build_volume(chosen, name=chosen.info.description or folder.resolve().name)


def read_file(path, *, series: str | int | None = None) -> Volume:
    """One DICOM file: all frames of a multi-frame image (or the pass of it asked for), or one slice as a volume."""
    from .dicom_volume import build_volume
    path = Path(path)
    chosen = chosen_series(path, series=series)
    volume = build_volume(chosen, name=path.stem)
    if volume.shape[2] > 1:
        return volume
    return volume.with_note("This is one slice; give the folder to read its whole series.")


def chosen_series(path, *, series: str | int | None = None) -> Series:
    """The slices that `read_folder` or `read_file` makes a volume of; raises InputError as they do."""
    path = Path(path)
    return choose(_scan(path, [path] if path.is_file() else sorted(_files_below(path))), series, path.name)


def list_series(folder) -> list[SeriesInfo]:
    """What `read_volume(folder, series=…)` can choose from; [] where there are no DICOM images."""
    try:
        return [series.info for series in _scan(Path(folder), sorted(_files_below(Path(folder))))]
    except InputError:
        return []


def choose(found: list[Series], wanted: str | int | None, where: str) -> Series:
    """The one series a person means; InputError with the list of numbers otherwise."""
    listing = "; ".join(str(series.info) for series in found)
    if wanted is None or str(wanted).strip() == "":
        if len(found) == 1:
            return found[0]
        raise InputError(f"{where} holds {len(found)} image series; choose one by its number: {listing}.")
    text = str(wanted).strip()
    for match in (lambda s: text.isdigit() and s.info.number == int(text), lambda s: s.info.uid == text,
                  lambda s: text.lower() == s.info.description.lower(),
                  lambda s: text.lower() in s.info.description.lower()):
        hits = [series for series in found if match(series)]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise InputError(f'{len(hits)} series of {where} match "{text}"; choose one by its number: '
                             f"{'; '.join(str(s.info) for s in hits)}.")
    raise InputError(f'No image series of {where} matches "{text}"; it holds {listing}.')


def _files_below(folder: Path):
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(current) / name for name in names if not name.startswith(".") and name != "DICOMDIR")


@contextlib.contextmanager
def quiet_pydicom():
    """pydicom warns about each odd value and logs tracebacks; what matters is checked here and said in a sentence."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _header(path: Path, force: bool = False) -> pydicom.Dataset:
    with quiet_pydicom():
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=force)


def _scan(where: Path, paths: list[Path]) -> list[Series]:
    """Every stack of slices in the files; InputError that says why where there is none."""
    slices: list[Slice] = []
    reasons: dict[str, int] = {}
    broken = 0
    for path in paths:
        if not is_dicom(path):
            continue
        try:
            with quiet_pydicom():       # elements are parsed when they are asked for, so all of it is inside
                found = _slices_of(_header(path, force=True), path)
        except MemoryError:
            raise
        except Exception:               # pydicom raises whatever a damaged header leads it into
            broken += 1
            continue
        if isinstance(found, str):
            reasons[found] = reasons.get(found, 0) + 1
        else:
            slices += found
    if not slices:
        raise InputError(_nothing_found(where, reasons, broken))
    notes = []
    if broken:
        notes.append(f"{broken} DICOM file{'s' * (broken > 1)} could not be read and "
                     f"{'were' if broken > 1 else 'was'} left out.")
    return _numbered([group for stack in _by_series(slices).values() for group in _groups(stack, notes)])


def _nothing_found(where: Path, reasons: dict[str, int], broken: int) -> str:
    if reasons:
        parts = ", ".join(f"{count} {'file' if count == 1 else 'files'} with {reason}" for reason, count in
                          reasons.items())
        return f"{where.name} holds no image slices of a volume, only {parts}; give the folder of a CT series."
    if broken:
        return f"{where.name} is damaged or cut short and cannot be read as DICOM; copy or export it again."
    return f"{where.name} holds no DICOM images; give a folder of DICOM slices or an image file."


def _slices_of(ds: pydicom.Dataset, path: Path) -> list[Slice] | str:
    """The planes of one file, or in a few words what it is instead."""
    modality = str(ds.get("Modality", "") or "")
    if not ds.get("Rows") or not ds.get("Columns"):
        if modality in ("", "CT", "MR"):
            raise ValueError("an image that ends within its header")
        return f"{modality} objects instead of images"
    if modality in NOT_IMAGES:
        return f"{modality} objects instead of images"
    if int(ds.get("SamplesPerPixel", 1) or 1) != 1:
        return "colour pictures"
    if "LOCALIZER" in (ds.get("ImageType") or []):
        return "localizer (scout) views"
    common = {
        "path": path, "uid": str(ds.get("SeriesInstanceUID", "")), "number": _integer(ds.get("SeriesNumber")),
        "description": str(ds.get("SeriesDescription", "") or "").strip(), "modality": modality or "unknown",
        "sop": str(ds.get("SOPInstanceUID", "")), "rows": int(ds.Rows), "columns": int(ds.Columns),
        "passes": {key: str(ds.get(tag)) for key, tag in _PASSES.items() if ds.get(tag) is not None}}
    frames = ds.get("PerFrameFunctionalGroupsSequence")
    if frames:
        shared = (ds.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
        return [_frame(ds, shared, frame, index, common) for index, frame in enumerate(frames)]
    if int(ds.get("NumberOfFrames", 1) or 1) > 1:
        return "frames without positions"
    if ds.get("ImagePositionPatient") is None or ds.get("ImageOrientationPatient") is None \
            or ds.get("PixelSpacing") is None:
        return "pictures without position, orientation or pixel spacing"
    return [_plane(ds, ds, ds, common, instance=_integer(ds.get("InstanceNumber")) or 0)]


def _frame(ds, shared, frame, index: int, common: dict) -> Slice:
    def group(name: str) -> pydicom.Dataset:
        return (frame.get(name) or shared.get(name) or [pydicom.Dataset()])[0]

    transform, content = group("PixelValueTransformationSequence"), group("FrameContentSequence")
    passes = {"time point": content.get("TemporalPositionIndex"), "acquisition": content.get("FrameAcquisitionNumber")}
    common = {**common, "passes": {**common["passes"], **{k: str(v) for k, v in passes.items() if v is not None}}}
    plane = _plane(group("PlanePositionSequence"), group("PlaneOrientationSequence"), group("PixelMeasuresSequence"),
                   common, instance=index + 1)
    return replace(plane, frame=index, slope=float(transform.get("RescaleSlope", ds.get("RescaleSlope", 1))),
                   intercept=float(transform.get("RescaleIntercept", ds.get("RescaleIntercept", 0))))


def _plane(position, orientation, measures, common: dict, instance: int) -> Slice:
    values = [np.array([float(x) for x in source]) for source in (
        position.ImagePositionPatient, orientation.ImageOrientationPatient, measures.PixelSpacing)]
    if [len(v) for v in values] != [3, 6, 2] or not all(np.isfinite(v).all() for v in values):
        raise ValueError("position, orientation or spacing is not numbers")
    point, directions, spacing = values
    row, column = directions[:3], directions[3:]
    if min(np.linalg.norm(row), np.linalg.norm(column)) < 0.5 or (spacing <= 0).any():
        raise ValueError("no direction or no spacing")
    row = row / np.linalg.norm(row)
    column = column - row * (row @ column)      # headers round to a few digits; the lattice is made orthogonal
    if np.linalg.norm(column) < 0.5:
        raise ValueError("the two directions are one")
    thickness = [float(v) for v in (measures.get("SpacingBetweenSlices"), measures.get("SliceThickness"))
                 if v not in (None, "") and abs(float(v)) > 0]
    return Slice(**common, instance=instance, position=point, row=row, column=column / np.linalg.norm(column),
                 spacing=(float(spacing[1]), float(spacing[0])), thickness=abs(thickness[0]) if thickness else None)


def _integer(value) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _by_series(slices: list[Slice]) -> dict[str, list[Slice]]:
    found: dict[str, list[Slice]] = {}
    for s in slices:
        found.setdefault(s.uid, []).append(s)
    return found


def _groups(slices: list[Slice], notes: list[str]) -> list[Series]:
    """One series' stacks of equal size, orientation and pixel spacing; stray pictures are set aside with a note."""
    groups: list[list[Slice]] = []
    for s in slices:
        for group in groups:
            if _alike(s, group[0]):
                group.append(s)
                break
        else:
            groups.append([s])
    groups.sort(key=len, reverse=True)
    kept = [g for g in groups if len(g) > 2 or len(groups[0]) < 4 * len(g)]
    notes = list(notes)
    strays = sum(map(len, groups)) - sum(map(len, kept))
    if strays:
        notes.append(f"{strays} image{'s' * (strays > 1)} of another size or orientation in the series "
                     f"{'were' if strays > 1 else 'was'} left out.")
    result = []
    for group in kept:
        group, doubled = _without_copies(group)
        extra = [f"{doubled} file{'s' * (doubled > 1)} that repeat another one were left out."] if doubled else []
        for part, word in _passes(sorted(group, key=lambda s: (s.along, s.instance))):
            first = part[0]
            description = f"{first.description} [{word}]".strip() if word else first.description
            info = SeriesInfo(first.number if first.number is not None else 0, first.uid, description, first.modality,
                              len(part))
            result.append(Series(info, part, notes + extra))
    return result


def _alike(a: Slice, b: Slice) -> bool:
    return (a.rows, a.columns, a.modality) == (b.rows, b.columns, b.modality) and np.allclose(
        a.spacing, b.spacing, rtol=1e-3) and a.row @ b.row > 0.9999 and a.column @ b.column > 0.9999


def _without_copies(group: list[Slice]) -> tuple[list[Slice], int]:
    """Leave out files that were copied: the same object at the same place twice."""
    unique = {(s.sop, s.frame, s.instance, *np.round(s.position, 3)) if s.sop else (s.path, s.frame): s
              for s in reversed(group)}
    return list(reversed(unique.values())), len(group) - len(unique)


def _passes(group: list[Slice]) -> list[tuple[list[Slice], str]]:
    """Split images that share positions by what tells them apart (phase, kernel), if that gives true stacks."""
    if not _shares_positions(group):
        return [(group, "")]
    for word in _PASSES:
        parts: dict[str, list[Slice]] = {}
        for s in group:
            parts.setdefault(s.passes.get(word, ""), []).append(s)
        if len(parts) > 1 and all(len(p) > 1 and not _shares_positions(p) for p in parts.values()):
            return [(part, f"{word} {value}") for value, part in parts.items()]
    return [(group, "")]


def _shares_positions(group: list[Slice]) -> bool:
    return any(b.along - a.along < SAME_POSITION for a, b in pairwise(group))


def _numbered(series: list[Series]) -> list[Series]:
    """Give every stack a number of its own: the file's where these differ, else 1, 2, …"""
    numbers = [s.info.number for s in series]
    if len(set(numbers)) < len(numbers) or min(numbers) < 1:
        series = sorted(series, key=lambda s: (s.info.number, s.info.description, s.info.uid))
        return [replace(s, info=replace(s.info, number=n)) for n, s in enumerate(series, 1)]
    return sorted(series, key=lambda s: s.info.number)
