"""One point that a person puts into a view and drags: a markups list of one, with its observers and its place mode.

Nothing of the person's is used for it: their lists, their active list and their mouse mode are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import slicer

#: Attribute of the list made here.
POINT = "HiEndSeg.QueryPoint"
_MARKUPS = "vtkMRMLMarkupsFiducialNode"


class QueryPoint:
    """changed: called whenever the point is set, moved or taken away; `position` then says where it is."""

    def __init__(self, scene, changed: Callable[[], None], name: str = "Attention query"):
        self._scene, self._changed, self._name = scene, changed, name
        self._id: str | None = None
        self._tags: list[int] = []
        self._mode: tuple | None = None         # the mouse mode before ours, while a click is awaited
        self._old: tuple | None = None          # where the point was before the click
        self._silent = False

    @property
    def node_id(self) -> str | None:
        return self._id

    @property
    def node(self):
        return self._scene.GetNodeByID(self._id) if self._id else None

    @property
    def position(self) -> tuple[float, float, float] | None:
        """(R, A, S) in mm, world; None where there is no point (yet)."""
        node = self.node
        if node is None or node.GetNumberOfDefinedControlPoints() == 0:
            return None
        place = [0.0, 0.0, 0.0]
        node.GetNthControlPointPositionWorld(0, place)
        return tuple(place)

    def put(self, world) -> None:
        """Set the point, (R, A, S) in mm."""
        node, world = self._make(), [float(value) for value in world]
        if node.GetNumberOfControlPoints() == 0:
            node.AddControlPointWorld(*world)
        else:
            node.SetNthControlPointPositionWorld(0, *world)

    def put_at_crosshair(self) -> tuple[float, float, float] | None:
        """Where the crosshair is; None where this scene has none."""
        crosshair = self._scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is None:
            return None
        place = tuple(crosshair.GetCrosshairRAS())
        self.put(place)
        return place

    def show(self, on: bool) -> None:
        """In the views or not; it stays where it is."""
        node = self.node
        if node is not None and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(bool(on))

    # ------------------------------------------------------------------------------------------ by a click

    @property
    def placing(self) -> bool:
        """Whether the next click in a view sets the point."""
        interaction = self._interaction()
        return self._mode is not None and interaction is not None and \
            interaction.GetCurrentInteractionMode() == interaction.Place

    def place(self) -> bool:
        """Let the next click in a view set the point (anew); False where this scene has no mouse modes."""
        interaction, selection = self._interaction(), self._scene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        if interaction is None or selection is None:
            return False
        node = self._make()
        if self._mode is None:
            self._mode = (interaction.GetCurrentInteractionMode(), interaction.GetPlaceModePersistence(),
                          selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID())
        self._old, self._silent = self.position or self._old, True
        try:
            node.RemoveAllControlPoints()       # a list that is full takes no click
        finally:
            self._silent = False
        selection.SetReferenceActivePlaceNodeClassName(_MARKUPS)
        selection.SetActivePlaceNodeID(node.GetID())
        interaction.SetPlaceModePersistence(0)
        interaction.SetCurrentInteractionMode(interaction.Place)
        return True

    def settle(self) -> None:
        """Call it from a timer: after the click, or after Esc, the mouse mode is as before, and so is a lost point."""
        if self._mode is not None and not self.placing:
            self.stop_placing()

    def stop_placing(self) -> None:
        """The mouse mode, the active list and a point that was not set anew as they were. Safe to call twice."""
        if self._mode is None:
            return
        mode, persistence, kind, list_id = self._mode
        self._mode = None
        interaction, selection = self._interaction(), self._scene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        if interaction is not None:
            if interaction.GetCurrentInteractionMode() == interaction.Place:
                interaction.SetCurrentInteractionMode(mode)
            interaction.SetPlaceModePersistence(persistence)
        if selection is not None and selection.GetActivePlaceNodeID() == self._id:
            selection.SetReferenceActivePlaceNodeClassName(kind)
            selection.SetActivePlaceNodeID(list_id)
        old, self._old = self._old, None
        if old is not None and self.node is not None and self.position is None:
            self.put(old)

    # ------------------------------------------------------------------------------------------ its end

    def remove(self) -> None:
        """The point, its list and everything that hangs on it. Safe to call twice."""
        self._old = None
        self.stop_placing()
        node = self.node
        self.forget()
        if node is not None:
            for display in [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]:
                if display is not None:
                    self._scene.RemoveNode(display)
            self._scene.RemoveNode(node)

    def forget(self) -> None:
        """The list is gone or about to go."""
        node = self.node
        if node is not None:
            for tag in self._tags:
                node.RemoveObserver(tag)
        self._id, self._tags = None, []

    # ------------------------------------------------------------------------------------------ inside

    def _make(self):
        node = self.node
        if node is not None:
            return node
        node = self._scene.CreateNodeByClass(_MARKUPS)
        node.UnRegister(None)
        node.SetName(self._name)
        node.SetAttribute(POINT, "1")
        node.SetSaveWithScene(False)
        node.SetMaximumNumberOfControlPoints(1)
        node.SetControlPointLabelFormat("%N")
        self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetPointLabelsVisibility(False)
        display.SetSelectedColor(1.0, 0.25, 0.25)
        display.SetColor(1.0, 0.25, 0.25)
        display.SetGlyphScale(2.5)
        self._id = node.GetID()
        events = slicer.vtkMRMLMarkupsNode
        self._tags = [node.AddObserver(event, self._moved) for event in (
            events.PointModifiedEvent, events.PointPositionDefinedEvent, events.PointPositionUndefinedEvent,
            events.PointRemovedEvent)]
        return node

    def _moved(self, caller, event) -> None:
        if self._silent:
            return
        self._changed()

    def _interaction(self):
        return self._scene.GetFirstNodeByClass("vtkMRMLInteractionNode")


def inside(volume_node, world) -> bool:
    """Whether a world point (R, A, S) in mm lies in a voxel of the volume."""
    from .volumes import lattice_of, world_to_volume_ras

    shape, matrix = lattice_of(volume_node)
    index = (np.linalg.inv(matrix) @ [*world_to_volume_ras(volume_node, world), 1.0])[:3]
    return bool((index >= -0.5).all() and (index <= np.array(shape) - 0.5).all())
