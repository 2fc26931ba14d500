"""The live curve as chart nodes: made when there is something to draw, filled in place, at most once a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import wording
from .adapt_state import CurvePoint

_ = wording.translator(__name__)

#: Seconds between two drawings.
_EVERY = 1.0
_LOSS, _DICE, _AGREEMENT = (200, 110, 60), (40, 110, 190), (120, 120, 120)


def smoothed(points: Sequence[tuple[int, float]], share: float = 0.2) -> list[tuple[int, float]]:
    """A running average: a crop without the taught structure has another loss than one with it, which zigzags."""
    result, average = [], None
    for step, value in points:
        average = value if average is None else (1 - share) * average + share * value
        result.append((step, average))
    return result


class CurveChart:
    """One chart for all runs of a scene. Holds its id."""

    def __init__(self, scene: Any, clock: Callable[[], float]):
        self._scene, self._clock = scene, clock
        self.id: str | None = None
        self._drawn: Sequence[CurvePoint] | None = None
        self._when = float("-inf")

    def begin(self) -> None:
        """A new run: the curve of the last one goes when the first point of this one is there."""
        self._drawn = None
        self._when = float("-inf")

    def show(self, curve: Sequence[CurvePoint], now: bool = False) -> None:
        """Draw the points, unless they are drawn already, or were a moment ago."""
        if not curve or curve is self._drawn or (not now and self._clock() - self._when < _EVERY):
            return
        from ..bridge.plots import Curve, write_chart

        self._drawn, self._when = curve, self._clock()
        losses = smoothed([(point.step, point.loss) for point in curve if point.loss is not None])
        top = max((abs(loss) for _step, loss in losses), default=0.0) or 1.0
        curves = [Curve(_("Loss (share of its highest)"), [(step, loss / top) for step, loss in losses], _LOSS),
                  Curve(_("Dice on what is held out"), _points(curve, "dice"), _DICE, dots=True),
                  Curve(_("Agreement of the protected"), _points(curve, "agreement"), _AGREEMENT, dots=True)]
        chart = self._scene.GetNodeByID(self.id) if self.id else None
        chart = write_chart(self._scene, curves, chart=chart, name=_("HiEndSeg adapting"),
                            title=_("How the model learns"), x_title=_("Step"), y_title=_("0 to 1"), y_range=(0.0, 1.0))
        self.id = chart.GetID()

    def removed(self, node_id: str) -> None:
        if node_id == self.id:
            self.id = None

    def forget(self) -> None:
        """The scene loses all nodes."""
        self.id = None
        self.begin()

    def remove(self) -> None:
        from ..bridge.plots import remove_chart

        chart = self._scene.GetNodeByID(self.id) if self.id else None
        self.id = None
        if chart is not None:
            remove_chart(chart)


def _points(curve: Sequence[CurvePoint], what: str) -> list[tuple[float, float]]:
    return [(point.step, getattr(point, what)) for point in curve if getattr(point, what) is not None]
