"""One picture of a result: an axial, a coronal and a sagittal slice with the structures' outlines and a legend.

Needs matplotlib, which is imported when a picture is asked for; no global state of it is used, so any thread and any
program that draws with its own settings may call this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import InputError, OutputError
from .geometry.files import atomic_target
from .geometry.labels import Label
from .geometry.resample import resample_like, to_ras_axes
from .geometry.volume import Volume, check_volume

_BACKGROUND, _TEXT, _DIM = "#101214", "#e6e6e6", "#80868c"
_FILL = 0.28                # opacity of the fill: light, so that the CT stays readable below it
_BOX = 4.6                  # inches that each slice is fitted into
_SEARCH_VOXELS = 4_000_000  # of the label map are looked at to choose the slices
_NAMES = ("axial", "coronal", "sagittal")
_DPI = 120


@dataclass(frozen=True)
class Slice:
    """A slice as it is looked at: row 0 at the top, column 0 at the left.

    pixels, labels: (rows, columns), labels None without a label map. pixel_mm: (height, width) of a pixel.
    letters: (left, right, top, bottom), where those edges lie in the patient. position_mm: of its plane, along the
    patient axis that it is cut across (R, A or S).
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray | None
    pixel_mm: tuple[float, float]
    letters: tuple[str, str, str, str]
    position_mm: float


# (cut axis, axis down the rows, axis along the columns) of a RAS+ array; both run backwards, so the top is anterior or
# superior and the left is the patient's right, or anterior in the sagittal view
_VIEWS = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))


def slices_figure(volume: Volume, labels: Volume | None, legend: Sequence[Label], path, *, title: str | None = None,
                  window: tuple[float, float] | None = (400, 40)) -> None:
    """Write a PNG of three slices through the structures, in radiological convention (patient's right on the left).

    volume: (I, J, K) grey values in any orientation; an oblique one is cut along its own axes, which are named after
    the closest patient axes. labels: label map on any lattice, or None for the volume alone. The slices are those that
    show the most of the most structures. window: width and level in the volume's units (HU), None for the 1st to the
    99th percentile. Written whole or not at all.
    Raises InputError (not 3D, empty, labels that are not uint8) and OutputError (unwritable, disk full, no matplotlib).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError("Pictures need matplotlib, which is not installed; run: pip install matplotlib.") from error
    volume = check_volume(volume)
    views = [extract_slice(volume, labels, name, index)
             for name, index in zip(_NAMES, choose_slices(volume, labels))]
    present = _present(labels, legend)
    low, high = _window(volume.array, window)

    sizes = [_fit(view) for view in views]
    pad, top = 0.35, 0.75 if title else 0.4
    columns, rows = _legend_grid(present, sum(w for w, _ in sizes) + 4 * pad)
    width = max(sum(w for w, _ in sizes) + 4 * pad, 7.0)
    bottom = 0.75 + 0.183 * rows
    height = top + max(h for _, h in sizes) + bottom
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    left = (width - sum(w for w, _ in sizes) - 2 * pad) / 2
    for view, (w, h) in zip(views, sizes):
        middle = bottom + (height - top - bottom - h) / 2
        _draw(figure.add_axes((left / width, middle / height, w / width, h / height)), view, present, low, high)
        left += w + pad
    shown = set().union(*(np.unique(view.labels) for view in views if view.labels is not None))
    _captions(figure, title, present, shown, columns, (low, high), height)
    with atomic_target(path, ".png") as temporary:
        figure.savefig(temporary, format="png", facecolor=_BACKGROUND, metadata={"Software": "HiEndSeg"})


def choose_slices(volume: Volume, labels: Volume | None) -> tuple[int, int, int]:
    """Indices (axial, coronal, sagittal) into `to_ras_axes(volume)`: where most is seen of most structures.

    Each structure adds the square root of its area over its largest area. Without structures they go through the
    middle of what is denser than air (or brighter than average).
    """
    marks = _on(volume, labels)
    if marks is None or not marks.array.any():
        array = to_ras_axes(volume).array
        body = array > (-500 if array.min() < -500 else array.mean())
        return tuple(_median(body.sum(axis=_VIEWS[name][1:])) for name in _NAMES)
    result = []
    for name in _NAMES:
        axis = _VIEWS[name][0]
        step = max(1, round((marks.array.size / _SEARCH_VOXELS) ** 0.5))
        planes = np.moveaxis(marks.array, axis, 0)[:, ::step, ::step]
        areas = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in planes])[:, 1:].astype(float)
        largest = areas.max(axis=0)
        score = np.sqrt(areas[:, largest > 0] / largest[largest > 0]).sum(axis=1)
        best = np.flatnonzero(score >= score.max() - 1e-9)      # of equal ones the middle
        result.append(int(best[len(best) // 2]))
    return tuple(result)


def extract_slice(volume: Volume, labels: Volume | None, name: str, index: int) -> Slice:
    """The "axial", "coronal" or "sagittal" slice `index` of `to_ras_axes(volume)`, turned the way it is looked at."""
    ras = to_ras_axes(volume)
    axis, down, across = _VIEWS[name]
    marks = _on(volume, labels)

    def cut(array):
        plane = np.take(array, index, axis=axis)
        plane = plane.T if down > across else plane
        return plane[::-1, ::-1]

    centre = (np.array(ras.shape) - 1) / 2
    centre[axis] = index
    return Slice(name, cut(ras.array).astype(np.float32), None if marks is None else cut(marks.array),
                 (ras.spacing[down], ras.spacing[across]),
                 (_ENDS[across][1], _ENDS[across][0], _ENDS[down][1], _ENDS[down][0]),
                 float((ras.ijk_to_ras @ [*centre, 1.0])[axis]))


def _on(volume: Volume, labels: Volume | None) -> Volume | None:
    """The label map in RAS+ axes on the volume's lattice, uint8."""
    if labels is None:
        return None
    if labels.array.dtype != np.uint8:
        raise InputError(f"The label map holds {labels.array.dtype} values; give whole numbers 0 to 255 as uint8.")
    if not labels.same_lattice(volume, 1e-3):
        labels = resample_like(labels, volume, order=0)
    return to_ras_axes(labels)


