"""The one-shot protocol (arXiv 2502.08347): one labelled case -> fine-tune -> Dice on others; does pre-training help?

    python -m training.oneshot CACHE --out RUNS --rows scratch MAE=runs/mae-encoder Hi-End-MAE=runs/hi-end-encoder
    python -m training.oneshot --out RUNS --table

CACHE holds what `training.cases` and `training.synthesis` wrote. Rows are `scratch` (UNETR's own start), `random` (the
start of the pre-training itself) and NAME=FOLDER for an exported encoder. Every row gets the same network, budget,
crops and decoder. With real cases each labelled case of a group takes its turn with each seed; with synthetic images
each seed labels another organ map.

Each run is one JSON file in RUNS, written when it is finished; the same command goes on where it was stopped. Runs that
belong together come one after the other, so that a table of half of them is a fair one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from HiEndSegLib.errors import DeviceError, HiEndSegError, OptionError
from HiEndSegLib.geometry.files import atomic_target

from .encoder_rows import Row, check_heads, parse_rows
from .in_words import in_words, make_folder
from .oneshot_cases import EXPERT_ORGANS, REAL_GROUPS, Task, read_case, real_tasks, synthetic_images, synthetic_task
from .oneshot_run import (
    CPU,
    RANDOM,
    SCRATCH,
    RunConfig,
    check_task,
    half,
    initial_network,
    run,
    train,
    windows_of,
)
from .oneshot_table import read_result, read_results, table


@dataclass(frozen=True)
class Job:
    """A run that is still to be done, and where its result goes."""

    config: RunConfig
    row: Row
    target: Path


# --------------------------------------------------------------------------------------------------------------- rows


def check_rows(rows: Sequence[Row], config: Callable[[Row], RunConfig]) -> None:
    """Build every row's first network once, so that a wrong encoder is told before hours of runs.

    Raises OptionError: another intensity window; ModelError: an encoder that does not fit.
    """
    for row in rows:
        tried = config(row)
        try:
            initial_network(tried, row.load())
        except HiEndSegError as error:
            raise type(error)(f"Row {row.name}: {error}") from error
        check_heads(row, tried.encoder)
        window = (row.about or {}).get("window")
        if window and tuple(map(float, window)) != tuple(tried.window):
            raise OptionError(f"Row {row.name} was pre-trained with the window {window[0]:g} to {window[1]:g} HU, and "
                              f"the protocol runs with {tried.window[0]:g} to {tried.window[1]:g}; give --window.")


# --------------------------------------------------------------------------------------------------------------- plan


def tasks_of(args: argparse.Namespace, seed: int) -> list[Task]:
    """The tasks of one seed: all real rotations, and one synthetic labelled map."""
    tasks = real_tasks(args.real_groups) if "real" in args.data else []
    if "synthetic" in args.data:
        images = synthetic_images(args.cache, tuple(args.window), tuple(args.organs))
        tasks.append(synthetic_task(images, seed, args.score_maps))
    return tasks


def plan(args: argparse.Namespace, rows: Sequence[Row]) -> list[Job]:
    """Every run of the protocol, those that belong together next to each other."""
    jobs = []
    for seed in args.seeds:
        for task in tasks_of(args, seed):
            check_task(task, read_case(args.cache, task.labelled, task.classes, tuple(args.window)))
            for steps in args.steps:
                for row in rows:
                    config = config_of(args, task, row, seed, steps)
                    jobs.append(Job(config, row, args.out / config.file_name))
    if not jobs:
        raise OptionError("There is nothing to run; give at least one of --data, --seeds, --steps and --rows.")
    check_rows(rows, lambda row: next(job.config for job in jobs if job.row == row))
    return jobs


def config_of(args: argparse.Namespace, task: Task, row: Row, seed: int, steps: int) -> RunConfig:
    return RunConfig(task, row.name, row.weights, seed, steps, crop=args.crop, crops=args.crops,
                     decoder=args.decoder, feature_size=args.feature_size, variant=args.variant, network=args.network,
                     window=tuple(args.window), lr=args.lr, weight_decay=args.weight_decay, warmup=args.warmup,
                     precision=args.precision, overlap=args.overlap)


def estimate_minutes(jobs: Sequence[Job], cache: Path, workers: int = 1,
                     device: torch.device = CPU) -> tuple[float, float, float]:
    """(minutes for all jobs, seconds a step, seconds a window), measured on the first job's case."""
    if not jobs:
        return 0.0, 0.0, 0.0
    config = jobs[0].config
    teacher = read_case(cache, config.task.labelled, config.task.classes, config.window)
    network = initial_network(config).to(device)
    images = torch.rand(1, config.encoder["in_channels"], *(config.crop,) * 3, device=device)
    timed = []
    for steps in (1, 3):                                      # the first is slower: buffers are made
        started = time.perf_counter()
        train(network, teacher, replace(config, steps=steps), device)
        middle = time.perf_counter()
        with torch.no_grad(), half(config, device):
            network(images).sum().item()
        timed.append(((middle - started) / steps, time.perf_counter() - middle))
    step, window = timed[-1]
    seconds = sum(job.config.steps * step + window * sum(
        windows_of(read_case(cache, name, job.config.task.classes, job.config.window), job.config)
        for name in job.config.task.scored) for job in jobs)
    return seconds / 60 / min(workers, len(jobs)), step, window


