"""What both benchmarks need to know about the machine, and to measure on it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from HiEndSegLib.errors import OptionError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resident_peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    try:  # Linux; its getrusage would start from what the parent held
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        import psutil
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measured_apart(arguments: Sequence[str], threads: int | None, what: str) -> int:
    """The number this command prints with other arguments, from a process of its own."""
    command = [sys.executable, "-m", "training.benchmarks", *arguments]
    if threads:
        command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          cwd=Path(__file__).resolve().parents[2])
    if done.returncode:
        raise OptionError(f"Measuring {what} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return int(done.stdout.strip().splitlines()[-1])


def synchronizer(device: torch.device | str) -> Callable[[], None]:
    """Waits for a device that works on its own; nothing to wait for on the CPU."""
    return torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None


def machine(device: str) -> str:
    """Device, threads and PyTorch in one line."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
