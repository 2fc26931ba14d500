"""Two maps of one volume in two slice views of our own, side by side, moving together; then the old layout again."""

from __future__ import annotations

from .views import slice_of

#: Layout names of our two views, and the number of our layout (those below 500 are Slicer's own).
LEFT, RIGHT = "HiEndSegLeft", "HiEndSegRight"
LAYOUT = 8347
#: Views of one group that are linked move together; nobody else's views are in this one.
_GROUP = 8347
_VIEW = """<item><view class="vtkMRMLSliceNode" singletontag="{tag}">
<property name="orientation" action="default">Axial</property>
<property name="viewlabel" action="default">{label}</property>
<property name="viewcolor" action="default">{color}</property>
<property name="viewgroup" action="default">{group}</property></view></item>"""


class SideBySide:
    """Where the scene has a layout node, as in desktop Slicer."""

    def __init__(self, scene):
        self._scene = scene
        self._before: int | None = None

    @property
    def available(self) -> bool:
        return self._layout() is not None

    @property
    def shown(self) -> bool:
        """Whether our two views are on screen: a person may have chosen another layout since."""
        layout = self._layout()
        return self._before is not None and layout is not None and layout.GetViewArrangement() == LAYOUT

    def show(self, volume_node, left, right, opacity: float, at=None) -> bool:
        """The volume twice, with the map `left` and the map `right` over it; False where there is no layout.

        at: (R, A, S) in mm, world, that both views go to when they come.
        """
        layout = self._layout()
        if layout is None:
            return False
        first = not self.shown
        if first:
            self._before = layout.GetViewArrangement()
            xml = '<layout type="horizontal" split="true">' + "".join(
                _VIEW.format(tag=tag, label=label, color=color, group=_GROUP)
                for tag, label, color in ((LEFT, "A", "#6EB04B"), (RIGHT, "B", "#4B8EB0"))) + "</layout>"
            if layout.IsLayoutDescription(LAYOUT):
                layout.SetLayoutDescription(LAYOUT, xml)
            else:
                layout.AddLayoutDescription(LAYOUT, xml)
            layout.SetViewArrangement(LAYOUT)
        for tag, heat in ((LEFT, left), (RIGHT, right)):
            view = self._composite(tag)
            modified = view.StartModify()
            try:
                view.SetBackgroundVolumeID(volume_node.GetID())
                view.SetForegroundVolumeID(heat.GetID())
                view.SetForegroundOpacity(opacity)
                view.SetCompositing(view.Alpha)
                view.SetLinkedControl(True)
                view.SetHotLinkedControl(True)
            finally:
                view.EndModify(modified)
            node = slice_of(self._scene, view)
            if node is not None:
                node.SetSaveWithScene(False)
                node.SetViewGroup(_GROUP)
                if first:
                    _fit(node, volume_node, at)
        return True

    def set_opacity(self, opacity: float) -> None:
        if self.shown:
            for tag in (LEFT, RIGHT):
                self._composite(tag).SetForegroundOpacity(opacity)

    def hide(self) -> None:
        """The layout of before, unless the person has chosen another one. Safe to call twice."""
        layout, shown = self._layout(), self.shown
        before, self._before = self._before, None
        if before is None:
            return
        for n in range(self._scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            view = self._scene.GetNthNodeByClass(n, "vtkMRMLSliceCompositeNode")
            if view.GetLayoutName() in (LEFT, RIGHT):
                view.SetBackgroundVolumeID(None)
                view.SetForegroundVolumeID(None)
        if shown:
            layout.SetViewArrangement(before)

    def forget(self) -> None:
        """The scene was emptied."""
        self._before = None

    def _composite(self, tag: str):
        """The view's node, which its slice logic makes; made here where that has not happened yet."""
        scene = self._scene
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            view = scene.GetNthNodeByClass(n, "vtkMRMLSliceCompositeNode")
            if view.GetLayoutName() == tag:
                view.SetSaveWithScene(False)
                return view
        view = scene.CreateNodeByClass("vtkMRMLSliceCompositeNode")
        view.UnRegister(None)
        view.SetSingletonTag(tag)
        view.SetLayoutName(tag)
        view.SetSaveWithScene(False)
        return scene.AddNode(view)

    def _layout(self):
        return self._scene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def _fit(slice_node, volume_node, at) -> None:
    """The whole volume in the view's plane, and the plane through `at`."""
    bounds = [0.0] * 6
    volume_node.GetRASBounds(bounds)
    wide, high = bounds[1] - bounds[0], bounds[3] - bounds[2]
    columns, rows = max(1, slice_node.GetDimensions()[0]), max(1, slice_node.GetDimensions()[1])
    pixel = 1.05 * max(wide / columns, high / rows)
    slice_node.SetFieldOfView(pixel * columns, pixel * rows, slice_node.GetFieldOfView()[2])
    slice_node.SetXYZOrigin(0, 0, 0)
    center = [(bounds[2 * n] + bounds[2 * n + 1]) / 2 for n in range(3)]
    if at is not None:
        center[2] = float(at[2])
    slice_node.JumpSliceByCentering(*center)
