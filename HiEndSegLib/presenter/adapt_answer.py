"""Comparing what was drawn with the model's own answer, which the engine makes. Part of `AdaptPresenter`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..engine.failures import as_failure
from . import wording
from .adapt_comparing import Answer, compare
from .adapt_outcome import AdaptEnd
from .adapt_run import Work

if TYPE_CHECKING:
    from ..engine.interface import Job

_ = wording.translator(__name__)
_log = logging.getLogger(__name__)


class AdaptComparing:
    """Needs `_inputs`, `_rows`, `_segment`, `_engine`, `_change()`, `_forget_end()`, `_look()` of the presenter.

    The answer is kept, so that a case that was corrected further, or taught again, is compared at once.
    """

    _answer: Answer | None = None
    _asked_of: tuple = ()
    _comparing: Work | None = None

    def compare(self) -> None:
        """Have the model segment the volume (unless its answer is known), and check what was drawn differently."""
        with self._change():
            if self.busy or self._closed:
                return
            self._forget_end()
            self._look()
            obstacle = self._compare_obstacle()
            if obstacle:
                self._end = AdaptEnd.refused(obstacle)
                return
            self._rows.forget_comparison()
            card = self._inputs.card
            if card is None or (self._answer is not None
                                and self._answer.fits(self._scene, self._inputs.volume_id, card)):
                self._compare_now()
                return
            facts = self._inputs.facts
            expected = self._segment_speeds.expected(card, self._segment.device_kind, facts.shape, facts.spacing)
            self._comparing = Work(self._submit_answer(self._inputs.volume_id, card), self._clock, expected,
                                   self._engine, self._others)

    def _submit_answer(self, volume_id: str, card: Any) -> Callable[[], Job]:
        engine, scene, device = self._engine, self._scene, self._segment.state.device

        def submit() -> Job:
            from ..bridge.volumes import volume_from_node

            node = scene.GetNodeByID(volume_id)
            volume = volume_from_node(node)
            self._asked_of = volume_id, node.GetImageData().GetMTime(), card.checksum
            return engine.submit_segment(volume, model=card, device=device)

        return submit

    def _end_comparing(self) -> None:
        work, self._comparing = self._comparing, None
        if work.error is not None:
            self._end = AdaptEnd.stopped(_("Stopped; nothing was compared."), work.log) if work.cancelled else replace(
                AdaptEnd.failed(None, work.error, work.log), headline=_("The case was not compared."))
            return
        self._answer = Answer(*self._asked_of, work.result.labels)
        self._segment_speeds.remember(work.result.info)
        self._compare_now()

    def _compare_now(self) -> None:
        inputs = self._inputs
        try:
            self._rows.fill(compare(self._scene, inputs.volume_id, inputs.segmentation_id, inputs.card,
                                    inputs.dictionary, None if inputs.from_encoder else self._answer))
        except Exception as error:              # noqa: BLE001 - whatever a scene may throw is said in a sentence
            failure = as_failure(error)
            if failure is not error:
                _log.error("Comparing failed unexpectedly", exc_info=error)
            self._end = replace(AdaptEnd.failed(None, failure, ()), headline=_("The case was not compared."))

    def _segment_answered(self, volume_id: str, voxels_of: int, card: Any, labels: Any) -> None:
        """The Segment section has the model's own answer already: it need not be made again."""
        if not self._closed and self._comparing is None:
            self._answer = Answer(volume_id, voxels_of, card.checksum, labels)
