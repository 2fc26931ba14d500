"""Which case becomes which file, what is finished already, and the table over all cases.

Beside every result lies a record, `<case>.hiendseg.json`: what was asked for, from which input, with which model, and
what came out. It lets an interrupted batch go on where it stopped, tells our files from other people's, and is what
the CSV is made from.
"""

from __future__ import annotations

import csv
import io
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from ..errors import HiEndSegError, OptionError, OutputError
from ..geometry.files import atomic_target
from ..models.card import ModelCard

EXTENSIONS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
RECORD_ENDING = ".hiendseg.json"
RECORD_FORMAT = "hiendseg-result"
CSV_NAME = "volumes.csv"
CSV_HEADER = ["case", "structure", "name", "value", "voxels", "volume_ml", "mean_hu", "model", "output"]
#: Endings of files that a person may well ask for and that hold no label map; anything else unknown names a folder.
_OTHER_FILES = {".png", ".jpg", ".jpeg", ".dcm", ".csv", ".txt", ".json", ".gz", ".zip", ".mhd", ".nhdr", ".hdr",
                ".img", ".mgz", ".mgh", ".stl", ".obj", ".vtk", ".vtp", ".tif", ".tiff", ".npy", ".npz", ".mrb", ".h5"}


@dataclass(frozen=True)
class Target:
    """Where one case goes. case: a `geometry.reading.Case`; name: unique within the batch."""

    case: Any
    name: str
    path: Path

    @property
    def record_path(self) -> Path:
        return record_path(self.path)


@dataclass(frozen=True)
class Request:
    """What makes two runs the same: model (by checksum), structures, region, series. The device does not."""

    card: ModelCard
    only: list[str] | None = None
    roi: tuple | None = None
    series: str | None = None

    def to_dict(self) -> dict:
        return {"model": self.card.key, "sha256": self.card.checksum, "only": self.only,
                "roi": None if self.roi is None else [list(pair) for pair in self.roi], "series": self.series}


# ---------------------------------------------------------------------------------------------------- names


def is_file_target(out: str) -> bool:
    """Whether OUT means one file (its extension says so) and not a folder. OptionError for a kind we do not write."""
    path = Path(out)
    if out.endswith(("/", os.sep)) or path.is_dir():
        return False
    name = path.name.lower()
    if any(name.endswith(ending) and name != ending for ending in EXTENSIONS):
        return True
    if path.suffix.lower() in _OTHER_FILES or path.is_file():
        raise OptionError(f"'{out}' is not a label map this program writes; end the name with one of "
                          f"{', '.join(EXTENSIONS)}, or name a folder.")
    return False


def targets(cases: Sequence, out: str) -> list[Target]:
    """One target per case: OUT itself, or `<case>.seg.nrrd` in the folder OUT.

    Cases of the same name get the folders they lie in before their name. Raises OptionError when several cases would
    go to one file.
    """
    if is_file_target(out):
        if len(cases) > 1:
            raise OptionError(f"There are {len(cases)} cases and one output file ({out}); name a folder instead.")
        return [Target(case, case.name, Path(out)) for case in cases]
    folder = Path(out)
    return [Target(case, name, folder / f"{name}.seg.nrrd") for case, name in zip(cases, _unique_names(cases))]


def _unique_names(cases: Sequence) -> list[str]:
    names = [case.name or "case" for case in cases]
    parents = [list(case.path.resolve().parent.parts[1:]) for case in cases]
    while True:
        folded = [name.casefold() for name in names]  # Windows and macOS do not tell A from a
        doubled = [n for n, name in enumerate(folded) if folded.count(name) > 1]
        if not doubled:
            return names
        for number, n in enumerate(doubled):
            names[n] = f"{parents[n].pop()}-{names[n]}" if parents[n] else f"{names[n]}-{number + 1}"


def record_path(output: Path) -> Path:
    """The record that belongs to a result file."""
    return output.with_name(_stem(output) + RECORD_ENDING)


def csv_path(out: str) -> Path:
    """The table over all cases: in the folder, or beside the single file."""
    path = Path(out)
    return path.with_name(f"{_stem(path)}.{CSV_NAME}") if is_file_target(out) else path / CSV_NAME


def _stem(path: Path) -> str:
    ending = next((e for e in EXTENSIONS if path.name.lower().endswith(e)), path.suffix)
    return path.name[:len(path.name) - len(ending)]


# ---------------------------------------------------------------------------------------------------- records


def fingerprint(path: Path) -> dict:
    """Size and time of the input's file, or of all files directly in a DICOM folder: changes when the input does."""
    if path.is_dir():
        files = [entry.stat() for entry in os.scandir(path) if entry.is_file()]
        return {"name": path.resolve().name, "files": len(files), "bytes": sum(file.st_size for file in files),
                "modified": max((file.st_mtime_ns for file in files), default=0)}
    status = path.stat()
    return {"name": path.name, "files": 1, "bytes": status.st_size, "modified": status.st_mtime_ns}


