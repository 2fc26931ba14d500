"""Which computing devices work here: found out by a tiny convolution, said in sentences."""

from __future__ import annotations

import os
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Callable, Iterator

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DeviceError, OptionError
from .plan import gigabytes

#: Largest difference from the CPU's answer that a device may have, as a share of the largest value (TF32 keeps 1e-3).
TOLERANCE = 1e-2
#: bfloat16 is used on a CPU only if a tile is at least this much faster with it.
HALF_GAIN = 1.3
#: ... and names the same winner for at least this share of its voxels.
HALF_AGREEMENT = 0.995


@dataclass(frozen=True)
class DeviceStatus:
    """kind: "cuda:0", "mps" or "cpu". memory_bytes: all of the device's memory (the machine's for "cpu")."""

    kind: str
    works: bool
    sentence: str
    memory_bytes: int


@lru_cache(maxsize=1)
def probe_devices() -> tuple[DeviceStatus, ...]:
    """Every device torch knows, best first and the CPU last, each tried once per process. Raises nothing."""
    found = [_probe(kind) for kind in _accelerators()]
    memory = _machine_memory()
    if not found:
        start = "No CUDA device was found; the CPU is used"
    elif not any(status.works for status in found):
        start = "No accelerator works; the CPU is used"
    else:
        start = "The CPU works"
    threads = thread_count()
    sentence = f"{start}, {threads} thread{'s' if threads != 1 else ''}, {gigabytes(memory)} of memory."
    return (*found, DeviceStatus("cpu", True, sentence, memory))


def choose_device(name: str = "auto") -> DeviceStatus:
    """The device to compute on: "auto" (best that works), "cuda", "cuda:1", "mps" or "cpu".

    Raises OptionError for a name of another form and DeviceError, with the reason, for a device that does not work.
    """
    wanted = str(name).strip().lower()
    base, _, number = wanted.partition(":")
    if base not in ("auto", "cuda", "mps", "cpu") or (number and not (base == "cuda" and number.isdigit())) \
            or wanted.endswith(":"):
        raise OptionError(f"There is no device named '{name}'; choose auto, cuda, mps or cpu.")
    devices = probe_devices()
    if wanted == "auto":
        return next(status for status in devices if status.works)
    wanted = "cuda:0" if wanted == "cuda" else wanted
    for status in devices:
        if status.kind == wanted:
            if not status.works:
                raise DeviceError(f"{status.sentence} Choose the device cpu or auto.")
            return status
    others = ", ".join(status.kind for status in devices)
    raise DeviceError(f"The device {wanted} was asked for, and only {others} is here; choose cpu or auto, or install "
                      "the torch build and driver that fit it.")