# ---------------------------------------------------------------------------------------------------------------- run


def choose_device(name: str) -> torch.device:
    """The device of that name. Raises DeviceError if it cannot compute."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"The device {name} does not work here; take --device cpu.") from error
    return device


def do(job: Job, cache: Path, threads: int, device: torch.device) -> dict:
    """Run one job and write its result. Also the entry point of the worker processes."""
    torch.set_num_threads(threads)
    result = {**run(job.config, cache, job.row.load(), device), "encoder": job.row.about}
    with atomic_target(job.target) as temporary:
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def is_finished(job: Job) -> bool:
    """Whether the job's result is there; one that cannot be read is told rather than overwritten."""
    if not job.target.exists():
        return False
    read_result(job.target)
    return True


def do_all(jobs: Sequence[Job], cache: Path, *, workers: int = 1, threads: int = 1,
           device: torch.device = CPU, tell: Callable[[str], None] = print) -> None:
    """Run the jobs in order, or `workers` at a time in processes of their own."""
    started = time.monotonic()

    def report(job: Job, result: dict, done: int) -> None:
        left = (time.monotonic() - started) / done * (len(jobs) - done) / 60
        config, task = job.config, job.config.task
        tell(f"{done}/{len(jobs)}  {task.data} {task.labelled}, {config.row}, seed {config.seed}, {config.steps} "
             f"steps: Dice {result['mean']:.3f} in {sum(result['seconds'].values()):.0f} s; about {left:.0f} min left")

    if workers <= 1 or len(jobs) <= 1:
        for done, job in enumerate(jobs, 1):
            report(job, do(job, cache, threads, device), done)
        return
    # Not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(do, job, cache, threads, device): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                report(futures[future], future.result(), done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# ------------------------------------------------------------------------------------------------------- command line


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = RunConfig.__dataclass_fields__
    parser = argparse.ArgumentParser(prog="python -m training.oneshot", description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, nargs="?", help="folder of prepared cases")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, one file a run")
    parser.add_argument("--table", action="store_true", help="print the finished runs as Markdown and run nothing")
    parser.add_argument("--estimate", action="store_true", help="print how long it would take and run nothing")
    parser.add_argument("--rows", nargs="+", default=[SCRATCH], metavar="ROW", help="scratch, random, NAME=FOLDER")
    parser.add_argument("--data", nargs="+", choices=["real", "synthetic"], default=["real", "synthetic"])
    parser.add_argument("--real-groups", nargs="+", choices=list(REAL_GROUPS), default=list(REAL_GROUPS))
    parser.add_argument("--organs", nargs="+", choices=EXPERT_ORGANS, default=list(EXPERT_ORGANS),
                        help="of the synthetic images (default: all)")
    parser.add_argument("--score-maps", type=int, default=4, help="other organ maps that score a synthetic run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[250], help="one or several budgets")
    parser.add_argument("--crop", type=int, default=default["crop"].default, help="voxels")
    parser.add_argument("--crops", type=int, default=default["crops"].default, help="crops a step")
    parser.add_argument("--decoder", choices=["unetr", "token"], default=default["decoder"].default,
                        help="unetr as published, or a light one of ours")
    parser.add_argument("--feature-size", type=int, default=default["feature_size"].default)
    parser.add_argument("--variant", default=default["variant"].default, help="encoder")
    parser.add_argument("--network", type=json.loads, default={}, help="JSON of encoder keywords that differ from it")
    parser.add_argument("--window", type=float, nargs=2, default=default["window"].default, metavar="HU")
    parser.add_argument("--lr", type=float, default=default["lr"].default)
    parser.add_argument("--weight-decay", type=float, default=default["weight_decay"].default)
    parser.add_argument("--warmup", type=float, default=default["warmup"].default, help="fraction of the steps")
    parser.add_argument("--overlap", type=float, default=default["overlap"].default, help="of the sliding window")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default=default["precision"].default)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args(arguments)
    if not args.table and args.cache is None:
        parser.error("name the folder of prepared cases, or ask for --table")
    return args


@in_words
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if args.table:
        print(table(read_results(args.out)))
        return 0
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    rows = parse_rows(args.rows, (SCRATCH, RANDOM))
    jobs = plan(args, rows)
    left = [job for job in jobs if not is_finished(job)]
    minutes, step, window = estimate_minutes(left, args.cache, args.jobs, device)
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them finished; {step:.2f} s a step and {window:.2f} s a "
          f"window: about {minutes:.0f} min left", flush=True)
    if args.estimate or not left:
        return 0
    make_folder(args.out)
    do_all(left, args.cache, workers=args.jobs, threads=args.threads, device=device,
           tell=lambda s: print(s, flush=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
