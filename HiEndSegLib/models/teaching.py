"""Teaching sets: the cases a version learned from, kept beside it if the person wants, so that the next one does not
undo the last.

They are parts of patients' images: written only when asked for, never exported, added or sent, and forgotten with one
call. `teaching.npz` in the version's folder; read as untrusted, every size checked before memory is taken. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Iterable

import numpy as np

from ..errors import ModelError, OutputError
from ..geometry.files import atomic_target
from .card import ModelCard, inside
from .card_checks import MAX_CARD_BYTES, check_plain, json_from_bytes
from .card_schema import ADAPTATION_SCHEMA, LABEL_ID_PATTERN, MAX_TEACHING_CASES
from .family import find_parent

if TYPE_CHECKING:
    from ..geometry.volume import Volume

TEACHING_NAME = "teaching.npz"
#: Voxels of one case, and of all cases of a set.
MAX_CASE_VOXELS = 2**28
MAX_SET_VOXELS = 2**28
OPEN = 255

_CASE = ADAPTATION_SCHEMA["properties"]["case"]["properties"]
_MEMBERS = ("image", "labels")
_SCHEMA = {
    "type": "object",
    "required": ["format", "format_version", "cases"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": "hiendseg-teaching"},
        "format_version": {"const": 1},
        "cases": {
            "type": "array", "maxItems": MAX_TEACHING_CASES,
            "items": {
                "type": "object",
                "required": ["fingerprint", "spacing", "ids", "held_out"],
                "additionalProperties": False,
                "properties": {
                    "fingerprint": _CASE["fingerprint"],
                    "spacing": _CASE["spacing"],
                    "ids": {"type": "object", "maxProperties": 254, "propertyNames": {"pattern": "^[0-9]{1,3}$"},
                            "additionalProperties": {"type": "string", "pattern": LABEL_ID_PATTERN, "maxLength": 64}},
                    "held_out": {"type": "array", "maxItems": 4096, "items": {
                        "type": "array", "minItems": 2, "maxItems": 2,
                        "items": {"type": "integer", "minimum": 0, "maximum": 65536}}},
                },
            },
        },
    },
}


@dataclass(frozen=True, eq=False)
class TeachingCase:
    """One case, or one tile of it, as the next adaptation meets it again.

    fingerprint: of the whole case (`case_fingerprint`); tiles of one case share it.
    image: int16 (I, J, K), HU for CT, on a lattice along RAS. spacing: mm.
    labels: uint8 (I, J, K): 0 none of the structures in `ids`, 255 not annotated, else a value of `ids`.
    ids: value -> structure id.
    held_out: slices [lo, hi) along K that were kept out of training, and must be again.
    """

    fingerprint: str
    image: np.ndarray
    labels: np.ndarray
    ids: dict[int, str]
    spacing: tuple[float, float, float]
    held_out: tuple[tuple[int, int], ...] = ()


def case_fingerprint(volume: Volume) -> str:
    """SHA-256 over shape, spacing (0.001 mm) and voxels in RAS order: the same image gives the same text whatever
    file it came from, and nothing of the patient can be read from it."""
    from ..geometry.resample import to_ras_axes

    ras = to_ras_axes(volume)
    digest = hashlib.sha256(json.dumps([list(ras.shape), [round(s, 3) for s in ras.spacing]]).encode())
    for plane in ras.array:                             # by planes: a flipped view is not copied whole
        digest.update(np.ascontiguousarray(plane, dtype="<f4").tobytes())
    return digest.hexdigest()


def with_case(cases: Iterable[TeachingCase], new: Iterable[TeachingCase] = ()) -> list[TeachingCase]:
    """The earlier cases and the new one: structures of a case that are taught again replace what was kept of them, and
    the oldest cases give way where the set would grow beyond what one may hold."""
    new = list(new)
    kept = []
    for case in cases:
        again = {id_ for other in new if other.fingerprint == case.fingerprint for id_ in other.ids.values()}
        rest = without(case, again)
        kept += [] if rest is None else [rest]
    kept += new
    while kept and (len(kept) > MAX_TEACHING_CASES or sum(case.image.size for case in kept) > MAX_SET_VOXELS):
        kept.pop(0)
    return kept


def without(case: TeachingCase, structures: Iterable[str]) -> TeachingCase | None:
    """What the case says of other structures than these; None where that is nothing."""
    gone = [value for value, id_ in case.ids.items() if id_ in set(structures)]
    if not gone:
        return case
    if len(gone) == len(case.ids):
        return None
    ids = {value: id_ for value, id_ in case.ids.items() if value not in gone}
    return replace(case, ids=ids, labels=np.where(np.isin(case.labels, gone), 0, case.labels).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------ files


def has_teaching(card: ModelCard) -> bool:
    """Whether cases are kept beside this version."""
    return card.folder is not None and (card.folder / TEACHING_NAME).is_file()


def write_teaching(cases: Iterable[TeachingCase], folder: str | os.PathLike) -> Path:
    """Write `folder/teaching.npz`, whole or not at all. Raises ModelError (a case that cannot be kept), OutputError."""
    cases = list(cases)
    where = "The teaching set"
    meta = {"format": "hiendseg-teaching", "format_version": 1, "cases": [
        {"fingerprint": case.fingerprint, "spacing": [float(s) for s in case.spacing],
         "ids": {str(value): id_ for value, id_ in case.ids.items()},
         "held_out": [[int(low), int(high)] for low, high in case.held_out]} for case in cases]}
    _check_meta(meta, where)
    arrays = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    for number, case in enumerate(cases):
        _check_arrays(case.image.shape, case.image.dtype, case.labels.shape, case.labels.dtype, where)
        _check_values(case, where)
        arrays[f"image_{number}"], arrays[f"labels_{number}"] = case.image, case.labels
    _check_total((case.image.size for case in cases), where)
    path = Path(folder) / TEACHING_NAME
    with atomic_target(path) as temporary:
        temporary.touch(mode=0o600)                             # a patient's image: for this user alone
        np.savez_compressed(temporary, **arrays)
    return path


def read_teaching(card: ModelCard) -> list[TeachingCase]:
    """The cases kept beside a version, oldest first; none where none are kept.

    Raises ModelError where the file is damaged or not what it should be.
    """
    if card.folder is None or not os.path.lexists(card.folder / TEACHING_NAME):
        return []
    path = inside(card.folder, TEACHING_NAME, card.key)
    where = f"The teaching set of model {card.key}"
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError,
            OSError) as error:
        raise ModelError(f"{where} is damaged ({_first_line(error)}); forget it and teach its cases again.") from None


def kept_for(card: ModelCard, cards: Iterable[ModelCard]) -> ModelCard | None:
    """Whose teaching set counts for this model: its own, or that of the nearest version it was adapted from that has
    one (images are not copied into a version whose case was not to be remembered); None without any."""
    cards, seen = list(cards), set()
    at: ModelCard | None = card
    while at is not None and at.key not in seen:
        if has_teaching(at):
            return at
        seen.add(at.key)
        at = find_parent(at, cards)
    return None


def forget_cases(card: ModelCard, cards: Iterable[ModelCard]) -> bool:
    """Delete the cases kept beside a version, and whatever other versions keep of the same cases; the versions stay.
    True where there were any. OutputError. A damaged set of another version is left alone, it names no case."""
    try:
        gone = {case.fingerprint for case in read_teaching(card)}
    except ModelError:
        gone = set()                                            # damaged: delete it all the same
    for other in cards:
        if not gone or other.key == card.key or not has_teaching(other):
            continue
        try:
            kept = read_teaching(other)
        except ModelError:
            continue
        rest = [case for case in kept if case.fingerprint not in gone]
        if rest and len(rest) < len(kept):
            write_teaching(rest, other.folder)
        elif not rest:
            forget_teaching(other)
    return forget_teaching(card)


def forget_teaching(card: ModelCard) -> bool:
    """Delete the file of cases beside a version; the version itself stays. True where there was one. OutputError."""
    if card.folder is None:
        return False
    path = card.folder / TEACHING_NAME
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"The teaching set {path} could not be deleted ({error.strerror or error}); check the "
                          "folder's permissions, or delete the file yourself.") from None
    return True


# ------------------------------------------------------------------------------------------------------ checking


def _read(archive: zipfile.ZipFile, where: str) -> list[TeachingCase]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) > len(_MEMBERS) * MAX_TEACHING_CASES + 1 or "meta.npy" not in entries:
        raise ModelError(f"{where} is not one ({len(entries)} entries); forget it and teach its cases again.")
    with archive.open(entries["meta.npy"]) as stream:
        shape, dtype = _header(stream)
        if len(shape) != 1 or dtype != np.uint8 or shape[0] > MAX_CARD_BYTES:
            raise ModelError(f"{where} has no readable description; forget it and teach its cases again.")
        meta = json_from_bytes(stream.read(shape[0]), where)
    _check_meta(meta, where)
    wanted = {f"{name}_{number}.npy" for number in range(len(meta["cases"])) for name in _MEMBERS} | {"meta.npy"}
    if set(entries) != wanted:
        raise ModelError(f"{where} holds other entries than its description names; forget it and teach its cases "
                         "again.")
    headers = {}
    for name in wanted - {"meta.npy"}:                          # all sizes before any voxel
        with archive.open(entries[name]) as stream:
            headers[name] = _header(stream)
    for number in range(len(meta["cases"])):
        _check_arrays(*headers[f"image_{number}.npy"], *headers[f"labels_{number}.npy"], where)
    _check_total((int(np.prod(headers[f"image_{number}.npy"][0])) for number in range(len(meta["cases"]))), where)
    cases = []
    for number, entry in enumerate(meta["cases"]):
        arrays = []
        for name in _MEMBERS:
            with archive.open(entries[f"{name}_{number}.npy"]) as stream:
                arrays.append(np.lib.format.read_array(stream, allow_pickle=False))
        cases.append(TeachingCase(
            fingerprint=entry["fingerprint"], image=arrays[0], labels=arrays[1],
            ids={int(value): id_ for value, id_ in entry["ids"].items()},
            spacing=tuple(float(s) for s in entry["spacing"]),
            held_out=tuple((low, high) for low, high in entry["held_out"])))
        _check_values(cases[-1], where)
    return cases


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type an .npy stream claims, before its array is read. ValueError where there is no such header."""
    if np.lib.format.read_magic(stream) != (1, 0):              # later ones allow headers of gigabytes
        raise ValueError("another array format")
    shape, _fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype


