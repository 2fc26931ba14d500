"""Processes of a pre-training run: starting them (Lightning Fabric), agreeing, and noticing that one has died."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from HiEndSegLib.errors import DeviceError, EngineError, HiEndSegError, OptionError, from_code

PRECISIONS = {"32": "32-true", "32-true": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}
STRATEGIES = ("auto", "ddp", "fsdp")
#: A first preparation of thousands of volumes may leave ranks waiting for each other this long.
PATIENCE = timedelta(hours=2)
_LOST = ("connection closed by peer", "connection reset by peer", "socket closed", "broken pipe", "timed out",
         "remote process exited", "nccl", "gloo", "connection refused")
T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the process that speaks and writes; known before there is a Fabric."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0")))) == 0


def quieten() -> None:
    """Warnings that a person can do nothing about and that were looked into: both are remarks on speed or on in-place
    operations that do not occur here."""
    for message in ("Grad strides do not match bucket view strides", "FSDP2-wrapped module"):
        warnings.filterwarnings("ignore", message=message)


def make_fabric(*, device: str, devices: int | None, nodes: int | None, precision: str, strategy: str) -> Fabric:
    """A Fabric for these options. Under torchrun, its numbers of processes and nodes are taken where none is given.

    Raises OptionError and DeviceError.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    devices = devices or (local if elastic else 1)
    nodes = nodes or (int(os.environ["WORLD_SIZE"]) // local if elastic else 1)
    if elastic and (devices, nodes) != (local, int(os.environ["WORLD_SIZE"]) // local):
        raise OptionError(f"torchrun started {local} processes on each of {int(os.environ['WORLD_SIZE']) // local} "
                          f"nodes, and --devices {devices} --nodes {nodes} asks for others; leave both options out.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("No CUDA device works here; check the driver with nvidia-smi, or give --device cpu.")
    if device == "cuda" and devices > torch.cuda.device_count():
        raise DeviceError(f"--devices {devices} asks for more GPUs than the {torch.cuda.device_count()} of this "
                          "machine; give fewer.")
    if precision == "16-mixed" and device == "cpu":
        raise OptionError("The CPU has no 16-mixed training; give --precision bf16-mixed or 32.")
    processes = devices * nodes
    chosen: Any = "auto"
    if strategy == "fsdp":
        if processes == 1:
            raise OptionError("--strategy fsdp needs more than one process; leave it out for one.")
        chosen = ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1, timeout=PATIENCE)
    elif strategy == "ddp" or processes > 1:
        chosen = DDPStrategy(timeout=PATIENCE)
    return Fabric(accelerator=device, devices=devices, num_nodes=nodes, precision=PRECISIONS[precision],
                  strategy=chosen)


def _shard(network: nn.Module, mesh) -> nn.Module:
    """FSDP: every transformer block is gathered when it is needed; the rest with the whole network."""
    from torch.distributed.fsdp import fully_shard

    mesh = mesh["data_parallel"]
    blocks = [*network.encoder.blocks, *network.decoder.blocks, *network.decoder.cross_attention_blocks]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def gather_tensor(fabric: Fabric, value: Tensor) -> Tensor:
    """(…) on every rank -> (ranks, …) on every rank."""
    if fabric.world_size == 1:
        return value[None]
    parts = [torch.empty_like(value) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(parts, value.contiguous())
    return torch.stack(parts)


def gather(fabric: Fabric, value: T) -> list[T]:
    """Every rank's value, on every rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def agree(fabric: Fabric, action: Callable[[], T]) -> T:
    """Do `action` on every rank and return this rank's result; an expected failure of one becomes the same error on
    all, so that none waits for it."""
    value, failure = None, None
    try:
        value = action()
    except HiEndSegError as error:
        failure = (error.code, error.sentence)
    for found in gather(fabric, failure):
        if found:
            raise everywhere(from_code(*found))
    return value


def everywhere(error: HiEndSegError) -> HiEndSegError:
    """Mark an error that all ranks raise, so that one of them says it."""
    error.everywhere = True
    return error


def share(items: Iterable[T], fabric: Fabric) -> list[T]:
    """This rank's part of the items: every so-many-th."""
    return list(items)[fabric.global_rank::fabric.world_size]


def lost_rank(error: BaseException, checkpoint: str) -> EngineError | None:
    """What to say if `error` is how the end of another process shows here; None for anything else."""
    if not isinstance(error, RuntimeError) or not torch.distributed.is_initialized():
        return None
    text = str(error).lower()
    if not isinstance(error, torch.distributed.DistError) and not any(word in text for word in _LOST):
        return None
    return EngineError(f"Another process of this training has ended, so this one ends too; {checkpoint}.")


def lost_loader(error: BaseException, checkpoint: str) -> EngineError | None:
    """What to say if `error` is how the end of a process that cuts crops shows here; None for anything else."""
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    return loader_ended(checkpoint)


def leave_children_alone() -> None:
    """From here on the end of a loader's process interrupts nothing: PyTorch raises an error for each of them wherever
    the program is just then, also in the middle of saying why it ends."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return
    for _ in range(10):
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return
        except RuntimeError:                                    # one more came just now
            continue


def loader_ended(checkpoint: str) -> EngineError:
    return EngineError("A process that cuts crops was ended from outside, most often because memory ran out; give "
                       f"fewer --workers or close other programs ({checkpoint}).")
