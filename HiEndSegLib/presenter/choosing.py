"""What a person chooses before the button is pressed: volume, region, model, structures, device. Part of
`SegmentPresenter`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ChoiceActions:
    """Needs `_machine`, `_catalogue`, `_inputs`, `_outputs`, `_change()`, `_look()`, `_ask_plan()`, `_forget_end()`."""

    def enter(self) -> None:
        """The section is on screen: read the models, look at the devices (once), look at the nodes again."""
        with self._change():
            self._machine.look()
            self.refresh()

    def leave(self) -> None:
        """The section is not on screen any more. Whatever runs goes on; keep calling `tick()`."""

    def refresh(self) -> None:
        """Read models and chosen nodes again: after models changed, a transform was set, a region was moved."""
        with self._change():
            self._catalogue.refresh()
            self._look()

    def set_volume(self, node: Any) -> None:
        """The volume to segment, as a node, an id or None."""
        with self._change():
            self._inputs.volume_id = id_of(node)
            self._outputs.chosen = None
            self._forget_end()
            self._look()

    def set_roi(self, node: Any) -> None:
        """A vtkMRMLMarkupsROINode (or id) outside of which nothing is segmented; None for the whole volume."""
        with self._change():
            self._inputs.roi_id = id_of(node)
            self._look()

    def set_model(self, id_: str) -> None:
        """Choose a model by the id of its row."""
        with self._change():
            if self._catalogue.choose(id_):
                self._ask_plan()
                self._forget_end()

    def set_filter(self, text: str) -> None:
        """Show only models in whose title or structures every word of `text` occurs."""
        with self._change():
            self._catalogue.filter = text

    def set_only(self, ids: Iterable[str] | None) -> None:
        """Segment only these structures; None for all."""
        with self._change():
            self._catalogue.check(ids)

    def check_structure(self, id_: str, on: bool) -> None:
        """One check box of the list."""
        checked = [other for other in self._catalogue.checked() if other != id_]
        self.set_only([*checked, id_] if on else checked)

    def select_all(self) -> None:
        self.set_only(None)

    def select_none(self) -> None:
        self.set_only(())

    def set_device(self, kind: str) -> None:
        """"auto", "cuda:0", "mps" or "cpu"."""
        with self._change():
            self._machine.choose(kind)
            self._ask_plan()

    def look_at_devices(self) -> None:
        """Try the devices again, for example after an installation."""
        with self._change():
            self._machine.look(again=True)

    def set_output(self, node: Any) -> None:
        """The segmentation to write into; None: a new one, or asked where there is an earlier result."""
        with self._change():
            self._outputs.chosen = id_of(node)


def id_of(node: Any) -> str | None:
    """The id of a node, or what is an id (or None) already."""
    return node if node is None or isinstance(node, str) else node.GetID()