def _check_meta(meta: object, where: str) -> None:
    check_plain(meta, where, _SCHEMA)
    for entry in meta["cases"]:
        values = [int(value) for value in entry["ids"]]
        if len(set(values)) != len(values) or not all(1 <= value < OPEN for value in values):
            raise ModelError(f"{where}: the values of its structures must be different and lie between 1 and "
                             f"{OPEN - 1}, and they are {values}.")
        if not all(low < high for low, high in entry["held_out"]):
            raise ModelError(f"{where}: slices kept out of training must go from a lower to a higher one, and they are "
                             f"{entry['held_out']}.")


def _check_arrays(shape: tuple, dtype: np.dtype, labels_shape: tuple, labels_dtype: np.dtype, where: str) -> None:
    voxels = 1
    for edge in shape:
        voxels *= int(edge)                                     # Python's numbers do not overflow
    if len(shape) != 3 or not 0 < voxels <= MAX_CASE_VOXELS or any(edge < 1 for edge in shape):
        raise ModelError(f"{where} has an image of {' x '.join(map(str, shape))} voxels; it must have three edges and "
                         f"at most {MAX_CASE_VOXELS} voxels.")
    if labels_shape != shape:
        raise ModelError(f"{where} has an image of {' x '.join(map(str, shape))} voxels and labels of "
                         f"{' x '.join(map(str, labels_shape))}; the two must be equal.")
    if dtype != np.int16 or labels_dtype != np.uint8:
        raise ModelError(f"{where} has images of type {dtype} and labels of type {labels_dtype}; they must be int16 "
                         "and uint8.")


def _check_total(voxels: Iterable[int], where: str) -> None:
    total = sum(voxels)
    if total > MAX_SET_VOXELS:
        raise ModelError(f"{where} has {total} voxels, more than the {MAX_SET_VOXELS} it may have; keep fewer cases.")


def _check_values(case: TeachingCase, where: str) -> None:
    unknown = sorted(set(np.unique(case.labels).tolist()) - {0, OPEN} - set(case.ids))
    if unknown:
        raise ModelError(f"{where} has labels of value {unknown[0]} that no structure has; forget it and teach its "
                         "cases again.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:120]
