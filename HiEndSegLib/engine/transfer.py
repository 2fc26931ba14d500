"""How values cross the process border: plain values as JSON, arrays as `.npy` files in the job's private folder.

`encode` and `decode` undo each other exactly: tuples stay tuples, float64 keeps every bit, `Volume`, `Label`,
`SegmentResult` and `MemoryPlan` come back as what they were. Only NaN and infinite numbers change: they become None.
Nothing but the classes of `CLASSES` is ever built from a message, and `.npy` files are read without pickle.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import math
import os
import shutil
from enum import Enum
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from ..errors import EngineError, OutputError

#: Classes that may cross, by the name on the wire. None of their modules imports torch.
CLASSES = {
    "Volume": ("HiEndSegLib.geometry.volume", "Volume"),
    "Label": ("HiEndSegLib.geometry.labels", "Label"),
    "SegmentResult": ("HiEndSegLib.operations.result", "SegmentResult"),
    "MemoryPlan": ("HiEndSegLib.operations.plan", "MemoryPlan"),
    "Step": ("HiEndSegLib.operations.plan", "Step"),
    "AdaptPlan": ("HiEndSegLib.operations.adapt_plan", "AdaptPlan"),
    "AdaptResult": ("HiEndSegLib.engine.adapting", "AdaptResult"),
    "AttentionResult": ("HiEndSegLib.operations.attend_result", "AttentionResult"),
    "AttentionMap": ("HiEndSegLib.operations.attend_result", "AttentionMap"),
    "LayerRank": ("HiEndSegLib.operations.attend_result", "LayerRank"),
    "QueriesResult": ("HiEndSegLib.operations.attend_result", "QueriesResult"),
    "QueryView": ("HiEndSegLib.operations.attend_result", "QueryView"),
    "UncertaintyResult": ("HiEndSegLib.operations.attend_result", "UncertaintyResult"),
}
NAMES = {place: name for name, place in CLASSES.items()}
#: The key that marks a JSON object as something other than a dict.
TAG = "$"
#: Arrays up to this many bytes (matrices, spacings) travel inside the message.
INLINE_BYTES = 2048
#: Voxels are written in pieces of about this size, so that a cancel is seen between two of them.
PIECE_BYTES = 16 * 1024 * 1024
#: Kept free on the disk beyond what is written.
MARGIN_BYTES = 16 * 1024 * 1024


def plain(value: Any) -> Any:
    """`value` with NaN and infinite numbers as None and numpy scalars as Python's, in dicts, lists and tuples."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def encode(value: Any, prefix: str) -> tuple[Any, dict[str, np.ndarray]]:
    """JSON for `value`, and the arrays that belong into files beside it, by file name (`<prefix>0.npy` …).

    Raises TypeError for what cannot cross.
    """
    arrays: dict[str, np.ndarray] = {}
    return _encode(value, prefix, arrays), arrays


def _encode(value: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Enum):
        value = value.value
    value = _scalar(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list):
        return [_encode(item, prefix, arrays) for item in value]
    if isinstance(value, tuple):
        return {TAG: "tuple", "items": [_encode(item, prefix, arrays) for item in value]}
    if isinstance(value, dict):
        if TAG not in value and all(isinstance(key, str) for key in value):
            return {key: _encode(item, prefix, arrays) for key, item in value.items()}
        return {TAG: "dict", "items": [[_encode(key, prefix, arrays), _encode(item, prefix, arrays)]
                                       for key, item in value.items()]}
    if isinstance(value, np.ndarray):
        return _encode_array(value, prefix, arrays)
    name = NAMES.get((type(value).__module__, type(value).__qualname__))
    if name is not None:
        fields = {field.name: _encode(getattr(value, field.name), prefix, arrays)
                  for field in dataclasses.fields(value) if field.init}
        return {TAG: name, "fields": fields}
    raise TypeError(f"A {type(value).__name__} cannot be passed to the other process.")


