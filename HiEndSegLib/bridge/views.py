"""What slice views show in front of a volume: ours put there for a while, and everything back afterwards.

A view is a vtkMRMLSliceCompositeNode. Only what was changed here is put back, and only where it is still as it was left
here: what a person chose meanwhile stays.
"""

from __future__ import annotations

from dataclasses import dataclass

_KIND = "vtkMRMLSliceCompositeNode"


@dataclass(frozen=True)
class _Before:
    """A view's foreground before ours."""

    volume_id: str | None
    opacity: float
    compositing: int


class Foreground:
    """One volume at a time in front of another, in all slice views that have that one as background.

    skip: layout names of views that are left alone.
    """

    def __init__(self, scene, skip=()):
        self._scene, self._skip = scene, frozenset(skip)
        self._before: dict[str, _Before] = {}
        self._ours: str | None = None
        self._opacity = 0.0

    @property
    def shown(self) -> bool:
        return self._ours is not None

    def show(self, node, background, opacity: float) -> int:
        """Put `node` in front of `background`; in how many views. Views that came since are found too."""
        if self._ours is not None and self._ours != node.GetID():
            self.hide()
        if self._ours is not None and self._opacity != opacity:
            self.set_opacity(opacity)       # only then: a view's own slider may have been moved meanwhile
        self._ours, self._opacity = node.GetID(), opacity
        count = 0
        for view in self._of(background):
            count += 1
            if view.GetID() not in self._before:
                self._before[view.GetID()] = _Before(view.GetForegroundVolumeID(), view.GetForegroundOpacity(),
                                                     view.GetCompositing())
                _set(view, self._ours, opacity, view.Alpha)
        return count

    def misses(self, background) -> bool:
        """Whether a view that has `background` came since `show`."""
        return background is not None and any(view.GetID() not in self._before for view in self._of(background))

    def set_opacity(self, opacity: float) -> None:
        """0 to 1, in the views where ours is still in front."""
        self._opacity = opacity
        for view in self._views():
            if view.GetForegroundVolumeID() == self._ours:
                view.SetForegroundOpacity(opacity)

    def hide(self) -> None:
        """Every view as it was; one whose former foreground is gone shows none. Safe to call twice."""
        for view in self._views():
            before = self._before[view.GetID()]
            if view.GetForegroundVolumeID() != self._ours:
                continue                    # somebody chose another foreground since: that is theirs
            there = before.volume_id and self._scene.GetNodeByID(before.volume_id) is not None
            _set(view, before.volume_id if there else None, before.opacity, before.compositing)
        self._before, self._ours = {}, None

    def forget_view(self, view_id: str) -> None:
        """A view is gone; another one may get its id."""
        self._before.pop(view_id, None)

    def forget(self) -> None:
        """The scene was emptied: there is nothing to put back any more."""
        self._before, self._ours = {}, None

    def _of(self, background) -> list:
        return [view for view in composites(self._scene) if view.GetBackgroundVolumeID() == background.GetID()
                and view.GetLayoutName() not in self._skip]

    def _views(self) -> list:
        return [view for view in composites(self._scene) if view.GetID() in self._before]


def composites(scene) -> list:
    """All slice views of a scene, as their vtkMRMLSliceCompositeNodes."""
    return [scene.GetNthNodeByClass(n, _KIND) for n in range(scene.GetNumberOfNodesByClass(_KIND))]


def slice_of(scene, composite):
    """The vtkMRMLSliceNode of a view, or None."""
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLSliceNode")
        if node.GetLayoutName() == composite.GetLayoutName():
            return node
    return None


def _set(view, volume_id, opacity: float, compositing: int) -> None:
    """At once, so that no view is drawn in between."""
    modified = view.StartModify()
    try:
        view.SetForegroundVolumeID(volume_id)
        view.SetForegroundOpacity(opacity)
        view.SetCompositing(compositing)
    finally:
        view.EndModify(modified)
