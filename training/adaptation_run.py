"""One run of `training.adaptation`: a way to learn from one labelled case, scored on whole other cases.

All ways get the same case, the same ticked structures and one machine; the baselines and "full" get the seconds that
"quick" took (of the processor on a CPU, whose cores may be shared with other work):

default     the model as it is; nothing is learned
quick, full `HiEndSegLib.operations.adapt` at that speed
scratch     the default's own network with random weights, trained whole (see `adaptation_baselines`)
unetr       UNETR on a pretrained encoder, trained whole as published
encoder     `adapt` around a pretrained encoder and nothing else, quick; all its steps, as it has everything to learn

Scores are Dice of the label map that `HiEndSegLib.operations.segment` gives on the case's own lattice.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from HiEndSegLib.errors import InputError, OptionError
from HiEndSegLib.geometry.labels import Label
from HiEndSegLib.models.loading import Model
from HiEndSegLib.operations.segment import segment
from HiEndSegLib.tasks import CancelToken

from .adaptation_cases import BY_ID, UNKNOWN, Cases, LabelledCase, person_of
from .evaluate import dice

if TYPE_CHECKING:
    from HiEndSegLib.operations.adapt import Adapted

METHODS = ("default", "quick", "full", "scratch", "unetr", "encoder")
#: Speed of the ways that adapt.
SPEED = {"quick": "quick", "full": "full", "encoder": "quick"}
#: Below this Dice of the default on the taught case a structure is ticked.
TICK_BELOW = 0.80
_VERSION = 1


@dataclass(frozen=True)
class Pair:
    """Who teaches what to be scored on whom.

    protocol: "synthetic", "real" or "new". structures: may be ticked. tick: "below" (those whose Dice by the default is
    below TICK_BELOW on the taught case) or "all". look: acquisition of all of the pair's cases. remark: for the table.
    """

    name: str
    protocol: str
    taught: str
    scored: tuple[str, ...]
    look: str
    structures: tuple[str, ...]
    tick: str = "below"
    remark: str = ""

    def __post_init__(self) -> None:
        if self.protocol not in ("synthetic", "real", "new") or self.tick not in ("below", "all"):
            raise OptionError(f"Pair {self.name}: the protocol {self.protocol!r} or tick {self.tick!r} is not known.")
        if person_of(self.taught) in map(person_of, self.scored) or not self.scored:
            raise OptionError(f"Pair {self.name} would score the person that it teaches, or nobody; name others.")


@dataclass(frozen=True)
class RunConfig:
    """Everything a result depends on. model: key and checksum. seconds: None for no limit but the way's own. recipe: of
    adaptation at that speed, as JSON: with another recipe it is another run."""

    pair: Pair
    method: str
    model: str
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    seconds: float | None = None
    steps: int | None = None
    crop: int = 72
    encoder: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"There is no way named {self.method!r}; choose one of {', '.join(METHODS)}.")
        if self.seconds is not None and not self.seconds > 0:
            raise OptionError(f"The seconds of a run must be positive, not {self.seconds}.")

    @property
    def file_name(self) -> str:
        values = asdict(self)
        del values["pair"]["remark"]
        if self.method == "default":                    # the same whatever the others were given
            values.update(seed=0, seconds=None, steps=None, crop=0, encoder="")
        elif self.method in SPEED:
            values.update(crop=0)
        text = json.dumps({**values, "version": _VERSION}, sort_keys=True)
        return f"{self.pair.name}_{self.method}_seed{self.seed}_{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"


# ------------------------------------------------------------------------------------------------------------- scores


def score(model: Model, case: LabelledCase, *, device: str = "cpu", threads: int = 1) -> dict[str, float | None]:
    """Dice of every annotated structure that the model knows; None where it is in neither label map."""
    result = segment(model, case.volume, device=device, threads=threads)
    value = {label.id: label.value for label in result.legend}
    open_ = case.labels.array == UNKNOWN
    scores = {}
    for name in case.annotated:
        if name in value:
            found = dice(result.labels.array == value[name], case.mask(name), open_)
            scores[name] = None if math.isnan(found) else round(found, 4)
    return scores


def ticked(pair: Pair, before: dict[str, float | None]) -> tuple[str, ...]:
    """The structures of a pair that are taught, from the default's Dice on the taught case."""
    if pair.tick == "all":
        return pair.structures
    return tuple(name for name in pair.structures if before.get(name) is not None and before[name] < TICK_BELOW)


# --------------------------------------------------------------------------------------------------------------- run


