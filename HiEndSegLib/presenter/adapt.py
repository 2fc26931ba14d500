"""`AdaptPresenter`: the Adapt section's one state machine. Everything a face needs is in `state`; see adapt_state.py.

choose → compare (the model's own answer against what was drawn) → ready → starting → running → done | failed, with
finishing and cancelling on the way. adapt_inputs.py, adapt_choices.py: what is chosen. adapt_answer.py,
adapt_comparing.py, adapt_rows.py: what is taught. adapt_speeds.py, adapt_ready.py: time, memory, obstacles.
adapt_run.py: the jobs. adapt_outcome.py, adapt_results.py, adapt_overlay.py, adapt_curve.py: what comes of it, and what
can be done with it. The presenter holds ids, never nodes. The face calls `tick()` every 30 to 50 ms, tells about the
scene (`scene_closing`, `scene_closed`, `node_removed`) as it tells the Segment section, and closes the engine itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import wording
from .adapt_answer import AdaptComparing
from .adapt_choices import AdaptChoices
from .adapt_comparing import read_case
from .adapt_curve import CurveChart
from .adapt_inputs import AdaptInputs
from .adapt_outcome import AdaptEnd
from .adapt_overlay import Overlay
from .adapt_questions import discard_question, sides_question, stop_question
from .adapt_ready import AdaptReady
from .adapt_results import AdaptResults
from .adapt_rows import Rows
from .adapt_run import AdaptOrder, AdaptRun, Work, base_of
from .adapt_show import Family, show_comparing, show_keeping, show_run, show_still
from .adapt_speeds import AdaptSpeeds
from .adapt_state import AdaptState
from .estimate import Speeds
from .signals import Signal
from .state import Question

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job
    from ..models.registry import Registry
    from .segment import SegmentPresenter

_ = wording.translator(__name__)


class AdaptPresenter(AdaptChoices, AdaptComparing, AdaptReady, AdaptResults):
    """State and actions of the Adapt section; see `adapt_state.py` for how a face uses it.

    scene: a vtkMRMLScene. engine: an `Engine`, shared with `segment`, whose device it uses too. settings: text by key.
    changed: `state` is another. models_changed: a version was made or deleted.
    """

    def __init__(self, *, scene: Any, engine: Engine, registry: Registry,
                 settings: MutableMapping[str, Any] | None = None, segment: SegmentPresenter,
                 clock: Callable[[], float] = time.monotonic):
        settings = {} if settings is None else settings
        self._scene, self._engine, self._registry, self._segment = scene, engine, registry, segment
        self._clock = clock
        self._inputs = AdaptInputs(scene, registry, settings)
        self._rows = Rows()
        self._speeds = AdaptSpeeds(settings, clock)
        self._segment_speeds = Speeds(settings)
        self._overlay = Overlay(scene, clock, self._others)
        self._chart = CurveChart(scene, clock)
        self._run: AdaptRun | None = None
        self._keeping: Work | None = None
        self._end = AdaptEnd()
        self._curve: tuple = ()
        self._question: Question | None = None
        self._asked = 0
        self._waiting: AdaptOrder | None = None         # for an answer
        self._deleting: Family | None = None
        self._name = ""
        self._keep_teaching = False
        self._orphans: list[Job] = []
        self._closed = False
        self._depth = 0
        self._still: AdaptState | None = None
        self.changed, self.models_changed = Signal(), Signal()
        self._heard = self._of_segment()
        segment.changed.connect(self._segment_changed)
        segment.answered.connect(self._segment_answered)
        self._state = self._show()

    @property
    def state(self) -> AdaptState:
        return self._state

    @property
    def busy(self) -> bool:
        """Whether comparing, adapting or keeping goes on."""
        return self._comparing is not None or self._run is not None or self._keeping is not None

    def report_facts(self) -> dict:
        """What a bug report wants from here, as `SegmentPresenter.report_facts`; see `report.together`."""
        return {"error": str(self._end.error or ""), "log": self._end.log}

    # ------------------------------------------------------------------------------------------ running

    def press(self) -> None:
        """The big button: adapt; while something runs, stop (and ask whether to keep the best so far)."""
        with self._change():
            run = self._run
            if run is not None and (run.can_finish or run.state == "finishing"):
                if self._question is None:
                    self._ask(stop_question if run.can_finish else discard_question)
            elif self.busy:
                self.cancel()
            else:
                self.run()

    def run(self, *, sides: str = "ask") -> None:
        """Teach the checked structures. sides: "keep" or "swap" where left and right look swapped; else it is asked."""
        with self._change():
            if self.busy or self._closed:
                return
            self._forget_end()
            self._look()
            obstacle = self._obstacle()
            if obstacle:
                self._end = AdaptEnd.refused(obstacle)
                return
            inputs = self._inputs
            self._start(AdaptOrder(
                inputs.volume_id, inputs.segmentation_id, inputs.card,
                inputs.encoder_path if inputs.from_encoder else None, tuple(self._rows.checked()),
                self._name.strip() or self._suggestion(), self._speeds.chosen, self._segment.state.device,
                self._keep_teaching, sides))

    def finish(self) -> None:
        """Stop early and keep the best so far; where there is nothing yet, nothing happens."""
        with self._change():
            if self._run is not None and self._run.can_finish:
                self._question = None
                self._run.finish()

    def cancel(self) -> None:
        """Stop what runs and keep nothing. "cancelling" is shown at once; the engine stops within a second."""
        with self._change():
            for work, end in ((self._comparing, self._end_comparing), (self._run, self._end_run)):
                if work is not None:
                    self._question = None
                    work.cancel()
                    if work.over:
                        end()

    def answer(self, choice: str) -> None:
        """Answer `state.question` by the id of one of its choices; "cancel" leaves all as it is."""
        with self._change():
            question, self._question = self._question, None
            waiting, self._waiting = self._waiting, None
            if question is None or choice == "cancel" or self._closed:
                return
            if question.id == "stop" and self._run is not None:
                self._run.finish() if choice == "finish" else self.cancel()
            elif question.id == "sides" and waiting is not None and not self.busy:
                self._start(replace(waiting, sides=choice))
            elif question.id == "delete" and choice == "delete":
                self._delete_version()

    def tick(self) -> None:
        """Take in what the engine has to say. Never waits; cheap when nothing goes on."""
        for job in self._orphans:
            job.poll()
        over = [job for job in self._orphans if job.done]
        if over:
            self._orphans = [job for job in self._orphans if not job.done]
            with self._change():
                for job in over:
                    self._orphan_ended(job)
        told = self._speeds.tick(may_ask=not self.busy and not self._segment.state.busy)
        drawn = self._overlay.tick()
        if not (told or drawn or self.busy):
            return
        with self._change(still=not told and not drawn):
            for name, end in (("_comparing", self._end_comparing), ("_run", self._end_run),
                              ("_keeping", self._end_keeping)):
                work = getattr(self, name)
                if work is not None:
                    work.tick()
                    if work.over:
                        self._still = None
                        end()
            if self._run is not None:
                self._chart.show(self._run.curve)

    def wait(self, timeout: float | None = None) -> AdaptState:
        """For scripts: tick until nothing runs (or `timeout` seconds have passed)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (self.busy or self._overlay.busy) and (deadline is None or time.monotonic() < deadline):
            self.tick()
            work = self._run or self._comparing or self._keeping or self._overlay.work
            if work is not None:
                work.pause(0.05)
        return self._state

    # ------------------------------------------------------------------------------------------ the scene

    def scene_closing(self) -> None:
        """The scene is about to lose all nodes: what runs is stopped and its result dropped."""
        with self._change():
            was_busy = self.busy
            self._drop()
            self._end = AdaptEnd.stopped(_("The scene was closed, so the work on it was stopped.")) if was_busy \
                else AdaptEnd()
            self._orphans += self._overlay.clear()
            self._chart.forget()
            self._curve = ()
            self._inputs.clear()
            self._rows.clear()
            self._answer = None
            self._speeds.drop()

    def scene_closed(self) -> None:
        """The scene is empty now (another may be loaded into it)."""
        self.refresh()

    def node_removed(self, node_id: str) -> None:
        """A node is about to be or was removed. Call it for every node; most do not matter here."""
        mine = {self._inputs.volume_id, self._inputs.segmentation_id, self._overlay.volume_id, self._chart.id,
                *self._overlay.ids}
        if node_id not in mine and not (self._run is not None and self._run.needs(node_id)):
            return
        with self._change():
            self._orphans += self._overlay.removed(node_id)
            self._chart.removed(node_id)
            needed = self._run.needs(node_id) if self._run is not None else \
                self._comparing is not None and node_id in (self._inputs.volume_id, self._inputs.segmentation_id)
            if needed:
                what = _("The volume was deleted, so the work on it was stopped.") \
                    if node_id == self._inputs.volume_id else \
                    _("The segmentation was deleted, so the work on it was stopped.")
                self._drop()
                self._end = AdaptEnd.stopped(what)
            if self._inputs.removed(node_id):
                self._question = self._waiting = None
                self._rows.clear()
                self._look()

    def set_engine(self, engine: Engine) -> None:
        """Use another engine from now on; whatever ran on the old one is dropped."""
        with self._change():
            self._drop()
            self._orphans += self._overlay.hide()
            self._speeds.drop()
            self._engine = engine
            self._look()

    def close(self) -> None:
        """The window goes away or the program quits: stop, take away what was shown, tell nobody any more."""
        self.changed.disconnect_all()
        self.models_changed.disconnect_all()
        self._segment.changed.disconnect(self._segment_changed)
        self._segment.answered.disconnect(self._segment_answered)
        self._drop()
        self._overlay.hide()
        self._chart.remove()
        self._speeds.drop()
        self._answer = None
        self._closed = True

    # ------------------------------------------------------------------------------------------ inside

    def _start(self, order: AdaptOrder) -> None:
        scene, inputs = self._scene, self._inputs
        answer = self._answer
        if order.card is None or answer is None or not answer.fits(scene, order.volume_id, order.card):
            answer = None
        dictionary = inputs.dictionary

        def read() -> Any:
            return read_case(scene, order.volume_id, order.segmentation_id, order.card, dictionary, answer,
                             order.structures)

        self._orphans += self._overlay.hide()
        self._curve = ()
        self._end = AdaptEnd()
        self._chart.begin()
        self._run = AdaptRun(self._engine, order, read, self._clock,
                             self._speeds.expected(order.base, self._segment.device_kind, order.speed), self._others)

    def _end_run(self) -> None:
        run, self._run, self._still = self._run, None, None
        self._curve = run.curve
        self._chart.show(run.curve, now=True)
        if self._question is not None and self._question.id == "stop":
            self._question = None
        if run.error is None:
            notes = [*run.case.messages, *(finding.sentence for finding in run.case.findings
                                           if finding.kind in ("no-overlap", "unchanged"))]
            self._end = AdaptEnd.of(run.order, run.result, notes, run.log, run.seconds)
            self._speeds.remember(run.order.base, self._end.report)
            if self._end.key is not None:
                self._name = ""
                self._models_are_others()
        elif run.cancelled:
            self._end = AdaptEnd.stopped(_("Stopped; nothing was kept, and the model is as it was."), run.log)
        elif run.error.code == "swapped-sides":
            self._waiting = run.order
            self._ask(sides_question, str(run.error))
        else:
            self._end = AdaptEnd.failed(run.order, run.error, run.log)

    def _drop(self) -> None:
        """End what runs without an answer; the engine's jobs are polled to their end."""
        for work in (self._comparing, self._run, self._keeping):
            if work is not None:
                self._orphans += work.drop()
        self._comparing = self._run = self._keeping = None
        self._question = self._waiting = self._deleting = None

    def _forget_end(self) -> None:
        if not self.busy:
            self._end = AdaptEnd(log=self._end.log)
            self._question = self._waiting = self._deleting = None
            self._orphans += self._overlay.hide()

    def _others(self) -> bool:
        """Whether the Segment section uses the engine."""
        return self._segment.state.busy

    def _ask(self, make: Callable, *arguments: Any) -> None:
        self._asked += 1
        self._question = make(self._asked, *arguments)

    def _of_segment(self) -> tuple:
        """What of the Segment section matters here."""
        state = self._segment.state
        return (state.volume_id, state.segmentation_id, state.model_id, state.device, state.needs_setup,
                len(state.models))

    def _segment_changed(self) -> None:
        heard = self._of_segment()
        if heard != self._heard and not self._closed and self._depth == 0:
            self._heard = heard
            with self._change():
                if not self.busy:
                    self._follow()

    @contextmanager
    def _change(self, still: bool = False) -> Iterator[None]:
        """Actions inside each other make one change. still: only progress moves."""
        self._depth += 1
        if not still:
            self._still = None
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and not self._closed:
                self._publish()

    def _show(self) -> AdaptState:
        times = base_of(self._inputs.card), self._segment.device_kind
        return show_still(
            inputs=self._inputs, rows=self._rows, speeds=self._speeds, overlay=self._overlay, end=self._end,
            question=self._question, obstacle=self._obstacle(), compare_obstacle=self._compare_obstacle(),
            name=self._name, suggestion=self._suggestion(), keep_teaching=self._keep_teaching, times=times,
            family=self._family(), curve=self._curve, chart_id=self._chart.id)

    def _publish(self) -> None:
        if self._still is None:
            self._still = self._show()
        state = self._still
        if self._comparing is not None:
            state = show_comparing(state, self._comparing, self._inputs.facts.name if self._inputs.facts else "")
        elif self._run is not None:
            state = show_run(state, self._run, self._question, self._chart.id)
        elif self._keeping is not None:
            state = show_keeping(state, self._keeping, self._end.title)
        if state != self._state:
            self._state = state
            self.changed.emit()
