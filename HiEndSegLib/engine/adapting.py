"""Adapting, as both engines do it: load, plan, teach, write the new version, or remember what was not worth keeping.

`Library` calls it. torch is imported by the first call that needs it; `AdaptResult` is for both sides of the border.
"""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from ..errors import Cancelled, EngineError, HiEndSegError, OptionError, OutOfMemoryError
from ..tasks import CancelToken, Progress, Record, subprogress
from .transfer import plain

if TYPE_CHECKING:
    from ..geometry.labels import Label
    from ..geometry.volume import Volume
    from ..models.card import ModelCard
    from ..operations.adapt_plan import AdaptPlan
    from .library import Library

#: Where loading and writing end on the bar.
LOADED, TAUGHT = 0.03, 0.98


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation came to.

    key: `id@version` of the new version, None when nothing was kept (nothing got better).
    report: scores before and after, see `operations.adapt`; plain numbers, strings, lists and dicts.
    messages: sentences for the person.
    unsaved: names the result in `Engine.submit_keep` when it was not kept; None otherwise, and where there is nothing
    to keep because the best is the model as it was.
    """

    key: str | None
    report: dict = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    unsaved: str | None = None

    @property
    def lasting(self) -> bool:
        """Whether there is something on the disk now; a cancel that comes after that comes too late."""
        return self.key is not None

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return {"key": self.key, "report": self.report, "messages": self.messages}


class Unsaved:
    """The last adaptation that was not kept, for a person who wants it all the same. In memory only."""

    def __init__(self, write: Any, report: dict):
        self.name = uuid.uuid4().hex
        self.write = write
        self.report = report


def adapt(library: Library, *, volume: Volume, labels: Volume, legend: Sequence[Label], name: str,
          structures: Sequence[str], model: Any = None, encoder: str | None = None, speed: str = "auto",
          device: str = "auto", steps: int | None = None, seed: int = 0, keep_teaching: bool = False,
          keep_if_worse: bool = False, sides: str = "ask", threads: int | None = None, memory_limit: int | None = None,
          record: Record, progress: Progress, cancel: CancelToken) -> AdaptResult:
    """See `Engine.submit_adapt`. Nothing is on the disk before the new version is, whole."""
    from ..models.teaching import with_case
    from ..models.versions import check_before, check_room
    from ..operations import adapt as operation
    from .library import find_card

    library.unsaved = None
    taught = [label for label in legend if label.id in structures]
    card = None if encoder is not None else find_card(model)
    check_before(card, name=name, labels=taught)                      # not after minutes of work
    check_room(card, volume.array.size if keep_teaching else 0, everything=speed == "full")
    progress(0.0, f"Loading {card.title}" if card is not None else "Reading the encoder")
    loaded = _from_encoder(library, encoder, taught, seed) if card is None else library.ready(card, device, cancel)[0]
    try:
        teaching = _taught_before(card)
        recipe = _recipe(library, volume, loaded.card, device, speed, steps, len(teaching), memory_limit, progress)
        cancel.check()
        if cancel.finishing:                              # nothing has begun, so there is no best so far
            raise Cancelled()
        adapted = operation.adapt(loaded, volume, labels, legend, structures=structures, device=device, speed=speed,
                                  steps=steps, seed=seed, threads=threads, memory_limit=memory_limit, sides=sides,
                                  teaching=teaching, record=record, recipe=recipe,
                                  progress=subprogress(progress, LOADED, TAUGHT), cancel=cancel)
        parent = loaded.card
    finally:
        library.forget()                                  # memory for what comes next
        del loaded
    report = plain(adapted.report)
    case = {"fingerprint": adapted.teaching_case.fingerprint, "shape": [int(n) for n in volume.shape],
            "spacing": [float(s) for s in volume.spacing]}
    # Nothing of a patient is written unless it was asked for; earlier cases stay where they are (`kept_for`).
    kept = with_case(teaching, [adapted.teaching_case]) if keep_teaching else []
    adapted.teaching_case, network = None, adapted.network
    adapted.network = None

    def write() -> ModelCard:
        from ..models.versions import write_version, write_whole

        common = {"name": name, "network": adapted.network_config, "labels": adapted.labels, "report": report,
                  "case": case, "parameters": report.get("parameters", {}), "teaching": kept}
        if encoder is not None:
            return write_whole(parent, state=network, **common)
        return write_version(parent, replaced=adapted.replaced, low_rank=adapted.low_rank,
                             curve=adapted.curve, **common)

    if encoder is None:
        network = None
    messages = list(adapted.messages)
    if encoder is None and not adapted.replaced and not adapted.low_rank and adapted.curve == parent.curve:
        return AdaptResult(None, report, [*messages, "The best that was found is the model as it is, so there is "
                                                     "nothing to keep."])
    if not (adapted.better or keep_if_worse):
        library.unsaved = Unsaved(write, report)
        return AdaptResult(None, report, messages, library.unsaved.name)
    cancel.check()
    progress(TAUGHT, "Writing the new version")
    library.unsaved = Unsaved(write, report)
    try:
        key = write().key
    except HiEndSegError as error:                        # what was learned took minutes: it can be tried again
        return AdaptResult(None, report, [*messages, f"It could not be written: {error}"], library.unsaved.name)
    library.unsaved = None
    return AdaptResult(key, report, messages)


def _taught_before(card: ModelCard | None) -> list:
    """The cases that the model and what it was adapted from were taught by, as far as they are remembered."""
    from ..models.registry import Registry
    from ..models.teaching import kept_for, read_teaching

    holder = None if card is None else kept_for(card, Registry().list())
    return [] if holder is None else read_teaching(holder)


def keep(library: Library, unsaved: str) -> AdaptResult:
    """See `Engine.submit_keep`."""
    waiting = library.unsaved
    if waiting is None or waiting.name != unsaved:
        raise EngineError("This adaptation is no longer in memory; adapt again, and choose to keep it whatever the "
                          "scores say.")
    card = waiting.write()
    library.unsaved = None
    return AdaptResult(card.key, waiting.report, [])


def plan_adapt(library: Library, *, shape: tuple, ijk_to_ras: Any, dtype: str, model: Any = None,
               encoder: str | None = None, structures: Sequence[str] | None = None, speed: str = "auto",
               device: str = "auto") -> dict:
    """See `Engine.submit_plan_adapt`."""
    import numpy as np

    from ..geometry.volume import Volume
    from ..models.registry import Registry
    from ..models.teaching import kept_for
    from ..operations.adapt_plan import SPEEDS, default_speed
    from ..operations.devices import choose_device
    from .library import find_card

    if speed not in (*SPEEDS, "auto"):
        raise OptionError(f"There is no speed '{speed}'; choose {', '.join(SPEEDS)} or auto.")
    card = find_card(model) if encoder is None else _card_from_encoder(library, encoder)
    kind = choose_device(device).kind
    volume = Volume(np.broadcast_to(np.zeros((), dtype), shape), ijk_to_ras)
    known = structures is None or any(label.id in structures for label in card.labels)
    holder = kept_for(card, Registry().list()) if encoder is None else None
    teaching = 0 if holder is None else int((holder.adaptation or {}).get("teaching_cases") or 0)
    plans = {name: _plan(library, volume, card, kind, name, known=known, teaching=teaching) for name in SPEEDS
             if speed in (name, "auto")}
    return {**plans, "auto": default_speed(kind)}


def _plan(library: Library, volume: Volume, card: ModelCard, kind: str, speed: str, **options: Any) -> AdaptPlan:
    from ..geometry.resample import to_ras_axes
    from ..models.registry import Registry
    from ..operations.adapt_plan import plan_adapt
    from ..operations.devices import free_bytes, thread_count

    ras = to_ras_axes(volume)
    limit = options.pop("memory_limit", None) or 1 << 62
    host = min(free_bytes("cpu"), limit)
    whole = Registry().base_of(card) if card.is_version else card
    options["parameters"] = library.parameters.get((card.key, card.title)) or \
        whole.weights["bytes"] // (4 if whole.weights["dtype"] == "float32" else 2)
    seconds = library.tile_seconds.get((card.key, kind)) or library.tile_seconds.get((whole.key, kind))
    return plan_adapt(ras.shape, ras.spacing, card, kind, host if kind == "cpu" else free_bytes(kind), speed,
                      {"host_bytes": host, "tile_seconds": seconds, "threads": thread_count(), **options})


def _recipe(library: Library, volume: Volume, card: ModelCard, device: str, speed: str, steps: int | None,
            teaching: int, memory_limit: int | None, progress: Progress) -> Any:
    """How to learn within the memory that is free; None for the usual way. Raises OutOfMemoryError with the numbers."""
    from ..operations.adapt_plan import SPEEDS, default_speed, too_large
    from ..operations.adapt_recipe import recipe_for
    from ..operations.devices import choose_device

    kind = choose_device(device).kind
    speed = default_speed(kind) if speed == "auto" else speed
    if speed not in SPEEDS:
        return None                                       # the operation says what there is
    options = {"steps": steps, "teaching": teaching, "memory_limit": memory_limit}
    plan = _plan(library, volume, card, kind, speed, **options)
    progress(0.0, plan.sentence)
    if not plan.fits:
        raise OutOfMemoryError(too_large(plan, _plan(library, volume, card, kind, "quick", **options)
                                         if speed == "full" else None))
    usual = recipe_for(speed, fresh=not card.labels)
    return dataclasses.replace(usual, crops=plan.crops) if plan.crops != usual.crops else None


def _from_encoder(library: Library, path: str, labels: Sequence[Label] = (), seed: int = 0) -> Any:
    """A model around encoder weights that knows no structure yet."""
    from ..operations.adapt_encoder import model_from_encoder

    library.forget()                                      # a large encoder and the warm model may not fit together
    model = model_from_encoder(path, labels, seed=seed)
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    library.parameters[model.card.key, model.card.title] = parameters
    return model


def _card_from_encoder(library: Library, path: str) -> ModelCard:
    """The card of a model around an encoder, remembered: a face plans again with every tick."""
    where = Path(path)
    state = where.stat() if where.exists() else None      # the operation says what is missing
    key = (path, state and state.st_size, state and state.st_mtime_ns)
    if library.encoder_card is None or library.encoder_card[0] != key:
        library.encoder_card = (key, _from_encoder(library, path).card)
    return library.encoder_card[1]
