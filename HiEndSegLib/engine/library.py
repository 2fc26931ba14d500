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
from ..tasks import CancelToken, Progress, Record, no_progress, no_record, subprogress
from . import adapting, attending
from .transfer import plain

#: Where loading a cold model ends on the bar.
LOADED = 0.05
#: What `doctor` names the version of.
PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "safetensors", "monai", "slicer-core")


class Library(attending.LibraryAttends):
    """Methods take plain arguments plus `progress` and `cancel`. One thread at a time, always the same one."""

    #: Operations that may be asked for by name.
    OPERATIONS = attending.OPERATIONS | {"segment", "plan", "doctor", "recognize", "adapt", "keep", "plan_adapt",
                                         "export"}
    #: Those of them that take `record`.
    RECORDING = frozenset({"adapt"})

    def __init__(self) -> None:
        self._warm: tuple[tuple, Any] | None = None
        #: Seconds that one tile took here, by (model's key, device).
        self.tile_seconds: dict[tuple[str, str], float] = {}
        #: Of models around an encoder: the numbers they hold, and the last card with what it was made from.
        self.parameters: dict[tuple[str, str], int] = {}
        self.encoder_card: tuple[tuple, Any] | None = None
        #: The last adaptation that was not kept (`adapting.Unsaved`).
        self.unsaved: Any = None

    def segment(self, *, volume: Any, model: Any = None, device: str = "auto", only: list[str] | None = None,
                roi: tuple | None = None, progress: Progress = no_progress, cancel: CancelToken | None = None,
                **settings: Any) -> Any:
        """See `Engine.segment`."""
        cancel = cancel or CancelToken()
        card = find_card(model)
        progress(0.0, f"Loading {card.title}")
        started = time.perf_counter()
        loaded, was_warm = self.ready(card, device, cancel)
        from ..operations.segment import segment

        loading = time.perf_counter() - started
        cancel.check()
        start = 0.0 if was_warm else LOADED
        result = segment(loaded, volume, device=device, only=only, roi=roi, cancel=cancel,
                         progress=subprogress(progress, start, 1.0), **settings)
        info = {**result.info, "engine": {"model_was_warm": was_warm, "loading_seconds": round(loading, 3),
                                          "pid": os.getpid()}}
        if info["tiles"]["run"]:
            self.tile_seconds[card.key, info["device"]] = info["timings"]["tiles"] / info["tiles"]["run"]
        return dataclasses.replace(result, info=plain(info), statistics=plain(result.statistics))

    def adapt(self, *, record: Record = no_record, progress: Progress = no_progress,
              cancel: CancelToken | None = None, **arguments: Any) -> Any:
        """See `Engine.submit_adapt`."""
        _need_torch()
        return adapting.adapt(self, record=record, progress=progress, cancel=cancel or CancelToken(), **arguments)

    def keep(self, *, unsaved: str, progress: Progress = no_progress, cancel: CancelToken | None = None) -> Any:
        """See `Engine.submit_keep`."""
        progress(0.1, "Writing the new version")
        return adapting.keep(self, unsaved)

    def plan_adapt(self, *, progress: Progress = no_progress, cancel: CancelToken | None = None,
                   **arguments: Any) -> dict:
        """See `Engine.submit_plan_adapt`."""
        progress(0.1, "Looking at the devices")
        _need_torch()
        return adapting.plan_adapt(self, **arguments)

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

    def export(self, *, model: Any, path: str, progress: Progress = no_progress,
               cancel: CancelToken | None = None) -> str:
        """See `Engine.submit_export`."""
        card = find_card(model)
        progress(0.1, f"Exporting {card.title}")
        _need_torch()
        from ..models.versions import export_version

        return str(export_version(card, path, whole=True, overwrite=True, cancel=cancel))

    def ready(self, card: Any, device: str, cancel: CancelToken, *, alone: bool = True) -> tuple[Any, bool]:
        """The card's model on the device, and whether it was warm. alone: let go of models that are looked into."""
        key = self.model_key(card, device)
        if self._warm is not None and self._warm[0] == key:
            return self._warm[1], True
        from ..models.loading import load_model

        self._warm = None                              # two models at once may not fit
        if alone:
            self.release_sessions()
        cancel.check()
        loaded = load_model(card, key[3], cancel=cancel)
        self._warm = (key, loaded)
        return loaded, False

    @staticmethod
    def model_key(card: Any, device: str) -> tuple:
        """What a loaded model is known by."""
        _need_torch()
        from ..operations.devices import choose_device

        weights = card.weights_path
        state = weights.stat()                         # a file altered since is loaded again, and refused
        return (card.id, card.version, card.checksum, choose_device(device).kind, weights, state.st_size,
                state.st_mtime_ns)

    def forget(self) -> None:
        """Let go of the warm model."""
        self._warm = None
        self.release_sessions()

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
