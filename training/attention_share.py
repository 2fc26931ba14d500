"""How much of a query's attention stays in its own organ?

    python -m training.attention_share DATA --rows default random

For points drawn within every labelled organ, the mean over heads of each block's attention row is summed over the
tokens by how much of the organ they hold, and set against the organ's share of the window: a row that looks nowhere in
particular comes out at 1. Two readings:
- of the window: all tokens count, air and the query's own token too;
- of the body: only what lies in the patient counts, and the query's own token does not, so that neither looking away
  from air nor looking at itself can pass for knowing the organ.

Rows: `default`, any model (ID, id@version or folder; versions made by Adapt too), an exported encoder's folder, or
`random`: the default model's network as training begins, mean over --seeds. A row may be named: NAME=ROW. All rows look
from the same points. DATA: folders with image.nii.gz, labels.nii.gz (or labels_auto) and a labels.json beside it.

Prints Markdown; --out also writes all numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from HiEndSegLib.errors import HiEndSegError, InputError, OptionError
from HiEndSegLib.geometry.body import body_mask
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.card import ModelCard
from HiEndSegLib.models.encoders import DESCRIPTION_NAME, apply_encoder, load_encoder_weights, read_encoder
from HiEndSegLib.models.loading import Model, load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.networks.build import build_network
from HiEndSegLib.networks.vit import VisionTransformer3D
from HiEndSegLib.operations.attend_session import AttendSession, PreparedImage, prepare_image

from .cases import DEVELOPMENT, structure_of
from .lattice import load, resample_codes
from .structures import VALUE

#: Structures that a case labels in part only: the rest of the organ would count as foreign.
PARTIAL = {"ct-thorax-01": {"vertebrae"}, "ct-spine-01": {"vertebrae"}, "ct-abdomen-08": {"small_bowel"}}
#: Smaller organs than this are left out, ml.
LEAST_ML = 20.0
UNKNOWN = 255
NAMES = {value: name for name, value in VALUE.items() if value}


@dataclass(frozen=True)
class Case:
    """name. image: prepared at 3 mm. labels: (I, J, K) uint8 on its lattice, our class values, 255 unknown.
    points: structure -> (n, 3) RAS."""

    name: str
    volume: Volume
    labels: Volume
    points: dict[str, np.ndarray]


@dataclass
class Shares:
    """One row's numbers. of_window, of_body: {(case, structure): (layers,) mean attention share}; the same organ's
    share of the window and of the body in window_base, body_base: {(case, structure): float}."""

    row: str
    of_window: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    of_body: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    window_base: dict[tuple[str, str], float] = field(default_factory=dict)
    body_base: dict[tuple[str, str], float] = field(default_factory=dict)


# -------------------------------------------------------------------------------------------------------- the cases


def labelled_cases(data: Path) -> list[str]:
    """Names of the CT cases under `data` that have an image and labels of it."""
    return sorted(folder.name for folder in data.iterdir() if folder.name.startswith("ct-")
                  and (folder / "image.nii.gz").is_file() and _labels_file(folder) is not None)


def read_case(folder: Path, points: int, seed: int) -> Case:
    """A case with its query points, the same for every row. Raises InputError."""
    stem = _labels_file(folder)
    if stem is None or not (folder / "image.nii.gz").is_file():
        raise InputError(f"{folder.name} has no image.nii.gz with labels beside it; name another case.")
    legend = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    table = np.zeros(256, np.uint8)
    for value, name in legend.items():
        table[int(value)] = VALUE.get(structure_of(name), 0)
    table[UNKNOWN] = UNKNOWN
    image, labels = load(folder / "image.nii.gz"), load(folder / f"{stem}.nii.gz")
    labels = labels.with_array(table[labels.array])
    rng, chosen = np.random.default_rng(seed), {}
    for value in np.unique(labels.array):
        name = NAMES.get(int(value))
        where = np.argwhere(labels.array == value) if name and name not in PARTIAL.get(folder.name, ()) else ()
        if len(where) * labels.voxel_ml < LEAST_ML:
            continue
        some = where[rng.choice(len(where), size=min(points, len(where)), replace=False)]
        chosen[name] = (labels.ijk_to_ras @ np.c_[some, np.ones(len(some))].T)[:3].T
    return Case(folder.name, image, labels, chosen)


def _labels_file(folder: Path) -> str | None:
    return next((stem for stem in ("labels", "labels_auto") if (folder / f"{stem}.nii.gz").is_file()
                 and (folder / f"{stem}.json").is_file()), None)


# --------------------------------------------------------------------------------------------------------- the rows


class _Encoder(nn.Module):
    """An encoder alone as a model's network."""

    def __init__(self, vit: VisionTransformer3D):
        super().__init__()
        self.vit, self.num_classes = vit, 1


