"""`AdaptRun`: one adaptation on one engine, from reading the voxels to the answer. Knows no scene: it is given a
function that reads. `Comparing`: the job that makes the model's own answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engine.failures import as_failure
from ..errors import Cancelled, HiEndSegError, InputError, OptionError
from . import wording
from .adapt_state import CurvePoint
from .estimate import TimeLeft

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job
    from .adapt_comparing import Case

_ = wording.translator(__name__)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptOrder:
    """What was asked for when the button was pressed. card: None with an encoder (a path)."""

    volume_id: str
    segmentation_id: str
    card: Any
    encoder: str | None
    structures: tuple[str, ...]
    name: str
    speed: str
    device: str
    keep_teaching: bool = False
    sides: str = "ask"

    @property
    def base(self) -> str:
        """What the times are remembered under."""
        return base_of(self.card)


def base_of(card: Any) -> str:
    """What adapting takes as long as: the id of the whole model, of which the versions differ little; or "encoder"."""
    if card is None:
        return "encoder"
    adaptation = getattr(card, "adaptation", None)
    return str(((adaptation or {}).get("base") or {}).get("id") or card.id)


class Work:
    """A job of the engine that is made in a later tick: the button answers before any voxel is read.

    state: "starting", "running", "finishing", "cancelling" or "over". error: why it ended without a result.
    """

    def __init__(self, submit: Callable[[], Job], clock: Callable[[], float], expected: float | None,
                 engine: Engine, others: Callable[[], bool]):
        self._submit, self._clock, self._engine, self._others = submit, clock, engine, others
        self._time = TimeLeft(clock(), expected)
        self._expected = expected
        self._began, self._pressed = False, clock()
        self.job: Job | None = None
        self.result: Any = None
        self.error: HiEndSegError | None = None
        self.over = False
        self.notes: list[str] = []

    @property
    def state(self) -> str:
        if self.over:
            return "over"
        if self.job is None:
            return "starting"
        if self.job.state == "cancelling":
            return "cancelling"
        if getattr(self.job, "finishing", False):
            return "finishing"
        return "running" if self.job.progress.fraction > 0 else "starting"

    @property
    def fraction(self) -> float:
        return self.job.progress.fraction if self.job is not None else 0.0

    @property
    def log(self) -> tuple[str, ...]:
        return (*(self.job.log if self.job is not None else ()), *self.notes)

    @property
    def waiting(self) -> bool:
        """Whether the engine does something else first."""
        return self.job is not None and self.job.state == "idle"

    def message(self) -> str:
        """What is done right now."""
        if self.job is None:
            return _("Reading the voxels")
        if self.waiting:
            return _("Waiting for the segmentation that runs; the engine does one thing at a time.") \
                if self._others() else _("Waiting until the engine is ready; it does one thing at a time.")
        if getattr(self._engine, "worker_state", "") == "silent":
            return _("The engine has not answered for some seconds; wait a little, or cancel.")
        return self.job.progress.message

    def seconds_left(self) -> float | None:
        if self.job is None or self.waiting or self.state == "cancelling":
            return None
        if not self._began:                     # what it waited for is not its own time
            self._began = True
            self._time = TimeLeft(self._clock(), self._expected)
        return self._time.update(self.fraction, self._clock())

    @property
    def seconds(self) -> float:
        """Since the button was pressed."""
        return self._clock() - self._pressed

    def tick(self) -> None:
        """One step: hand over, or look for the answer."""
        if self.over:
            return
        if self.job is None:
            try:
                self.job = self._submit()
            except Exception as error:          # noqa: BLE001 - whatever a scene may throw is said in a sentence
                self._fail(error)
            return
        self.job.poll()
        if not self.job.done:
            return
        self.over = True
        self.error = self.job.error
        if self.error is None:
            self.result = self.job.result()

    @property
    def cancelled(self) -> bool:
        return isinstance(self.error, Cancelled)

    def cancel(self) -> None:
        if self.job is not None:
            self.job.cancel()
        if self.job is None or self.job.done:
            self.over, self.error = True, Cancelled()

    def drop(self) -> list[Job]:
        """End now. Returns the jobs that have to be polled until they are over."""
        self.over = True
        if self.job is None or self.job.done:
            return []
        self.job.cancel()
        return [self.job]

    def pause(self, seconds: float) -> None:
        """For scripts: wait up to `seconds` for something to happen."""
        if self.job is not None and not self.job.done:
            try:
                self.job.result(timeout=seconds)
            except (TimeoutError, HiEndSegError):       # what it became is looked at by the next tick
                pass

    def _fail(self, error: BaseException) -> None:
        self.over, self.error = True, as_failure(error)
        if self.error is not error:
            _log.error("Preparing a job failed unexpectedly", exc_info=error)
            self.notes.append(f"{type(error).__name__}: {error}")


class AdaptRun(Work):
    """An adaptation. read: gives the `Case` when its turn has come; what is wrong with it is an error of this run."""

    def __init__(self, engine: Engine, order: AdaptOrder, read: Callable[[], Case], clock: Callable[[], float],
                 expected: float | None, others: Callable[[], bool]):
        super().__init__(self._hand_over, clock, expected, engine, others)
        self.order, self._read = order, read
        self.case: Case | None = None
        self.curve: tuple[CurvePoint, ...] = ()
        self.best: dict | None = None           # the last score record that was the best so far
        self._seen: dict | None = None
        self._points: list[CurvePoint] = []

    def needs(self, node_id: str) -> bool:
        return node_id in (self.order.volume_id, self.order.segmentation_id)

    @property
    def can_finish(self) -> bool:
        """Whether there is something to keep if it stops now."""
        return self.state == "running" and self.best is not None

    def finish(self) -> None:
        if self.job is not None:
            self.job.finish()

    def tick(self) -> bool:
        """As `Work.tick`; True where the curve has new points."""
        super().tick()
        return self._take_records()

    def _hand_over(self) -> Job:
        self.case = case = self._read()
        for finding in case.findings:
            if finding.blocking:
                raise InputError(finding.sentence)
            if finding.kind == "swapped" and self.order.sides == "ask":
                raise OptionError(finding.sentence, code="swapped-sides")
        order = self.order
        return self._engine.submit_adapt(
            case.volume, case.labels, case.legend, name=order.name, structures=list(order.structures),
            model=order.card, encoder=order.encoder, speed=order.speed, device=order.device,
            keep_teaching=order.keep_teaching, sides=order.sides)

    def _take_records(self) -> bool:
        records = getattr(self.job, "records", ()) if self.job is not None else ()
        if not records or records[-1] is self._seen:
            return False
        start = next((n + 1 for n in range(len(records) - 1, -1, -1) if records[n] is self._seen), 0)
        self._seen = records[-1]
        for record in records[start:]:
            point = _point(record)
            if point is not None:
                self._points.append(point)
            if record.get("kind") == "score" and record.get("best"):
                self.best = record
        self.curve = tuple(self._points)
        return True


def _point(record: dict) -> CurvePoint | None:
    """A record as a point of the curve; None for one that says nothing of use."""
    step = record.get("step")
    if not isinstance(step, int):
        return None
    if record.get("kind") == "step":
        loss = _number(record.get("loss"))
        return None if loss is None else CurvePoint(step, loss=loss)
    if record.get("kind") == "score":
        return CurvePoint(step, dice=_number(record.get("mean")), agreement=_number(record.get("agreement")),
                          best=bool(record.get("best")))
    return None


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) \
        and math.isfinite(value) else None
