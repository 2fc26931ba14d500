"""The state of a pre-training run on disk: its recipe and its checkpoints.

RUN/last.pt and RUN/previous.pt hold the same kind of dictionary: format, recipe (plain values), step, network and
optimiser state by parameter name. Names rather than numbers, and whole tensors, so that one process can go on where
eight sharded ones stopped. Nothing in a checkpoint is executed, every byte is checked against the archive's own check
sums, and a new one replaces the old only when it is whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from HiEndSegLib.errors import ModelError, OptionError, OutputError
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.models.weights import read_checkpoint

FORMAT = "hiendseg-pretraining"
FORMAT_VERSION = 1
LAST, PREVIOUS = "last.pt", "previous.pt"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_LOAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=False, strict=True)


@dataclass(frozen=True)
class Recipe:
    """Everything the loss curve depends on, beside the code and the number type of the arithmetic's hardware.

    data: a digest of the volumes' names, shapes and voxels in their order; volumes: how many. Batch is the global one.
    """

    variant: str
    dense_stages: int
    mask_ratio: float
    crop: int
    batch: int
    steps: int
    lr: float
    warmup: int
    weight_decay: float
    decay_all: bool
    clip: float
    precision: str
    seed: int
    per_volume: int
    spacing: float
    window: tuple[float, float]
    modality: str
    augmentation: dict[str, float]
    weights: dict[str, float]
    data: str
    volumes: int
    held_out: tuple[str, ...] = field(default=())

    def plain(self) -> dict[str, Any]:
        """Values a safe loader accepts."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_WORDS = {"steps": "number of steps", "dense_stages": "number of dense stages", "data": "set of volumes",
          "volumes": "number of volumes", "held_out": "held-out volumes", "lr": "learning rate",
          "per_volume": "number of crops per volume", "weights": "weights of volumes", "decay_all": "choice of decayed "
          "parameters", "clip": "gradient clipping"}


def check_recipe(stored: dict, asked: Recipe, path: Path) -> None:
    """OptionError with the first difference, unless the checkpoint was made by this very recipe."""
    wanted = asked.plain()
    for key in sorted(wanted, key=list(wanted).index):
        if key not in stored or stored[key] != wanted[key]:
            name = _WORDS.get(key, key.replace("_", " "))
            was, now = stored.get(key, "not recorded"), wanted[key]
            raise OptionError(f"{path} was made with another {name} ({_short(was)}, now {_short(now)}); give the same "
                              "options to go on with it, or another --run to start anew.")


def save(run: Path, state: dict) -> Path:
    """Write RUN/last.pt, whole or not at all; what it was becomes RUN/previous.pt. Raises OutputError (disk full, …)."""
    last, previous = run / LAST, run / PREVIOUS
    try:
        with atomic_target(last) as temporary:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, file)
            if last.exists():
                _keep(last, previous)
    except RuntimeError as error:       # the archive writer's own words where the disk ended in a tensor
        raise OutputError(f"{last} could not be written, probably because the disk is full; make room or choose "
                          "another disk.") from error
    return last


def _keep(last: Path, previous: Path) -> None:
    """`previous` becomes another name of `last`, so that at no moment there is no whole checkpoint called last."""
    name = previous.with_name(f".{previous.name}-{secrets.token_hex(4)}")
    try:
        os.link(last, name)
        os.replace(name, previous)
    except OSError:                     # a disk without hard links: for a moment only `previous` exists
        with contextlib.suppress(OSError):
            name.unlink()
        os.replace(last, previous)


def load(path: Path) -> dict:
    """A checkpoint of this format, every byte checked. Raises ModelError with one sentence."""
    if path.is_file() and path.stat().st_size and not _sound(path):
        other = path.with_name(PREVIOUS)
        instead = (f"go on from the one before it with --resume-from {other}" if path.name == LAST and other.is_file()
                   else "remove it to start anew")
        raise ModelError(f"{path} is damaged or cut short ({path.stat().st_size} bytes are there); {instead}.")
    content = read_checkpoint(path)
    if content.get("format") != FORMAT:
        raise ModelError(f"{path} is no checkpoint of training.pretrain; choose a RUN/{LAST}, or remove it to start "
                         "anew.")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(f"{path} has format version {version!r}, and this HiEndSeg goes on from version "
                         f"{FORMAT_VERSION}; use the HiEndSeg that wrote it, or another --run to start anew.")
    missing = [key for key, kind in (("recipe", dict), ("network", dict), ("optimizer", dict), ("step", int))
               if not isinstance(content.get(key), kind)]
    if not missing and content["step"] < 0:
        missing = ["a step of 0 or more"]
    if not isinstance(content.get("seconds", 0.0), (int, float)):
        missing.append("its seconds")
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing)}; choose another checkpoint, or remove it to start anew.")
    return content


def _sound(path: Path) -> bool:
    """Whether a PyTorch archive is all there; what is no archive is left to the reader's own words."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None        # torch itself does not compare the check sums
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError):
        return False


def collect(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Network and optimiser state as whole CPU tensors by parameter name; a collective call where there are ranks."""
    return {"network": get_model_state_dict(network, options=_WHOLE),
            "optimizer": get_optimizer_state_dict(network, optimizer, options=_WHOLE)}


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of everything in a network's state, whole, by name; ask before it is sharded."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def restore(network: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict, path: Path,
            shapes: dict[str, tuple[int, ...]]) -> None:
    """Fill network and optimiser from `load`'s dictionary. shapes: of `shapes_of`. Raises ModelError if it does not fit
    the network: nothing may be missing or of another shape, because what PyTorch does then is to keep random weights,
    or to write beside the moments' memory."""
    wrong = _misfit(state, shapes, {name for name, parameter in network.named_parameters() if parameter.requires_grad})
    if wrong:
        raise ModelError(f"{path} does not fit the network of its own recipe ({wrong}); choose another checkpoint.")
    try:
        set_model_state_dict(network, state["network"], options=_LOAD)
        set_optimizer_state_dict(network, optimizer, state["optimizer"], options=_LOAD)
    except (RuntimeError, KeyError, ValueError, AttributeError, AssertionError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:150]
        raise ModelError(f"{path} does not fit the network of its own recipe ({first}); choose another checkpoint."
                         ) from error


def _misfit(state: dict, shapes: dict[str, tuple[int, ...]], trained: set[str]) -> str:
    """What is missing in a checkpoint or has another shape, "" where all is there. trained: names that may carry a
    wrapper's parts."""
    network, moments = state["network"], state["optimizer"].get("state")
    for name, shape in shapes.items():
        if not isinstance(network.get(name), torch.Tensor):
            return f"{name} is missing"
        if tuple(network[name].shape) != shape:
            return f"{name} has the shape {tuple(network[name].shape)} instead of {shape}"
    unknown = sorted(set(network) - set(shapes))
    if unknown:
        return f"{str(unknown[0])[:80]} is unknown"
    if not isinstance(moments, dict):
        return "the optimiser's state is missing"
    for name, entry in moments.items():
        if name not in shapes or not isinstance(entry, dict):
            return f"the optimiser knows {str(name)[:80]}"
        for key, value in entry.items():
            if isinstance(value, torch.Tensor) and value.dim() and tuple(value.shape) != shapes[name]:
                return f"the optimiser's {key} of {name} has the shape {tuple(value.shape)}"
    missing = {name.replace("_fsdp_wrapped_module.", "") for name in trained} & set(shapes) - set(moments)
    return f"the optimiser's state of {sorted(missing)[0]} is missing" if missing and moments else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
