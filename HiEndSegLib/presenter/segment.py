"""`SegmentPresenter`: the Segment section's one state machine. Everything a face needs is in `state`; see state.py.

idle → starting → running → done | failed, with cancelling on the way; questions are asked (and answered) while idle.
The presenter holds ids, never nodes. An answer counts only for the batch that is asked for now: one that comes after
the scene was closed or the volume deleted is dropped. The face calls `tick()` every 30 to 50 ms, tells about the scene
(`scene_closing`, `scene_closed`, `node_removed`), and closes the engine itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import HiEndSegError
from . import wording
from .batch import SegmentBatch, Summary
from .catalogue import Catalogue
from .choosing import ChoiceActions, id_of
from .estimate import Speeds
from .inputs import Inputs, plan_job
from .machine import Machine
from .outputs import Outputs
from .pieces import FramePiece, NodePiece, Order
from .questions import existing_question, frames_question, transform_question
from .results import ResultActions
from .show import Ended, show_batch, show_still
from .signals import Signal
from .state import Question, SegmentState

if TYPE_CHECKING:
    from ..engine.interface import Engine, Job
    from ..models.card import ModelCard
    from ..models.registry import Registry

_ = wording.translator(__name__)


class SegmentPresenter(ChoiceActions, ResultActions):
    """State and actions of the Segment section.

    scene: a vtkMRMLScene. engine: an `Engine`; not closed here. settings: text by key (the machine's, not the scene's):
    last model and device, measured speeds. Actions raise nothing that a person can cause: it is said in the state.
    """

    def __init__(self, *, scene: Any, engine: Engine, registry: Registry,
                 settings: MutableMapping[str, Any] | None = None, clock: Callable[[], float] = time.monotonic):
        settings = {} if settings is None else settings
        self._scene, self._settings, self._clock = scene, settings, clock
        self._speeds = Speeds(settings)
        self._catalogue = Catalogue(registry, settings)
        self._machine = Machine(engine, settings, clock)
        self._outputs = Outputs(scene)
        self._inputs = Inputs(scene)
        self._batch: SegmentBatch | None = None
        self._asked = 0
        self._ended = Ended()
        self._question: Question | None = None
        self._answers: dict[str, str] = {}
        self._orphans: list[Job] = []
        self._closed = False
        self._depth = 0
        self._still: SegmentState | None = None         # what does not change from tick to tick
        self.changed = Signal()
        self.answered = Signal()        # (volume id, time of its voxels, card, labels): all structures, whole volume
        self._state = self._show()

    # ------------------------------------------------------------------------------------------ what is shown

    @property
    def state(self) -> SegmentState:
        return self._state

    @property
    def summary(self) -> Summary | None:
        """Of the last batch: outcomes, ids of the nodes made, statistics, the last error. For scripts and reports."""
        return self._ended.summary

    @property
    def log(self) -> tuple[str, ...]:
        return self._batch.log if self._batch is not None else self._ended.log

    @property
    def device_kind(self) -> str | None:
        """The device that is meant by what was chosen: "cuda:0", "cpu"; None as long as nobody knows."""
        return self._machine.kind

    # ------------------------------------------------------------------------------------------ running

    def press(self) -> None:
        """The big button."""
        if self._batch is not None:
            self.cancel()
        else:
            self.run()

    def run(self, *, existing: str = "ask", frames: str = "ask", transform: str = "ask") -> None:
        """Segment the chosen volume.

        What would be asked may be given: existing result "replace" or "new"; frames "this" or "all" of a sequence; a
        volume under a non-linear transform "as_is" or "harden" (works on a hardened copy).
        """
        with self._change():
            if self._batch is None and not self._closed:
                self._answers = {"existing": existing, "frames": frames, "transform": transform}
                self._forget_end()
                self._look()
                self._continue()

    def run_many(self, nodes: Sequence[Any], *, existing: str = "new") -> None:
        """Segment several volume nodes (or ids) one after another with the chosen model, structures and device.

        existing: "new" segmentations, or "replace" the asked structures of each volume's latest result. A volume that
        fails does not stop the others; `state.outcomes` and `summary` tell how each ended.
        """
        with self._change():
            if self._batch is not None or self._closed:
                return
            self._forget_end()
            order = self._order()
            obstacle = self._obstacle(of_volume=False) or ("" if nodes else _("Choose at least one volume."))
            if obstacle:
                self._ended = Ended.refused(obstacle)
                return
            pieces = []
            for id_ in map(id_of, nodes):
                target = self._outputs.newest(id_) if existing == "replace" else None
                pieces.append(NodePiece(self._scene, id_, order, self._outputs.histories, target))
            self._start(pieces)

    def answer(self, choice: str) -> None:
        """Answer `state.question` by the id of one of its choices; "cancel" leaves all as it is."""
        with self._change():
            question, self._question = self._question, None
            if question is not None and choice != "cancel" and self._batch is None:
                self._answers[question.id] = choice
                self._continue()

    def cancel(self) -> None:
        """Stop what runs. "cancelling" is shown at once; the engine stops within a second."""
        with self._change():
            if self._batch is not None:
                self._batch.cancel()
                if self._batch.over:
                    self._end_batch()

    def tick(self) -> None:
        """Take in what the engine has to say. Never waits; cheap when nothing goes on."""
        for job in self._orphans:
            job.poll()
        self._orphans = [job for job in self._orphans if not job.done]
        told = self._machine.tick(may_ask=self._batch is None)
        if not told and self._batch is None:
            return
        with self._change(still=not told):
            if self._batch is not None:
                self._batch.tick()
                if self._batch.over:
                    self._end_batch()

    def wait(self, timeout: float | None = None, each: Callable[[], None] | None = None) -> Summary | None:
        """For scripts: tick until nothing runs (or `timeout` seconds have passed), then the summary."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._batch is not None and (deadline is None or time.monotonic() < deadline):
            self.tick()
            if self._batch is not None:
                self._batch.pause(0.05)
            if each is not None:
                each()
        return self._ended.summary

    # ------------------------------------------------------------------------------------------ the scene

    def scene_closing(self) -> None:
        """The scene is about to lose all nodes: what runs is stopped and its result dropped."""
        with self._change():
            self._drop(_("The scene was closed, so the segmentation was stopped and its result dropped."))
            self._question = None
            self._inputs.clear()
            self._outputs.clear()
            self._machine.drop_plan()

    def scene_closed(self) -> None:
        """The scene is empty now (another may be loaded into it)."""
        self.refresh()

    def node_removed(self, node_id: str) -> None:
        """A node is about to be or was removed. Call it for every node; most do not matter here."""
        with self._change():
            if self._batch is not None:
                self._batch.give_up(node_id, _("The volume was deleted, so its segmentation was stopped."))
                if self._batch.over:
                    self._end_batch()
            self._outputs.removed(node_id, self._inputs.volume_id)
            if self._inputs.removed(node_id):
                self._question = None
                self._look()

    def close(self) -> None:
        """The window goes away or the program quits: stop, forget, tell nobody any more. May be called twice."""
        self.changed.disconnect_all()
        self.answered.disconnect_all()
        self._drop(None)
        self._machine.close()
        self._outputs.clear()
        self._closed = True

    def set_engine(self, engine: Engine) -> None:
        """Use another engine from now on; whatever ran on the old one is dropped."""
        with self._change():
            self._drop(None)
            self._machine.close()
            self._machine = Machine(engine, self._settings, self._clock)
            self._machine.look()
            self._ask_plan()

    # ------------------------------------------------------------------------------------------ inside

    def _continue(self) -> None:
        """Ask what is still open, then start."""
        obstacle = self._obstacle()
        if obstacle:
            self._ended = Ended.refused(obstacle)
            return
        facts, answers = self._inputs.facts, self._answers
        if facts.parent == "nonlinear" and answers["transform"] == "ask":
            self._ask(transform_question, facts)
            return
        if facts.parent == "nonlinear" and answers["transform"] == "harden":
            if not self._harden():
                return
            facts = self._inputs.facts
        if facts.frames > 1 and answers["frames"] == "ask":
            self._ask(frames_question, facts)
            return
        order = self._order()
        if facts.frames > 1 and answers["frames"] == "all":
            shared: dict = {}
            self._start([FramePiece(self._scene, facts.id, index, order, shared) for index in range(facts.frames)])
            return
        target = self._outputs.target(facts.id, order.ids)
        if target is not None and target.asks and answers["existing"] == "ask":
            self._ask(existing_question, target, order, self._inputs.region is not None)
            return
        target_id = target.id if target is not None and answers["existing"] != "new" else None
        self._start([NodePiece(self._scene, facts.id, order, self._outputs.histories, target_id)])

    def _start(self, pieces: list) -> None:
        self._machine.drop_plan()
        self._batch = SegmentBatch(self._machine.engine, pieces, self._speeds, self._expected_of, self._clock,
                                   self._tell_answer)

    def _tell_answer(self, piece: Any, result: Any) -> None:
        if isinstance(piece, NodePiece) and piece.order.only is None and piece.order.roi_id is None:
            self.answered.emit(piece.volume_id, piece.voxels_of, piece.order.card, result.labels)

    def _end_batch(self) -> None:
        batch, self._batch, self._still = self._batch, None, None
        self._orphans += batch.drop()
        self._ended = Ended.of(batch)
        if batch.summary.placed:
            self._outputs.made(batch.summary.placed[-1])
        if batch.summary.error is not None and batch.summary.error.code == "engine":
            self._machine.look()
        self._look()

    def _drop(self, sentence: str | None) -> None:
        """End what runs without an answer; the engine's job is polled to its end, and nobody looks at it."""
        if self._batch is not None:
            self._orphans += self._batch.drop()
            self._ended = Ended.dropped(self._batch, sentence or "")
            self._batch = None
        else:
            self._forget_end()

    def _forget_end(self) -> None:
        if self._batch is None:
            self._ended = Ended(summary=self._ended.summary, log=self._ended.log)
            self._question = None

    def _obstacle(self, of_volume: bool = True) -> str:
        """Why nothing can be started, in a sentence; "" where something can."""
        if self._catalogue.missing_package or self._machine.needs_torch:
            return _("HiEndSeg is not set up yet; open the set-up page.")
        if of_volume and self._inputs.volume_obstacle:
            return self._inputs.volume_obstacle
        if self._catalogue.card is None:
            return self._catalogue.sentence(None)
        if not self._catalogue.checked():
            return _("Check at least one structure.")
        return self._inputs.region_obstacle if of_volume else ""

    def _order(self) -> Order:
        only = self._catalogue.only()
        return Order(self._catalogue.card, self._machine.chosen, None if only is None else tuple(only),
                     self._inputs.roi_id)

    def _look(self) -> None:
        """The chosen nodes as they are now."""
        self._inputs.look()
        self._outputs.look(self._inputs.volume_id)
        self._ask_plan()

    def _ask_plan(self) -> None:
        facts, card, device = self._inputs.facts, self._catalogue.card, self._machine.chosen
        if facts is None or facts.problem or card is None or self._machine.needs_torch:
            self._machine.drop_plan()
        else:
            engine, scene = self._machine.engine, self._scene
            self._machine.ask_plan((facts.id, card.key, device),
                                   lambda: plan_job(engine, scene, facts.id, card, device))

    def _expected(self, card: ModelCard) -> float | None:
        """Seconds that the chosen volume would take with this model here."""
        facts = self._inputs.facts
        if facts is None or facts.problem:
            return None
        return self._speeds.expected(card, self._machine.kind, facts.shape, facts.spacing)

    def _expected_of(self, piece: Any) -> float | None:
        same = piece.volume_id == self._inputs.volume_id and self._inputs.roi_id is None
        return self._expected(piece.order.card) if same else None

    def _harden(self) -> bool:
        from ..bridge.volumes import hardened_copy

        try:
            self._inputs.volume_id = hardened_copy(self._scene.GetNodeByID(self._inputs.volume_id)).GetID()
        except HiEndSegError as error:
            self._ended = Ended.refused(str(error))
            return False
        self._look()
        return True

    def _ask(self, make: Callable, *arguments: Any) -> None:
        self._asked += 1
        self._question = make(self._asked, *arguments)

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

    def _show(self) -> SegmentState:
        return show_still(catalogue=self._catalogue, machine=self._machine, inputs=self._inputs, outputs=self._outputs,
                          ended=self._ended, question=self._question, obstacle=self._obstacle(),
                          expected=self._expected)

    def _publish(self) -> None:
        if self._still is None:
            self._still = self._show()
        state = self._still if self._batch is None else show_batch(self._still, self._batch)
        if state != self._state:
            self._state = state
            self.changed.emit()
