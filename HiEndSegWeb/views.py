"""The one file that knows trame-slicer: scene, views, layouts, and the tools that correct a segmentation.

trame-slicer moves its parts between releases, so it is pinned exactly and used nowhere else.
"""

from __future__ import annotations

from typing import Any

import slicer
from trame_slicer import module as trame_slicer_module
from trame_slicer.app.ui import create_vertical_slice_view_gutter_ui, create_vertical_view_gutter_ui
from trame_slicer.core import LayoutManager, SlicerApp
from trame_slicer.rca_view import register_rca_factories
from trame_slicer.segmentation import (
    SegmentationEffectErase,
    SegmentationEffectNoTool,
    SegmentationEffectPaint,
    SegmentationEffectScissors,
)
from undo_stack import UndoStack

#: Layouts offered, by the name trame-slicer gives them, with ours.
LAYOUTS = {"Axial Primary": "Axial large", "Quad View": "Four views", "Axial Only": "Axial only"}
TOOLS = {"none": SegmentationEffectNoTool, "paint": SegmentationEffectPaint, "erase": SegmentationEffectErase,
         "scissors": SegmentationEffectScissors}
#: Steps of correction that can be taken back.
UNDO_STEPS = 10


class Views:
    """A scene with views. server: the trame server that shows them.

    The order in here is trame-slicer's: views exist before an editing tool is chosen, and layouts before the page.
    """

    def __init__(self, server: Any):
        server.enable_module(trame_slicer_module)
        self.app = SlicerApp()
        self.scene = self.app.scene
        slicer.mrmlScene = self.scene                       # what `slicer.util` looks at
        register_rca_factories(self.app.view_manager, server, slice_view_ui_f=create_vertical_slice_view_gutter_ui,
                               three_d_view_ui_f=create_vertical_view_gutter_ui)
        self.layouts = LayoutManager(self.scene, self.app.view_manager, server)
        self.layouts.register_layout_dict(LayoutManager.default_grid_configuration())
        self.layouts.set_layout("Axial Primary")
        self.undo_stack = UndoStack(undo_limit=UNDO_STEPS)
        self.app.segmentation_editor.set_undo_stack(self.undo_stack)

    # ------------------------------------------------------------------------------------------ looking

    def show_volume(self, node: Any) -> None:
        """Background of all slice views, fitted. Not `show_volume`, which switches volume rendering on as well."""
        self.app.display_manager.show_volume_in_slice_background(node)
        for view in self.slice_views():
            view.fit_view_to_content()

    def slice_views(self) -> list:
        return self.app.view_manager.get_slice_views()

    def set_layout(self, name: str) -> None:
        if name in LAYOUTS:
            self.layouts.set_layout(name)

    def step(self, slices: int, view: int = 0) -> None:
        """Move the axial (0), coronal or sagittal view by a number of slices."""
        views = self.slice_views()
        if view < len(views):
            chosen = views[view]
            low, high = chosen.get_slice_range()
            value = chosen.get_slice_value() + slices * chosen.get_slice_step()
            chosen.set_slice_value(min(max(value, low), high))

    def toggle(self, segmentation_id: str | None) -> None:
        """Show or hide a segmentation."""
        node = self.scene.GetNodeByID(segmentation_id) if segmentation_id else None
        if node is not None and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(not node.GetDisplayNode().GetVisibility())

    def render(self) -> None:
        for view in self.app.view_manager.get_views():
            view.schedule_render()

    def fit_3d(self) -> None:
        for view in self.app.view_manager.get_threed_views():
            view.reset_view()

    # ------------------------------------------------------------------------------------------ correcting

    def edit(self, segmentation: Any, volume: Any) -> None:
        """Make this the segmentation that the tools change."""
        self.app.segmentation_editor.set_active_segmentation(segmentation, volume)

    def edited(self) -> Any:
        """The segmentation node under the tools, or None."""
        return self.app.segmentation_editor.active_segmentation_node

    def set_segment(self, id_: str) -> None:
        self.app.segmentation_editor.set_active_segment_id(id_)

    def segment(self) -> str:
        return self.app.segmentation_editor.get_active_segment_id() or ""

    def set_tool(self, name: str) -> None:
        """"none", "paint", "erase" or "scissors"."""
        self.app.segmentation_editor.set_active_effect_type(TOOLS[name])

    def tool(self) -> str:
        active = self.app.segmentation_editor.active_effect_name
        return next((name for name, effect in TOOLS.items() if effect.get_effect_name() == active), "none")

    def stop_editing(self) -> None:
        self.app.segmentation_editor.deactivate_effect()

    def undo(self) -> None:
        if self.undo_stack.can_undo():
            self.undo_stack.undo()

    def redo(self) -> None:
        if self.undo_stack.can_redo():
            self.undo_stack.redo()

    def save_scene(self, path: str) -> bool:
        """The scene as .mrb."""
        return bool(self.app.io_manager.save_scene(path))

    @staticmethod
    def save_segmentation(node: Any, path: str) -> bool:
        """A segmentation as .seg.nrrd, names, colors and terminology with it."""
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(path)
        storage.SetUseCompression(True)
        return bool(storage.WriteData(node))


def ct_window(node: Any, level: float = 40.0, window: float = 400.0) -> None:
    """The soft-tissue window of a CT, HU."""
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevel(window, level)
