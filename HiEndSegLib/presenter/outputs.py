"""Where results are and what can be done with them: the latest one of a volume, its table, 3D, undo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import wording

if TYPE_CHECKING:
    from .pieces import Placed

_ = wording.translator(__name__)


@dataclass(frozen=True)
class Target:
    """A segmentation that a result could go into. present: ids of asked structures that it has already.

    asks: whether the person must be asked before anything goes into it.
    """

    id: str
    name: str
    present: tuple[str, ...]
    asks: bool


class Outputs:
    """Ids only. chosen: the segmentation that the person wants results to go into."""

    def __init__(self, scene: Any):
        self._scene = scene
        self._histories: Any = None
        self.chosen: str | None = None
        self.segmentation_id: str | None = None
        self.table_id: str | None = None
        self.surface = False

    @property
    def histories(self) -> Any:
        """`bridge.history.Histories`, made when they are first needed."""
        if self._histories is None:
            from ..bridge.history import Histories

            self._histories = Histories()
        return self._histories

    # ------------------------------------------------------------------------------------------ finding

    def look(self, volume_id: str | None, without: str | None = None) -> None:
        """Find the latest result of the volume (the chosen segmentation where there is one).

        without: a node that is about to leave the scene.
        """
        segmentation = self._node(self.chosen)
        if segmentation is None:
            self.chosen = None
            segmentation = self._node(self.newest(volume_id, without) if volume_id != without else None)
        self.segmentation_id = segmentation.GetID() if segmentation is not None else None
        self.table_id, self.surface = None, False
        if segmentation is not None:
            from ..bridge.results import surface_shown, table_of

            table = table_of(segmentation)
            self.table_id = table.GetID() if table is not None else None
            self.surface = surface_shown(segmentation)

    def newest(self, volume_id: str | None, without: str | None = None) -> str | None:
        """Id of the segmentation made last for this volume."""
        node = self._node(volume_id)
        if node is None:
            return None
        from ..bridge.results import results_of

        found = [other for other in results_of(node) if other.GetID() != without]
        known = next((other for other in found if other.GetID() == self.segmentation_id), None)
        return (known or found[-1]).GetID() if found else None

    def target(self, volume_id: str, ids: Sequence[str]) -> Target | None:
        """Where a result of this volume with these structures could go; None: nowhere but into a new one."""
        node = self._node(self.chosen) or self._node(self.newest(volume_id))
        if node is None:
            return None
        from ..bridge.results import segments_in

        present = tuple(segments_in(node, ids))
        return Target(node.GetID(), node.GetName(), present, bool(present) or node.GetID() != self.chosen)

    def made(self, placed: Placed) -> None:
        self.segmentation_id, self.table_id = placed.segmentation_id, placed.table_id

    def removed(self, node_id: str, volume_id: str | None) -> None:
        """A node is gone or about to go; an older result of the volume takes the place of a lost one."""
        if self._histories is not None:
            self._histories.forget(node_id)
        if node_id == self.chosen:
            self.chosen = None
        if node_id == self.segmentation_id:
            self.segmentation_id = None
            self.look(volume_id, without=node_id)
        if node_id == self.table_id:
            self.table_id = None

    def clear(self) -> None:
        """All nodes go. The hook of an editor stays."""
        if self._histories is not None:
            self._histories.clear()
        self.chosen = self.segmentation_id = self.table_id = None
        self.surface = False

    # ------------------------------------------------------------------------------------------ doing

    def make_editable(self, volume_id: str | None) -> tuple[str, str]:
        """(segmentation id, volume id) with voxels as the segmentation's truth. InputError: there is none."""
        segmentation, volume = self._both(volume_id)
        segmentation.CreateBinaryLabelmapRepresentation()
        segmentation.SetSourceRepresentationToBinaryLabelmap()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        return segmentation.GetID(), volume.GetID()

    def measure(self, volume_id: str | None, unit: str) -> None:
        """The table anew from the segmentation as it is."""
        from ..bridge.tables import measure_segments, write_table

        segmentation, volume = self._both(volume_id)
        self.table_id = write_table(segmentation, volume, measure_segments(segmentation, volume), unit=unit).GetID()

    def show_3d(self, on: bool) -> None:
        from ..bridge.results import show_surface, surface_shown

        segmentation = self._node(self.segmentation_id)
        if segmentation is None:
            raise InputError(_("There is no result to show in 3D; segment a volume first."))
        show_surface(segmentation, on)
        self.surface = surface_shown(segmentation)

    @property
    def can_undo(self) -> bool:
        history = self._history()
        return history is not None and history.can_undo

    @property
    def can_redo(self) -> bool:
        history = self._history()
        return history is not None and history.can_redo

    def step_back(self, volume_id: str | None, unit: str) -> None:
        history = self._history()
        if history is not None and history.undo():
            self.measure(volume_id, unit)

    def step_forward(self, volume_id: str | None, unit: str) -> None:
        history = self._history()
        if history is not None and history.redo():
            self.measure(volume_id, unit)

    # ------------------------------------------------------------------------------------------ inside

    def _history(self) -> Any:
        return None if self._histories is None else self._histories.get(self.segmentation_id)

    def _node(self, node_id: str | None) -> Any:
        return self._scene.GetNodeByID(node_id) if node_id else None

    def _both(self, volume_id: str | None) -> tuple[Any, Any]:
        segmentation, volume = self._node(self.segmentation_id), self._node(volume_id)
        if segmentation is None or volume is None:
            raise InputError(_("There is no result of this volume yet; segment it first."))
        return segmentation, volume