def free_bytes(kind: str) -> int:
    """Memory a job may take on this device now; for "cpu" main memory, inside a container its limit."""
    if kind.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(kind))[0])
    if kind == "mps":
        return max(0, int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return min(int(psutil.virtual_memory().available), _container_room())


def thread_count(threads: int | None = None) -> int:
    """CPU threads for a job: what is asked, else OMP_NUM_THREADS, else the physical cores this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads is not None:
        return max(1, min(int(threads), allowed))
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdigit() and int(text) > 0:
        return min(int(text), allowed)
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


@contextmanager
def cpu_threads(threads: int | None = None) -> Iterator[int]:
    """torch with `thread_count(threads)` threads, and as before afterwards."""
    before = torch.get_num_threads()
    count = thread_count(threads)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the machine had no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in (
        "out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "not enough memory"))


def half_type(kind: str) -> torch.dtype | None:
    """The half precision a graphics card computes in; None for others."""
    if kind.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return None


_HALF_PAYS: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def half_pays_on_cpu(network: nn.Module, tile: Callable[[], Tensor]) -> bool:
    """Whether bfloat16 is worth it for this network on this CPU: there are instructions for it, and a tile
    (1, C, I, J, K), computed both ways, takes less CPU time by HALF_GAIN and names the same winner in HALF_AGREEMENT
    of its voxels.

    Asked once per network and process, on the middle eighth of the tile where the network takes one of that size: less
    than the time of two tiles (measured for the default model: 0.8 s). Costs nothing where the CPU has no
    instructions for it.
    """
    if not cpu_has_bfloat16():
        return False
    if network not in _HALF_PAYS:
        whole = tile()
        middle = whole[(..., *(slice(n // 4, n // 4 + n // 2) for n in whole.shape[2:]))].contiguous()
        try:
            _HALF_PAYS[network] = _measure_half(network, middle)
        except (ValueError, RuntimeError):                      # a network for whole tiles only
            _HALF_PAYS[network] = _measure_half(network, whole)
    return _HALF_PAYS[network]


def cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX; without them bfloat16 is emulated and slower."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        check = getattr(torch.cpu, name, None)
        if check is not None and check():
            return True
    return False


def _measure_half(network: nn.Module, tile: Tensor) -> bool:
    full, half = [], []
    with torch.inference_mode():
        network.scores(tile)                                # the first call sets up its buffers
        for _ in range(2):
            # CPU time of this process, the better of two: what other programs do sways it little.
            begin = time.process_time()
            in_full = network.scores(tile)
            full.append(time.process_time() - begin)
            begin = time.process_time()
            try:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    in_half = network.scores(tile)
            except RuntimeError:                            # an operation without a bfloat16 kernel
                return False
            half.append(time.process_time() - begin)
    same = (in_full.argmax(1) == in_half.argmax(1)).float().mean().item()
    return bool(min(full) >= HALF_GAIN * min(half) and same >= HALF_AGREEMENT)


def _accelerators() -> list[str]:
    kinds = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = getattr(torch.backends, "mps", None)
    return kinds + (["mps"] if mps is not None and mps.is_available() else [])


def _probe(kind: str) -> DeviceStatus:
    name, memory = kind, 0
    try:
        name, memory = _name_and_memory(kind)
        difference = _try_convolution(kind)
    except Exception as error:      # drivers raise all sorts of things; each means the device cannot be used
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return DeviceStatus(kind, False, f"{name} was found and does not work ({reason[:200]}).", memory)
    if not difference <= TOLERANCE:
        return DeviceStatus(kind, False, f"{name} was found and computes wrongly (a small convolution differs from the "
                            f"CPU's by {difference:.2g} of its largest value).", memory)
    return DeviceStatus(kind, True, f"{name} works, {memory / 2**30:.0f} GiB.", memory)


def _name_and_memory(kind: str) -> tuple[str, int]:
    if kind.startswith("cuda"):
        properties = torch.cuda.get_device_properties(torch.device(kind))
        return properties.name, int(properties.total_memory)
    return "The Apple graphics processor (mps)", int(torch.mps.recommended_max_memory())


def _try_convolution(kind: str) -> float:
    """Largest difference of a small 3D convolution from the CPU's, as a share of the CPU's largest value."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 12, 12, 12, generator=generator) - 0.5
    weight = torch.rand(4, 2, 3, 3, 3, generator=generator) - 0.5
    with torch.inference_mode():
        expected = F.conv3d(x, weight, padding=1)
        device = torch.device(kind)
        found = F.conv3d(x.to(device), weight.to(device), padding=1).cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def _machine_memory() -> int:
    return int(psutil.virtual_memory().total)


def _container_room(root: str = "/sys/fs/cgroup") -> int:
    """Bytes left under a container's memory limit (cgroup 2, then 1); practically endless where there is none."""
    for limit_name, used_name in (("memory.max", "memory.current"),
                                  ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            limit = (Path(root) / limit_name).read_text().strip()
            used = int((Path(root) / used_name).read_text())
            lines = (Path(root) / used_name).with_name("memory.stat").read_text().splitlines()
            cached = dict(line.split() for line in lines).get("inactive_file", 0)       # given back when needed
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            return max(0, int(limit) - max(0, used - int(cached)))
    return 1 << 62
