"""What pre-training does to an encoder: effective rank and singular values of the attention values, layer by layer.

    python -m training.representation VOLUME... --rows random MAE=encoders/mae Hi-End-MAE=encoders/hi-end --out FOLDER

The analysis of arXiv 2502.08347: for every layer the matrix V of attention values (tokens x width, heads together; one
matrix a head with --per-head) of a whole, unmasked crop, its singular values and their effective rank. Volumes are
prepared cases (.npz) or any image; they should be ones that pre-training has not seen, and it is said where it has.
`random` is the same architecture as pre-training starts it. Every encoder looks at the same crops.

Writes FOLDER/representation.md (table), .json (all numbers) and .png (figure).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from HiEndSegLib.errors import HiEndSegError, InputError, OptionError, OutputError
from HiEndSegLib.geometry.files import atomic_target
from HiEndSegLib.geometry.reading import read_volume, stem
from HiEndSegLib.geometry.resample import resample_to_spacing
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.encoders import apply_encoder
from HiEndSegLib.networks.effective_rank import rank_of_spectrum, singular_values, value_matrices
from HiEndSegLib.networks.vit import VIT_VARIANTS, VisionTransformer3D, build_vit

from .encoder_rows import Row, check_heads, parse_rows, seen
from .in_words import make_folder
from .oneshot_cases import UNREADABLE

RANDOM = "random"


@dataclass(frozen=True)
class Spectra:
    """One encoder over N crops. ranks: (layers, N). shares: (layers, r), singular values as shares of their sum,
    largest first, mean over the crops (and heads). limit: the largest rank there can be."""

    row: str
    ranks: np.ndarray
    shares: np.ndarray
    limit: int


# -------------------------------------------------------------------------------------------------------------- crops


def volume_name(path: Path) -> str:
    """What a volume is called: its file without extension, or its folder where the file is just called image."""
    name = stem(path)
    return path.resolve().parent.name if name == "image" else name


def read_scaled(path: Path, spacing: float, window: tuple[float, float]) -> np.ndarray:
    """A prepared case or an image in RAS+ axes at `spacing` mm, float32 in [0, 1] by `window` (HU)."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as data:
                volume = Volume(data["image"], data["affine"])
        except UNREADABLE as error:
            raise InputError(f"{path} is missing, damaged or no prepared case; prepare it again.") from error
    else:
        volume = read_volume(path)
    array = resample_to_spacing(volume, spacing).array.astype(np.float32)
    return np.clip((array - window[0]) / (window[1] - window[0]), 0.0, 1.0)


