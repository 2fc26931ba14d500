"""Recordings of a position table: ``grid``, ``dim``, ``temperature``, ``pos_embed (1, g1 g2 g3, dim)``."""

from __future__ import annotations

from pathlib import Path

from HiEndSegLib.errors import InputError
from HiEndSegLib.networks.position import as_triple, sincos_position_3d
from training.parity.comparison import Comparison, as_tensor


def matches(recording: dict) -> bool:
    return "pos_embed" in recording


def compare(recording: dict, weights: Path | None, comparison: Comparison) -> None:
    """Adds the line of the table; InputError when the recording does not say which table it is."""
    recorded = as_tensor(recording["pos_embed"])
    if recorded is None or recorded.dim() < 2:
        raise InputError("The recording's pos_embed is not a table of numbers; record it again.")
    grid = recording.get("grid")
    if grid is None:
        raise InputError("The recording has no field grid; record it again with grid, dim, temperature, pos_embed.")
    try:
        grid = as_triple(as_tensor(grid).tolist())
        dim = int(recording.get("dim", recorded.shape[-1]))
        ours = sincos_position_3d(grid, dim, float(recording.get("temperature", 10000.0)))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"The recording asks for a table that does not exist: {error}.") from error
    # The leading 1 is often dropped when a table is stored.
    comparison.tensor("pos_embed", ours[0] if recorded.dim() == 2 else ours, recorded)
