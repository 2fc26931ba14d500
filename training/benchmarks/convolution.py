"""``python -m training.benchmarks convolution``: small maps convolved whole and as two halves, side by side.

`networks.pyramid.Convolution3` sends a small float32 map through as its halves, because PyTorch's CPU code has a slow
way of its own for one. Measured: single layers, forward and back; a tile of the default model; a step of Adapt at each
speed, and of its curve of grey values. The ratio is what the plain way takes to what the halves take.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch

from HiEndSegLib.models.loading import load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.networks import pyramid
from HiEndSegLib.networks.objective import sampled_scores
from HiEndSegLib.networks.stages import Stages
from HiEndSegLib.operations.adapt_plan import CROP
from training.benchmarks.machine import machine

#: Channels and edge of single layers' maps: those of the networks here at 72^3 and 96^3.
LAYERS = ((32, 24), (48, 18), (96, 12), (48, 24))


@contextmanager
def plain():
    """Every map goes through whole."""
    bounds, pyramid.SMALL_MAP = pyramid.SMALL_MAP, (0, 0)
    try:
        yield
    finally:
        pyramid.SMALL_MAP = bounds


def layer(channels: int, edge: int) -> Callable[[], None]:
    """Forward and back through one convolution."""
    convolution = pyramid.Convolution3(channels, channels)
    x = torch.randn(1, channels, edge, edge, edge, requires_grad=True)
    return lambda: convolution(x).sum().backward()


def steps(model_id: str | None) -> dict[str, Callable[[], None]]:
    """What a model's tile and a step of Adapt compute; no data, no optimiser."""
    model = load_model(Registry().get(model_id))
    network, windows = copy.deepcopy(model.network).float(), len(model.card.windows)
    stages = Stages(network, model.card.network)

    def step(learns: str) -> None:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(learns == "full" or learns == "quick" and not name.startswith(stages.front_parts))
        x = torch.rand(1, windows, CROP, CROP, CROP, requires_grad=learns == "curve")
        if learns == "quick":
            with torch.no_grad():
                given = stages.front(x)
            out = stages.rest(given)
        else:
            out = stages.whole(x)
        sampled_scores(out, (0, 0, 0))[0].float().square().sum().backward()

    @torch.no_grad()
    def tile() -> None:
        network(torch.rand(1, windows, *model.card.tile))

    return {"a tile": tile, "curve of grey values": lambda: step("curve"),
            "quick, crop and step": lambda: step("quick"), "full, step": lambda: step("full")}


def measure(tasks: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds (plain, halves) of each task, interleaved; the first call of each is not counted."""
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in tasks}
    for number in range(-1, rounds):
        for name, task in tasks.items():
            for which in ((0, 1), (1, 0))[number % 2]:
                started = time.perf_counter()
                if which == 0:
                    with plain():
                        task()
                else:
                    task()
                if number >= 0:
                    seconds[name][which].append(time.perf_counter() - started)
    return seconds


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rounds", type=int, default=5, help="how often everything runs (default 5)")
    command.add_argument("--model", help="model id, id@version or folder (default: the shipped one)")
    command.add_argument("--layers-only", action="store_true", help="leave the model out")


def run(options: argparse.Namespace) -> str:
    """What the command prints."""
    tasks = {f"{channels} channels at {edge}^3": layer(channels, edge) for channels, edge in LAYERS}
    if not options.layers_only:
        tasks |= steps(options.model)
    lines = [machine("cpu"), f"{options.rounds} interleaved rounds, float32", "",
             f"{'':<24}{'plain ms':>10}{'halves ms':>11}{'ratio':>8}"]
    for name, both in measure(tasks, options.rounds).items():
        whole, halves = (1e3 * statistics.median(values) for values in both)
        lines.append(f"{name:<24}{whole:>10.1f}{halves:>11.1f}{whole / halves:>8.2f}")
    return "\n".join([*lines, "", "median; a ratio above 1: the halves are faster"])