def run(config: RunConfig, model: Model, cases: Cases, structures: Sequence[str], *, encoder: Path | None = None
        ) -> dict:
    """Learn and score; plain values. structures: the ticked ones (empty for "default"). encoder: folder of the encoder
    of "unetr" and "encoder".

    Raises InputError: nothing ticked, or a ticked structure without a voxel in the taught case.
    """
    pair = config.pair
    torch.manual_seed(config.seed)
    if config.device == "cpu":
        torch.set_num_threads(config.threads)
    started, clock = time.perf_counter(), clock_of(config.device)
    began = clock()
    report, curve = {}, []
    scored: tuple[str, ...] = pair.scored
    if config.method == "default":
        learned, scored = model, (pair.taught, *pair.scored)
    else:
        case = cases.get(pair.taught, pair.look)
        check_teaching(case, structures)
        if config.method in SPEED:
            parent = model if config.method != "encoder" else _around(encoder, config, case, structures)
            learned, report, curve = _adapted(config, parent, case, structures)
        else:
            from . import adaptation_baselines as baselines

            learn = baselines.learn_scratch if config.method == "scratch" else baselines.learn_unetr
            learned, report, curve = learn(config, model, case, structures, encoder)
    learned_at, taken = time.perf_counter(), clock() - began
    scores = {name: score(learned, cases.get(name, pair.look), device=config.device, threads=config.threads)
              for name in scored}
    return {"version": _VERSION, "config": asdict(config), "structures": list(structures), "scores": scores,
            "kinds": {name: cases.get(name).kind for name in (pair.taught, *pair.scored)},
            "report": report, "curve": curve,
            "seconds": {"learning": round(taken if config.method != "default" else 0.0, 1),
                        "wall": round(learned_at - started, 1), "scoring": round(time.perf_counter() - learned_at, 1)},
            "versions": {"torch": torch.__version__, "device": config.device}}


def clock_of(device: str) -> Callable[[], float]:
    """What seconds are counted with: processor seconds on a CPU, whose cores may be shared, else the wall's."""
    return time.process_time if device == "cpu" else time.perf_counter


def check_teaching(case: LabelledCase, structures: Sequence[str]) -> None:
    """Raises InputError if there is nothing that could be taught."""
    if not structures:
        raise InputError(f"Nothing is ticked on {case.name} ({case.look}): the default is at {TICK_BELOW:g} or above "
                         "for all of the pair's structures; choose another acquisition or tick all.")
    missing = [name for name in structures if name not in case.annotated or not case.mask(name).any()]
    if missing:
        raise InputError(f"{case.name} has no labelled voxel of {', '.join(missing)}; leave them out.")


def _around(encoder: Path | None, config: RunConfig, case: LabelledCase, structures: Sequence[str]) -> Model:
    if encoder is None:
        raise OptionError("A model is made around an encoder here; name its folder with --encoder.")
    from HiEndSegLib.operations.adapt_encoder import model_from_encoder

    return model_from_encoder(encoder, teaching_legend(case, structures), seed=config.seed)


def _adapted(config: RunConfig, model: Model, case: LabelledCase, structures: Sequence[str]
             ) -> tuple[Model, dict, list[dict]]:
    from HiEndSegLib.operations.adapt import adapt

    curve: list[dict] = []
    cancel, over = CancelToken(), threading.Event()
    if config.seconds is not None:                      # what is best so far when the time is up
        threading.Thread(target=_finish_after, args=(config.seconds, clock_of(config.device), cancel, over),
                         daemon=True).start()
    try:
        adapted = adapt(model, case.volume, case.labels, teaching_legend(case, structures), structures=list(structures),
                        device=config.device, speed=SPEED[config.method], steps=config.steps, seed=config.seed,
                        threads=config.threads, sides="keep", cancel=cancel,
                        record=lambda entry: curve.append(entry) if entry.get("kind") == "score" else None)
    finally:
        over.set()
    report = {**adapted.report, "messages": adapted.messages, "better": adapted.better}
    return learned_model(model, adapted), report, curve


def learned_model(model: Model, adapted: Adapted) -> Model:
    """What an adaptation made of the model, in memory."""
    card = replace(model.card, id=f"{model.card.id}-adapted", network=adapted.network_config, labels=adapted.labels,
                   curve=adapted.curve)
    return Model(card, adapted.network, model.device)


def _finish_after(seconds: float, clock: Callable[[], float], cancel: CancelToken, over: threading.Event) -> None:
    begin = clock()
    while not over.wait(0.25):
        if clock() - begin >= seconds:
            cancel.finish()
            return


def teaching_legend(case: LabelledCase, structures: Sequence[str]) -> list[Label]:
    """All the case's labels: what is not ticked is compared with, never taught."""
    return [BY_ID[name] for name in (*case.annotated, *(s for s in structures if s not in case.annotated))]


def mean(values: Sequence[float | None]) -> float:
    """Mean of the numbers among the values; NaN without any."""
    numbers = [v for v in values if v is not None]
    return float(np.mean(numbers)) if numbers else float("nan")
