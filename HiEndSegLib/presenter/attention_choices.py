"""What a person chooses about the map: model, question, layer, head, look, comparison. Part of `AttentionPresenter`."""

from __future__ import annotations

from typing import Any


class AttentionChoices:
    """Needs `_change()`, `_ask()`, `_draw()`, `_stage`, `_catalogue`, `_extras` and the choices of the presenter."""

    # ------------------------------------------------------------------------------------------ what is asked

    def set_model(self, id_: str) -> None:
        """Look into this model instead of the Segment section's."""
        with self._change():
            before = self.card
            if self._catalogue.choose(id_) and self.card is not before:
                self._own_model = self._segment is not None and self.card.key != self._segment.state.model_id
                self._model_changed(before)

    def set_query(self, id_: str) -> None:
        """"point", "structure" or "query"."""
        with self._change():
            self.query = id_
            if id_ == "query":
                self._set_kind("head")
            elif self.kind == "head" and id_ == "structure":
                self._set_kind("encoder")
            if id_ == "structure" and self.structure is None:
                rows = self._stage.structures(self._segmentation_id())
                self.structure = rows[0][0] if rows else None
            if self._open:
                self._need_point()
            self._ask()

    def set_structure(self, id_: str) -> None:
        """A segment of the volume's result."""
        with self._change():
            self.structure, self.query = id_, "structure"
            self._ask()

    def set_object_query(self, number: int) -> None:
        """A row of the query inspector: what this object query looks at."""
        with self._change():
            self.object_query, self.query = int(number), "query"
            self._set_kind("head")
            if not self._open and not self.obstacle:
                self.show()
            else:
                self._ask()

    def set_kind(self, id_: str) -> None:
        """"encoder", "rollout" or "head"."""
        with self._change():
            if id_ != "head" and self.query == "query":
                self.query = "point"
            self._set_kind(id_)
            self._ask()

    def set_layer(self, layer: int) -> None:
        with self._change():
            if layer != self.layer:
                self.layer = int(layer)
                self._ask()

    def set_head(self, id_: str) -> None:
        """"mean" or a head's number as text. All heads are there already: nothing is asked."""
        with self._change():
            self.head = str(id_)
            self._draw()

    def place_point(self) -> None:
        """The next click in a view is the point; once more: it is not."""
        with self._change():
            if self.query == "structure":
                self.set_query("point")
            if self._stage.point.placing:
                self._stage.point.stop_placing()
            elif not self.obstacle or self._open:
                self._stage.point.place()

    def point_at(self, world: Any) -> None:
        """The point, (R, A, S) in mm, world."""
        with self._change():
            if self.query == "structure":
                self.query = "point"
            self._put(world)
            self._point_changed()

    def point_at_crosshair(self) -> None:
        """The point where the crosshair is."""
        crosshair = self._scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None:
            self.point_at(crosshair.GetCrosshairRAS())

    # ------------------------------------------------------------------------------------------ how it is shown

    def set_opacity(self, share: float) -> None:
        with self._change():
            self.opacity = min(1.0, max(0.0, float(share)))
            self._draw()

    def set_threshold(self, share: float) -> None:
        """Of the strongest value; below it nothing is drawn."""
        with self._change():
            self.threshold = min(0.95, max(0.0, float(share)))
            self._draw()

    def set_smooth(self, on: bool) -> None:
        """Interpolated, or the network's own cells."""
        with self._change():
            self.smooth = bool(on)
            self._draw()

    def set_graphics(self, there: bool) -> None:
        """Whether a graphics card draws the 3D views; only then is 3D offered."""
        with self._change():
            self._stage.graphics = bool(there)

    # ------------------------------------------------------------------------------------------ comparing

    def set_compare(self, id_: str) -> None:
        """"none", "layer" or "model"."""
        with self._change():
            self.compare = id_
            if id_ == "model" and self.other_card in (None, self.card):
                self._other_key = self._likely_other()
            if id_ == "none":
                self._results.pop("other", None)
                self._stage.drop_other()
                self._extras.compare_picture = b""
                self._draw()
            self._ask()

    def set_other_layer(self, layer: int) -> None:
        with self._change():
            self.other_layer, self.compare = int(layer), "layer"
            self._ask()

    def set_other_model(self, id_: str) -> None:
        with self._change():
            self._other_key, self.compare = id_, "model"
            self._results.pop("other", None)
            self._ask()

    def set_side_by_side(self, on: bool) -> None:
        """Both maps in two slice views of our own; off: the layout of before."""
        with self._change():
            self._extras.side_by_side = bool(on)
            if on:
                self._draw()
            else:
                self._stage.pair.hide()

    # ------------------------------------------------------------------------------------------ inside

    def _set_kind(self, id_: str) -> None:
        if id_ != self.kind:
            self.kind, self.layer, self.other_layer = id_, None, None
            self._results = {}
            if id_ == "rollout":
                self.head = "mean"

    def _likely_other(self) -> str | None:
        """The model that this one was made from, one that was made from it, or any other."""
        own, cards = self.card, self._catalogue.cards
        base = ((getattr(own, "adaptation", None) or {}).get("parent") or {}).get("id") if own is not None else None
        others = [card for card in cards if own is None or card.key != own.key]
        kin = [card for card in others if card.id == base or own is not None and
               ((getattr(card, "adaptation", None) or {}).get("parent") or {}).get("id") == own.id]
        chosen = kin or others
        return chosen[0].key if chosen else None
