"""The sentences under attention maps: what one means, and what it says in numbers. No torch."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from ..geometry.points import point_words
from .attend_result import AttentionMap


def meaning(kind: str, cell: Sequence[int], spacing: Sequence[float], query: int | None = None,
            drawn: bool = False) -> str:
    """One sentence on what bright places are. drawn: the question is about a structure, not about one token."""
    edge = " x ".join(f"{n * s:g}" for n, s in zip(cell, spacing)) + " mm"
    what = f"the structure's cubes of {edge}" if drawn else f"the marked cube ({edge})"
    if kind == "head":
        return (f"Brighter means that object query {query} takes more from there, out of the decoder's features and "
                "within its own mask so far.")
    if kind == "rollout":
        return (f"Brighter means that more of {what} comes from there, followed through all blocks down to the image; "
                "this shows what the network reads together, not why it decides.")
    return (f"Brighter means that the encoder takes more from there when it describes {what}; this shows what the "
            "network reads together, not why it decides.")


def map_sentence(one: AttentionMap, kind: str, layers: int, heads: int, query: np.ndarray | None,
                 inside: np.ndarray) -> str:
    """One map in numbers. query: how much each token counts as the query, where it is on the map's own grid. inside:
    bool, cells that hold any of the volume."""
    name = {"head": f"Layer {one.layer} of the head's 0 to {layers - 1}", "sensitivity": "Sensitivity",
            "rollout": f"Rollout from block {one.layer}"}.get(kind, f"Block {one.layer} of 0 to {layers - 1}")
    if kind in ("encoder", "head"):
        name += f", mean over {heads} heads" if one.head is None else f", head {one.head}"
    largest = float(one.weights[inside].max())
    words = []
    if query is not None and query.shape == one.weights.shape:
        words.append(f"{100 * float(one.weights[query > 0].sum()):.1f} % from the query itself, which fills "
                     f"{100 * float((query > 0).mean()):.1f} % of what the model sees")
    words.append(f"the most from one place is {100 * largest:.1f} % ({largest * one.weights.size:.1f} times an even "
                 f"share) at {point_words(one.peak_of(inside))}")
    words.append(f"spread over {one.spread:.0f} of {one.weights.size}")
    outside = float(one.weights[~inside].sum())
    if outside > 0.005:
        words.append(f"{100 * outside:.0f} % goes to the air that was put around the volume")
    return f"{name}: {', '.join(words)}."
