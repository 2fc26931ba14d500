"""What a person chooses before a model is adapted: the case, the model, the structures, the name, the speed. Part of
`AdaptPresenter`."""

from __future__ import annotations

from typing import Any

from .choosing import id_of


class AdaptChoices:
    """Needs `_inputs`, `_rows`, `_speeds`, `_segment`, `busy`, `_change()`, `_look()` and `_forget_end()`.

    While something runs, the case and the model stay as they are.
    """

    def enter(self) -> None:
        """The section is on screen: read the models, look at the nodes, take over what Segment works with."""
        with self._change():
            if not self.busy:
                self._inputs.catalogue.refresh()
                self._follow()

    def leave(self) -> None:
        """The section is not on screen any more. Whatever runs goes on; keep calling `tick()`."""

    def refresh(self) -> None:
        """Read models and chosen nodes again: after models changed, a segmentation was made."""
        with self._change():
            if not self.busy:
                before = self._case()
                self._look()
                self._case_changed(before)
                self._miss_version()

    def set_volume(self, node: Any) -> None:
        """The volume, as a node, an id or None; its newest segmentation is chosen with it."""
        self._choose(lambda: self._inputs.choose_volume(id_of(node)))

    def set_segmentation(self, node: Any) -> None:
        """The corrected segmentation; the model that made it is chosen with it, where it is installed."""
        self._choose(lambda: self._inputs.choose_segmentation(id_of(node)))

    def set_model(self, id_: str) -> None:
        """Teach this model, by the id of its row."""
        self._choose(lambda: self._inputs.choose_model(id_))

    def set_encoder(self, path: Any) -> None:
        """Make a new model from an encoder's file or folder; None goes back to the model."""
        self._choose(lambda: self._inputs.choose_encoder(path))

    def check(self, id_: str, on: bool) -> None:
        """One check box of the list "Teach these"."""
        with self._change():
            if not self.busy:
                self._rows.check(id_, on)

    def set_name(self, name: str) -> None:
        """Of the new version; empty for the suggestion."""
        with self._change():
            if not self.busy:
                self._name = str(name)

    def set_speed(self, speed: str) -> None:
        """"quick", "full", or "auto" to leave it to the device. Remembered."""
        with self._change():
            if not self.busy:
                self._speeds.choose(speed)

    def set_keep_teaching(self, on: bool) -> None:
        """Keep parts of this case with the version, so that later cases do not undo it. Off again next time."""
        with self._change():
            if not self.busy:
                self._keep_teaching = bool(on)

    # ------------------------------------------------------------------------------------------ inside

    def _choose(self, choose: Any) -> None:
        with self._change():
            if self.busy:
                return
            before = self._case()
            choose()
            if self._case_changed(before):
                self._forget_end()
            self._look()

    def _follow(self) -> None:
        before = self._case()
        self._inputs.follow(self._segment.state, self._rows.comparison is not None)
        self._case_changed(before)
        self._look()
        self._miss_version()

    def _case(self) -> tuple:
        inputs = self._inputs
        card = inputs.card
        return (inputs.volume_id, inputs.segmentation_id, None if card is None else card.key,
                inputs.encoder_path if inputs.from_encoder else None)

    def _case_changed(self, before: tuple) -> bool:
        """Rows and scores of another case are none of this one. Why something was stopped stays to be read."""
        if self._case() == before:
            return False
        self._rows.clear()
        if self._end.phase:
            self._forget_end()
        return True