def draw_crops(volumes: Sequence[np.ndarray], count: int, size: int, seed: int) -> Tensor:
    """(count, 1, S, S, S): crops around something denser than the window's lower end, the volumes taking turns.

    Raises InputError: a volume with nothing in it.
    """
    rng = np.random.default_rng(seed)
    padded = []
    for number, volume in enumerate(volumes):
        missing = [max(0, size - n) for n in volume.shape]
        volume = np.pad(volume, [(m // 2, m - m // 2) for m in missing])
        voxels = np.flatnonzero(volume > 0)
        if not len(voxels):
            raise InputError(f"Volume {number + 1} of {len(volumes)} is empty in this intensity window; leave it out.")
        padded.append((volume, voxels))
    crops = []
    for number in range(count):
        volume, voxels = padded[number % len(padded)]
        centre = np.array(np.unravel_index(voxels[rng.integers(len(voxels))], volume.shape))
        start = np.clip(centre - size // 2, 0, np.array(volume.shape) - size)
        crops.append(volume[tuple(slice(int(s), int(s) + size) for s in start)])
    return torch.from_numpy(np.stack(crops))[:, None]


# ----------------------------------------------------------------------------------------------------------- analysis


def build_encoder(row: Row, variant: str, network: dict, seed: int) -> VisionTransformer3D:
    """The row's encoder, or the start of a pre-training. Raises ModelError: weights of another size."""
    torch.manual_seed(seed)
    encoder = build_vit(variant, **network)
    weights = row.load()
    if weights is not None:
        try:
            apply_encoder(encoder, weights)
        except HiEndSegError as error:
            raise type(error)(f"Row {row.name}: {error}") from error
        check_heads(row, {"num_heads": encoder.num_heads})
    return encoder.eval()


@torch.no_grad()
def spectra(encoder: VisionTransformer3D, crops: Tensor, *, row: str = "", per_head: bool = False) -> Spectra:
    """Effective ranks and mean spectra of all layers over crops (N, 1, S, S, S); with heads, their mean."""
    ranks, shares = [], []
    for crop in crops:
        matrices = value_matrices(encoder, crop[None], per_head=per_head, keep_cls=False)
        values = torch.stack([singular_values(matrix[0]) for matrix in matrices])
        ranks.append(rank_of_spectrum(values))                          # (layers) or (layers, heads)
        shares.append(values / values.sum(-1, keepdim=True))
    rank, share = torch.stack(ranks, 1), torch.stack(shares, 1)         # (layers, N, ...)
    if per_head:
        rank, share = rank.mean(2), share.mean(2)
    return Spectra(row, rank.numpy(), share.mean(1).numpy(), int(share.shape[-1]))


# ------------------------------------------------------------------------------------------------------------- output


def markdown(found: Sequence[Spectra], remarks: Sequence[str]) -> str:
    """Table of effective ranks, layers down and encoders across: mean ± sample standard deviation over crops."""
    lines = ["| layer | " + " | ".join(s.row for s in found) + " |", "|---" * (len(found) + 1) + "|"]
    for layer in range(len(found[0].ranks)):
        lines.append(f"| {layer + 1} | " + " | ".join(_pm(s.ranks[layer]) for s in found) + " |")
    lines.append("| mean | " + " | ".join(_pm(s.ranks.mean(0)) for s in found) + " |")
    first = (f"Effective rank of the attention values, mean ± standard deviation over {found[0].ranks.shape[1]} "
             f"crops; {found[0].limit} is the most there can be.")
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in (first, *remarks))


def _pm(values: np.ndarray) -> str:
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def draw_figure(found: Sequence[Spectra], path: Path) -> None:
    """Effective rank over the layers, and the spectrum of every layer, as PNG. Raises OutputError: no matplotlib, or
    nowhere to write to."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError("Pictures need matplotlib, which is not installed; run: pip install matplotlib.") from error
    colors = ["#777777", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"]       # told apart by all eyes
    layers = len(found[0].ranks)
    columns = min(6, layers)
    rows = -(-layers // columns)
    figure = Figure(figsize=(2.0 * columns + 0.6, 3.4 + 1.75 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=[3.4, 1.75 * rows])
    axes = top.subplots()
    for s, color in zip(found, colors * len(found)):
        mean, spread = s.ranks.mean(1), s.ranks.std(1, ddof=1) if s.ranks.shape[1] > 1 else np.zeros(layers)
        axes.plot(range(1, layers + 1), mean, "o-", color=color, label=s.row, markersize=4)
        axes.fill_between(range(1, layers + 1), mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="layer", ylabel="effective rank of V", ylim=(0, None), xticks=range(1, layers + 1),
             title=f"Attention values: effective rank (of at most {found[0].limit})")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    grid = np.atleast_1d(bottom.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    floor = max(1e-6, min(float(s.shares[:, : max(1, s.limit * 9 // 10)].min()) for s in found))
    for layer, small in enumerate(grid):
        if layer >= layers:
            small.set_visible(False)
            continue
        for s, color in zip(found, colors * len(found)):
            small.semilogy(np.arange(1, s.limit + 1), s.shares[layer], color=color, linewidth=1.2)
        small.set_title(f"layer {layer + 1}", fontsize=8)
        small.set_ylim(floor, 1)
        small.tick_params(labelsize=7)
        small.spines[["top", "right"]].set_visible(False)
    bottom.supxlabel("singular value, largest first", fontsize=8)
    bottom.supylabel("share of their sum", fontsize=8)
    with atomic_target(path, ".png") as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "HiEndSeg"})


# ------------------------------------------------------------------------------------------------------- command line


def common_recipe(rows: Sequence[Row], spacing: float | None, window: Sequence[float] | None) -> tuple[float, tuple]:
    """Spacing and window to look through: as asked, else as all encoders were pre-trained.

    Raises OptionError: the encoders disagree and nothing was asked.
    """
    def agreed(asked, key, default, option):
        told = {_plain(row.about[key]) for row in rows if row.about and row.about.get(key)}
        if asked is not None:
            return _plain(asked)
        if len(told) > 1:
            raise OptionError(f"The encoders were pre-trained with different values of {key} "
                              f"({', '.join(map(str, sorted(told)))}); choose one with {option}.")
        return told.pop() if told else default
    return agreed(spacing, "spacing", 1.5, "--spacing"), agreed(window, "window", (-175.0, 250.0), "--window")


def _plain(value):
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.representation", description=__doc__.splitlines()[0])
    parser.add_argument("volumes", nargs="+", type=Path, help="prepared cases (.npz) or images, best held-out ones")
    parser.add_argument("--out", type=Path, required=True, help="folder for table, numbers and figure")
    parser.add_argument("--rows", nargs="+", default=[RANDOM], metavar="ROW", help="random, NAME=FOLDER")
    parser.add_argument("--crops", type=int, default=16, help="in all")
    parser.add_argument("--crop", type=int, default=96, help="voxels, a multiple of the patch")
    parser.add_argument("--spacing", type=float, help="mm (default: as pre-trained, else 1.5)")
    parser.add_argument("--window", type=float, nargs=2, metavar="HU", help="(default: as pre-trained)")
    parser.add_argument("--variant", default="vit_tiny_12p", choices=list(VIT_VARIANTS))
    parser.add_argument("--network", type=json.loads, default={}, help="JSON of encoder keywords that differ from it")
    parser.add_argument("--per-head", action="store_true", help="a matrix a head instead of all heads together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    try:
        text = analyse(args)
    except HiEndSegError as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 0


def analyse(args: argparse.Namespace) -> str:
    """The whole command; returns the table it also writes."""
    rows = parse_rows(args.rows, (RANDOM,))
    spacing, window = common_recipe(rows, args.spacing, args.window)
    encoders = [build_encoder(row, args.variant, args.network, args.seed) for row in rows]
    patch = encoders[0].patch_size[0]
    if args.crop < patch or args.crop % patch or args.crops < 1:
        raise OptionError(f"Take at least one crop of a multiple of {patch} voxels, not {args.crops} of {args.crop}.")
    crops = draw_crops([read_scaled(path, spacing, window) for path in args.volumes], args.crops, args.crop, args.seed)
    found = [spectra(encoder, crops, row=row.name, per_head=args.per_head) for row, encoder in zip(rows, encoders)]
    remarks = _remarks(args, rows, spacing, window)
    text = markdown(found, remarks)
    make_folder(args.out)
    numbers = {"remarks": remarks, "volumes": [volume_name(path) for path in args.volumes],
               "rows": [{"row": s.row, "weights": row.weights, "ranks": s.ranks.tolist(), "shares": s.shares.tolist(),
                         "limit": s.limit} for row, s in zip(rows, found)]}
    for name, content in (("representation.md", text + "\n"), ("representation.json", json.dumps(numbers))):
        with atomic_target(args.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    draw_figure(found, args.out / "representation.png")
    return text


def _remarks(args: argparse.Namespace, rows: Sequence[Row], spacing: float, window: tuple[float, float]) -> list[str]:
    names = [volume_name(path) for path in args.volumes]
    heads = "mean over the heads, a matrix each" if args.per_head else "heads together"
    what = f"{args.crop}^3 crops of {', '.join(names)} at {spacing:g} mm, window {window[0]:g} to {window[1]:g} HU"
    remarks = [f"{what}; all patches visible, no cls token; {heads}."]
    for row in rows:
        known = {name: seen(name, row.about) for name in names} if row.about else {}
        if None in known.values():
            remarks.append(f"{row.name}: its description does not say which images it was pre-trained on.")
        elif any(known.values()):
            remarks.append(f"{row.name}: pre-training saw {', '.join(name for name in names if known[name])}.")
        if row.about and abs(row.about["spacing"] - spacing) > 1e-3:
            remarks.append(f"{row.name}: pre-trained at {row.about['spacing']:g} mm.")
    return remarks


if __name__ == "__main__":
    raise SystemExit(main())
