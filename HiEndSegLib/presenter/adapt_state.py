"""What the Adapt section shows: plain frozen data, made anew whenever something changes.

As in `state.py`: ids, never nodes; colors (r, g, b), 0 to 255; all texts are for people, translated already, and shown
as they are. A face binds widgets to `AdaptPresenter.state` whenever `AdaptPresenter.changed` is emitted:

    presenter = AdaptPresenter(scene=scene, engine=engine, registry=registry, settings=settings, segment=segment)
    presenter.changed.connect(self.show)
    presenter.models_changed.connect(models.refresh)    # a version was made or deleted
    presenter.enter()                                   # on screen: takes over Segment's volume, result and model
    presenter.compare()                                 # the model's own answer against the corrected segmentation
    presenter.press()                                   # the big button: Adapt, or Stop while something runs

Actions: set_volume(node), set_segmentation(node), set_model(id), set_encoder(path), compare(), check(id, on),
set_name(text), set_speed(id), set_keep_teaching(on), run(), press(), finish(), cancel(), answer(choice), use_now(),
revert(), keep_anyway(), show_overlay(on), enter(), leave(), refresh(), tick(), close(); about the
scene scene_closing(), scene_closed(), node_removed(id). None of them raises what a person can cause.
"""

from __future__ import annotations

from dataclasses import dataclass

from .state import ModelRow, Question

#: "idle" something is not chosen yet, or not compared · "comparing" the model's own answer is being made · "ready" the
#: rows are there · "starting" voxels are read, the engine gets ready or is busy with another job · "running" ·
#: "finishing" stops early and keeps the best so far · "cancelling" stops and keeps nothing · "done" and "failed" how
#: the last one ended; another can be started as from "ready".
ADAPT_PHASES = ("idle", "comparing", "ready", "starting", "running", "finishing", "cancelling", "done", "failed")
ADAPT_BUSY = frozenset({"comparing", "starting", "running", "finishing", "cancelling"})


@dataclass(frozen=True)
class TeachRow:
    """One structure of the corrected segmentation, in the checklist "Teach these".

    id: what `check` takes. is_new: the model does not know it. dice: of the model's own answer against what was drawn,
    None where there is nothing to compare (a new structure, both empty, an encoder). changed_ml: volume that was drawn
    or erased. sentence: why it is checked or not, and what is doubtful about it.
    """

    id: str
    name: str
    color: tuple[int, int, int]
    checked: bool
    is_new: bool = False
    dice: float | None = None
    changed_ml: float | None = None
    sentence: str = ""


@dataclass(frozen=True)
class SpeedRow:
    """id: "quick" or "full", what `set_speed` takes. minutes: expected, None while nobody knows.

    memory: "0.6 GB", or "". fits: whether memory is there for it; None while it is being found out.
    """

    id: str
    title: str
    minutes: float | None
    memory: str
    sentence: str
    fits: bool | None


@dataclass(frozen=True)
class CurvePoint:
    """One point of the live curve. loss where it was told; dice: mean over what is taught, on what is held out. best:
    whether it would be kept if it ended here."""

    step: int
    loss: float | None = None
    dice: float | None = None
    agreement: float | None = None      # of the protected structures with the old model's own answer, held out or not
    best: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """One line of the before/after table. dice_*: 0..1, None where it could not be measured; surface_*: mm.

    taught: else it was protected. verdict: "better", "worse", "same" or "unknown"; verdict_text the same in words.
    Of a protected structure: against what was drawn, where it was drawn, else dice_before is None and dice_after is the
    agreement with the old model.
    """

    id: str
    name: str
    taught: bool
    dice_before: float | None
    dice_after: float | None
    surface_before: float | None
    surface_after: float | None
    verdict: str
    verdict_text: str = ""


@dataclass(frozen=True)
class AdaptState:
    """Everything the Adapt section shows.

    headline: one sentence, always there. detail: what is done right now, why it failed, or what to know about the
    result; may be several sentences. seconds_left: None where nobody knows yet; time_text the same in words.
    """

    # what happens
    phase: str = "idle"
    fraction: float = 0.0
    seconds_left: float | None = None
    time_text: str = ""
    headline: str = ""
    detail: str = ""
    log: tuple[str, ...] = ()
    question: Question | None = None
    # the buttons
    run_text: str = ""                      # the big one, `press`: "Adapt", or "Stop" while something runs
    run_enabled: bool = False
    run_tooltip: str = ""
    compare_text: str = ""                  # `compare`
    compare_available: bool = False
    compare_tooltip: str = ""
    finish_available: bool = False          # `finish`: stop now and keep the best so far
    finish_tooltip: str = ""
    # what goes in
    volume_id: str | None = None
    volume_sentence: str = ""
    segmentation_id: str | None = None
    segmentation_sentence: str = ""
    models: tuple[ModelRow, ...] = ()
    model_id: str | None = None             # the model that is taught; None with an encoder
    from_encoder: bool = False              # a new model from an encoder file, in place of an existing model
    encoder_path: str = ""                  # remembered even while a model is chosen
    encoder_sentence: str = ""
    # what is taught
    rows: tuple[TeachRow, ...] = ()
    rows_sentence: str = ""
    # how
    name: str = ""                          # as typed; empty: name_suggestion is used (show it as a placeholder)
    name_suggestion: str = ""
    speed: str = "quick"                    # id of a row of speeds, never "auto"
    speeds: tuple[SpeedRow, ...] = ()
    plan_sentence: str = ""                 # the chosen speed's minutes and memory
    keep_teaching: bool = False
    keep_teaching_sentence: str = ""
    # while it runs, and after
    curve: tuple[CurvePoint, ...] = ()
    chart_id: str | None = None             # a vtkMRMLPlotChartNode of the same curve
    table: tuple[ScoreRow, ...] = ()
    result_key: str | None = None           # "id@version" of the version that was made; None: nothing was kept
    result_sentence: str = ""
    can_use: bool = False                   # `use_now`
    use_tooltip: str = ""
    can_revert: bool = False                # `revert`: Segment's model is a version whose parent is there
    revert_tooltip: str = ""
    can_keep: bool = False                  # `keep_anyway`: nothing got better, so nothing was kept
    keep_tooltip: str = ""
    # before/after
    overlay_available: bool = False         # `show_overlay(True)` is possible
    overlay_shown: bool = False             # asked for: being made, or on the slices
    overlay_sentence: str = ""              # progress, or what is drawn how
    overlay_ids: tuple[str, ...] = ()       # segmentation nodes: before, after; () as long as they are not there

    @property
    def busy(self) -> bool:
        """Whether comparing or adapting goes on (not: the overlay being made)."""
        return self.phase in ADAPT_BUSY
