"""What is asked of the engine, and what an answer means. Part of `AttentionPresenter`."""

from __future__ import annotations

from typing import Any

from . import wording
from .attention_ask import Answer, Question, Voxels, new_key

_ = wording.translator(__name__)

#: Slots of questions: the map, the one it is compared with, and what is asked for by a button.
MAIN, OTHER, RANKS, INSPECT = "main", "other", "ranks", "inspect"


class AttentionAsking:
    """Needs `_stage`, `_line`, `_catalogue`, `_segment`, `_results`, `_keys`, `_taps`, `_draw()`, `_node()` and the
    choices of the presenter."""

    @property
    def card(self) -> Any:
        """Of the chosen model, or None."""
        return self._catalogue.card

    @property
    def other_card(self) -> Any:
        """Of the model that is compared with, or None."""
        return self._catalogue.find(self._other_key) if self._other_key else None

    @property
    def taps(self) -> tuple[int, ...]:
        """Blocks that are shown by default: the paper's four where an encoder has twelve."""
        return self._taps.get((self.card.key, self.kind), ()) if self.card is not None else ()

    @property
    def basic_obstacle(self) -> str:
        """Why the model cannot be looked into at all, in a sentence; "" where it can."""
        if self._segment is not None and self._segment.state.needs_setup or self._catalogue.missing_package:
            return _("HiEndSeg is not set up yet; open the set-up page.")
        if self._node(self._volume_id) is None:
            return _("Choose a volume in the section Segment.") if self._segment is not None else \
                _("Choose a volume.")
        if self.card is None:
            return self._catalogue.sentence(None)
        return self._stage.problem(self._volume_id)

    @property
    def obstacle(self) -> str:
        """Why no map can be shown, in a sentence; "" where one can."""
        if self.basic_obstacle:
            return self.basic_obstacle
        if self.query == "structure" and self.structure is None:
            return _("Choose a structure to ask about; segment the volume first where there is none.")
        if self.query == "query" and self.object_query is None:
            return _("Choose an object query in the list below; press Inspect to fill it.")
        return ""

    def _ask(self) -> None:
        """Ask for what the choices say, if the section shows anything."""
        if not self._open or self._closed:
            return
        if self.obstacle:
            self._fail(self.obstacle)
            return
        layers = None if self.layer is None else [self.layer]
        if self.compare == "layer" and layers is not None and self.other_layer is not None:
            layers = list(dict.fromkeys([*layers, self.other_layer]))
        asked = self._ask_one(MAIN, self.card, layers)
        if self.compare == "model" and self.other_card is not None:
            # Blocks of two different networks have nothing to do with each other: then the other one's own default.
            same = self.other_card.network == self.card.network
            asked |= self._ask_one(OTHER, self.other_card, layers if same else None)
        else:
            self._line.forget(OTHER)
            self._results.pop(OTHER, None)
        if not asked and MAIN in self._results:
            self._phase, self._error = "shown", ""
            self._draw()

    def _ask_one(self, slot: str, card: Any, layers: list[int] | None) -> bool:
        """Whether it had to be asked: what the last answer holds is not asked again."""
        what: dict[str, Any] = {"layers": layers, "kind": self.kind, "heads": "mean" if self.kind == "rollout" else
                                "all"}
        mask, target = None, None
        if self.query == "structure":
            segmentation, structure, volume_id = self._segmentation_id(), self.structure, self._volume_id
            stage = self._stage
            target = ("structure", segmentation, structure, stage.segment_stamp(segmentation, structure))

            def mask() -> Any:
                return stage.mask(segmentation, structure, volume_id)
        else:
            point = self._stage.point.position
            if point is None:
                return True                     # a click is awaited
            what["at"] = self._stage.in_volume(self._volume_id, point)
            target = ("point", *what["at"])
            if self.query == "query":
                what.update(query=self.object_query, kind="head")
                target = (*target, self.object_query)
        name = (slot, target, what["kind"], tuple(layers or ()))
        question = Question(slot, "attend", card, card.key, self._voxels(card), name, what, mask)
        if not self._line.asks(slot) and self._holds(question):
            return False
        self._line.ask(question)
        return True

    def _holds(self, question: Question) -> bool:
        """Whether the answer that is shown answers this question too."""
        former, result = self._results.get(question.slot, (None, None))
        if former is None or (former.model, former.voxels, former.name[1:3]) != (
                question.model, question.voxels, question.name[1:3]):
            return False
        have, wanted = {one.layer for one in result.maps}, question.what["layers"]
        return wanted is None or have.issuperset(wanted)

    def _voxels(self, card: Any) -> Voxels:
        """The volume under a key that is another one as soon as it is changed or moved within its own space."""
        volume_id, stage = self._volume_id, self._stage
        stamp = (*stage.stamp(volume_id), tuple(card.spacing))
        if stamp not in self._keys:
            self._keys[stamp] = new_key()
        return Voxels(self._keys[stamp], lambda: stage.read(volume_id))

    def _take(self, answer: Answer) -> None:
        slot = answer.question.slot
        if slot in (RANKS, INSPECT):
            self._take_extra(slot, answer)
            return
        if answer.error is not None:
            if slot == MAIN:
                self._fail(str(answer.error))
            else:
                self._error = str(answer.error)
            return
        self._results[slot] = (answer.question, answer.result)
        self._phase, self._error = "shown", ""
        if slot == MAIN:
            self._fit_choices(answer)
        self._draw()

    def _fit_choices(self, answer: Answer) -> None:
        """Choices that this model does not have become ones that it has."""
        result, what = answer.result, answer.question.what
        layers = list(dict.fromkeys(one.layer for one in result.maps))
        if what["layers"] is None:
            self._taps[(answer.question.model, what["kind"])] = tuple(layers)
        if self.layer is None or self.layer not in layers:
            from .attention_maps import telling

            self.layer = telling(result)
        if self.other_layer is None or not 0 <= self.other_layer < max(1, result.layers):
            self.other_layer = layers[0]
        if self.head != "mean" and int(self.head) >= result.heads:
            self.head = "mean"

    def _fail(self, sentence: str) -> None:
        self._phase, self._error = "failed", sentence
