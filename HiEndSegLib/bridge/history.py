"""Undo for changes that a program makes to segmentations. One state per action, saved before the change.

Inside a Segment Editor the editor has its own history, and its undo key should bring back what our button overwrote:
`Histories.hook` lets it save first.
"""

from __future__ import annotations

from collections.abc import Callable

import slicer

from .scene import check_node

STATES = 10


class History:
    """Undo for one segmentation node, outside an editor (inside one use `editor.saveStateForUndo`)."""

    def __init__(self, node, states: int = STATES):
        check_node(node, "vtkMRMLSegmentationNode")
        self._history = slicer.vtkSegmentationHistory()
        self._history.SetSegmentation(node.GetSegmentation())
        self._history.SetMaximumNumberOfStates(states)

    def save(self) -> None:
        """Remember the segmentation as it is, before a change."""
        self._history.SaveState()

    def undo(self) -> bool:
        """Back to the last saved state; False where there is none."""
        return bool(self.can_undo and self._history.RestorePreviousState())

    def redo(self) -> bool:
        """Forward again; False where there is nothing to redo."""
        return bool(self.can_redo and self._history.RestoreNextState())

    @property
    def can_undo(self) -> bool:
        return bool(self._history.IsRestorePreviousStateAvailable())

    @property
    def can_redo(self) -> bool:
        return bool(self._history.IsRestoreNextStateAvailable())

    def release(self) -> None:
        """Let go of the segmentation and its states."""
        self._history.SetSegmentation(None)


class Histories:
    """One `History` per segmentation node, by id. `forget` it when its node goes, `clear` when the scene closes.

    hook: called with the node before a change; True from it means that somebody else (an editor that shows this
    segmentation) has saved a state, and its undo is the one to use.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, History] = {}
        self.hook: Callable | None = None

    def save(self, node) -> None:
        """Remember `node` as it is now."""
        if self.hook is not None and self.hook(node):
            self.forget(node.GetID())
            return
        history = self._by_id.get(node.GetID())
        if history is None:
            history = self._by_id[node.GetID()] = History(node)
        history.save()

    def get(self, node_id: str | None) -> History | None:
        return self._by_id.get(node_id)

    def forget(self, node_id: str) -> None:
        history = self._by_id.pop(node_id, None)
        if history is not None:
            history.release()

    def clear(self) -> None:
        for node_id in list(self._by_id):
            self.forget(node_id)