def _encode_array(array: np.ndarray, prefix: str, arrays: dict[str, np.ndarray]) -> dict:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"An array of {array.dtype} cannot be passed to the other process.")
    if array.nbytes <= INLINE_BYTES and array.dtype.isnative and bool(np.isfinite(array).all()):
        return {TAG: "array", "dtype": array.dtype.str, "shape": list(array.shape), "items": array.ravel().tolist()}
    name = f"{prefix}{len(arrays)}.npy"
    arrays[name] = array
    return {TAG: "file", "name": name}


def decode(value: Any, folder: Path | None, *, mapped: bool = False) -> Any:
    """The value that `encode` was given. `mapped`: big arrays stay in their files, changes to them in memory.

    Raises EngineError for what is not an encoded value, names a file outside `folder`, or whose file is unreadable.
    """
    if isinstance(value, list):
        return [decode(item, folder, mapped=mapped) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(TAG)
    if kind is None:
        return {key: decode(item, folder, mapped=mapped) for key, item in value.items()}
    try:
        if kind == "tuple":
            return tuple(decode(item, folder, mapped=mapped) for item in value["items"])
        if kind == "dict":
            return {decode(key, folder, mapped=mapped): decode(item, folder, mapped=mapped)
                    for key, item in value["items"]}
        if kind == "array":
            return np.array(value["items"], dtype=_dtype(value["dtype"])).reshape(value["shape"])
        if kind == "file":
            return _read_array(folder, value["name"], mapped)
        module, attribute = CLASSES[kind]
        fields = {name: decode(item, folder, mapped=mapped) for name, item in value["fields"].items()}
        return getattr(importlib.import_module(module), attribute)(**fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"A message between the processes could not be read ({type(error).__name__}: {error}); "
                          "start again, and report it if it happens again.") from error


def has_files(value: Any) -> bool:
    """Whether an encoded value has parts in files."""
    if isinstance(value, list):
        return any(has_files(item) for item in value)
    return isinstance(value, dict) and (value.get(TAG) == "file" or any(has_files(item) for item in value.values()))


def _dtype(text: str) -> np.dtype:
    dtype = np.dtype(text)
    if dtype.kind not in "biuf":
        raise ValueError(f"arrays of {dtype} are not passed")
    return dtype


def _read_array(folder: Path | None, name: str, mapped: bool) -> np.ndarray:
    if folder is None or not isinstance(name, str) or Path(name).name != name or not name.endswith(".npy"):
        raise ValueError("an array's file lies outside the private folder")
    path = Path(folder) / name
    try:
        if mapped:
            try:
                return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
            except ValueError:                      # an empty array cannot be mapped
                pass
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise EngineError(f"The private folder of this job could not be read ({error.strerror}); was the temporary "
                          "folder cleaned meanwhile? Start again.") from error


def write_arrays(arrays: dict[str, np.ndarray], folder: Path, check: Callable[[], object]) -> None:
    """Write the arrays as `.npy` into `folder`, in the memory order they have.

    `check` is called between pieces and may raise. Raises OutputError, with the sizes, when the disk has no room.
    """
    folder = Path(folder)
    need = sum(array.nbytes for array in arrays.values())
    if not need:
        return
    try:
        free = shutil.disk_usage(folder).free
        if free < need + MARGIN_BYTES:
            raise OSError(errno.ENOSPC, "not enough room")
        for name, array in arrays.items():
            with open(folder / name, "wb", opener=_private) as file:
                for piece in _npy_pieces(array):
                    check()
                    file.write(piece)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise OutputError(f"The temporary folder {folder.parent} has not enough room: the volume takes "
                              f"{need / 1e6:.0f} MB there for a moment; make room or set TMPDIR to another folder."
                              ) from error
        raise OutputError(f"The temporary folder {folder.parent} cannot be written ({error.strerror}); set TMPDIR to "
                          "another folder.") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _npy_pieces(array: np.ndarray) -> Iterator:
    """The bytes of the `.npy` file of `array`, a few MB at a time, without a copy of the whole."""
    header = io.BytesIO()
    description = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(header, description)
    yield header.getvalue()
    rows = array.T if description["fortran_order"] else array
    if rows.ndim == 0:
        yield rows.tobytes()
        return
    step = max(1, PIECE_BYTES // max(1, rows[:1].nbytes)) if len(rows) else 1
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[start:start + step]).data
