"""What can be done with a result: correct, measure again, show in 3D, take back. Part of `SegmentPresenter`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import HiEndSegError
from .show import Ended


class ResultActions:
    """Needs `_outputs`, `_inputs`, `_catalogue`, `_scene`, `_ended` and `_change()` of the presenter."""

    def make_editable(self) -> tuple[str, str] | None:
        """(segmentation id, volume id) for a Segment Editor, its voxels made the truth; None where there is none."""
        return self._on_result(lambda: self._outputs.make_editable(self._inputs.volume_id))

    def measure(self) -> None:
        """Fill the table again from the segmentation as it is now (after corrections)."""
        self._on_result(lambda: self._outputs.measure(self._inputs.volume_id, self._unit()))

    def set_show_3d(self, on: bool) -> None:
        """Surfaces of the result in the 3D view; making them takes up to a few seconds."""
        self._on_result(lambda: self._outputs.show_3d(on))

    def undo(self) -> None:
        """Bring back what the last run replaced."""
        self._on_result(lambda: self._outputs.step_back(self._inputs.volume_id, self._unit()))

    def redo(self) -> None:
        self._on_result(lambda: self._outputs.step_forward(self._inputs.volume_id, self._unit()))

    def set_undo_hook(self, hook: Callable | None) -> None:
        """hook(segmentation_node) -> bool: lets an editor that shows this node save its undo state before a change.

        It answers True where it did; the editor's own undo is then the one that brings the old state back.
        """
        self._outputs.histories.hook = hook

    def report_facts(self) -> dict:
        """What a bug report wants from here: `setup_presenter.report(**presenter.report_facts())`."""
        from ..bridge.scene import names_in_scene

        summary = self.summary
        error = summary.error if summary is not None else None
        return {"error": str(error or ""), "log": self.log, "secrets": names_in_scene(self._scene)}

    def _unit(self) -> str:
        card = self._catalogue.card
        return "HU" if card is None or card.modality == "CT" else "intensity"

    def _on_result(self, act: Callable[[], Any]) -> Any:
        with self._change():
            try:
                return act()
            except HiEndSegError as error:
                self._ended = Ended.refused(str(error))
                return None
