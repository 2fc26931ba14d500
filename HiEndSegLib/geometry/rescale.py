"""Stored numbers to real ones (HU) without widening them where that is exact: an int16 CT stays int16."""

from __future__ import annotations

import numpy as np


def rescale(raw: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """raw * slope + intercept, in native byte order: int16 or int32 where that is exact, else float32."""
    raw = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    if slope == 1 and intercept == 0:
        return raw if raw.dtype.kind != "f" or raw.dtype == np.float32 else raw.astype(np.float32)
    if raw.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer() and raw.size:
        ends = [int(raw.min()) * int(slope) + int(intercept), int(raw.max()) * int(slope) + int(intercept)]
        for kind in (np.int16, np.int32):
            limits = np.iinfo(kind)
            if limits.min <= min(ends) and max(ends) <= limits.max:
                if slope == 1 and raw.dtype.itemsize <= np.dtype(kind).itemsize:
                    # Two's complement wraps, and the end points say that the true result fits: no wider copy needed.
                    return raw.astype(kind) + np.array(int(intercept)).astype(kind)
                return (raw.astype(np.int64) * int(slope) + int(intercept)).astype(kind)
    result = raw.astype(np.float32)
    result *= np.float32(slope)
    result += np.float32(intercept)
    return result