def finished(target: Target, request: Request) -> bool:
    """Whether the target holds exactly what is asked for, made from the input as it is now."""
    record = read_record(target.record_path)
    try:
        return (record is not None and record["request"] == request.to_dict()
                and record["output"] == {"file": target.path.name, "bytes": target.path.stat().st_size}
                and record["input"] == fingerprint(target.case.path))
    except (OSError, KeyError):
        return False


def check_free(target: Target, overwrite: bool) -> None:
    """Raise OutputError when the target may not be written: the input itself, or a file that is there already."""
    if target.path.exists() and target.case.path.exists() and os.path.samefile(target.path, target.case.path):
        raise OutputError(f"{target.path} is the input itself; choose another output.")
    for path in (target.path, target.record_path):
        if path.is_dir():
            raise OutputError(f"{path} is a folder, so no file of that name can be written; choose another output.")
    if target.path.exists() and not overwrite:
        ours = read_record(target.record_path) is not None
        reason = ("was made from another input, by another model or with other options" if ours
                  else "was not made by this program")
        raise OutputError(f"{target.path} exists already and {reason}; it is left as it is. Choose another output, or "
                          "replace it with --overwrite.")


def write_record(target: Target, request: Request, result: Any) -> dict:
    """Write the record of a result that lies at its target; returns it."""
    record = {
        "format": RECORD_FORMAT, "format_version": 1, "case": target.name,
        "input": fingerprint(target.case.path),
        "output": {"file": target.path.name, "bytes": target.path.stat().st_size},
        "request": request.to_dict(), "statistics": result.statistics, "messages": result.messages,
        "info": result.info,
    }
    write_text(target.record_path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def read_record(path: Path) -> dict | None:
    """A record, or None when there is none or it is something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    good = isinstance(record, dict) and record.get("format") == RECORD_FORMAT \
        and isinstance(record.get("statistics"), list)
    return record if good else None


# ---------------------------------------------------------------------------------------------------- table


class Table:
    """The CSV over all cases whose records lie in its folder (or of one record, for a single output file)."""

    def __init__(self, out: str, overwrite: bool):
        self.path = path = csv_path(out)
        if path.exists() and not overwrite and not self._ours():
            raise OutputError(f"{path} exists already and is not a table of this program; it is left as it is. Choose "
                              "another output, or replace it with --overwrite.")
        self._records: dict[str, dict] = {}
        if path.parent.is_dir():
            single = is_file_target(out)
            files = [record_path(Path(out))] if single else sorted(path.parent.glob(f"*{RECORD_ENDING}"))
            for file in files:
                record = read_record(file)
                if record is not None and (path.parent / str(record.get("output", {}).get("file"))).is_file():
                    self._records[file.name] = record

    def _ours(self) -> bool:
        try:
            with open(self.path, encoding="utf-8", newline="") as stream:
                return next(csv.reader(stream), None) == CSV_HEADER
        except (OSError, ValueError, csv.Error):
            return False

    def add(self, target: Target, record: dict) -> None:
        """Take in a case and write the whole table anew, atomically, so that a stop at any time loses nothing."""
        self._records[target.record_path.name] = record
        self.write()

    def write(self) -> None:
        """One row per case and structure."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(CSV_HEADER)
        for record in sorted(self._records.values(), key=lambda record: str(record.get("case"))):
            for row in record["statistics"]:
                hu = row.get("mean_hu")
                writer.writerow([record.get("case"), row["id"], row["name"], row["value"], row["voxels"],
                                 f"{row['volume_ml']:.3f}", "" if hu is None else f"{hu:.1f}",
                                 record["request"]["model"], record["output"]["file"]])
        write_text(self.path, text.getvalue())


def prepare_folder(folder: Path) -> None:
    """Make the output folder and see that it can be written to, before an hour of computing."""
    probe = folder / f".hiendseg-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "xb"):
            pass
    except OSError as error:
        raise OutputError(f"Nothing can be written to the folder {folder} ({error.strerror or error}); choose another "
                          "output.") from None
    finally:
        with suppress(OSError):
            probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; OutputError otherwise."""
    with atomic_target(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sentence_of(error: BaseException) -> str:
    """One sentence for whatever went wrong with a case."""
    if isinstance(error, HiEndSegError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory for this case; close other programs, crop it with --roi, or use a larger " \
               "computer."
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"The system refused ({error.strerror or error}{where}); check the file and the disk."
    first = (str(error).splitlines() or [""])[0][:200]
    return f"An unexpected error happened ({type(error).__name__}: {first}); run again with --debug and report it."
