"""`SegmentBatch`: pieces of work one after another on one engine; a piece that fails does not stop the others.

A single volume is a batch of one. Nothing here knows what a piece is: `read()`, `place(result)`, `name`, `order`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engine.failures import as_failure
from ..engine.interface import LOG_LINES, JobState
from ..errors import Cancelled, DeviceError, HiEndSegError, InputError, ModelError
from . import wording
from .estimate import Speeds, TimeLeft
from .pieces import Placed
from .state import Outcome

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job

_ = wording.translator(__name__)
_log = logging.getLogger(__name__)


@dataclass
class Summary:
    """How a batch ended. outcomes: one per piece that was begun or given up. error: the last failure."""

    outcomes: list[Outcome] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)     # statistics and infos, without voxels
    error: HiEndSegError | None = None
    cancelled: bool = False

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.ok]


class SegmentBatch:
    """Drive it with `tick()`; it is over when `over` is true. Answers of jobs that were dropped are never looked at."""

    def __init__(self, engine: Engine, pieces: Sequence[Any], speeds: Speeds,
                 expected: Callable[[Any], float | None], clock: Callable[[], float],
                 answered: Callable[[Any, Any], None] | None = None):
        self._engine, self._clock, self._answered = engine, clock, answered
        self.pieces, self._speeds, self._expected = list(pieces), speeds, expected
        self.summary = Summary()
        self._log: list[str] = []               # of pieces that are over
        self.message = ""
        self.over = False
        self.cancelling = False
        self._index = 0
        self._job: Job | None = None
        self._time: TimeLeft | None = None
        self._began = self._piece_began = clock()
        self._dropped: list[Job] = []
        self._lost: dict[int, str] = {}         # pieces that cannot be done any more, and why

    # ------------------------------------------------------------------------------------------ what is shown

    @property
    def piece(self) -> Any:
        """The piece that is worked on (the last one when all is over)."""
        return self.pieces[min(self._index, len(self.pieces) - 1)]

    @property
    def index(self) -> int:
        return self._index

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines of all pieces, without paths and names."""
        lines = self._log + list(self._job.log if self._job is not None else ())
        return tuple(lines[-LOG_LINES:])

    @property
    def running(self) -> bool:
        """Whether the engine computes (not: is being started, or the voxels are being read)."""
        return self._job is not None and self._job.progress.fraction > 0

    @property
    def fraction(self) -> float:
        """Of the whole batch, never falling."""
        own = self._job.progress.fraction if self._job is not None else 0.0
        return min(1.0, (self._index + own) / len(self.pieces))

    @property
    def seconds(self) -> float:
        """Since the batch began."""
        return self._clock() - self._began

    def seconds_left(self) -> float | None:
        """Of the whole batch; the pieces that wait count as long as those that are done took on average."""
        if self._time is None or self._job is None or self.cancelling:
            return None
        left = self._time.update(self._job.progress.fraction, self._clock())
        waiting = len(self.pieces) - self._index - 1
        if left is None or not waiting:
            return left
        so_far = self._clock() - self._piece_began + left
        each = (self._piece_began - self._began + so_far) / (self._index + 1)
        return left + waiting * each

    # ------------------------------------------------------------------------------------------ what moves it

    def tick(self) -> None:
        """One step: read and hand over the next piece, look at the answer, or put it where it belongs."""
        for job in self._dropped:
            job.poll()
        self._dropped = [job for job in self._dropped if not job.done]
        if self.over:
            return
        if self._job is None:
            self._begin()
            return
        self._job.poll()
        self.message = self._job.progress.message
        if self._job.state is JobState.IDLE:
            self.message = _("Waiting for the engine, which is busy with another section; it does one thing at a time.")
        if getattr(self._engine, "worker_state", "") == "silent":
            self.message = _("The engine has not answered for some seconds; wait a little, or cancel.")
        if self._job.state is JobState.CANCELLING:
            self.cancelling = True
        if self._job.done:
            self._end()

    def cancel(self) -> None:
        """Stop at once; what is finished stays. The engine answers within a second."""
        self.cancelling = True
        if self._job is not None:
            self._job.cancel()
        else:
            self._finish(cancelled=True)

    def give_up(self, node_id: str, why: str) -> None:
        """The node is gone: pieces that need it are not done; one of them that runs is stopped, its answer dropped."""
        for index in range(self._index, len(self.pieces)):
            if self.pieces[index].needs(node_id):
                self._lost[index] = why
        if self._index in self._lost and self._job is not None:
            self._drop()
            self._lose()

    def pause(self, seconds: float) -> None:
        """For scripts: wait for up to `seconds` for something to happen."""
        if self._job is not None and not self._job.done:
            try:
                self._job.result(timeout=seconds)
            except (TimeoutError, HiEndSegError):       # what it became is looked at by the next tick
                pass

    def drop(self) -> list[Job]:
        """End now without an answer. Returns the jobs that still have to be polled until they are over."""
        if self._job is not None:
            self._drop()
        self.over = True
        return self._dropped

    # ------------------------------------------------------------------------------------------ inside

    def _begin(self) -> None:
        if self._index in self._lost:
            self._lose()
            return
        piece = self.piece
        try:
            volume, roi = piece.read()
            order = piece.order
            self._piece_began = self._clock()
            self._job = self._engine.submit_segment(volume, model=order.card, device=order.device,
                                                    only=None if order.only is None else list(order.only), roi=roi)
            self._time = TimeLeft(self._clock(), self._expected(piece))
        except Exception as error:              # noqa: BLE001 - whatever a scene may throw is said in a sentence
            self._fail(error)

    def _end(self) -> None:
        job, piece = self._job, self.piece
        self._log += job.log
        self._job = None
        if isinstance(job.error, Cancelled):
            self._finish(cancelled=True)
            return
        if job.error is not None:
            self._fail(job.error)
            return
        try:
            result = job.result()
            placed = piece.place(result)
        except Exception as error:              # noqa: BLE001
            self._fail(error)
            return
        self._speeds.remember(result.info)
        if self._answered is not None:
            self._answered(piece, result)
        self.summary.placed.append(placed)
        self.summary.results.append({"name": piece.name, "statistics": result.statistics, "info": result.info})
        self._close_piece(Outcome(piece.name, True, " ".join(placed.messages)))

    def _fail(self, error: BaseException) -> None:
        failure = as_failure(error)
        if failure is not error:
            _log.error("A segmentation failed unexpectedly", exc_info=error)
            self._log.append(f"{type(error).__name__}: {error}")
        self.summary.error = failure
        self._close_piece(Outcome(self.piece.name, False, str(failure)))
        if isinstance(failure, (DeviceError, ModelError)) and not self.over:      # the same for all that follow
            for piece in self.pieces[self._index:]:
                self.summary.outcomes.append(Outcome(piece.name, False, _("Not tried, for the same reason.")))
            self._finish()

    def _lose(self) -> None:
        self.summary.error = InputError(self._lost[self._index])
        self._close_piece(Outcome(self.piece.name, False, self._lost[self._index]))

    def _close_piece(self, outcome: Outcome) -> None:
        self.summary.outcomes.append(outcome)
        self._job = None
        self._index += 1
        if self._index >= len(self.pieces):
            self._finish()
        elif self.cancelling:
            self._finish(cancelled=True)

    def _finish(self, cancelled: bool = False) -> None:
        self.summary.cancelled = cancelled
        self.over = True

    def _drop(self) -> None:
        """The running job is stopped and its answer will never be looked at."""
        self._log += self._job.log
        self._job.cancel()
        self._dropped.append(self._job)
        self._job = None
