"""What stands in the way of teaching, a free name, and the plan for the case. Part of `AdaptPresenter`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import HiEndSegError
from . import wording

if TYPE_CHECKING:
    from ..engine.interface import Job

_ = wording.translator(__name__)


class AdaptReady:
    """Needs `_inputs`, `_rows`, `_speeds`, `_segment`, `_engine`, `_scene`, `_name` of the presenter."""

    def _compare_obstacle(self) -> str:
        if self._segment.state.needs_setup:
            return _("HiEndSeg is not set up yet; open the set-up page.")
        return self._inputs.obstacle()

    def _obstacle(self) -> str:
        """Why nothing can be taught now, in a sentence; "" where something can."""
        first = self._compare_obstacle()
        if first:
            return first
        if self._rows.comparison is None:
            return _("Look at the segments first.") if self._inputs.from_encoder else \
                _("Compare first, so that it is known what you corrected.")
        if not self._rows.checked():
            return _("Check at least one structure to teach.")
        return self._name_problem() or self._speeds.obstacle()

    def _name_problem(self) -> str:
        if not self._name.strip():
            return ""
        try:
            from ..models.family import check_name

            check_name(self._name.strip(), self._inputs.catalogue.cards)
        except HiEndSegError as error:
            return str(error)
        return ""

    def _suggestion(self) -> str:
        """A free name for the next version."""
        card = self._inputs.card
        if card is None:
            stem = _("My model")
        else:
            stem = card.title if getattr(card, "is_version", False) else \
                _("{title} adapted").format(title=card.title)
        try:
            from ..models.card_schema import MAX_NAME
            from ..models.family import free_name

            return free_name(stem[:MAX_NAME].strip(), self._inputs.catalogue.cards)
        except ModuleNotFoundError:             # nothing is set up yet
            return stem

    def _look(self) -> None:
        """The chosen nodes and models as they are now, and the plan for them."""
        self._inputs.look()
        self._ask_plan()

    def _ask_plan(self) -> None:
        inputs, device = self._inputs, self._segment.state.device
        if self._compare_obstacle():
            self._speeds.drop()
            return
        engine, scene, volume_id, card = self._engine, self._scene, inputs.volume_id, inputs.card
        encoder = inputs.encoder_path if inputs.from_encoder else None

        def submit() -> Job:
            from ..bridge.volumes import volume_view

            node = scene.GetNodeByID(volume_id)
            return engine.submit_plan_adapt(volume_view(node), model=card, encoder=encoder, device=device)

        # which structures are taught changes nothing about it
        key = volume_id, inputs.facts.shape, card.key if card is not None else encoder, device
        self._speeds.ask(key, submit)
