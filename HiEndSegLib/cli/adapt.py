"""`hiendseg adapt`: one corrected case teaches a model; the result is a version of its own beside the model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import HiEndSegError, OptionError
from ..models.registry import Registry
from .adapt_labels import Taught, as_known, new_structures, read_taught, wanted
from .console import ProgressLine, complain, say, table
from .interrupt import Interrupt
from .segment import check_device, make_engine


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Adapt; the exit code: 0, or 1 when nothing got better and so nothing was kept. Raises HiEndSegError."""
    check_device(options.device)
    new = new_structures(options.new)
    if options.steps is not None and options.steps < 1:
        raise OptionError(f"--steps must be 1 or more, and it is {options.steps}.")
    if options.encoder is not None and options.model is not None:
        raise OptionError("A model is made from an encoder (--encoder) or from another model (--model), not from both.")
    card = None if options.encoder else Registry().verify(options.model, interrupt.token)
    from ..geometry.reading import read_volume

    series = options.series
    volume = interrupt.wait_for(read_volume, Path(options.volume),
                                series=int(series) if series and series.isdigit() else series)
    taught = interrupt.wait_for(read_taught, options.labels, card.labels if card else (), new)
    if card is None:
        taught = named_as_the_default(taught)
    structures = wanted(options.structures, taught, new)
    known = {label.id for label in card.labels} if card else set()
    for sentence in dict.fromkeys([*volume.notes, *taught.notes]):
        say(sentence)
    names = {label.id: label.name for label in taught.legend}
    say(f"Teaching {card.title if card else 'a new model from ' + Path(options.encoder).name}: "
        + ", ".join(names[id_] + ("" if id_ in known else " (new)") for id_ in structures))
    line = AdaptLine(interrupt)
    line.begin(options.name)
    try:
        with make_engine(options) as engine, interrupt.finish_first() as token:
            result = engine.adapt(
                volume, taught.labels, taught.legend, name=options.name, structures=structures,
                model=str(card.folder) if card else None, encoder=options.encoder, speed=options.speed,
                device=options.device, steps=options.steps, seed=options.seed, keep_teaching=options.keep_teaching,
                keep_if_worse=options.keep_anyway, sides=options.sides, threads=options.threads,
                record=line.record, progress=line, cancel=token)
    except HiEndSegError as error:
        if error.code == "swapped-sides":
            raise OptionError(f"{error.sentence} Run it again with --sides swap, or with --sides keep to teach them "
                              "as they are drawn.") from None
        raise
    finally:
        line.clear()
    return show(result, options.keep_teaching)


def named_as_the_default(taught: Taught) -> Taught:
    """A model from an encoder knows no names: those that the default model has come with its codes and colors."""
    try:
        known = Registry().get(None).labels
    except HiEndSegError:
        return taught
    return replace(taught, legend=as_known(taught.legend, known))


def show(result: Any, remembered: bool = False) -> int:
    """Say what came out; the exit code. remembered: whether the case was to be kept beside the version."""
    for sentence in result.messages:
        if sentence != result.report.get("sentence"):
            say(sentence)
    say()
    say(score_table(result.report))
    say()
    if result.report.get("sentence"):
        say(result.report["sentence"])
    if result.key is None and result.report.get("better"):
        complain("Nothing was kept, because it could not be written; make room and adapt again.")
        return 1
    if result.key is None:
        complain("Nothing was kept; teach from more or better labels, or give it more --steps"
                 + (", or keep it with --keep-anyway." if result.unsaved else "."))
        return 1
    say(f"Kept as {result.key}. Use it with 'hiendseg segment … --model {result.key}'; take it back with 'hiendseg "
        f"models remove {result.key}'.")
    if remembered:
        say("Parts of this case are kept beside it, on this computer only, so that the next case does not undo it.")
    return 0


def score_table(report: dict) -> str:
    """Before and after: what was taught on its held-out part, then what was protected."""
    rows = []
    for entry in report.get("taught", ()):
        rows.append((entry["name"], _what(entry), _score(entry["dice_before"]),
                     _score(entry["dice_after"]), _mm(entry["surface_before_mm"]), _mm(entry["surface_after_mm"]), ""))
    worse = set(report.get("worse", ()))
    for entry in report.get("protected", ()):
        rows.append((entry["name"], "worse" if entry["id"] in worse else "kept", _score(entry["dice_before"]),
                     _score(entry["dice_after"]), "", "", _score(entry["agreement"])))
    return table(("Structure", "", "Dice before", "after", "Surface before (mm)", "after", "Agrees with before"), rows,
                 right=(2, 3, 4, 5, 6))


class AdaptLine(ProgressLine):
    """The progress bar with the Dice on the held-out part beside it, and a word on the first Ctrl-C."""

    def __init__(self, interrupt: Interrupt, **options: Any):
        super().__init__(1, **options)
        self._token = interrupt.token
        self._dice = ""
        self._said = False

    def __call__(self, fraction: float, message: str) -> None:
        if self._token.finishing and not (self._said or self._token.cancelled):
            self._said = True
            super().__call__(fraction, "Stopping with the best so far; press Ctrl-C again to stop and keep nothing.")
        if not message.endswith("."):
            message += self._dice
        super().__call__(fraction, message)

    def record(self, values: dict) -> None:
        """A record of the operation: remembers the newest score, and prints it where there is no bar."""
        if values.get("kind") != "score" or values.get("mean") is None:
            return
        self._dice = f", held-out Dice {values['mean']:.3f}"
        if not self._live:
            best = ", the best so far" if values.get("best") else ""
            say(f"  step {values.get('step', 0)}: held-out Dice {values['mean']:.3f}{best}", self._stream)


def _what(entry: dict) -> str:
    if entry.get("new"):
        return "new"
    before, after = entry["dice_before"], entry["dice_after"]
    return "taught, worse" if before is not None and after is not None and after < before - 0.01 else "taught"


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _mm(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
