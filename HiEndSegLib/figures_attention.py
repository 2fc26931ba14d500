"""The paper's attention figure (arXiv 2502.08347): the query as a red box, and under a jet heat map what it looks at.

With single heads: a row a layer, and in it the mean and every head, in one plane through the query. With means alone: a
row a plane (axial, coronal, sagittal), a column a layer. Every map is scaled between its own extremes, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import OptionError, OutputError
from .figures import _BACKGROUND, _DIM, _DPI, _ENDS, _NAMES, _TEXT, _VIEWS, _halo, _window
from .geometry.files import atomic_target
from .geometry.resample import to_ras_axes
from .geometry.volume import Volume, check_volume
from .operations.attend_result import AttentionMap, AttentionResult, box_corners, on_lattice, scaled

_OPACITY = 0.5
_EDGE = 1.75                # inches that a panel is fitted into, at most
_WIDEST = 24.0              # inches of the whole picture
_RED = "#ff3030"


@dataclass(frozen=True)
class Plane:
    """A plane of the volume through the query, as it is looked at: row 0 at the top, column 0 at the left.

    lattice: one voxel thick, RAS+ axes, cut to the window. pixels: (rows, columns). pixel_mm: (height, width).
    box: (left, top, width, height) of the query in mm from the picture's corner, None where the query is no place.
    cross: (x, y) of the point in mm. letters: (left, right, top, bottom).
    """

    name: str
    lattice: Volume
    pixels: np.ndarray
    pixel_mm: tuple[float, float]
    box: tuple[float, float, float, float] | None
    cross: tuple[float, float]
    letters: tuple[str, str, str, str]

    def heat(self, one: AttentionMap) -> np.ndarray:
        """A map on the pixels, 0 to 1 between its own extremes within the whole window."""
        cells = Volume(scaled(one.weights, "unit"), one.ijk_to_ras)
        return _looked_at(on_lattice(cells, self.lattice).array, self.name)


def attention_figure(volume: Volume, result: AttentionResult, path, *, plane: str = "axial", title: str | None = None,
                     window: tuple[float, float] | None = (400, 40)) -> None:
    """Write the figure of a result as PNG, whole or not at all.

    volume: the one that was looked at. plane: which plane single heads are shown in. window: width and level of the
    volume's gray values (HU), None for the 1st to the 99th percentile.
    Raises InputError, OptionError (no such plane) and OutputError (unwritable, no .png, no matplotlib).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError("Pictures need matplotlib, which is not installed; run: pip install matplotlib.") from error
    if plane not in _NAMES:
        raise OptionError(f"There is no plane '{plane}'; choose {', '.join(_NAMES)}.")
    if Path(path).suffix.lower() != ".png":
        raise OutputError(f"The figure is a PNG picture, and {Path(path).name} has another extension; call it .png.")
    volume = check_volume(volume)
    low, high = _window(volume.array, window)
    rows = _rows(volume, result, plane)
    columns = max(len(maps) for _, maps in rows) + 1
    edge = min(_EDGE, _WIDEST / columns)
    pad, top, left = 0.08, 0.65 if title else 0.32, 0.55
    width = max(left + columns * (edge + pad) + pad, 6.5)
    words = _footer_lines(result, width)
    bottom = 0.2 + 0.14 * max(3, len(words))
    height = top + len(rows) * (edge + pad + 0.16) + bottom
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    for number, (cut, maps) in enumerate(rows):
        y = height - top - (number + 1) * (edge + pad + 0.16) + pad
        for column, one in enumerate([None, *maps]):
            x = left + column * (edge + pad)
            axes = figure.add_axes((x / width, y / height, edge / width, edge / height))
            _panel(axes, cut, one, low, high)
            axes.set_title(_head_title(result, one), color=_TEXT, fontsize=7, pad=2)
        label = cut.name if not _by_head(result) else _layer_title(result, maps[0].layer)
        figure.text(0.16 / width, (y + edge / 2) / height, label, rotation=90, ha="center", va="center", color=_TEXT,
                    fontsize=8)
    if title:
        figure.text(0.5, 1 - 0.16 / height, title, ha="center", va="top", color=_TEXT, fontsize=12, parse_math=False)
    _footer(figure, words, width, height)
    with atomic_target(path, ".png") as temporary:
        figure.savefig(temporary, format="png", facecolor=_BACKGROUND, metadata={"Software": "HiEndSeg"})


