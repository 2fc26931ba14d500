"""What can be done with a version that was made: use it, go back, keep it after all, look at it. Part of
`AdaptPresenter`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import HiEndSegError
from . import wording
from .adapt_questions import delete_question
from .adapt_run import Work
from .adapt_show import Family

_ = wording.translator(__name__)


class AdaptResults:
    """Needs `_end`, `_inputs`, `_segment`, `_registry`, `_overlay`, `_engine`, `_change()` … of the presenter."""

    def use_now(self) -> None:
        """Segment with the new version from now on."""
        with self._change():
            key = self._end.key
            if key is None or self.busy:
                return
            self._segment.refresh()
            self._segment.set_model(key)
            self._inputs.look()
            if self._segment.state.model_id == key:
                self._say(_('"{name}" is used in the section Segment from now on.').format(name=self._end.title))
            else:
                self._end = self._end.without_version(_('"{name}" is not in the model list any more.').format(
                    name=self._end.title))

    def revert(self) -> None:
        """Segment with the parent of Segment's model again, and ask whether to delete the version."""
        with self._change():
            family = self._family()
            if family.parent_key is None or self.busy:
                return
            self._segment.refresh()
            self._segment.set_model(family.parent_key)
            if self._segment.state.model_id != family.parent_key:
                self._say(_('"{parent}" cannot be used now; look at the section Models.').format(
                    parent=family.parent_title))
                return
            self._say(_('"{parent}" is used again in the section Segment.').format(parent=family.parent_title))
            self._deleting = family
            self._ask(delete_question, family.title, family.parent_title)

    def keep_anyway(self) -> None:
        """Write the version although nothing got better."""
        with self._change():
            unsaved, engine = self._end.unsaved, self._engine
            if unsaved is None or self.busy:
                return
            self._keeping = Work(lambda: engine.submit_keep(unsaved), self._clock, None, engine, self._others)

    def show_overlay(self, on: bool) -> None:
        """The taught structures as the old and the new model draw them, as outlines on the slices; or away again."""
        with self._change():
            if not on:
                self._orphans += self._overlay.hide()
                return
            order, key = self._end.order, self._end.key
            if self._overlay.shown or key is None or order is None or self.busy:
                return
            card = self._inputs.catalogue.find(key)
            if card is None:
                self._say(_('"{name}" is not in the model list any more.').format(name=self._end.title))
                return
            answer = self._answer
            known = order.card is not None and answer is not None and answer.fits(
                self._scene, order.volume_id, order.card)
            self._overlay.show(self._engine, order.volume_id, card, answer.labels if known else None,
                               order.card.labels if known else (), {*self._end.taught, *self._end.worse},
                               self._segment.state.device)

    # ------------------------------------------------------------------------------------------ inside

    def _end_keeping(self) -> None:
        work, self._keeping = self._keeping, None
        if work.error is None and getattr(work.result, "key", None):
            self._end = self._end.kept(work.result.key)
            self._models_are_others()
        else:
            why = str(work.error) if work.error is not None else ""
            gone = work.error is None or work.error.code == "engine"        # else it is still there to try again
            self._end = replace(self._end, unsaved=None if gone else self._end.unsaved, detail=why,
                                headline=_("It could not be kept."))

    def _delete_version(self) -> None:
        family = self._deleting
        if family is None or family.model_id is None:
            return
        try:
            self._registry.remove(family.model_id)
        except HiEndSegError as error:
            self._say(_('"{version}" was not deleted: {why}').format(version=family.title, why=error))
            return
        words = _('"{version}" was deleted; "{parent}" is used again.').format(version=family.title,
                                                                           parent=family.parent_title)
        if self._end.key == family.model_id:
            self._orphans += self._overlay.hide()
            self._end = self._end.without_version(words)
        else:
            self._say(words)
        self._models_are_others()

    def _family(self) -> Family:
        """Segment's model and what it was adapted from, where that is still there."""
        cards = self._inputs.catalogue.cards
        card = next((card for card in cards if card.key == self._segment.state.model_id), None)
        if card is None:
            return Family(self._segment.state.model_id)
        if not getattr(card, "is_version", False):
            return Family(card.key, card.title)
        from ..models.family import find_base, find_parent

        try:
            parent = find_parent(card, cards) or find_base(card, cards)
        except HiEndSegError:
            return Family(card.key, card.title)
        return Family(card.key, card.title, parent.key, parent.title)

    def _models_are_others(self) -> None:
        self._inputs.look()
        self._segment.refresh()
        self.models_changed.emit()

    def _miss_version(self) -> None:
        """Somebody may have deleted the version that was made."""
        if self._end.key is not None and self._inputs.catalogue.find(self._end.key) is None:
            self._end = self._end.without_version(_('"{name}" is not in the model list any more.').format(
                name=self._end.title))

    def _say(self, headline: str) -> None:
        """Another headline over what is there."""
        self._end = replace(self._end, headline=headline)

    def _orphan_ended(self, job: Any) -> None:
        """A job that was dropped: what it left on the disk before it could be stopped is in the list."""
        if job.operation in ("adapt", "keep") and job.error is None and getattr(job.result(), "key", None):
            self._models_are_others()
