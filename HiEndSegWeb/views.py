"""The one file that knows trame-slicer: scene, views, layouts, and the tools that correct a segmentation.

trame-slicer moves its parts between releases, so it is pinned exactly and used nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import slicer
from trame.widgets import html
from trame.widgets import vuetify3 as v3
from trame_slicer import module as trame_slicer_module
from trame_slicer.app.logic import connect_slice_view_slider_to_state
from trame_slicer.core import LayoutManager, SlicerApp
from trame_slicer.rca_view import RemoteViewFactory
from trame_slicer.segmentation import (
    BrushDiameterMode,
    ScissorsEffectFillMode,
    ScissorsEffectRangeMode,
    SegmentationEffectErase,
    SegmentationEffectNoTool,
    SegmentationEffectPaint,
    SegmentationEffectScissors,
)
from trame_slicer.views import NoScheduleRendering, SliceView, ThreeDView, ViewType
from undo_stack import UndoStack
from vtkmodules.util.misc import calldata_type as vtk_calldata_type
from vtkmodules.util.vtkConstants import VTK_OBJECT
from vtkmodules.vtkCommonCore import vtkCommand, vtkObject

#: Layouts offered, by the name trame-slicer gives them, with ours.
LAYOUTS = {"Axial Primary": "Axial large", "Quad View": "Four views", "Axial Only": "Axial only",
           "3D Primary": "3D large"}
TOOLS = {"none": SegmentationEffectNoTool, "paint": SegmentationEffectPaint, "erase": SegmentationEffectErase,
         "scissors": SegmentationEffectScissors}
#: How much wider the large view is than those beside it.
LARGE = ["1.7", "1"]
#: What scissors do with what is drawn around.
CUTS = {"erase": ScissorsEffectFillMode.ERASE_INSIDE, "keep": ScissorsEffectFillMode.ERASE_OUTSIDE,
        "fill": ScissorsEffectFillMode.FILL_INSIDE}
#: Steps of correction that can be taken back.
UNDO_STEPS = 10
#: Pictures a second, also where the mouse is elsewhere (keys), and JPEG quality while something moves.
FPS, QUALITY = 30.0, 60


class Views:
    """A scene with views. server: the trame server that shows them.

    The order in here is trame-slicer's: views exist before an editing tool is chosen, and layouts before the page.
    """

    def __init__(self, server: Any):
        server.enable_module(trame_slicer_module)
        self.app = SlicerApp()
        self.scene = self.app.scene
        slicer.mrmlScene = self.scene                       # what `slicer.util` looks at
        for view, kind, around in ((SliceView, ViewType.SLICE_VIEW, _around_slice),
                                   (ThreeDView, ViewType.THREE_D_VIEW, _around_3d)):
            # Nothing is drawn while a view is made: by default each of its hundred changes would be.
            self.app.view_manager.register_factory(RemoteViewFactory(
                server, partial(view, scheduled_render_strategy=NoScheduleRendering()), kind, target_fps=FPS,
                blur_fps=FPS, interactive_quality=QUALITY, populate_view_ui_f=around))
        self.layouts = LayoutManager(self.scene, self.app.view_manager, server)
        grids = LayoutManager.default_grid_configuration()
        for name in ("Axial Primary", "3D Primary"):
            grids[name].flex_sizes = LARGE
        with _quiet():                                      # about an event that VTK will not send some day
            self.layouts.register_layout_dict(grids)
            self._fit_when_sized()
        self._spare()
        self.layouts.set_layout("Axial Primary")
        self._drag_window(True)
        self.undo_stack = UndoStack(undo_limit=UNDO_STEPS)
        self.app.segmentation_editor.set_undo_stack(self.undo_stack)

    def _fit_when_sized(self) -> None:
        """A view is as large as the page makes it, which is not known before; fit it then, once."""
        waiting = set(self.slice_views())

        def sized(view: SliceView, *_: Any) -> None:
            if view in waiting:
                waiting.discard(view)
                view.fit_view_to_content()

        for view in self.slice_views():
            view.interactor().AddObserver(vtkCommand.WindowResizeEvent, partial(sized, view))

    def _spare(self) -> None:
        """Leave out what costs most where the processor draws."""
        for view in self.app.view_manager.get_views():
            view.render_window().SetMultiSamples(0)
        for view in self.app.view_manager.get_threed_views():
            view.renderer().UseFXAAOn()                     # smooth edges, after the fact
        for view in self.slice_views():
            # Models cut by slices, of which there are none here but the slices themselves: with every step of one
            # slice, all the others were drawn and sent anew. Deleting those models does not last.
            view.get_displayable_manager_by_class(slicer.vtkMRMLModelSliceDisplayableManager).SetMRMLScene(None)

    def on_removed(self, tell: Callable[[str], None]) -> None:
        """tell(node id) for every node that leaves the scene."""
        @vtk_calldata_type(VTK_OBJECT)
        def removed(_scene: Any, _event: Any, node: Any) -> None:
            if node is not None:
                tell(node.GetID())

        self._removed = removed                             # VTK does not keep it
        self.scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, removed)

    # ------------------------------------------------------------------------------------------ looking

    def show_volume(self, node: Any) -> None:
        """Background of all slice views, fitted; None clears them."""
        # Not the display manager's `show_volume`, which switches volume rendering on as well.
        self.app.display_manager.show_volume_in_slice_background(node)
        for view in self.slice_views():
            view.fit_view_to_content()

    def slice_views(self) -> list:
        return self.app.view_manager.get_slice_views()

    def set_layout(self, name: str) -> None:
        if name in LAYOUTS:
            self.layouts.set_layout(name)

    def step(self, slices: int, orientation: str = "axial") -> None:
        """Move the axial, coronal or sagittal view by a number of slices."""
        for view in self.slice_views():
            if view.get_orientation().lower() == orientation:
                low, high = view.get_slice_range()
                value = view.get_slice_value() + slices * view.get_slice_step()
                view.set_slice_value(min(max(value, low), high))

    def fit(self) -> None:
        for view in self.app.view_manager.get_views():
            view.reset_view()

    def toggle(self, segmentation_id: str | None) -> None:
        """Show or hide a segmentation."""
        node = self.scene.GetNodeByID(segmentation_id) if segmentation_id else None
        if node is not None and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(not node.GetDisplayNode().GetVisibility())

    def render(self) -> None:
        for view in self.app.view_manager.get_views():
            view.schedule_render()

    def keep_3d(self, on: bool) -> None:
        """Surfaces of the edited segmentation, kept up with every correction; without this the editor drops them."""
        self.app.segmentation_editor.show_3d(on)

    def fit_3d(self) -> None:
        for view in self.app.view_manager.get_threed_views():
            view.reset_view()

    # ------------------------------------------------------------------------------------------ correcting

    def edit(self, segmentation: Any, volume: Any, surface: bool) -> None:
        """Make this the segmentation that the tools change. surface: whether it is shown in 3D."""
        editor = self.app.segmentation_editor
        if self.edited() is not segmentation:
            editor.show_3d(False)                           # of the former one
        editor.set_active_segmentation(segmentation, volume)
        editor.show_3d(surface)

    def forget_steps(self) -> None:
        """Somebody else changed the segmentation: what the tools did before cannot be taken back any more."""
        self.undo_stack.clear()

    def edited(self) -> Any:
        """The segmentation node under the tools, or None."""
        return self.app.segmentation_editor.active_segmentation_node

    def set_segment(self, id_: str) -> None:
        self.app.segmentation_editor.set_active_segment_id(id_)

    def add_segment(self, name: str) -> str:
        """A new, empty structure, chosen for the tools; its id."""
        return self.app.segmentation_editor.add_empty_segment(segment_name=name)

    def segment(self) -> str:
        return self.app.segmentation_editor.get_active_segment_id() or ""

    def set_tool(self, name: str) -> None:
        """"none", "paint", "erase" or "scissors"."""
        self.app.segmentation_editor.set_active_effect_type(TOOLS[name])
        self._drag_window(name == "none")

    def _drag_window(self, on: bool) -> None:
        """Whether dragging with the left button changes brightness and contrast, as it does without a tool."""
        mouse = self.app.markups_logic.interaction_node
        mouse.SetCurrentInteractionMode(mouse.AdjustWindowLevel if on else mouse.ViewTransform)

    def tool(self) -> str:
        active = self.app.segmentation_editor.active_effect_name
        return next((name for name, effect in TOOLS.items() if effect.get_effect_name() == active), "none")

    def end_editing(self) -> None:
        """Let go of the segmentation."""
        self.app.segmentation_editor.show_3d(False)
        self.app.segmentation_editor.clear()

    def set_brush(self, millimeters: float, sphere: bool) -> None:
        """Size of paint and erase, and whether they reach into the neighboring slices."""
        for kind in (SegmentationEffectPaint, SegmentationEffectErase):
            effect = self.app.segmentation_editor.get_effect(kind)
            effect.set_brush_diameter(millimeters, BrushDiameterMode.Absolute)
            effect.set_use_sphere_brush(sphere)

    def set_scissors(self, cut: str, one_slice: bool) -> None:
        """cut: "erase" or "fill" what is drawn around, or "keep" only that. one_slice: else through all of them."""
        scissors = self.app.segmentation_editor.get_effect(SegmentationEffectScissors)
        scissors.set_fill_mode(CUTS[cut])
        scissors.set_symmetric_distance(0.0)                # no more than the slice itself
        scissors.set_range_mode(ScissorsEffectRangeMode.SYMMETRIC if one_slice else ScissorsEffectRangeMode.UNLIMITED)

    def undo(self) -> None:
        if self.undo_stack.can_undo():
            self.undo_stack.undo()

    def redo(self) -> None:
        if self.undo_stack.can_redo():
            self.undo_stack.redo()

    def save_scene(self, path: str) -> bool:
        """The scene as .mrb. Notes about where it was written, which nobody keeps, do not stay in the scene."""
        before = {node.GetID() for node in self._storages()}
        try:
            return bool(self.app.io_manager.save_scene(path))
        finally:
            for node in self._storages():
                if node.GetID() not in before:
                    self.scene.RemoveNode(node)

    def _storages(self) -> list:
        name = "vtkMRMLStorageNode"
        return [self.scene.GetNthNodeByClass(n, name) for n in range(self.scene.GetNumberOfNodesByClass(name))]

    @staticmethod
    def save_segmentation(node: Any, path: str) -> bool:
        """A segmentation as .seg.nrrd, names, colors and terminology with it."""
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(path)
        storage.SetUseCompression(True)
        return bool(storage.WriteData(node))


@contextmanager
def _quiet() -> Iterator[None]:
    shown = vtkObject.GetGlobalWarningDisplay()
    vtkObject.SetGlobalWarningDisplay(0)
    try:
        yield
    finally:
        vtkObject.SetGlobalWarningDisplay(shown)


def _around_3d(_server: Any, _view_id: str, view: Any, title: str = "3D") -> None:
    """What stands in a view, over its picture."""
    with html.Div(classes="hes-corner", id=f"view-{title.lower()}"):
        v3.VBtn(icon="mdi-fit-to-page-outline", size="x-small", variant="text", color="white", click=view.reset_view,
                title=f"Fit the {title} view", raw_attrs=[f'aria-label="Fit the {title} view"'])
        html.Span(title, classes="hes-corner-title")


def _around_slice(server: Any, view_id: str, view: Any) -> None:
    title = view.get_orientation()
    _around_3d(server, view_id, view, title)
    slider = connect_slice_view_slider_to_state(server, view)
    with html.Div(classes="hes-slider"):
        v3.VSlider(v_model=(slider.name.value,), min=(slider.name.min_value,), max=(slider.name.max_value,),
                   step=(slider.name.step,), theme="dark", hide_details=True, density="compact",
                   raw_attrs=[f'aria-label="{title} slice"'])
        html.Span(f"{{{{ {slider.name.value}.toFixed(0) }}}} mm", classes="hes-slider-text")


def set_window(node: Any, window: float, level: float) -> None:
    """Brightness and contrast of a volume, in its own unit."""
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevel(window, level)
