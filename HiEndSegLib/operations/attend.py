"""Attend: what a model looks at from a point, a structure or an object query, placed in the patient.

    session = AttendSession(model, volume)
    result = attend(model, volume, at=(12.0, -40.0, 150.0), layers=(2, 5, 8, 11), session=session)
    heat = result.as_volume(result.maps[0], like=volume)

The paper shows attention of its 3rd, 6th, 9th and 12th block (arXiv 2502.08347); those are the default where an encoder
has twelve. A network without a transformer gets its sensitivity instead (input gradient), and a sentence says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError, OptionError
from ..geometry.points import point_words
from ..geometry.volume import Volume
from ..models.loading import Model
from ..tasks import CancelToken, Progress, no_progress
from .attend_result import KINDS, PAPER_LAYERS, AttentionMap, AttentionResult
from .attend_session import AttendSession, Window, check_point
from .attend_words import map_sentence, meaning
from .devices import cpu_threads
from .object_queries import query_of_mask, query_of_structure, queries_at



def attend(model: Model, volume: Volume | None, *, at: Sequence[float] | None = None, mask: Volume | None = None,
           query: int | None = None, structure: str | None = None, layers: Sequence[int] | None = None,
           heads: str | int = "mean", kind: str = "encoder", device: str | None = None, threads: int | None = None,
           session: AttendSession | None = None, progress: Progress = no_progress,
           cancel: CancelToken | None = None) -> AttentionResult:
    """Where the attention of one query goes, for every layer and head asked for.

    at: (R, A, S) mm. mask: a structure drawn on any lattice; the mean of all its tokens' attention, each counted by
    how much of the mask it holds. For kind "head" the query is an object query: number `query`, or the one that made
    `structure` (an id), the mask, or what lies at the point. With none of all these the middle of the volume is taken.
    layers: block indices from 0, or from the end if negative (default: the paper's four, or four evenly spread; all of
    the head's). heads: "mean" (over all), "all" (the mean and then every one) or a number.
    kind: "encoder", "rollout" (layers are where it begins) or "head"; what a network does not have is replaced, which
    result.kind and a sentence say. device: see `AttendSession`. session: keeps what was computed, so that the next
    point costs milliseconds; `volume` may be None then.

    Raises InputError, OptionError (point outside, unknown layer or head, …), ModelError (nothing can be shown),
    OutOfMemoryError, Cancelled.
    """
    if kind not in KINDS:
        raise OptionError(f"There is no view '{kind}'; choose {', '.join(KINDS)}.")
    if session is None:
        progress(0.0, "Preparing the image")
        session = AttendSession(model, volume, device=device)
    elif model is not None and session.model is not model:
        raise ValueError("the session belongs to another model")
    began = time.perf_counter()
    with cpu_threads(threads), session.working(cancel):
        shown, sentences = _possible(session, kind, f"query {query}" if query is not None else
                                     None if structure is None else f"'{structure}'")
        target = _target(session, at, mask)
        sentences += target.sentences
        window = target.window
        warm = window.warm
        progress(0.3, "Running the encoder" if shown in ("encoder", "rollout") else "Running the model")
        number = None
        if shown == "head":
            number, why = _object_query(session, target, mask, query, structure)
            maps, depth, width = _head_maps(session, window, number, layers, heads)
            sentences.insert(0, meaning(shown, session.cell, session.model.card.spacing, number) + why)
        elif shown == "sensitivity":
            maps, sentence = _sensitivity(session, target)
            depth, width = 0, 0
            sentences.insert(0, sentence)
        else:
            depth, width = session.encoder.depth, session.encoder.heads
            maps = _encoder_maps(session, target, shown, layers, heads)
            sentences.insert(0, meaning(shown, session.cell, session.model.card.spacing, drawn=mask is not None))
    card = session.model.card
    info = {"model": {"id": card.id, "version": card.version, "title": card.title}, "device": str(session.device),
            "seconds": round(time.perf_counter() - began, 4), "window_was_warm": warm,
            "spacing": list(card.spacing), "token": list(session.cell)}
    progress(1.0, "Done")
    query_shares = np.zeros((0, 0, 0), np.float32) if shown == "head" else target.shares
    return AttentionResult(shown, maps, target.point, query_shares, window.cells_to_ras(session.cell),
                           window.ijk_to_ras, window.shape, depth, width, number, info,
                           list(dict.fromkeys(sentences)))


# ------------------------------------------------------------------------------------------------------- the query


@dataclass
class _Target:
    """point: RAS mm. shares: (gI, gJ, gK) float32, how much each token counts. mask: voxels of the window, or None."""

    window: Window
    point: tuple[float, float, float]
    shares: np.ndarray
    mask: np.ndarray | None
    sentences: list[str]


def _target(session: AttendSession, at: Sequence[float] | None, mask: Volume | None) -> _Target:
    edge = session.cell
    if mask is None:
        point = session.middle if at is None else check_point(at)
        window = session.window(point)
        shares = np.zeros([n // e for n, e in zip(window.shape, edge)], dtype=np.float32)
        shares[window.cell_of(point, edge)] = 1.0
        said = session.sentences_at(window, point) + session.sentences_on_end()
        if at is None:
            said.append(f"No point was given; the middle of the volume was taken ({point_words(point)}).")
        return _Target(window, point, shares, None, said)
    image = session.mask_image(mask)
    total = float(image.sum(dtype=np.float64))
    centre = [float((np.moveaxis(image, axis, 0).sum(axis=(1, 2), dtype=np.float64) * np.arange(n)).sum() / total)
              for axis, n in enumerate(image.shape)]
    point = tuple(float(v) for v in (session.prepared.image.ijk_to_ras @ [*centre, 1.0])[:3])
    window = session.window(point if at is None else check_point(at))
    part = np.zeros(window.shape, dtype=np.float32)
    low = np.maximum(window.start, 0)
    high = np.minimum(np.add(window.start, window.shape), image.shape)
    inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, window.start))
    part[inside] = image[tuple(slice(a, b) for a, b in zip(low, high))]
    held = float(part.sum(dtype=np.float64))
    if not held > 0:
        raise OptionError("The structure does not reach into the window around this point; choose a point nearer to "
                          "it, or none.")
    grid = [n // e for n, e in zip(window.shape, edge)]
    blocks = part.reshape(grid[0], edge[0], grid[1], edge[1], grid[2], edge[2]).sum(axis=(1, 3, 5), dtype=np.float64)
    said = [*session.prepared.notes, *session.sentences_on_size(), *session.sentences_on_end()]
    if held < 0.99 * total:
        said.append(f"{100 * held / total:.0f} % of the structure lies in the window that the encoder sees at a time; "
                    "only that part is the query.")
    return _Target(window, point, (blocks / blocks.sum()).astype(np.float32), part, said)


def _possible(session: AttendSession, kind: str, asked: str | None) -> tuple[str, list[str]]:
    """What can be shown instead of `kind` for this network, and the sentence that says so. asked: what only an object
    query can answer for, in words. Raises OptionError where it has none."""
    name = session.model.card.title
    if kind == "head" and session.head is None:
        if asked is not None:
            raise OptionError(f"{name} has no object queries, so it cannot be asked about {asked}; ask about a point, "
                              "or about a structure that was drawn.")
        if session.encoder is not None:
            return "encoder", [f"{name} has no object queries; shown instead is the attention of its encoder."]
        kind = "encoder"
    if kind in ("encoder", "rollout") and session.encoder is None:
        return "sensitivity", [f"{name} has no transformer, so it has no attention; shown instead is how much its "
                               "answer depends on each place."]
    return kind, []


# -------------------------------------------------------------------------------------------------------- the maps


def chosen_layers(layers: Sequence[int] | None, depth: int, default: Sequence[int], what: str = "block") -> list[int]:
    """Layer indices from 0, each once, in the order asked. Raises OptionError."""
    if layers is None:
        return list(default)
    numbers = [layers] if isinstance(layers, int) else list(layers)
    result = []
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not -depth <= number < depth:
            raise OptionError(f"There is no {what} {number}; this model has the {what}s 0 to {depth - 1}.")
        result.append(int(number) % depth)
    if not result:
        raise OptionError(f"No {what} was asked for; this model has the {what}s 0 to {depth - 1}.")
    return list(dict.fromkeys(result))


def default_layers(depth: int) -> tuple[int, ...]:
    """The paper's four blocks, or the last of each quarter of a network of another depth."""
    if depth == 12:
        return PAPER_LAYERS
    return tuple(dict.fromkeys(-(-depth * part // 4) - 1 for part in (1, 2, 3, 4)))


def chosen_heads(heads: str | int, count: int) -> list[int | None]:
    """None for the mean, numbers for heads. Raises OptionError."""
    if heads == "mean":
        return [None]
    if heads == "all":
        return [None, *range(count)]
    if isinstance(heads, bool) or not isinstance(heads, (int, np.integer)) or not 0 <= heads < count:
        raise OptionError(f"There is no head {heads}; choose mean, all or a number from 0 to {count - 1}.")
    return [int(heads)]


def _encoder_maps(session: AttendSession, target: _Target, kind: str, layers, heads) -> list[AttentionMap]:
    view, window = session.encoder, target.window
    numbers = chosen_layers(layers, view.depth, default_layers(view.depth))
    wanted = chosen_heads(heads, view.heads)
    if kind == "rollout" and wanted != [None]:
        raise OptionError("Rollout goes through the mean over the heads of every block; choose the heads 'mean'.")
    states = window.states()
    matrix = window.cells_to_ras(view.patch_size)
    shares = torch.from_numpy(target.shares.reshape(-1)).to(session.device)
    tokens = torch.nonzero(shares).squeeze(1)
    maps: list[AttentionMap] = []
    for layer in numbers:
        if kind == "rollout":
            rows: dict[int | None, Tensor] = {None: states.rollout(layer, shares)}
        else:
            total = torch.zeros(view.heads, states.count, device=session.device)
            for some in tokens.split(64):       # a large organ has hundreds of tokens; their rows are summed at once
                session.check()
                total += torch.einsum("r,hrn->hn", shares[some], states.rows(layer, some))
            rows = {None: total.mean(0), **dict(enumerate(total))}
        maps += _as_maps({head: rows[head] for head in wanted}, layer, states.grid, matrix, kind, view.depth,
                         view.heads, target.shares, window)
    return maps


def _head_maps(session: AttendSession, window: Window, query: int, layers, heads):
    trace = window.trace()
    depth, count = len(trace.layers), int(trace.layers[0].q.shape[0])
    numbers, wanted = chosen_layers(layers, depth, range(depth), "layer"), chosen_heads(heads, count)
    maps: list[AttentionMap] = []
    for layer in numbers:
        rows = trace.rows(layer, [query])[:, 0]
        grid = trace.layers[layer].grid
        matrix = window.cells_to_ras([n // g for n, g in zip(window.shape, grid)])
        maps += _as_maps({head: rows.mean(0) if head is None else rows[head] for head in wanted}, layer, grid, matrix,
                         "head", depth, count, None, window)
    return maps, depth, count


def inside_cells(window: Window, grid: Sequence[int]) -> np.ndarray:
    """(gI, gJ, gK) bool: cells of the window that hold any of the volume; the others are air put around it."""
    axes = []
    for start, size, cells, whole in zip(window.start, window.shape, grid, window.session.prepared.image.shape):
        first = start + np.arange(cells) * (size // cells)
        axes.append((first < whole) & (first + size // cells > 0))
    return axes[0][:, None, None] & axes[1][None, :, None] & axes[2][None, None, :]


def _as_maps(rows: dict[int | None, Tensor], layer: int, grid, matrix: np.ndarray, kind: str, depth: int, heads: int,
             shares: np.ndarray | None, window: Window) -> list[AttentionMap]:
    maps, inside = [], inside_cells(window, grid)
    for head, row in rows.items():
        # In float64, so that the sum is 1 to the last digit of float32; in numpy, because Apple's GPUs have none.
        weights = row.float().cpu().numpy().astype(np.float64)
        weights = (weights / weights.sum()).astype(np.float32).reshape(grid)
        one = AttentionMap(layer, head, weights, matrix)
        maps.append(AttentionMap(layer, head, weights, matrix,
                                 map_sentence(one, kind, depth, heads, shares, inside)))
    return maps


def _object_query(session: AttendSession, target: _Target, mask, query, structure) -> tuple[int, str]:
    """The object query asked for, and why it is that one."""
    trace, card = target.window.trace(), session.model.card
    count = int(trace.layers[0].q.shape[1])
    if query is not None:
        if isinstance(query, bool) or not isinstance(query, (int, np.integer)) or not 0 <= query < count:
            raise OptionError(f"There is no object query {query}; this model has the queries 0 to {count - 1}.")
        return int(query), ""
    if structure is not None:
        number, share = query_of_structure(trace, card, structure)
        return number, f" It made {100 * share:.0f} % of '{structure}' in this window."
    if mask is not None:
        number, overlap = query_of_mask(trace, torch.from_numpy(target.mask).to(session.device))
        return number, f" Its mask fits the structure best (Dice {overlap:.2f})."
    ranked, winner = queries_at(trace, card, target.window.voxel_of(target.point))
    return ranked[0][0], f" It made {100 * ranked[0][1]:.0f} % of the answer at the point, '{winner}'."


def _sensitivity(session: AttendSession, target: _Target) -> tuple[list[AttentionMap], str]:
    """|d log score / d input| of the winning class at the query, summed over cells and scaled to sum 1."""
    window, card = target.window, session.model.card
    with torch.enable_grad():
        x = window.on_device().requires_grad_()
        scores = session.model.network.scores(x)[0].float()
        if target.mask is None:
            at = scores[(slice(None), *window.voxel_of(target.point))]
        else:
            weight = torch.from_numpy(target.mask).to(scores.device)
            at = (scores * weight).flatten(1).sum(1) / weight.sum()
        winner = int(at.argmax())
        gradient = None
        if at.requires_grad:
            gradient = torch.autograd.grad(at[winner].clamp_min(1e-6).log(), x, allow_unused=True)[0]
    total = 0.0 if gradient is None else float(gradient.abs().sum())
    if not np.isfinite(total) or not total > 0:
        raise ModelError(f"{card.title} has no attention, and its answer at this point does not change with the image, "
                         "so there is nothing to show; choose another point or another model.")
    edge, shape = session.cell, window.shape
    grid = [n // e for n, e in zip(shape, edge)]
    cells = gradient[0].abs().sum(0).float().cpu().numpy().astype(np.float64)
    cells = cells.reshape(grid[0], edge[0], grid[1], edge[1], grid[2], edge[2]).sum(axis=(1, 3, 5))
    weights = (cells / cells.sum()).astype(np.float32)
    one = AttentionMap(-1, None, weights, window.cells_to_ras(edge))
    name = next((label.name for label in card.labels if label.value == winner), "background")
    sentence = (f"Brighter means that the score of '{name}' at the query changes more when the image changes there "
                "(input gradient).")
    return [AttentionMap(-1, None, weights, one.ijk_to_ras,
                         map_sentence(one, "sensitivity", 0, 0, target.shares, inside_cells(window, grid)))], sentence
