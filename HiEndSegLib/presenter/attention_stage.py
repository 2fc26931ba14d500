"""What the Attention section has in the scene: the point, the maps, the views they are in. Ids only.

Everything is given back by `give_back` (for a while), `clear` (the map is hidden) and `remove_all` (for good).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import HiEndSegError, InputError
from . import wording

_ = wording.translator(__name__)


class Stage:
    """point_changed: called whenever the point was set or dragged."""

    def __init__(self, scene: Any, point_changed: Callable[[], None]):
        from ..bridge.cloud import Glass
        from ..bridge.pairs import LEFT, RIGHT, SideBySide
        from ..bridge.points import QueryPoint
        from ..bridge.views import Foreground

        self._scene = scene
        self.point = QueryPoint(scene, point_changed, _("Attention query"))
        self._front = Foreground(scene, skip=(LEFT, RIGHT))
        self.pair = SideBySide(scene)
        self._glass = Glass(scene)
        self.graphics = False                   # whether a graphics card draws the 3D views
        self.heat_id: str | None = None
        self.other_id: str | None = None
        self._surface_of: tuple[str, bool] | None = None    # segmentation, and whether its surface was on before
        self._extra: Any = None
        self.top = 1.0                          # value of the last color

    @property
    def ids(self) -> tuple[str | None, ...]:
        return self.heat_id, self.other_id, self.point.node_id

    # ------------------------------------------------------------------------------------------ the volume

    def problem(self, volume_id: str | None) -> str:
        """Why a volume cannot be looked into, in a sentence; "" where it can."""
        from ..bridge.volumes import lattice_of

        try:
            lattice_of(self._node(volume_id))
            return ""
        except HiEndSegError as error:
            return str(error)

    def stamp(self, volume_id: str) -> tuple:
        """Another one whenever voxels or matrix of the volume are others."""
        from ..bridge.volumes import lattice_of

        node = self._volume(volume_id)
        _shape, matrix = lattice_of(node)
        return volume_id, node.GetImageData().GetMTime(), matrix.tobytes()

    def read(self, volume_id: str) -> Any:
        """The voxels, copied."""
        from ..bridge.volumes import volume_from_node

        return volume_from_node(self._volume(volume_id))

    def in_volume(self, volume_id: str, world: Any) -> tuple[float, float, float]:
        """A world point in the volume's own RAS, mm."""
        from ..bridge.volumes import world_to_volume_ras

        return tuple(float(value) for value in world_to_volume_ras(self._volume(volume_id), world))

    def middle(self, volume_id: str) -> tuple[float, float, float]:
        """Where a question may start: the crosshair if it lies in the volume, else the middle of the shown slice."""
        from ..bridge.planes import shown_plane
        from ..bridge.points import inside
        from ..bridge.volumes import volume_ras_to_world

        volume, crosshair = self._volume(volume_id), self._scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None and any(crosshair.GetCrosshairRAS()) and inside(volume, crosshair.GetCrosshairRAS()):
            return tuple(crosshair.GetCrosshairRAS())
        points = shown_plane(self._scene, volume).points
        return tuple(volume_ras_to_world(volume, points[points.shape[0] // 2, points.shape[1] // 2]))

    def structures(self, segmentation_id: str | None) -> list[tuple[str, str, tuple[int, int, int]]]:
        """(id, name, color) of a segmentation's segments."""
        node = self._node(segmentation_id)
        if node is None or node.GetSegmentation() is None:
            return []
        segmentation, rows = node.GetSegmentation(), []
        for number in range(segmentation.GetNumberOfSegments()):
            id_ = segmentation.GetNthSegmentID(number)
            segment = segmentation.GetSegment(id_)
            rows.append((id_, segment.GetName(), tuple(int(round(255 * c)) for c in segment.GetColor())))
        return rows

    def segment_stamp(self, segmentation_id: str | None, structure: str) -> int:
        """Another one whenever the segment was drawn or moved."""
        node = self._node(segmentation_id)
        segment = node.GetSegmentation().GetSegment(structure) if node is not None and node.GetSegmentation() else None
        if segment is None:
            return 0
        transform = node.GetParentTransformNode()
        drawn = segment.GetRepresentation(node.GetSegmentation().GetSourceRepresentationName())
        parts = [part for part in (drawn, transform) if part is not None]
        return max((part.GetMTime() for part in parts), default=0)

    def mask(self, segmentation_id: str | None, structure: str, volume_id: str) -> Any:
        """A segment's voxels on the volume's lattice, cropped. InputError: it is gone or empty."""
        from ..bridge.layers import read_segments
        from ..bridge.volumes import lattice_of
        from ..geometry.volume import Volume
        from .attention_maps import crop

        node, volume = self._node(segmentation_id), self._volume(volume_id)
        if node is None:
            raise InputError(_("The segmentation is no longer in the scene; segment the volume again."))
        array = read_segments(node, volume, {structure: 1}).array
        mask = crop(Volume(array, lattice_of(volume)[1], structure))
        if mask is None:
            raise InputError(_("The structure has no voxels in this volume; choose another one."))
        return mask

    # ------------------------------------------------------------------------------------------ the maps

    def show_map(self, volume_id: str, heat: Any, *, top: float, floor: float, smooth: bool, opacity: float,
                 legend: str) -> int:
        """The map in front of the volume; in how many views."""
        volume, self.top = self._volume(volume_id), top
        node = self._fill("heat_id", volume, heat, _("Attention"), top, floor, smooth)
        self._recolor_cloud(node, top, floor)
        return self.front(volume_id, node.GetID(), opacity, legend)

    def new_views(self, volume_id: str | None) -> bool:
        """Whether a view of the volume came since the map was put into them."""
        return self._front.shown and self._front.misses(self._node(volume_id))

    def show_other(self, volume_id: str, heat: Any, *, top: float, floor: float, smooth: bool) -> None:
        """The map that is compared with; it is in no view but that of a pair."""
        self._fill("other_id", self._volume(volume_id), heat, _("Attention, compared with"), top, floor, smooth)

    def drop_other(self) -> None:
        from ..bridge.heat import drop_heat

        self.pair.hide()
        other, self.other_id = self.other_id, None
        drop_heat(self._scene, other)

    def front(self, volume_id: str, node_id: str, opacity: float, legend: str) -> int:
        """Any of our maps in front of the volume, with its color bar."""
        from ..bridge.heat import show_legend

        node = self._node(node_id)
        count = self._front.show(node, self._volume(volume_id), opacity)
        show_legend(node, True, legend)
        return count

    def show_extra(self, volume_id: str, heat: Any, node_id: str | None, title: str, *, opacity: float, floor: float,
                   legend: str) -> str:
        """A map of another kind (0 to 1) in the place of the attention; its id."""
        from ..bridge.heat import heat_node, style_heat, update_heat

        volume, node = self._volume(volume_id), self._node(node_id)
        if node is None:
            node = heat_node(volume, heat, title)
        elif self._extra is not heat:
            update_heat(node, heat, volume)
        self._extra = heat
        style_heat(node, 1.0, floor, True)
        self.front(volume_id, node.GetID(), opacity, legend)
        return node.GetID()

    def hide_extra(self) -> None:
        """Views as they were; the attention map is put back by the next `show_map`."""
        self._front.hide()

    def drop_extra(self, node_id: str | None) -> None:
        from ..bridge.heat import drop_heat

        self._extra = None
        drop_heat(self._scene, node_id)

    def show_pair(self, volume_id: str, opacity: float) -> bool:
        left, right = self._node(self.heat_id), self._node(self.other_id)
        if left is None or right is None:
            return False
        return self.pair.show(self._volume(volume_id), left, right, opacity, self.point.position)

    def keep(self, volume_id: str, name: str, description: str) -> str:
        """The map as a volume of the person's; its id."""
        from ..bridge.heat import keep_heat

        return keep_heat(self._node(self.heat_id), self._volume(volume_id), name, description).GetID()

    # ------------------------------------------------------------------------------------------ 3D

    @property
    def surface(self) -> bool:
        from ..bridge.cloud import cloud_of

        node = self._node(self.heat_id)
        return node is not None and cloud_of(node) is not None

    def show_surface(self, on: bool, segmentation_id: str | None, floor: float) -> None:
        """The map as a cloud in the 3D views, with the result's surfaces see-through around it."""
        from ..bridge.cloud import hide_cloud, show_cloud
        from ..bridge.results import show_surface, surface_shown

        node, segmentation = self._node(self.heat_id), self._node(segmentation_id)
        if not on:
            if node is not None:
                hide_cloud(node)
            self._glass.off()
            before, self._surface_of = self._surface_of, None
            former = self._node(before[0]) if before is not None else None
            if former is not None and not before[1]:
                show_surface(former, False)
            return
        if node is None:
            raise InputError(_("There is no map to show in 3D; show one in the slices first."))
        show_cloud(node, self.top, floor)
        if segmentation is not None and self._surface_of is None:
            self._surface_of = (segmentation_id, surface_shown(segmentation))
            if not self._surface_of[1]:
                show_surface(segmentation, True)
            self._glass.on(segmentation)

    def surface_gone(self) -> None:
        """The segmentation is gone."""
        self._surface_of = None
        self._glass.off()

    # ------------------------------------------------------------------------------------------ giving back

    def give_back(self) -> None:
        """Views, layout and mouse as they were; the maps stay, unseen."""
        self.pair.hide()
        self._front.hide()
        self.point.stop_placing()
        self.point.show(False)

    def clear(self) -> None:
        """No map any more."""
        from ..bridge.heat import drop_heat

        self.show_surface(False, None, 0.0)
        self.give_back()
        for name in ("heat_id", "other_id"):
            node_id = getattr(self, name)
            setattr(self, name, None)           # before the scene tells that it goes
            drop_heat(self._scene, node_id)

    def volume_changed(self) -> None:
        """A point in another patient means nothing."""
        self.point.remove()

    def forget(self) -> None:
        """All nodes go."""
        self._front.forget()
        self.pair.forget()
        self.point.forget()
        self.heat_id = self.other_id = self._surface_of = None

    def removed(self, node_id: str) -> bool:
        """A node is gone, by somebody else's doing; whether that was one of our maps."""
        self._front.forget_view(node_id)
        if node_id == self.point.node_id:
            self.point.stop_placing()
            self.point.forget()
            return False
        return node_id in (self.heat_id, self.other_id)

    def remove_all(self, *others: str | None) -> None:
        """For good. others: more maps of ours."""
        from ..bridge.heat import drop_heat

        self.clear()
        self.point.remove()
        for node_id in others:
            drop_heat(self._scene, node_id)

    # ------------------------------------------------------------------------------------------ inside

    def _fill(self, name: str, volume: Any, heat: Any, title: str, top: float, floor: float, smooth: bool) -> Any:
        from ..bridge.heat import heat_node, style_heat, update_heat

        node = self._node(getattr(self, name))
        if node is None:
            node = heat_node(volume, heat, title)
            setattr(self, name, node.GetID())
        else:
            update_heat(node, heat, volume)
        style_heat(node, top, floor, smooth)
        return node

    def _recolor_cloud(self, node: Any, top: float, floor: float) -> None:
        from ..bridge.cloud import cloud_of, show_cloud

        if cloud_of(node) is not None:
            show_cloud(node, top, floor)

    def _node(self, node_id: str | None) -> Any:
        return self._scene.GetNodeByID(node_id) if node_id else None

    def _volume(self, volume_id: str | None) -> Any:
        node = self._node(volume_id)
        if node is None:
            raise InputError(_("The volume is no longer in the scene; choose another one."))
        return node
