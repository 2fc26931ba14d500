"""The query inspector: which object query made what in the window around a point, what it stands for, who is near it.

The class and mask embeddings of MaskMed's head (arXiv 2511.15603, its figures 3 to 5), of one place in one patient.
"""

from __future__ import annotations

import time
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from ..geometry.points import point_words
from ..geometry.volume import Volume
from ..models.card import ModelCard
from ..models.loading import Model
from ..networks.head_trace import HeadTrace
from ..tasks import CancelToken, Progress, no_progress
from .attend_result import QueriesResult, QueryView
from .attend_session import AttendSession, check_point
from .devices import cpu_threads
from .object_queries import class_name, class_probabilities, queries_at, ranked, shares_of

#: Classes and neighbors told of each query; queries told of each structure.
CLASSES, NEIGHBORS, MAKERS = 5, 4, 4


def inspect_queries(model: Model, volume: Volume | None, *, at: Sequence[float] | None = None,
                    device: str | None = None, threads: int | None = None, session: AttendSession | None = None,
                    progress: Progress = no_progress, cancel: CancelToken | None = None) -> QueriesResult:
    """All object queries in the window around a point: (R, A, S) mm, default the middle of the volume.

    Other arguments as for `attend`. Raises ModelError for a network whose head has no object queries, InputError,
    OptionError, OutOfMemoryError, Cancelled.
    """
    began = time.perf_counter()
    session = session or AttendSession(model, volume, device=device)
    card = session.model.card
    if session.head is None:
        raise ModelError(f"{card.title} has no object queries to inspect; look at its attention instead.")
    point = session.middle if at is None else check_point(at)
    with cpu_threads(threads), session.working(cancel):
        window = session.window(point)
        progress(0.1, "Running the model")
        trace = window.trace()
        progress(0.8, "Comparing the queries")
        shares = shares_of(trace)
        by_point, winner = queries_at(trace, card, window.voxel_of(point))
        found = {class_name(card, value): [(number, round(share, 6)) for number, share in
                                           ranked(shares.made[value])[:MAKERS] if share >= 0.005]
                 for value in range(shares.made.shape[0]) if int(shares.found[value])}
        views = _views(trace, card, found)
        said = session.sentences_at(window, point)
    number, share = by_point[0]
    certain = views[number].classes[0]
    said.insert(0, f"At {point_words(point)} the answer is '{winner}'; {100 * share:.0f} % of it comes from object "
                   f"query {number}, which stands for '{certain[0]}' with {100 * certain[1]:.0f} %.")
    progress(1.0, "Done")
    info = {"model": {"id": card.id, "version": card.version, "title": card.title}, "device": str(session.device),
            "seconds": round(time.perf_counter() - began, 4)}
    return QueriesResult(views, [(n, round(s, 6)) for n, s in by_point[:MAKERS]], winner, found,
                         point, info, list(dict.fromkeys(said)))


def _views(trace: HeadTrace, card: ModelCard, found: dict[str, list[tuple[int, float]]]) -> list[QueryView]:
    probability = class_probabilities(trace).cpu()
    count, classes = probability.shape
    names = [class_name(card, value) for value in range(classes - 1)] + ["no object"]
    embeddings = (trace.output.final.class_logits[0].float().cpu(), trace.output.final.mask_embeddings[0].float().cpu())
    near = [_cosines(e) for e in embeddings]
    places = torch.cat([_plane(e) for e in embeddings], dim=1)
    area = shares_of(trace).area
    views = []
    for number in range(count):
        best = probability[number].topk(min(CLASSES, classes))
        others = [[(int(n), float(row[n])) for n in row.argsort(descending=True) if int(n) != number][:NEIGHBORS]
                  for row in (near[0][number], near[1][number])]
        views.append(QueryView(
            number, [(names[int(v)], float(p)) for p, v in zip(*best)], int(area[number]),
            [name for name, makers in found.items() if makers and makers[0][0] == number], others[0], others[1],
            tuple(float(v) for v in places[number])))
    return views


def _cosines(embeddings: Tensor) -> Tensor:
    """(Q, d) -> (Q, Q) cosines."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return unit @ unit.T


def _plane(embeddings: Tensor) -> Tensor:
    """(Q, d) -> (Q, 2): projected onto the two main axes of the centred embeddings."""
    values = embeddings.float().cpu().numpy().astype(np.float64)
    centred = values - values.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T
    return torch.from_numpy(np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))).astype(np.float32))