def plane_through(volume: Volume, result: AttentionResult, name: str) -> Plane:
    """The "axial", "coronal" or "sagittal" plane through the query, along the volume's own axes, cut to the window."""
    ras = to_ras_axes(volume)
    axis, down, across = _VIEWS[name]
    shape = np.asarray(ras.shape)
    to_index = ras.ras_to_ijk

    def indices(points: np.ndarray) -> np.ndarray:
        return (to_index @ np.c_[points, np.ones(len(points))].T)[:3].T

    point = np.clip(np.round(indices(np.array([result.point]))[0]).astype(int), 0, shape - 1)
    seen = indices(_corners(result))
    first = np.clip(np.ceil(seen.min(0) - 1e-6).astype(int), 0, shape - 1)
    last = np.clip(np.floor(seen.max(0) + 1e-6).astype(int) + 1, first + 1, shape)
    first[axis], last[axis] = point[axis], point[axis] + 1
    matrix = np.array(ras.ijk_to_ras)
    matrix[:3, 3] = (matrix @ [*first, 1.0])[:3]
    lattice = Volume(ras.array[tuple(slice(a, b) for a, b in zip(first, last))], matrix)
    spacing = ras.spacing
    size = last - first

    def on_picture(index: np.ndarray, along: int) -> float:
        return float((size[along] - 0.5 - (index[along] - first[along])) * spacing[along])      # both axes run backward

    box = None
    corners = indices(result.query_corners)
    if len(corners):
        low, high = corners.min(0), corners.max(0)
        x, y = on_picture(high, across), on_picture(high, down)
        box = (x, y, float((high - low)[across] * spacing[across]), float((high - low)[down] * spacing[down]))
    exact = indices(np.array([result.point]))[0]
    return Plane(name, lattice, _looked_at(lattice.array, name).astype(np.float32), (spacing[down], spacing[across]),
                 box, (on_picture(exact, across), on_picture(exact, down)),
                 (_ENDS[across][1], _ENDS[across][0], _ENDS[down][1], _ENDS[down][0]))


def _looked_at(array: np.ndarray, name: str) -> np.ndarray:
    """The only plane of a one-voxel-thick array, turned the way it is looked at."""
    axis, down, across = _VIEWS[name]
    plane = np.take(array, 0, axis=axis)
    return (plane.T if down > across else plane)[::-1, ::-1]


def _corners(result: AttentionResult) -> np.ndarray:
    return box_corners(result.window_to_ras, (0.5, 0.5, 0.5), np.asarray(result.window_shape) - 0.5)


def _by_head(result: AttentionResult) -> bool:
    return any(one.head is not None for one in result.maps)


def _rows(volume: Volume, result: AttentionResult, plane: str) -> list[tuple[Plane, list[AttentionMap]]]:
    if not _by_head(result):
        return [(plane_through(volume, result, name), list(result.maps)) for name in _NAMES]
    cut = plane_through(volume, result, plane)
    layers = list(dict.fromkeys(one.layer for one in result.maps))
    return [(cut, [one for one in result.maps if one.layer == layer]) for layer in layers]


def _layer_title(result: AttentionResult, layer: int) -> str:
    return {"head": f"head layer {layer}", "sensitivity": "sensitivity", "rollout": f"rollout from block {layer}"}.get(
        result.kind, f"block {layer}")


def _head_title(result: AttentionResult, one: AttentionMap | None) -> str:
    if one is None:
        return "query"
    if not _by_head(result):
        return _layer_title(result, one.layer)
    return "mean of heads" if one.head is None else f"head {one.head}"


def _panel(axes, cut: Plane, one: AttentionMap | None, low: float, high: float) -> None:
    from matplotlib.patches import Rectangle

    rows, columns = cut.pixels.shape
    extent = (0, columns * cut.pixel_mm[1], rows * cut.pixel_mm[0], 0)
    axes.set_axis_off()
    axes.imshow(cut.pixels, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear", aspect="equal")
    if one is not None:
        axes.imshow(cut.heat(one), cmap="jet", vmin=0, vmax=1, alpha=_OPACITY, extent=extent, interpolation="bilinear",
                    aspect="equal")
    if cut.box is not None:
        x, y, w, h = cut.box
        axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=_RED, linewidth=1.2))
    else:
        axes.plot(*cut.cross, marker="+", color=_RED, markersize=8)
    axes.set_xlim(0, extent[1])
    axes.set_ylim(extent[2], 0)
    if one is None:
        left, right, top, bottom = cut.letters
        for x, y, letter, across, up in ((0.05, 0.5, left, "left", "center"), (0.95, 0.5, right, "right", "center"),
                                         (0.5, 0.95, top, "center", "top"), (0.5, 0.05, bottom, "center", "bottom")):
            axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=up, color="#ffd75e", fontsize=7,
                      path_effects=_halo())


def _footer_lines(result: AttentionResult, width: float) -> list[str]:
    import textwrap

    text = result.sentences[0] if result.sentences else ""
    text += " Each map is scaled between its own least and most. Blocks and heads are counted from 0."
    return textwrap.wrap(text, max(40, int((width - 1.4) / 0.062)))


def _footer(figure, words: list[str], width: float, height: float) -> None:
    from matplotlib import colormaps

    bar = figure.add_axes((0.16 / width, 0.16 / height, 0.9 / width, 0.09 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=colormaps["jet"], aspect="auto")
    bar.set_axis_off()
    figure.text(0.16 / width, 0.3 / height, "least    most", ha="left", va="bottom", color=_DIM, fontsize=7)
    figure.text(1.2 / width, 0.1 / height, "\n".join(words), ha="left", va="bottom", color=_DIM, fontsize=7,
                parse_math=False)
