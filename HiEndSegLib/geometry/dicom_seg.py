"""A label map as a DICOM Segmentation of the series it was drawn on, with names and codes (highdicom writes it).

The series' headers are needed, without their pixels: patient, study, and which image a slice belongs to.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom

from ..errors import InputError, OutputError
from . import dicom
from .files import atomic_target
from .labels import Label
from .volume import Volume

if TYPE_CHECKING:
    import highdicom

MANUFACTURER = "HiEndSeg"
#: What an unnamed structure is: tissue, as Slicer says for a new segment.
_TISSUE = ("SCT", "85756007", "Tissue")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def source_headers(path, *, series: str | int | None = None) -> list[pydicom.Dataset]:
    """Headers of the images that `read_volume` makes a volume of, along the series, without pixels or private tags.

    Raises InputError as `read_volume` does.
    """
    headers = []
    for file in dict.fromkeys(one.path for one in dicom.chosen_series(path, series=series).slices):
        try:
            with dicom.quiet_pydicom():
                header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
                header.remove_private_tags()
        except Exception as error:      # pydicom raises whatever a damaged header leads it into
            raise InputError(f"{file.name} is damaged; export the series again.") from error
        headers.append(header)
    return headers


def write_dicom_seg(labels: Volume, legend: Sequence[Label], headers: Sequence[pydicom.Dataset], path, *,
                    description: str = "HiEndSeg", model: str = "", version: str = "1") -> None:
    """Write one DICOM file with a binary segment for every structure that has voxels.

    labels: (I, J, K) label map on any lattice in the series' patient space. headers: of `source_headers`. model: what
    made it, "torso-ct-tiny@1.1.0"; "" where nobody knows.
    Raises OutputError: nothing to write, highdicom missing, headers it cannot use, a full disk.
    """
    import_highdicom()
    legend = [label for label in legend if (labels.array == label.value).any()]
    if not legend:
        raise OutputError("There is no structure with voxels to write; segment the volume first.")
    with _quiet():
        try:
            made = _segmentation(labels, legend, headers, description, model, version)
        except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
            raise OutputError("The headers of this series lack what a DICOM segmentation has to repeat "
                              f"({_first_line(error)}); download the .seg.nrrd instead.") from error
        with atomic_target(Path(path), ".dcm") as temporary:
            made.save_as(temporary)


def import_highdicom() -> None:
    """OutputError with the command where the package is missing."""
    try:
        with _quiet():
            import highdicom                            # noqa: F401
    except ImportError:
        raise OutputError("DICOM segmentations need the package highdicom; install it with 'pip install highdicom'."
                          ) from None


def _segmentation(labels: Volume, legend: list[Label], headers, description: str, model: str,
                  version: str) -> highdicom.seg.Segmentation:
    import highdicom as hd

    # DICOM's frames: slices, then rows (J), then columns (I); its space is LPS.
    order = [2, 1, 0]
    matrix = _LPS @ labels.ijk_to_ras
    matrix = matrix[:, [*order, 3]]
    numbers = np.zeros(256, np.uint8)
    numbers[[label.value for label in legend]] = np.arange(1, len(legend) + 1)
    frames = numbers[labels.array].transpose(order)
    volume = hd.Volume(np.ascontiguousarray(frames), matrix, "PATIENT",
                       frame_of_reference_uid=headers[0].FrameOfReferenceUID)
    made_by = hd.AlgorithmIdentificationSequence(
        name=model or MANUFACTURER, version=version, family=pydicom.sr.codedict.codes.DCM.ArtificialIntelligence)
    return hd.seg.Segmentation(
        source_images=list(headers), pixel_array=volume, segmentation_type="BINARY",
        segment_descriptions=[_describe(number, label, made_by) for number, label in enumerate(legend, 1)],
        series_instance_uid=hd.UID(), series_number=_number(headers[0]), sop_instance_uid=hd.UID(), instance_number=1,
        manufacturer=MANUFACTURER, manufacturer_model_name=MANUFACTURER, software_versions=version,
        device_serial_number="0", series_description=description[:64], content_label="SEGMENTATION",
        content_description="For research use; not a medical device")


def _describe(number: int, label: Label, made_by) -> highdicom.seg.SegmentDescription:
    import highdicom as hd

    terms = label.terminology or {}
    description = hd.seg.SegmentDescription(
        segment_number=number, segment_label=label.name[:64],
        segmented_property_category=_code(terms.get("category") or _TISSUE),
        segmented_property_type=_code(terms.get("type") or _TISSUE), algorithm_type="SEMIAUTOMATIC",
        algorithm_identification=made_by, tracking_uid=hd.UID(), tracking_id=label.id[:64],
        display_color=hd.color.CIELabColor.from_rgb(*label.color))
    if terms.get("modifier"):
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = pydicom.Sequence([_code(terms["modifier"])])
    return description


def _code(parts: Sequence[str]):
    import highdicom as hd

    scheme, value, meaning = parts[:3]
    return hd.sr.CodedConcept(value=value, meaning=meaning[:64], scheme_designator=scheme)


def _number(header: pydicom.Dataset) -> int:
    """A series number beside the source's own."""
    try:
        return 1000 + int(header.SeriesNumber)
    except (AttributeError, TypeError, ValueError):
        return 1000


@contextmanager
def _quiet() -> Iterator[None]:
    """highdicom warns and logs about each odd value of the source, which are not ours to mend."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with dicom.quiet_pydicom(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
