"""From what the Adapt section's parts know to an `AdaptState`: wording, and what is enabled when. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import wording
from .adapt_state import AdaptState

if TYPE_CHECKING:
    from .adapt_run import Work

_ = wording.translator(__name__)


@dataclass(frozen=True)
class Family:
    """Segment's model, as far as going to and fro between versions is concerned: titles, "" where there is none."""

    model_id: str | None = None
    title: str = ""
    parent_key: str | None = None
    parent_title: str = ""


def show_still(*, inputs: Any, rows: Any, speeds: Any, overlay: Any, end: Any, question: Any, obstacle: str,
               compare_obstacle: str, name: str, suggestion: str, keep_teaching: bool, times: Any, family: Family,
               curve: tuple, chart_id: str | None) -> AdaptState:
    """The state while nothing runs. obstacle: why nothing can be taught; times: (model, device) for the speeds."""
    card, encoder = inputs.card, inputs.from_encoder
    compared = rows.comparison is not None
    phase = end.phase or ("ready" if compared else "idle")
    what = inputs.facts.name if inputs.facts is not None else ""
    if end.headline:
        headline = end.headline
    elif compared:
        headline = obstacle or _('Ready to teach from "{volume}".').format(volume=what)
    else:
        headline = compare_obstacle or _('Compare what you corrected in "{volume}" with the model.').format(volume=what)
    if encoder:
        compare = _("Look at the segments")
        compare_tip = _("List what is drawn; an encoder knows no structures yet.")
        run_tip = _("Make a new model from the encoder and this case; nothing that is there already is changed.")
    else:
        compare = _("Compare again") if compared else _("Compare")
        compare_tip = _("Segment the volume with this model, and check what you drew differently.")
        run_tip = _("Teach the checked structures to a new version; {model} itself is not changed.").format(
            model=card.title if card is not None else "")
    return AdaptState(
        phase=phase, fraction=1.0 if phase == "done" else 0.0, headline=headline, detail=end.detail, log=end.log,
        question=question, run_text=_("Adapt"), run_enabled=not obstacle, run_tooltip=obstacle or run_tip,
        compare_text=compare, compare_available=not compare_obstacle, compare_tooltip=compare_obstacle or compare_tip,
        finish_tooltip=_("Nothing runs."),
        volume_id=inputs.volume_id, volume_sentence="" if inputs.facts is None else _volume_words(inputs.facts, card),
        segmentation_id=inputs.segmentation_id,
        segmentation_sentence=inputs.segmentation_problem or inputs.segmentation_sentence,
        models=inputs.catalogue.rows(lambda _card: None), model_id=None if card is None else card.key,
        from_encoder=encoder, encoder_path=inputs.encoder_path, encoder_sentence=inputs.encoder_sentence(),
        rows=rows.rows(), rows_sentence=rows.sentence(), name=name, name_suggestion=suggestion,
        speed=speeds.chosen, speeds=speeds.rows(*times), plan_sentence=speeds.sentence(*times),
        keep_teaching=keep_teaching, keep_teaching_sentence=_teaching_words(card),
        curve=curve, chart_id=chart_id, table=end.table, result_key=end.key, result_sentence=end.sentence,
        can_use=end.key is not None and end.key != family.model_id,
        use_tooltip=_use_words(end, family), can_revert=family.parent_key is not None,
        revert_tooltip=_revert_words(family), can_keep=end.unsaved is not None,
        keep_tooltip=_("Keep this version although nothing got better in it.") if end.unsaved is not None else "",
        overlay_available=end.key is not None or overlay.shown, overlay_shown=overlay.shown,
        overlay_sentence=overlay.sentence(), overlay_ids=overlay.ids)


def show_comparing(still: AdaptState, work: Work, name: str) -> AdaptState:
    """The state while the model's own answer is being made."""
    left = work.seconds_left()
    stopping = work.state == "cancelling"
    return replace(
        still, phase="cancelling" if stopping else "comparing", fraction=work.fraction, log=work.log, question=None,
        headline=_("Stopping…") if stopping else _('Comparing "{volume}" with the model\'s own answer').format(
            volume=name),
        detail="" if stopping else work.message(), **_time(None if stopping else left), **_button(stopping),
        **_nothing_else())


