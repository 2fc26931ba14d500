"""Effective rank and singular values of the attention values, block by block, in the window around a point.

The measure of arXiv 2502.08347 (Roy & Vetterli's effective rank of V), here of one place in one patient.
"""

from __future__ import annotations

from typing import Sequence

import torch

from ..errors import ModelError
from ..geometry.volume import Volume
from ..models.loading import Model
from ..networks.effective_rank import rank_of_spectrum, singular_values
from ..tasks import CancelToken, Progress, no_progress
from .attend_result import LayerRank
from .attend_session import AttendSession
from .devices import cpu_threads


def effective_ranks(model: Model, volume: Volume | None, *, at: Sequence[float] | None = None, per_head: bool = False,
                    device: str | None = None, threads: int | None = None, session: AttendSession | None = None,
                    progress: Progress = no_progress, cancel: CancelToken | None = None) -> list[LayerRank]:
    """One `LayerRank` a block. per_head: the mean over the heads' own matrices instead of all heads side by side.

    at: (R, A, S) mm, default the middle of the volume. Other arguments as for `attend`.
    Raises ModelError for a network without a transformer, InputError, OptionError, OutOfMemoryError, Cancelled.
    """
    session = session or AttendSession(model, volume, device=device)
    view = session.encoder
    if view is None:
        raise ModelError(f"{session.model.card.title} has no transformer, so it has no attention values to measure; "
                         "choose another model.")
    ranks = []
    with cpu_threads(threads), session.working(cancel):
        states = session.window(session.middle if at is None else at).states()
        for layer in range(view.depth):
            progress(layer / view.depth, f"Block {layer + 1} of {view.depth}")
            session.check()
            values = states.values(layer)
            if per_head:
                values = values.unflatten(1, (view.heads, -1)).transpose(0, 1)
            spectrum = singular_values(values.float().cpu())
            shares = spectrum / spectrum.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
            ranks.append(LayerRank(layer, float(rank_of_spectrum(spectrum).mean()), int(spectrum.shape[-1]),
                                   [float(s) for s in (shares.mean(0) if per_head else shares)]))
    progress(1.0, "Done")
    return ranks