def models_of(text: str, seeds: int) -> tuple[str, list[Model]]:
    """A row's name and its models (several for `random`). Raises OptionError, ModelError."""
    name, _, what = text.rpartition("=")
    name = name or what
    if what == "random":
        card, models = Registry().get(None), []
        for seed in range(seeds):
            torch.manual_seed(seed)
            models.append(Model(card, build_network(card.network).eval(), torch.device("cpu")))
        return name, models
    if (Path(what) / DESCRIPTION_NAME).is_file():
        return name, [_encoder_model(Path(what))]
    return name, [load_model(Registry().get(None if what == "default" else what))]


def _encoder_model(folder: Path) -> Model:
    about = read_encoder(folder)
    if about.window is None:
        raise OptionError(f"Encoder {about.key} was made for MR; this table is about CT.")
    vit = VisionTransformer3D(**about.network, img_size=about.crop, cls_token=True)
    apply_encoder(vit, load_encoder_weights(folder))
    card = ModelCard(id=about.id, version=about.version, title=about.title, modality="CT", network={},
                     spacing=(about.spacing,) * 3, tile=(about.crop,) * 3, overlap=0.5, windows=[list(about.window)],
                     labels=[], licence=about.licence, provenance=about.provenance, weights=about.weights)
    return Model(card, _Encoder(vit).eval(), torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------ the numbers


@torch.inference_mode()
def shares_of(name: str, models: Sequence[Model], cases: Sequence[Case]) -> Shares:
    """Attention shares of one row over all cases; several models (seeds) are averaged."""
    result = Shares(name)
    for case in cases:
        prepared = prepare_image(case.volume, models[0].card.spacing)
        labels = resample_codes(case.labels, case.labels.array, models[0].card.spacing[0])
        for model in models:
            _look(result, model, case, prepared, labels, 1.0 / len(models))
    return result


def _look(result: Shares, model: Model, case: Case, prepared: PreparedImage, labels: np.ndarray, part: float) -> None:
    session = AttendSession(model, prepared)
    if session.encoder is None:
        raise OptionError(f"Model {model.card.key} has no transformer, so it has no attention to measure.")
    body = body_mask(prepared.image)
    edge = session.cell
    for structure, points in case.points.items():
        value = VALUE[structure]
        rows: list[tuple] = []
        for point in points:
            window = session.window(point)
            organ = _cells(labels == value, window, edge)
            known, inside = _cells(labels != UNKNOWN, window, edge, outside=1.0), _cells(body, window, edge)
            token = int(np.ravel_multi_index(window.cell_of(point, edge), window.states().grid))
            weights = np.stack([window.states().rows(layer, [token]).mean(0)[0].cpu().numpy()
                                for layer in range(session.encoder.depth)]).astype(np.float64)
            inside = np.minimum(inside, known)
            inside[token] = 0.0
            elsewhere = np.where(np.arange(len(organ)) == token, 0.0, organ)
            rows.append((weights @ organ / (weights @ known), organ.sum() / known.sum(),
                         weights @ elsewhere / np.maximum(weights @ inside, 1e-12),
                         elsewhere.sum() / max(inside.sum(), 1e-12)))
        key = (case.name, structure)
        for kept, column in ((result.of_window, 0), (result.window_base, 1), (result.of_body, 2),
                             (result.body_base, 3)):
            kept[key] = kept.get(key, 0.0) + part * np.mean([row[column] for row in rows], axis=0)


def _cells(array: np.ndarray, window, edge, outside: float = 0.0) -> np.ndarray:
    """Share of every token of a window that is True, (N,); outside the volume counts as `outside`."""
    part = np.full(window.shape, outside, dtype=np.float32)
    low = np.maximum(window.start, 0)
    high = np.minimum(np.add(window.start, window.shape), array.shape)
    part[tuple(slice(a - s, b - s) for a, b, s in zip(low, high, window.start))] = \
        array[tuple(slice(a, b) for a, b in zip(low, high))]
    grid = [n // e for n, e in zip(window.shape, edge)]
    cells = part.reshape(grid[0], edge[0], grid[1], edge[1], grid[2], edge[2])
    return cells.mean(axis=(1, 3, 5)).ravel().astype(np.float64)


# --------------------------------------------------------------------------------------------------------- the table


def ratios(shares: dict, bases: dict) -> np.ndarray:
    """(organs, layers): attention share over the organ's own share; organs that fill one token only are left out."""
    return np.array([shares[key] / bases[key] for key in sorted(shares) if bases[key] > 1e-6])


def markdown(rows: Sequence[Shares], cases: Sequence[Case], points: int) -> str:
    """The section of RESULTS.md."""
    depth = min(len(next(iter(row.of_window.values()))) for row in rows)
    names = [row.row for row in rows]
    first = rows[0]
    lines = ["### Attention and anatomy", "",
             f"`python -m training.attention_share DATA --rows {' '.join(names)}`: {len(first.of_window)} organs of "
             f"{len(cases)} labelled CTs, {points} query points in each. Attention (mean over heads) that stays in the "
             "query's organ, as a multiple of the organ's share; 1 is looking nowhere in particular. In brackets: in "
             "how many of the organs it is above 1.", ""]
    for title, shares, bases in (("of the window", "of_window", "window_base"),
                                 ("of the body, without the query's own token", "of_body", "body_base")):
        lines += [f"| block | {' | '.join(f'{name}, {title}' if n == 0 else name for n, name in enumerate(names))} |",
                  "|---|" + "---|" * len(names)]
        tables = [ratios(getattr(row, shares), getattr(row, bases)) for row in rows]
        for layer in range(depth):
            lines.append(f"| {layer} | " + " | ".join(_cell(table[:, layer]) for table in tables) + " |")
        lines.append("| mean | " + " | ".join(_cell(table[:, :depth].mean(1)) for table in tables) + " |")
        lines.append("")
    lines += _by_structure(rows)
    seen = ", ".join(sorted(case.name for case in cases if case.name in DEVELOPMENT))
    lines.append(f"- Cases: {', '.join(case.name for case in cases)}. The default model never saw "
                 f"{seen or 'any of them'}" + ("; the others it was trained on." if seen else "."))
    if seen:
        lines.append(f"- On {seen} alone, of the body, mean over blocks: " + ", ".join(
            f"{row.row} {_cell(_held_out(row))}" for row in rows) + ".")
    share = 100 * np.mean(list(first.window_base.values()))
    lines.append(f"- The organs fill {share:.1f} % of their windows on average. Mean over organs; an organ counts the "
                 "same however large it is. `random`: the network as training begins.")
    return "\n".join(lines) + "\n"


def _held_out(row: Shares) -> np.ndarray:
    keys = [key for key in sorted(row.of_body) if key[0] in DEVELOPMENT and row.body_base[key] > 1e-6]
    return np.array([(row.of_body[key] / row.body_base[key]).mean() for key in keys])


def _cell(values: np.ndarray) -> str:
    return f"{values.mean():.2f} ({int((values > 1).sum())}/{len(values)})"


def _by_structure(rows: Sequence[Shares]) -> list[str]:
    structures = sorted({structure for _, structure in rows[0].of_body})
    lines = ["| structure (of the body, mean over blocks) | organs | " + " | ".join(row.row for row in rows) + " |",
             "|---|---|" + "---|" * len(rows)]
    for structure in structures:
        cells, count = [], 0
        for row in rows:
            found = [row.of_body[key].mean() / row.body_base[key] for key in row.of_body
                     if key[1] == structure and row.body_base[key] > 1e-6]
            count = len(found)
            cells.append(f"{np.mean(found):.2f}" if found else "")
        if count:
            lines.append(f"| {structure} | {count} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.attention_share", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", nargs="+", default=["default", "random"], metavar="ROW")
    parser.add_argument("--cases", nargs="+", help="only these (default: all labelled CTs)")
    parser.add_argument("--points", type=int, default=8, help="query points per organ (default 8)")
    parser.add_argument("--seeds", type=int, default=3, help="networks behind `random` (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the points (default 0)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args(arguments)
    try:
        if options.points < 1 or options.seeds < 1:
            raise OptionError("--points and --seeds must be 1 or more.")
        if not options.data.is_dir():
            raise OptionError(f"There is no folder {options.data}.")
        if options.threads:
            torch.set_num_threads(options.threads)
        cases = [read_case(options.data / name, options.points, options.seed)
                 for name in options.cases or labelled_cases(options.data)]
        cases = [case for case in cases if case.points]
        if not cases:
            raise InputError(f"{options.data} holds no CT with labels of an organ of {LEAST_ML:g} ml.")
        rows = []
        for text in options.rows:
            name, models = models_of(text, options.seeds)
            print(f"{name} …", file=sys.stderr, flush=True)
            rows.append(shares_of(name, models, cases))
    except HiEndSegError as error:
        print(error.sentence, file=sys.stderr)
        return 2
    print(markdown(rows, cases, options.points))
    if options.out:
        with atomic_target(options.out) as temporary:
            temporary.write_text(json.dumps([_plain(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


def _plain(row: Shares) -> dict:
    return {"row": row.row, "organs": [
        {"case": case, "structure": structure, "window_share": float(row.window_base[case, structure]),
         "body_share": float(row.body_base[case, structure]), "of_window": row.of_window[case, structure].tolist(),
         "of_body": row.of_body[case, structure].tolist()} for case, structure in sorted(row.of_window)]}


if __name__ == "__main__":
    sys.exit(main())
