"""Points of the patient's space in words. No numpy, as the faces say points, too."""

from __future__ import annotations

from collections.abc import Sequence


def point_words(point: Sequence[float]) -> str:
    """A point (R, A, S) mm as in Slicer's corner: "R 12, P 40, S 3 mm"."""
    return ", ".join(f"{pair[0] if round(v) >= 0 else pair[1]} {abs(v):.0f}"
                     for pair, v in zip(("RL", "AP", "SI"), point)) + " mm"