def _median(weights: np.ndarray) -> int:
    """Index with half of the weight on either side; the middle where there is none."""
    total = np.cumsum(weights)
    return int(np.searchsorted(total, total[-1] / 2)) if total[-1] else len(total) // 2


def _present(labels: Volume | None, legend: Sequence[Label]) -> list[Label]:
    if labels is None:
        return []
    planes = np.moveaxis(labels.array, 2, 0)        # one by one: a count makes 8 bytes of every voxel
    occurring = set(np.flatnonzero(sum(np.bincount(plane.ravel(), minlength=256) for plane in planes)).tolist())
    return [label for label in legend if label.value in occurring]


def _window(array: np.ndarray, window) -> tuple[float, float]:
    if window is not None:
        width, level = window
        return level - width / 2, level + width / 2
    step = max(1, round((array.size / 1_000_000) ** (1 / 3)))
    low, high = (float(x) for x in np.percentile(array[::step, ::step, ::step], (1, 99)))
    return low, high if high > low else low + 1.0


def _fit(view: Slice) -> tuple[float, float]:
    """Inches (width, height) of the slice inside the box, true to its millimetres, and wide enough for its letters."""
    height, width = (n * mm for n, mm in zip(view.pixels.shape, view.pixel_mm))
    scale = _BOX / max(height, width)
    return max(width * scale, 0.9), max(height * scale, 0.9)


def _legend_grid(present: Sequence[Label], width: float) -> tuple[int, int]:
    if not present:
        return 1, 0
    column = 0.55 + 0.078 * max(len(label.name) for label in present)
    columns = min(len(present), max(1, int((width - 0.4) / column)))
    return columns, -(-len(present) // columns)


def _draw(axes, view: Slice, present: Sequence[Label], low: float, high: float) -> None:
    rows, columns = view.pixels.shape
    row_mm, column_mm = view.pixel_mm
    extent = (0, columns * column_mm, rows * row_mm, 0)
    axes.set_axis_off()
    axes.imshow(view.pixels, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear", aspect="equal")
    if view.labels is not None and present:
        table = np.zeros((256, 4))
        for label in present:
            table[label.value] = (*(c / 255 for c in label.color), _FILL)
        axes.imshow(table[view.labels], extent=extent, interpolation="nearest", aspect="equal")
        # a border of one empty pixel closes outlines at the edge, and makes the smallest slice drawable
        x = (np.arange(-1, columns + 1) + 0.5) * column_mm
        y = (np.arange(-1, rows + 1) + 0.5) * row_mm
        framed = np.pad(view.labels, 1)
        for label in present:
            mask = framed == label.value
            if mask.any():
                axes.contour(x, y, mask.astype(np.float32), levels=[0.5], colors=[[c / 255 for c in label.color]],
                             linewidths=1.1, antialiased=True)
    axes.set_xlim(0, extent[1])
    axes.set_ylim(extent[2], 0)
    outline = _halo()
    left, right, top, bottom = view.letters
    for x, y, letter, across, up in ((0.012, 0.5, left, "left", "center"), (0.988, 0.5, right, "right", "center"),
                                     (0.5, 0.988, top, "center", "top"), (0.5, 0.012, bottom, "center", "bottom")):
        axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=up, color="#ffd75e", fontsize=11,
                  fontweight="bold", path_effects=outline)
    low_end, high_end = _ENDS[_VIEWS[view.name][0]]
    side = high_end if view.position_mm >= 0 else low_end
    axes.text(0.0, -0.02, f"{view.name}, {side} {abs(view.position_mm):.0f} mm", transform=axes.transAxes, ha="left",
              va="top", color=_TEXT, fontsize=9)


def _captions(figure, title, present, shown, columns, window, height) -> None:
    from matplotlib.patches import Patch

    if title:
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="top", color=_TEXT, fontsize=13, parse_math=False)
    if present:
        handles = [Patch(facecolor=(*(c / 255 for c in label.color), 0.5), edgecolor=[c / 255 for c in label.color],
                         label=label.name) for label in present]
        legend = figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.28 / height), ncol=columns,
                               frameon=False, fontsize=9, labelcolor=_TEXT, handlelength=1.2, columnspacing=1.4,
                               borderaxespad=0.0)
        for label, text in zip(present, legend.get_texts()):
            text.set_parse_math(False)
            if label.value not in shown:
                text.set_color(_DIM)        # in the result, but not in these three slices
    low, high = window
    figure.text(0.5, 0.1 / height, "Radiological convention: the patient's right (R) is on the left of axial and "
                f"coronal slices. Window {high - low:.0f}, level {(low + high) / 2:.0f}.",
                ha="center", va="bottom", color=_DIM, fontsize=8)


def _halo():
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="black")]
