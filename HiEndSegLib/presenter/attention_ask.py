"""Questions to the engine about attention: one in flight, of those that wait only the latest of each kind.

A volume is handed over once for each spacing; afterwards its key is enough. Where the worker has forgotten it (it died,
or looked at many others since) the same question is asked once more with the voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..engine.failures import as_failure
from ..engine.interface import JobState
from ..errors import Cancelled, HiEndSegError

#: Code of the failure that says that the worker no longer has a volume.
UNKNOWN = "unknown-volume"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Voxels:
    """A volume as it is handed over. key: another one whenever its voxels or its place changed. read: copies them."""

    key: str
    read: Callable[[], Any] = field(compare=False)


@dataclass(frozen=True)
class Question:
    """operation: "attend", "ranks" or "inspect_queries" (as the engine's submit_… are called); what: its arguments.

    what is part of no comparison: `name` says what it is about, so that the same is not asked twice. mask: reads a
    structure's voxels when its turn has come.
    """

    slot: str
    operation: str
    card: Any = field(compare=False)
    model: str
    voxels: Voxels
    name: tuple
    what: dict = field(compare=False, default_factory=dict)
    mask: Callable[[], Any] | None = field(compare=False, default=None)


@dataclass(frozen=True)
class Answer:
    question: Question
    result: Any = None
    error: HiEndSegError | None = None


class Line:
    """`ask()`, then `tick()` from the face's timer. Answers of a question that a newer one replaced are still given:
    they are what is known of a moving point. Answers of dropped ones are not."""

    def __init__(self, engine: Any, device: Callable[[], str]):
        self._engine, self._device = engine, device
        self._waiting: dict[str, Question] = {}
        self._current: Question | None = None
        self._job: Any = None
        self._with_voxels = False
        self._known: set[str] = set()
        self._orphans: list[Any] = []

    @property
    def busy(self) -> bool:
        return self._job is not None or bool(self._waiting)

    @property
    def still_asked(self) -> bool:
        """Whether a job that was dropped is not over yet."""
        return bool(self._orphans)

    @property
    def fraction(self) -> float:
        return self._job.progress.fraction if self._job is not None else 0.0

    @property
    def message(self) -> str:
        return self._job.progress.message if self._job is not None else ""

    @property
    def queued(self) -> bool:
        """Whether the engine is at something else before ours."""
        return self._job is not None and self._job.state is JobState.IDLE

    def asks(self, slot: str) -> bool:
        return slot in self._waiting or (self._current is not None and self._current.slot == slot)

    def ask(self, question: Question) -> None:
        """Ask as soon as the one in flight is answered; an older one of the same slot that waits is forgotten."""
        if question == self._current and question.slot not in self._waiting:
            return
        self._waiting[question.slot] = question

    def forget(self, slot: str) -> None:
        """Its answer is not wanted any more."""
        self._waiting.pop(slot, None)
        if self._current is not None and self._current.slot == slot:
            self._drop_current()

    def drop(self) -> None:
        """No answer is wanted any more. Keep calling `tick()` until `still_asked` is false."""
        self._waiting = {}
        if self._current is not None:
            self._drop_current()

    def tick(self) -> list[Answer]:
        """Look at the one in flight, begin the next. Never waits."""
        for job in self._orphans:
            job.poll()
        self._orphans = [job for job in self._orphans if not job.done]
        answers = []
        if self._job is not None:
            self._job.poll()
            if self._job.done:
                answers += self._over()
        while self._job is None and self._waiting and not answers:
            slot = next(iter(self._waiting))
            answers += self._begin(self._waiting.pop(slot))
        return answers

    # ------------------------------------------------------------------------------------------ inside

    def _begin(self, question: Question, again: bool = False) -> list[Answer]:
        voxels = question.voxels
        self._with_voxels = again or voxels.key not in self._known
        try:
            what = dict(question.what)
            if question.mask is not None:
                what["mask"] = question.mask()
            volume = voxels.read() if self._with_voxels else None
            submit = getattr(self._engine, "submit_" + question.operation)
            self._job = submit(volume, volume_key=voxels.key, model=question.card, device=self._device(), **what)
        except Exception as error:              # noqa: BLE001 - whatever a scene may throw is said in a sentence
            return [Answer(question, error=as_failure(error))]
        self._current = question
        return []

    def _over(self) -> list[Answer]:
        question, job, with_voxels = self._current, self._job, self._with_voxels
        self._current = self._job = None
        if job.error is None:
            self._known.add(question.voxels.key)
            return [Answer(question, job.result())]
        if isinstance(job.error, Cancelled):
            return []
        if job.error.code == UNKNOWN and not with_voxels:
            self._known.discard(question.voxels.key)
            return self._begin(question, again=True)
        if job.error.code == "engine":          # a new worker knows nothing
            self._known.clear()
        else:                                   # where that is wrong, the worker says so, and is asked again
            self._known.add(question.voxels.key)
        return [Answer(question, error=job.error)]

    def _drop_current(self) -> None:
        self._job.cancel()
        self._orphans.append(self._job)
        self._current = self._job = None


def new_key() -> str:
    """A volume key that was not used before in this process."""
    return f"attention-{next(_numbers)}"
