"""``python -m training.benchmarks attention``: how long a look into a model takes, measured side by side.

Every round does each of these once, the order turning, so that a busy machine hits all alike:
- map: a point in a window that is not warm -> encoder -> row -> map on the volume's lattice (the bar: 500 ms);
- warm map: the same in a warm window;
- drag: another point in a warm window, the small map only (what a dragged point costs; the bar: 5 a second);
- drag, engine: the same through the worker process, with handing over the question and the map;
- all heads, rollout: a warm window, four layers' heads, and attention followed down from the last block;
- head: the mask head's cross-attention in a window that is not warm (the whole network runs).
The ratio is to what a plain program would do for one map: run the encoder and keep softmax(Q K^T) of all of its blocks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from HiEndSegLib.engine.client import EngineClient
from HiEndSegLib.errors import OptionError
from HiEndSegLib.geometry.volume import Volume
from HiEndSegLib.models.loading import load_model
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.operations.attend import attend
from HiEndSegLib.operations.attend_result import on_lattice
from HiEndSegLib.operations.attend_session import AttendSession
from training.benchmarks.machine import machine, synchronizer

NAMES = {"map": "map on the lattice", "warm": "warm map on the lattice", "drag": "drag", "engine": "drag, engine",
         "heads": "all heads of four layers", "rollout": "rollout from the last block", "head": "head, new window",
         "plain": "all N x N maps, plain"}


def phantom(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    """Noisy water in air, a torso's size."""
    array = np.random.default_rng(0).normal(40, 60, size).astype(np.int16)
    array[: size[0] // 10] = -1000
    matrix = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    return Volume(array, matrix, "phantom", {"modality": "CT"})


def tasks(options: argparse.Namespace, engine: EngineClient | None) -> dict[str, Callable[[], object]]:
    """Each measured thing by key; every call looks from another point of the same window."""
    model = load_model(Registry().get(options.model), options.device)
    volume = phantom(tuple(options.shape), tuple(options.spacing))
    session, cold = AttendSession(model, volume), AttendSession(model, volume)
    if session.encoder is None:
        raise OptionError(f"Model {model.card.key} has no transformer; choose another.")
    step = [0]

    def point() -> tuple[float, ...]:
        step[0] += 1
        middle = np.array(session.middle)
        return tuple(middle + (step[0] * 7 % 20 - 10, step[0] * 3 % 14 - 7, 0))

    def last(**more) -> object:
        return attend(model, None, at=point(), layers=[-1], session=session, **more)

    def on_full(result) -> Volume:
        return on_lattice(result.maps[0].as_cells(), volume)

    def fresh(**more) -> object:
        cold.forget_windows()
        return attend(model, None, at=point(), layers=[-1], session=cold, **more)

    @torch.no_grad()
    def plain() -> list:
        tokens = session.encoder.embed(session.window(point()).on_device())
        maps = []
        for block in session.encoder.blocks:
            q, k, v = (part.unflatten(2, (session.encoder.heads, -1)).transpose(1, 2)
                       for part in block.attn.qkv(block.norm1(tokens)).chunk(3, 2))
            maps.append((q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(-1))
            tokens = block(tokens)
        return maps

    found = {"map": lambda: on_full(fresh()), "warm": lambda: on_full(last()), "drag": last,
             "heads": lambda: attend(model, None, at=point(), heads="all", session=session),
             "rollout": lambda: last(kind="rollout"), "plain": plain}
    if session.head is not None:
        found["head"] = lambda: fresh(kind="head")
    if engine is not None:
        engine.attend(volume, volume_key="bench", at=session.middle, model=options.model, device=options.device)
        found["engine"] = lambda: engine.attend(None, volume_key="bench", at=point(), layers=[-1], model=options.model,
                                                device=options.device)
    return {key: found[key] for key in NAMES if key in found}


def measure(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """(seconds, processor seconds of this process) per task and round; the first call of each is not counted."""
    engine = None if options.no_engine else EngineClient()
    try:
        todo, synchronize = tasks(options, engine), synchronizer(options.device)
        seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in todo}
        keys = list(todo)
        for key in keys:
            todo[key]()
        for number in range(options.rounds):
            turn = number % len(keys)
            for key in keys[turn:] + keys[:turn]:
                synchronize()
                start, busy = time.perf_counter(), time.process_time()
                todo[key]()
                synchronize()
                seconds[key].append((time.perf_counter() - start, time.process_time() - busy))
    finally:
        if engine is not None:
            engine.close()
    return seconds


def table(seconds: dict[str, list[tuple[float, float]]], options: argparse.Namespace) -> str:
    shape, spacing = (" x ".join(f"{v:g}" for v in values) for values in (options.shape, options.spacing))
    model = Registry().get(options.model)
    lines = [f"{model.key}, CT of {shape} voxels of {spacing} mm, {options.rounds} interleaved rounds",
             machine(options.device), "",
             f"{'look':<30}{'ms':>9}{'fastest':>9}{'a second':>10}{'CPU ms':>9}{'ratio':>8}"]
    plain = statistics.median(wall for wall, _ in seconds["plain"])
    for key, values in seconds.items():
        walls = [wall for wall, _ in values]
        middle = statistics.median(walls)
        busy = "" if key == "engine" else f"{1e3 * statistics.median(cpu for _, cpu in values):.1f}"
        lines.append(f"{NAMES[key]:<30}{1e3 * middle:>9.1f}{1e3 * min(walls):>9.1f}{1 / middle:>10.1f}{busy:>9}"
                     f"{middle / plain:>8.2f}")
    return "\n".join([*lines, "", "ms: median; CPU ms: processor time, all threads, which other programs sway little; "
                                  "ratio: to the plain way, which gives no map on the lattice yet"])


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rounds", type=int, default=7, help="how often everything runs (default 7)")
    command.add_argument("--shape", type=int, nargs=3, default=[512, 512, 300], help="of the CT (default 512 512 300)")
    command.add_argument("--spacing", type=float, nargs=3, default=[0.75, 0.75, 1.0], help="mm (default 0.75 0.75 1)")
    command.add_argument("--model", help="model id, id@version or folder (default: the shipped one)")
    command.add_argument("--no-engine", action="store_true", help="leave the worker process out")


def run(options: argparse.Namespace) -> str:
    """What the command prints."""
    return table(measure(options), options)
