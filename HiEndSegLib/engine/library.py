"""`Library`: the operations as both engines call them, with the last model kept warm.

`LocalEngine` calls it in this process, the worker in its own. torch is imported by the first call that needs it.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from importlib import metadata
from typing import Any

import numpy as np

from .. import __version__
from ..errors import EngineError
from ..tasks import CancelToken, Progress, no_progress, subprogress
from .transfer import plain

#: Where loading a cold model ends on the bar.
LOADED = 0.05
#: What `doctor` names the version of.
PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "safetensors", "monai", "slicer-core")


class Library:
    """Methods take plain arguments plus `progress` and `cancel`. One thread at a time, always the same one."""

    #: Operations that may be asked for by name.
    OPERATIONS = frozenset({"segment", "plan", "doctor", "recognize"})

    def __init__(self) -> None:
        self._warm: tuple[tuple, Any] | None = None

    def segment(self, *, volume: Any, model: Any = None, device: str = "auto", only: list[str] | None = None,
                roi: tuple | None = None, progress: Progress = no_progress, cancel: CancelToken | None = None,
                **settings: Any) -> Any:
        """See `Engine.segment`."""
        cancel = cancel or CancelToken()
        card = find_card(model)
        progress(0.0, f"Loading {card.title}")
        started = time.perf_counter()
        segment, loaded, was_warm = self._ready(card, device, cancel)
        loading = time.perf_counter() - started
        cancel.check()
        start = 0.0 if was_warm else LOADED
        result = segment(loaded, volume, device=device, only=only, roi=roi, cancel=cancel,
                         progress=subprogress(progress, start, 1.0), **settings)
        info = {**result.info, "engine": {"model_was_warm": was_warm, "loading_seconds": round(loading, 3),
                                          "pid": os.getpid()}}
        return dataclasses.replace(result, info=plain(info), statistics=plain(result.statistics))

    def plan(self, *, shape: tuple, ijk_to_ras: Any, dtype: str, model: Any = None, device: str = "auto",
             progress: Progress = no_progress, cancel: CancelToken | None = None) -> Any:
        """See `Engine.plan`."""
        card = find_card(model)
        progress(0.1, "Looking at the devices")
        _need_torch()
        from ..geometry.resample import to_ras_axes
        from ..geometry.volume import Volume
        from ..operations.devices import choose_device, free_bytes
        from ..operations.plan import plan_memory

        ras = to_ras_axes(Volume(np.broadcast_to(np.zeros((), dtype), shape), ijk_to_ras))
        kind = choose_device(device).kind
        return plan_memory(ras.shape, ras.spacing, card, kind, free_bytes(kind),
                           {"host_bytes": free_bytes("cpu"), "voxel_bytes": ras.array.itemsize})

    def doctor(self, *, progress: Progress = no_progress, cancel: CancelToken | None = None) -> dict:
        """See `Engine.doctor`."""
        cancel = cancel or CancelToken()
        versions: dict[str, str | None] = {"HiEndSeg": __version__, "python": platform.python_version()}
        versions.update((package, _version(package)) for package in PACKAGES)
        sentences = [f"HiEndSeg {__version__} on Python {versions['python']}, {platform.system()} "
                     f"{platform.machine()}."]
        problems: list[str] = []
        devices: list[dict] = []
        if versions["torch"] is None:
            problems.append(_NO_TORCH)
        else:
            progress(0.1, "Trying the devices")
            devices = self._devices()
            sentences.append(f"PyTorch {versions['torch']}.")
            sentences += [device["sentence"] for device in devices]
        cancel.check()
        progress(0.9, "Reading the models")
        models = self._models(sentences, problems)
        return plain({"versions": versions, "devices": devices, "models": models, "problems": problems,
                      "sentences": sentences + problems})

    def recognize(self, *, path: str, progress: Progress = no_progress, cancel: CancelToken | None = None) -> dict:
        """See `Engine.submit_recognize`."""
        progress(0.1, "Looking at the file")
        _need_torch()
        from ..models.recognize import recognize

        return recognize(path, cancel)

    def _ready(self, card: Any, device: str, cancel: CancelToken) -> tuple[Any, Any, bool]:
        """The segment function, the card's model on the device, and whether it was warm."""
        _need_torch()
        from ..models.loading import load_model
        from ..operations.devices import choose_device
        from ..operations.segment import segment

        kind = choose_device(device).kind
        weights = card.weights_path
        state = weights.stat()                         # a file altered since is loaded again, and refused
        key = (card.id, card.version, card.checksum, kind, weights, state.st_size, state.st_mtime_ns)
        if self._warm is not None and self._warm[0] == key:
            return segment, self._warm[1], True
        self._warm = None                              # two models at once may not fit
        cancel.check()
        loaded = load_model(card, kind, cancel=cancel)
        self._warm = (key, loaded)
        return segment, loaded, False

    @staticmethod
    def _devices() -> list[dict]:
        from ..operations.devices import probe_devices

        return [{"kind": status.kind, "works": status.works, "sentence": status.sentence,
                 "memory_bytes": status.memory_bytes} for status in probe_devices()]

    @staticmethod
    def _models(sentences: list[str], problems: list[str]) -> list[dict]:
        from ..models.registry import Registry

        registry = Registry()
        cards = registry.list()
        problems += [str(problem) for problem in registry.problems]
        names = ", ".join(f"{card.id} {card.version}" for card in cards)
        sentences.append(f"Models: {names}." if cards else "No model is installed.")
        return [{"id": card.id, "version": card.version, "title": card.title} for card in cards]


def find_card(model: Any) -> Any:
    """The `ModelCard` for an id, a folder, a card, or None for the default. Raises OptionError, ModelError."""
    from ..models.card import ModelCard
    from ..models.registry import Registry

    return model if isinstance(model, ModelCard) else Registry().get(model)


_NO_TORCH = ("PyTorch is not installed for this Python; in Slicer install the extension PyTorch, elsewhere run "
             "'pip install torch'.")


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise EngineError(_NO_TORCH) from error
    except (ImportError, OSError) as error:
        raise EngineError(f"PyTorch is installed but does not start ({str(error).splitlines()[0]}); reinstall it."
                          ) from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
