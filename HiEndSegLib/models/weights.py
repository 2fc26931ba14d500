"""Reading weight files safely: nothing in a file is ever executed, and a bad file ends in one sentence.

Two formats: PyTorch checkpoints (``torch.load`` with ``weights_only``) and safetensors. Knows nothing about cards or
networks; which tensors belong where is `official`'s and `loading`'s business.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from HiEndSegLib.errors import ModelError

# Larger than any published encoder with its optimiser state; beyond it a file is refused before it fills memory.
SIZE_LIMIT = 16 * 2**30


def read_checkpoint(path: str | Path, *, size_limit: int = SIZE_LIMIT, mmap: bool = False) -> dict:
    """A PyTorch file of tensors and plain values, loaded onto the CPU without running anything in it.

    Args:
        size_limit: bytes; larger files, or archives that unpack to more, are refused.
        mmap: leave the tensors in the file until they are used (the file stays open meanwhile).

    Returns:
        The dictionary as stored. Tensors keep their dtype.

    Raises:
        ModelError: missing, empty, truncated or oversized file, no PyTorch checkpoint, or one that holds code.
    """
    path = _checked(path, size_limit)
    zipped = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        looks_zipped = file.read(4) == b"PK\x03\x04"
    if looks_zipped and not zipped:
        raise ModelError(f"{path.name} is cut off ({_size(path)} are there, but its table of contents is not); "
                         "download or copy it again.")
    if zipped:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size_limit:
            raise ModelError(f"{path.name} unpacks to {_bytes(unpacked)}, more than the {_bytes(size_limit)} allowed; "
                             "take a file with the network's weights alone.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old formats warn about deprecated storages; nothing to act on
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    except Exception as error:  # torch raises half a dozen types, by format and by kind of damage
        raise ModelError(_explain(path, error)) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} holds a single {type(content).__name__}, not a checkpoint (a dictionary of "
                         "tensors); save the network's state_dict() and use that file.")
    if not any(True for _ in _tensors(content)):
        raise ModelError(f"{path.name} holds no tensor, so it is not a checkpoint; choose the file with the weights.")
    return content


def read_safetensors(path: str | Path, *, size_limit: int = SIZE_LIMIT, none: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. none: whether a file without a tensor will do.

    Raises:
        ModelError: missing, empty, truncated or oversized file, or not safetensors at all.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _checked(path, size_limit)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
        opening = file.read(1)
    size = path.stat().st_size
    if opening != b"{":
        raise ModelError(f"{path.name} is not a safetensors file; choose the weights file of the model.")
    if header + 8 > size:
        raise ModelError(f"{path.name} is cut off: its header alone needs {header + 8} bytes and the file has {size}; "
                         "download or copy it again.")
    try:
        tensors = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path.name} is damaged or cut off ({_first_line(error)}); "
                         "download or copy it again.") from error
    if not tensors and not none:
        raise ModelError(f"{path.name} holds no tensor; choose the weights file of the model.")
    return tensors


def _checked(path: str | Path, size_limit: int) -> Path:
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not a weights file; name the file inside it.")
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}; check the name.")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{path.name} is empty; download or copy it again.")
    if size > size_limit:
        raise ModelError(f"{path.name} has {_bytes(size)}, more than the {_bytes(size_limit)} allowed; "
                         "take a file with the network's weights alone.")
    return path


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    if isinstance(error, PermissionError):
        return f"{path.name} may not be read by you; change its permissions."
    if isinstance(error, EOFError) or "PytorchStreamReader" in text or "unexpected EOF" in text:
        return f"{path.name} is damaged or cut off ({_size(path)} are there); download or copy it again."
    if isinstance(error, MemoryError) or "not enough memory" in text or "can't allocate memory" in text:
        return f"{path.name} ({_size(path)}) does not fit into memory; close other programs or use a larger machine."
    if "GLOBAL" in text or _asks_for_code(path):
        return (f"{path.name} holds program code beside its tensors, and HiEndSeg runs none; ask its author for a "
                "file with the state_dict() alone, or for safetensors.")
    return f"{path.name} is not a PyTorch checkpoint; choose the file with the weights."


def _asks_for_code(path: Path) -> bool:
    """A plain pickle (no PyTorch archive) that names something to import; looked at, never executed."""
    with open(path, "rb") as file:
        if file.read(1) != b"\x80":
            return False
        file.seek(0)
        try:
            return any(op.name in ("GLOBAL", "STACK_GLOBAL", "INST") for op, _, _ in pickletools.genops(file))
        except (ValueError, EOFError, UnicodeDecodeError):
            return False


def _tensors(content: object, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif depth < 8 and isinstance(content, dict):
        for value in content.values():
            yield from _tensors(value, depth + 1)
    elif depth < 8 and isinstance(content, (list, tuple)):
        for value in content:
            yield from _tensors(value, depth + 1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:120]


def _size(path: Path) -> str:
    return _bytes(path.stat().st_size)


def _bytes(number: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"
