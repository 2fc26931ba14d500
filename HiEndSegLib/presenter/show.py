"""From what the presenter's parts know to a `SegmentState`: wording, and what is enabled when. Decides nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import wording
from .state import Offer, Outcome, SegmentState

if TYPE_CHECKING:
    from ..errors import HiEndSegError
    from .batch import SegmentBatch, Summary

_ = wording.translator(__name__)


@dataclass(frozen=True)
class Ended:
    """How the last batch, or the last attempt at one, ended."""

    phase: str = "idle"
    headline: str = ""
    detail: str = ""
    outcomes: tuple[Outcome, ...] = ()
    log: tuple[str, ...] = ()
    summary: Summary | None = None
    error: HiEndSegError | None = None

    @classmethod
    def refused(cls, sentence: str) -> Ended:
        """Nothing was started."""
        return cls("failed", _("That is not possible yet."), sentence)

    @classmethod
    def dropped(cls, batch: SegmentBatch, sentence: str) -> Ended:
        """It was stopped because what it was for is gone."""
        return cls("idle", sentence, "", (), batch.log, batch.summary)

    @classmethod
    def of(cls, batch: SegmentBatch) -> Ended:
        """A batch that is over by itself or was cancelled."""
        summary, many = batch.summary, len(batch.pieces) > 1
        outcomes = tuple(summary.outcomes) if many else ()
        done = sum(outcome.ok for outcome in summary.outcomes)
        if summary.cancelled:
            headline = _("Stopped. {done} of {count} were segmented and stay.").format(
                done=done, count=len(batch.pieces)) if done else _("Stopped; nothing was changed.")
            return cls("idle", headline, "", outcomes, batch.log, summary)
        if many:
            detail = " ".join(_("{name}: {sentence}").format(name=outcome.name, sentence=outcome.sentence)
                              for outcome in summary.failed)
            headline = _("{done} of {count} were segmented in {time}.").format(
                done=done, count=len(batch.pieces), time=wording.duration(batch.seconds))
            return cls("failed" if summary.failed else "done", headline, detail, outcomes, batch.log, summary,
                       summary.error)
        outcome = summary.outcomes[0]
        if not outcome.ok:
            return cls("failed", _('"{name}" was not segmented.').format(name=outcome.name), outcome.sentence, (),
                       batch.log, summary, summary.error)
        found = sum(1 for row in summary.results[0]["statistics"] if row["voxels"])
        template = _('Found {count} structures in "{name}" ({time}).') if found != 1 else \
            _('Found {count} structure in "{name}" ({time}).')
        return cls("done", template.format(count=found, name=outcome.name, time=wording.duration(batch.seconds)),
                   outcome.sentence, (), batch.log, summary)


def show_still(*, catalogue: Any, machine: Any, inputs: Any, outputs: Any, ended: Ended, question: Any, obstacle: str,
               expected: Any) -> SegmentState:
    """The state while nothing runs. expected: seconds for a card, or None; obstacle: why nothing can be started."""
    card, facts, region = catalogue.card, inputs.facts, inputs.region
    needs_setup = bool(catalogue.missing_package or machine.needs_torch)
    headline = ended.headline or obstacle or _('Ready to segment "{name}".').format(name=facts.name)
    return SegmentState(
        phase=ended.phase, fraction=1.0 if ended.phase == "done" else 0.0, headline=headline, detail=ended.detail,
        log=ended.log, button_text=_("Segment"), button_enabled=not obstacle,
        button_tooltip=obstacle or _('Segment "{name}" with {model}.').format(name=facts.name, model=card.title),
        question=question, offers=_offers(ended.error, machine), outcomes=ended.outcomes,
        volume_id=inputs.volume_id, volume_sentence="" if facts is None else facts.sentence,
        volume_warning="" if facts is None else facts.warning(card), frames=0 if facts is None else facts.frames,
        roi_id=inputs.roi_id, roi_sentence="" if region is None else region.sentence,
        models=catalogue.rows(expected), model_filter=catalogue.filter, model_id=None if card is None else card.key,
        model_sentence=catalogue.sentence(None if card is None else expected(card)),
        model_problems=catalogue.problems, structures=catalogue.structures(),
        structures_sentence=catalogue.structures_sentence(),
        devices=machine.rows(), device=machine.chosen, device_sentence=machine.sentence(),
        plan_sentence=machine.plan_sentence, plan_fits=machine.plan_fits, needs_setup=needs_setup,
        output_id=outputs.chosen, segmentation_id=outputs.segmentation_id, table_id=outputs.table_id,
        show_3d=outputs.surface, undo_available=outputs.can_undo, redo_available=outputs.can_redo)


def show_batch(still: SegmentState, batch: SegmentBatch) -> SegmentState:
    """The state while `batch` runs."""
    name, count = batch.piece.name, len(batch.pieces)
    common = {"question": None, "offers": (), "outcomes": tuple(batch.summary.outcomes) if count > 1 else (),
              "fraction": batch.fraction, "log": batch.log, "undo_available": False, "redo_available": False}
    if batch.cancelling:
        return replace(still, phase="cancelling", headline=_("Stopping…"), detail="", seconds_left=None, time_text="",
                       button_text=_("Stopping…"), button_enabled=False,
                       button_tooltip=_("The engine is stopping; this takes a second at most."), **common)
    left = batch.seconds_left()
    which = {"name": name, "number": batch.index + 1, "count": count}
    if batch.running:
        headline = _('Segmenting "{name}" ({number} of {count})') if count > 1 else _('Segmenting "{name}"')
    else:
        headline = _('Starting "{name}" ({number} of {count})') if count > 1 else _('Starting "{name}"')
    return replace(still, phase="running" if batch.running else "starting", headline=headline.format(**which),
                   detail=batch.message, seconds_left=None if left is None else float(round(left)),
                   time_text="" if left is None else _("About {time} left").format(time=wording.seconds(left)),
                   button_text=_("Cancel"), button_enabled=True,
                   button_tooltip=_("Stop; nothing that is there already will be changed."), **common)


def _offers(error: HiEndSegError | None, machine: Any) -> tuple[Offer, ...]:
    """What would help after this failure."""
    if error is None:
        return ()
    code = error.code
    if code == "bad-model":
        return (Offer("verify_model", _("Verify the model")), Offer("choose_model", _("Choose another model")))
    if code == "engine" and machine.needs_torch:
        return (Offer("setup", _("Open the set-up page")),)
    cpu = () if machine.chosen == "cpu" else (Offer("device_cpu", _("Use the CPU")),)
    if code == "engine":
        return (Offer("again", _("Segment again")), *cpu, Offer("setup", _("Repair")))
    if code == "bad-device":
        return cpu
    if code == "out-of-memory":
        return (*cpu, Offer("roi", _("Choose a region of interest")))
    return ()
