"""What an adaptation came to: the before/after table and what is said about it. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from . import wording
from .adapt_state import ScoreRow

if TYPE_CHECKING:
    from .adapt_run import AdaptOrder

_ = wording.translator(__name__)

#: Dice differences below this are noise.
_NOISE = 0.005


@dataclass(frozen=True)
class AdaptEnd:
    """How the last adaptation, or the last attempt at one, ended. key: of the version that was made.

    unsaved: what `Engine.submit_keep` takes where nothing was kept. worse: ids of protected structures that got worse.
    """

    phase: str = ""                 # "" none yet, "done" or "failed"
    headline: str = ""
    detail: str = ""
    log: tuple[str, ...] = ()
    table: tuple[ScoreRow, ...] = ()
    key: str | None = None
    title: str = ""
    unsaved: str | None = None
    taught: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    sentence: str = ""
    order: AdaptOrder | None = None
    report: dict = field(default_factory=dict)
    error: HiEndSegError | None = None

    @classmethod
    def refused(cls, sentence: str) -> AdaptEnd:
        """Nothing was started."""
        return cls("failed", _("That is not possible yet."), sentence)

    @classmethod
    def failed(cls, order: AdaptOrder | None, error: HiEndSegError, log: Iterable[str]) -> AdaptEnd:
        return cls("failed", _("The model was not adapted."), str(error), tuple(log), order=order, error=error)

    @classmethod
    def stopped(cls, sentence: str, log: Iterable[str] = ()) -> AdaptEnd:
        """Somebody or something stopped it; all is as it was."""
        return cls("", sentence, "", tuple(log))

    @classmethod
    def of(cls, order: AdaptOrder, result: Any, messages: Iterable[str], log: Iterable[str],
           seconds: float) -> AdaptEnd:
        """order: what was asked for; result: an `AdaptResult`."""
        report = result.report if isinstance(result.report, dict) else {}
        table = score_rows(report)
        worse = tuple(row.id for row in table if not row.taught and row.verdict == "worse")
        said = dict.fromkeys(filter(None, [str(report.get("sentence") or ""), *messages, *map(str, result.messages)]))
        end = cls("done", "", " ".join(said), tuple(log), table, result.key, order.name, result.unsaved,
                  order.structures, worse, change_sentence(table), order, report)
        if result.key is None and all(row.verdict == "unknown" for row in table if row.taught):
            return replace(end, headline=_("Whether anything got better could not be measured, so nothing was kept."))
        if result.key is None and report.get("better"):
            return replace(end, headline=_("It got better and could not be written; make room, and press Keep anyway."))
        if result.key is None:
            return replace(end, headline=_("Nothing got better, so nothing was kept. The model is as it was."))
        if report.get("stopped") == "asked":
            template = _('"{name}" holds the best until you stopped ({time}).')
        else:
            template = _('"{name}" is ready ({time}).')
        return replace(end, headline=template.format(name=order.name, time=wording.duration(seconds)))

    def kept(self, key: str) -> AdaptEnd:
        """It was kept after all."""
        return replace(self, phase="done", key=key, unsaved=None, headline=_(
            '"{name}" was kept all the same.').format(name=self.title))

    def without_version(self, headline: str) -> AdaptEnd:
        """The version that was made was deleted again."""
        return replace(self, key=None, unsaved=None, headline=headline)


def score_rows(report: dict) -> tuple[ScoreRow, ...]:
    """The table of a report: taught structures, protected ones that got worse, the others.

    Entries that are not as `operations.adapt` writes them are passed over.
    """
    worse = set(_list(report.get("worse")))
    rows, protected = [], []
    for entry in _list(report.get("taught")):
        if isinstance(entry, dict) and "id" in entry:
            before, after = _number(entry.get("dice_before")), _number(entry.get("dice_after"))
            verdict = _verdict(0.0 if entry.get("new") else before, after)
            rows.append(ScoreRow(str(entry["id"]), str(entry.get("name") or entry["id"]), True, before, after,
                                 _number(entry.get("surface_before_mm")), _number(entry.get("surface_after_mm")),
                                 verdict, _taught_words(entry, verdict)))
    for entry in _list(report.get("protected")):
        if isinstance(entry, dict) and "id" in entry:
            before, after = _number(entry.get("dice_before")), _number(entry.get("dice_after"))
            agreement = _number(entry.get("agreement"))
            if before is None or after is None:
                before, after = None, agreement
            verdict = "worse" if entry["id"] in worse else "unknown" if after is None else \
                "better" if _verdict(before, after) == "better" else "same"
            protected.append(ScoreRow(str(entry["id"]), str(entry.get("name") or entry["id"]), False, before, after,
                                      None, None, verdict, _protected_words(before, verdict, agreement)))
    # What got worse is to be seen without scrolling.
    return tuple(rows + sorted(protected, key=lambda row: row.verdict != "worse"))


def change_sentence(table: Iterable[ScoreRow]) -> str:
    """What got better and what got worse, by name."""
    table = list(table)
    if not table:
        return ""
    groups = {"better": [row.name for row in table if row.taught and row.verdict == "better"],
              "worse": [row.name for row in table if row.verdict == "worse"],
              "unknown": [row.name for row in table if row.taught and row.verdict == "unknown"]}
    words = []
    if groups["better"]:
        words.append(_("Better on what was held out: {names}.").format(names=wording.listing(groups["better"])))
    if groups["worse"]:
        words.append(_("Worse: {names}.").format(names=wording.listing(groups["worse"])))
    elif any(not row.taught for row in table):
        words.append(_("None of the other structures got worse."))
    if groups["unknown"]:
        words.append(_("Could not be measured: {names}.").format(names=wording.listing(groups["unknown"])))
    return " ".join(words)


def _verdict(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "unknown"
    return "better" if after > before + _NOISE else "worse" if after < before - _NOISE else "same"


def _taught_words(entry: dict, verdict: str) -> str:
    if verdict == "unknown":
        return _("Not measured: too small to hold a part of it out of the teaching.")
    if entry.get("new") and verdict != "better":
        return _("Not learned")
    if verdict == "better":
        return _("Newly learned") if entry.get("new") else _("Better")
    return _("Worse") if verdict == "worse" else _("No change")


def _protected_words(before: float | None, verdict: str, agreement: float | None) -> str:
    if verdict == "unknown":
        return _("Protected; not in this case")
    if verdict == "worse":
        return _("Protected, and got worse")
    if before is None and agreement is not None:
        return _("Protected; agrees with the old model to {share} %").format(share=f"{100 * agreement:.0f}")
    return _("Protected, and got better") if verdict == "better" else _("Protected; no change")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) \
        and math.isfinite(value) else None


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []
