"""The slice that a person looks at, as points in a volume: for pictures that are drawn without a view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry.volume import Volume
from .views import composites, slice_of
from .volumes import lattice_of, matrix_to_numpy, volume_ras_to_world, volume_view, world_to_volume_ras


@dataclass(frozen=True, eq=False)
class Plane:
    """points: (rows, columns, 3) in the volume's own RAS, row 0 at the top as a view shows it; pixels are square.

    world_to_pixel: (4, 4), world mm to (column, row, distance from the plane in mm).
    """

    points: np.ndarray
    world_to_pixel: np.ndarray

    def mark(self, world) -> tuple[float, float]:
        """(row, column) of a world point, projected onto the plane."""
        column, row, _off, _one = self.world_to_pixel @ [*world, 1.0]
        return float(row), float(column)


def shown_plane(scene, volume_node, through=None, size: int = 128) -> Plane:
    """The slice of the first view that has the volume as background; an axial one `through` a point where none has.

    through: (R, A, S) in mm, world; the volume's middle where None. size: pixels along the longer side; the whole
    volume is in it. Any parent transform of the volume is followed. Raises InputError where the volume is unusable.
    """
    shape, matrix = lattice_of(volume_node)
    corners = np.array([[i, j, k, 1.0] for i in (-0.5, shape[0] - 0.5) for j in (-0.5, shape[1] - 0.5)
                        for k in (-0.5, shape[2] - 0.5)]) @ matrix.T
    corners = volume_ras_to_world(volume_node, corners[:, :3])
    axes, origin = np.diag([-1.0, 1.0, 1.0]), corners.mean(axis=0)
    if through is not None:
        origin[2] = float(through[2])
    for view in composites(scene):
        node = slice_of(scene, view) if view.GetBackgroundVolumeID() == volume_node.GetID() else None
        if node is not None:
            turn = matrix_to_numpy(node.GetSliceToRAS())
            axes = turn[:3, :3] / np.linalg.norm(turn[:3, :3], axis=0)
            origin = turn[:3, 3]
            break
    flat = (corners - origin) @ axes            # along the view's right, up and depth
    low, high = flat[:, :2].min(axis=0), flat[:, :2].max(axis=0)
    step = float((high - low).max()) / size
    columns, rows = (max(1, int(np.ceil(extent / step))) for extent in high - low)
    across = low[0] + (np.arange(columns) + 0.5) * step
    up = high[1] - (np.arange(rows) + 0.5) * step
    world = origin + across[None, :, None] * axes[:, 0] + up[:, None, None] * axes[:, 1]
    to_world = np.eye(4)
    to_world[:3, 0], to_world[:3, 1], to_world[:3, 2] = axes[:, 0] * step, -axes[:, 1] * step, axes[:, 2]
    to_world[:3, 3] = world[0, 0]
    points = world_to_volume_ras(volume_node, world.reshape(-1, 3)).reshape(world.shape)
    return Plane(points, np.linalg.inv(to_world))


def plane_stamp(scene, volume_node) -> tuple:
    """Another one whenever `shown_plane` would be another slice."""
    for view in composites(scene):
        node = slice_of(scene, view) if view.GetBackgroundVolumeID() == volume_node.GetID() else None
        if node is not None:
            return (node.GetID(), matrix_to_numpy(node.GetSliceToRAS()).tobytes())
    return ()


def gray_of(volume_node, points: np.ndarray) -> np.ndarray:
    """A volume at points (…, 3) in its own RAS, 0 to 1 in the window that the views show it with; black outside."""
    display = volume_node.GetDisplayNode()
    values = sample(volume_view(volume_node), points, np.nan)
    if display is not None:
        low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    else:
        low, high = -160.0, 240.0
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-6), 0, 1))


def sample(volume: Volume, points: np.ndarray, fill: float) -> np.ndarray:
    """Values of a volume at points (…, 3) in its own RAS, linear between voxel centers, `fill` outside; float32.

    Half a voxel around the outermost centers counts as inside.
    """
    from scipy.ndimage import map_coordinates

    matrix = np.linalg.inv(volume.ijk_to_ras)
    index = np.moveaxis(points @ matrix[:3, :3].T + matrix[:3, 3], -1, 0)
    ends = np.array(volume.shape, float).reshape(3, *[1] * (index.ndim - 1))
    outside = ((index < -0.5) | (index > ends - 0.5)).any(axis=0)
    values = map_coordinates(volume.array, np.clip(index, 0, ends - 1), output=np.float32, order=1, mode="nearest")
    values[outside] = fill
    return values
