"""A curve from a scanner's grey values to those a model knows: a few points, straight between them.

Points are (value, value the model is shown) with rising first values; beyond the ends the difference of the last point
holds. No points: everything stays. A model version learns one from a case (`operations.adapt_calibrate`).
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

Curve = Sequence[Sequence[float]]


def apply_curve(values: np.ndarray, curve: Curve) -> np.ndarray:
    """The values as the model is shown them, float32; the array itself where there is no curve."""
    if not len(curve):
        return values
    points = np.asarray(curve, dtype=np.float64)
    values = np.asarray(values, dtype=np.float32)
    change = np.interp(values.ravel(), points[:, 0], points[:, 1] - points[:, 0]).reshape(values.shape)
    return values + change.astype(np.float32)