def show_run(still: AdaptState, run: Any, question: Any, chart_id: str | None) -> AdaptState:
    """The state while a model learns."""
    state = run.state if run.state != "over" else "running"
    words = {"starting": _('Starting to adapt: "{name}"'), "running": _('Adapting: "{name}"'),
             "finishing": _('Finishing "{name}" with the best so far'), "cancelling": _("Stopping…")}
    best = ""
    if state == "running" and run.best is not None and run.best.get("mean") is not None:
        best = _("Best so far: Dice {dice} on what is held out, at step {step}.").format(
            dice=f"{run.best['mean']:.2f}", step=run.best.get("step"))
    can_finish = run.can_finish
    return replace(
        still, phase=state, fraction=run.fraction, headline=words[state].format(name=run.order.name),
        detail=" ".join(filter(None, (_sentence("" if state == "cancelling" else run.message()), best))), log=run.log,
        question=question, **_time(run.seconds_left() if state == "running" else None),
        **_button(state == "cancelling"), **{**_nothing_else(), "finish_available": can_finish,
        "finish_tooltip": _("Stop now, and keep the best so far.") if can_finish else
        _("There is nothing to keep yet.") if state in ("starting", "running") else _("It is being stopped already.")},
        curve=run.curve, chart_id=chart_id, table=(), result_key=None, result_sentence="")


def _sentence(message: str) -> str:
    """A progress message ("Step 12 of 24") with its full stop, so that another sentence may follow."""
    return message if not message or message[-1] in ".…!?" else message + "."


def show_keeping(still: AdaptState, work: Work, title: str) -> AdaptState:
    """The state while an adaptation that was not kept is written after all."""
    return replace(still, phase="finishing", fraction=work.fraction, detail=work.message(), question=None,
                   headline=_('Keeping "{name}"').format(name=title), run_text=_("Adapt"), run_enabled=False,
                   run_tooltip=_("The version is being written."), **_nothing_else())


def _time(left: float | None) -> dict:
    if left is None:
        return {"seconds_left": None, "time_text": ""}
    return {"seconds_left": float(round(left)), "time_text": _("About {time} left").format(time=wording.seconds(left))}


def _button(stopping: bool) -> dict:
    if stopping:
        return {"run_text": _("Stopping…"), "run_enabled": False,
                "run_tooltip": _("The engine is stopping; this takes a second at most.")}
    return {"run_text": _("Stop"), "run_enabled": True,
            "run_tooltip": _("Stop; the model that is there already is not changed.")}


def _nothing_else() -> dict:
    """One thing at a time."""
    busy = _("Wait until what runs is over, or stop it.")
    return {"compare_available": False, "compare_tooltip": busy, "finish_available": False, "finish_tooltip": busy,
            "can_use": False, "can_revert": False, "can_keep": False, "overlay_available": False}


def _volume_words(facts: Any, card: Any) -> str:
    return " ".join(filter(None, (facts.sentence, facts.warning(card))))


def _teaching_words(card: Any) -> str:
    words = [_("Parts of this case are kept with the version on this computer, so that teaching it another case does "
               "not undo this one; they are never exported.")]
    known = (getattr(card, "adaptation", None) or {}).get("teaching_cases") or 0
    if known:
        template = _("This version remembers {count} earlier cases.") if known > 1 else \
            _("This version remembers one earlier case.")
        words.append(template.format(count=known))
    return " ".join(words)


def _use_words(end: Any, family: Family) -> str:
    if end.key is None:
        return _("There is no new version to use.")
    if end.key == family.model_id:
        return _('"{name}" is used in the section Segment.').format(name=end.title)
    return _('Segment with "{name}" from now on.').format(name=end.title)


def _revert_words(family: Family) -> str:
    if family.parent_key is None:
        return _("The section Segment does not use an adapted version.")
    return _('Segment with "{parent}" again, from which "{version}" was made.').format(
        parent=family.parent_title, version=family.title)
