"""Looking into a model, as both engines do it: `Attends` asks, `LibraryAttends` does. No torch on import.

A volume is handed over once, under a key of the caller's choice; afterwards the key is enough, so that a dragged point
costs one small message. The worker keeps what the looks need of a volume (its image at the model's spacing), not the
voxels themselves. Whatever was kept may be gone (a new worker, many volumes since, a model of another spacing): the job
then fails with the code "unknown-volume", and asking again with the volume does it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Sequence

from ..errors import EngineError
from ..tasks import CancelToken, Progress, no_progress, subprogress

if TYPE_CHECKING:
    from ..geometry.volume import Volume
    from ..operations.attend_result import AttentionResult
    from .interface import Job

UNKNOWN_VOLUME = "unknown-volume"
#: Images (volume and spacing), and sessions (image and model) that are kept. Sessions of two models can be compared.
IMAGES, SESSIONS, MODELS = 4, 4, 2
#: Where loading a cold model ends on the bar.
LOADED = 0.2


class Attends:
    """The part of `Engine` that looks into models. `volume` may be None once it was handed over under `volume_key`;
    use a new key whenever its voxels or its position changed."""

    def submit_attend(self, volume: Volume | None, *, volume_key: str, at: Sequence[float] | None = None,
                      mask: Volume | None = None, query: int | None = None, structure: str | None = None,
                      layers: Sequence[int] | None = None, heads: str | int = "mean", kind: str = "encoder",
                      model: Any = None, device: str = "auto") -> Job:
        """Attention maps, as `operations.attend.attend` takes its arguments; the result is an `AttentionResult`."""
        return self._look("attend", volume, volume_key, model, device, {
            "at": _point(at), "mask": mask, "query": query, "structure": structure,
            "layers": None if layers is None else [int(n) for n in layers], "heads": heads, "kind": kind})

    def attend(self, volume: Volume | None, *, progress: Progress = no_progress, cancel: CancelToken | None = None,
               **question: Any) -> AttentionResult:
        """`submit_attend`, and wait. `progress` is called on this thread. Raises `Cancelled`."""
        return self._wait(self.submit_attend(volume, **question), progress, cancel)

    def submit_ranks(self, volume: Volume | None, *, volume_key: str, at: Sequence[float] | None = None,
                     per_head: bool = False, model: Any = None, device: str = "auto") -> Job:
        """Effective rank and singular values of every block's attention values in the window around a point; the
        result is a list of `LayerRank`."""
        return self._look("ranks", volume, volume_key, model, device, {"at": _point(at), "per_head": per_head})

    def submit_inspect_queries(self, volume: Volume | None, *, volume_key: str, at: Sequence[float] | None = None,
                               model: Any = None, device: str = "auto") -> Job:
        """Which object query made what around a point; the result is a `QueriesResult`."""
        return self._look("inspect_queries", volume, volume_key, model, device, {"at": _point(at)})

    def submit_uncertainty(self, volume: Volume, *, model: Any = None, device: str = "auto", roi: tuple | None = None,
                           **settings: Any) -> Job:
        """Where the model is unsure, over the whole volume or a region; the result is an `UncertaintyResult`. Takes
        the time of a segmentation."""
        return self._submit("uncertainty", {"volume": volume, "model": model, "device": device, "roi": roi, **settings})

    def submit_forget_volume(self, volume_key: str | None = None) -> Job:
        """Let go of a volume that was handed over (None: of all)."""
        return self._submit("forget_volume", {"volume_key": volume_key})

    def _look(self, operation: str, volume: Volume | None, key: str, model: Any, device: str, rest: dict) -> Job:
        return self._submit(operation, {"volume": volume, "volume_key": str(key), "model": model, "device": device,
                                        **rest})


#: Operations of `LibraryAttends` that may be asked for by name.
OPERATIONS = frozenset({"attend", "ranks", "inspect_queries", "uncertainty", "forget_volume"})


class LibraryAttends:
    """The part of `Library` that looks into models."""

    _kept: Kept | None = None

    def attend(self, *, progress: Progress = no_progress, cancel: CancelToken | None = None, **arguments: Any) -> Any:
        """See `Attends.submit_attend`."""
        session, rest = self._look(progress, cancel, **arguments)
        from ..operations.attend import attend

        return attend(None, None, session=session, **rest)

    def ranks(self, *, progress: Progress = no_progress, cancel: CancelToken | None = None, **arguments: Any) -> Any:
        """See `Attends.submit_ranks`."""
        session, rest = self._look(progress, cancel, **arguments)
        from ..operations.effective_ranks import effective_ranks

        return effective_ranks(None, None, session=session, **rest)

    def inspect_queries(self, *, progress: Progress = no_progress, cancel: CancelToken | None = None,
                        **arguments: Any) -> Any:
        """See `Attends.submit_inspect_queries`."""
        session, rest = self._look(progress, cancel, **arguments)
        from ..operations.inspect_queries import inspect_queries

        return inspect_queries(None, None, session=session, **rest)

    def uncertainty(self, *, volume: Volume, model: Any = None, device: str = "auto", progress: Progress = no_progress,
                    cancel: CancelToken | None = None, **settings: Any) -> Any:
        """See `Attends.submit_uncertainty`."""
        from .library import find_card

        card, cancel = find_card(model), cancel or CancelToken()
        progress(0.0, f"Loading {card.title}")
        loaded, _ = self.ready(card, device, cancel)
        from ..operations.uncertainty import uncertainty

        return uncertainty(loaded, volume, device=device, cancel=cancel, progress=subprogress(progress, 0.05, 1.0),
                           **settings)

    def forget_volume(self, *, volume_key: str | None = None, progress: Progress = no_progress,
                      cancel: CancelToken | None = None) -> None:
        """See `Attends.submit_forget_volume`."""
        if self._kept is not None:
            self._kept.forget(volume_key)

    def release_sessions(self) -> None:
        """Let go of the models that are looked into; another operation is about to load one."""
        if self._kept is not None:
            self._kept.sessions.clear()

    def _look(self, progress: Progress, cancel: CancelToken | None, *, volume: Volume | None, volume_key: str,
              model: Any = None, device: str = "auto", **question: Any) -> tuple[Any, dict]:
        """The session to look with, and what else the operation is called with."""
        if self._kept is None:
            self._kept = Kept(self)
        cancel = cancel or CancelToken()
        session = self._kept.session(volume, volume_key, model, device, progress, cancel)
        return session, {**question, "cancel": cancel, "progress": subprogress(progress, LOADED, 1.0)}


class Kept:
    """What a library keeps between two looks: images of volumes, and sessions of models with them."""

    def __init__(self, library: Any):
        self._library = library
        self.images: OrderedDict[tuple, Any] = OrderedDict()
        self.sessions: OrderedDict[tuple, Any] = OrderedDict()
        self._looks: dict[str, str] = {}

    def forget(self, volume_key: str | None) -> None:
        for kept in (self.images, self.sessions):
            for key in [key for key in kept if volume_key is None or key[0] == volume_key]:
                del kept[key]
        for key in [key for key in self._looks if volume_key is None or key == volume_key]:
            del self._looks[key]

    def session(self, volume: Volume | None, volume_key: str, model: Any, device: str, progress: Progress,
                cancel: CancelToken) -> Any:
        from .library import find_card

        card = find_card(model)
        progress(0.0, f"Loading {card.title}")
        model_key = self._library.model_key(card, device)
        key = (volume_key, model_key)
        if volume is not None and self._looks.get(volume_key) != (look := _look_of(volume)):
            self.forget(volume_key)     # another volume under the same key
            self._looks[volume_key] = look
        if key in self.sessions:
            self.sessions.move_to_end(key)
            return self.sessions[key]
        image = self._image(volume, volume_key, card.spacing)
        loaded = next((session.model for (_, other), session in self.sessions.items() if other == model_key), None)
        if loaded is None:
            others = list(dict.fromkeys(other for _, other in self.sessions))
            for old in [k for k in self.sessions if k[1] in others[:max(0, len(others) - MODELS + 1)]]:
                del self.sessions[old]
            loaded, _ = self._library.ready(card, device, cancel, alone=False)
        cancel.check()
        from ..operations.attend_session import AttendSession

        while len(self.sessions) >= SESSIONS:
            self.sessions.popitem(last=False)
        self.sessions[key] = AttendSession(loaded, image)
        return self.sessions[key]

    def _image(self, volume: Volume | None, volume_key: str, spacing: tuple) -> Any:
        key = (volume_key, tuple(spacing))
        if key in self.images:
            self.images.move_to_end(key)
            return self.images[key]
        if volume is None:
            raise EngineError("The worker no longer has this volume; hand it over again.", code=UNKNOWN_VOLUME)
        from ..operations.attend_session import prepare_image

        while len(self.images) >= IMAGES:
            self.images.popitem(last=False)
        self.images[key] = prepare_image(volume, spacing)
        return self.images[key]


def _look_of(volume: Volume) -> str:
    """A fingerprint of a volume: its lattice and some thousand of its voxels."""
    import numpy as np

    step = max(1, round((volume.array.size / 20_000) ** (1 / 3)))
    some = np.ascontiguousarray(volume.array[tuple(slice(None, None, min(step, n)) for n in volume.array.shape)])
    digest = hashlib.sha256(repr((volume.shape, volume.array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(volume.ijk_to_ras).tobytes())
    digest.update(some.tobytes())
    return digest.hexdigest()


def _point(at: Sequence[float] | None) -> Any:
    """Numbers as they are; what is no point is refused where the sentence is."""
    return None if at is None else list(at) if not isinstance(at, str) else at
