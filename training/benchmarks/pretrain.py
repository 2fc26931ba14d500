"""``python -m training.benchmarks pretrain``: what a pre-training step costs, Hi-End-MAE beside the plain MAE.

First the decoder's multiply-adds of the published variants, as the paper counts them and as they are. Then seconds
and peak memory of a training step (forward, loss, backward, AdamW) of one variant. What makes the numbers fair:
- both networks have the same encoder with the same start, the same decoder width, crops and masks;
- steps alternate, and the order turns, so that a busy machine hits both alike;
- the plain MAE is the paper's: eight self-attention blocks. Both predict the masked rows only;
- memory is the peak of a process of its own, less what the process held before the network was built.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from HiEndSegLib.errors import OptionError
from HiEndSegLib.networks.hi_end_mae import HI_END_MAE_VARIANTS, HiEndMAE, build_hi_end_mae
from training.benchmarks.machine import DTYPES, machine, measured_apart, resident_peak, synchronizer
from training.benchmarks.multiply_adds import HONEST, PAPER, decoder_count, encoder_count, projections_count

PUBLISHED = ("hi_end_mae_vit_base_16p", "hi_end_mae_vit_large_16p", "hi_end_mae_vit_large_12p")
STAGES = {"Hi-End-MAE": 3, "MAE": 0}  # the ratios refer to the first
PRECISIONS = ("fp32", "bf16")


def weightless(variant: str, stages: int) -> HiEndMAE:
    with torch.device("meta"):
        return build_hi_end_mae(variant, dense_stages=stages)


def counts() -> list[dict]:
    """Multiply-adds of every published decoder: per variant and number of dense stages, in both ways of counting."""
    rows = []
    for variant in PUBLISHED:
        for stages in (0, 1, 2, 3):
            network = weightless(variant, stages)
            rows.append({"variant": variant, "stages": stages, "paper": decoder_count(network, PAPER),
                         "honest": decoder_count(network, HONEST)})
    return rows


def counts_table(rows: list[dict]) -> str:
    lines = ["decoder of one crop, multiply-adds in units of 1e9 (the paper cuts digits off)",
             f"{'variant':<28}{'dense stages':>14}{'paper counts':>14}{'honest':>9}{'of MAE':>9}"]
    for row in rows:
        base = next(r for r in rows if r["variant"] == row["variant"] and r["stages"] == 0)
        lines.append(f"{row['variant']:<28}{row['stages'] or '0 (MAE)':>14}{row['paper'] / 1e9:>14.3f}"
                     f"{row['honest'] / 1e9:>9.3f}{row['honest'] / base['honest']:>9.1%}")
    return "\n".join(lines)


def step_count(variant: str, stages: int) -> tuple[int, int]:
    """Multiply-adds of one crop's forward pass in training: of the encoder, and of all behind it."""
    network = weightless(variant, stages)
    return encoder_count(network), projections_count(network) + decoder_count(network, all_rows=False)


def make_step(stages: int, options: argparse.Namespace, **changes) -> Callable[[Tensor, Tensor], float]:
    """A network with its optimiser, as a function of crops and masks that does one step and returns the loss."""
    torch.manual_seed(0)  # the encoder is built first, hence the same one whatever the decoder
    network = build_hi_end_mae(options.variant, dense_stages=stages, **changes).to(options.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    dtype = DTYPES[options.precision]
    device = torch.device(options.device).type

    def step(crops: Tensor, shuffle: Tensor) -> float:
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            loss = network(crops, shuffle, full_prediction=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def random_batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Crops and masks of one step, the same at every call."""
    network, generator = weightless(options.variant, 0), torch.Generator().manual_seed(1)
    size = (options.batch, network.encoder.in_channels, *network.encoder.img_size)
    return (torch.rand(size, generator=generator).to(options.device),
            network.random_shuffle(options.batch, generator=generator, device=options.device))


def timed_steps(steps: dict[str, Callable[[Tensor, Tensor], float]], batch: tuple[Tensor, Tensor],
                rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds by the clock and of the processor per network and round; each one's first step is not counted."""
    synchronize = synchronizer(batch[0].device)
    keys = list(steps)
    seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in keys}
    for step in steps.values():
        step(*batch)
    for number in range(rounds):
        turn = number % len(keys)
        for key in keys[turn:] + keys[:turn]:
            synchronize()
            start, work = time.perf_counter(), time.process_time()
            steps[key](*batch)
            synchronize()
            seconds[key].append((time.perf_counter() - start, time.process_time() - work))
    return seconds


def peak_memory(stages: int, options: argparse.Namespace) -> int:
    """Bytes of two steps (the optimiser's own memory comes with the first); run in a process of its own."""
    batch = random_batch(options)
    if options.device.startswith("cuda"):
        before = torch.cuda.memory_allocated(options.device)
        torch.cuda.reset_peak_memory_stats(options.device)
    else:
        # Thread pools and late imports are not the network's memory; a small step brings them in.
        make_step(0, options, depth=1, img_size=48)(torch.rand(1, 1, 48, 48, 48), torch.randperm(64)[None])
        before = resident_peak()
    step = make_step(stages, options)
    for _ in range(2):
        step(*batch)
    after = torch.cuda.max_memory_allocated(options.device) if options.device.startswith("cuda") else resident_peak()
    return after - before


def steps_benchmark(options: argparse.Namespace) -> list[dict]:
    """All measurements of a step; one row per network, in the order of `STAGES`."""
    memory = {name: measured_apart(
        ["pretrain", "--memory-of", str(stages), "--variant", options.variant, "--batch", str(options.batch),
         "--precision", options.precision, "--device", options.device], options.threads, f"the memory of {name}")
        for name, stages in STAGES.items()}
    steps = {name: make_step(stages, options) for name, stages in STAGES.items()}
    seconds = timed_steps(steps, random_batch(options), options.rounds)
    rows = []
    for name, stages in STAGES.items():
        clock, work = zip(*seconds[name])
        encoder, rest = step_count(options.variant, stages)
        rows.append({"name": name, "encoder": encoder, "decoder": rest, "seconds": statistics.median(clock),
                     "fastest": min(clock), "work": statistics.median(work), "memory": memory[name]})
    return rows


def steps_table(rows: list[dict], options: argparse.Namespace) -> str:
    """The rows as text, with ratios to the first."""
    first, on_cpu = rows[0], not options.device.startswith("cuda")
    title = (f"training step of {options.variant}, batch {options.batch}, {options.precision}, {options.rounds} "
             "rounds in turn")
    lines = [title, machine(options.device), "",
             f"{'network':<12}{'encoder':>9}{'decoder':>9}{'ratio':>7}{'seconds':>9}{'fastest':>9}{'ratio':>7}"
             + (f"{'CPU s':>8}{'ratio':>7}" if on_cpu else "") + f"{'peak MB':>9}{'ratio':>7}"]
    for row in rows:
        whole = (row["encoder"] + row["decoder"]) / (first["encoder"] + first["decoder"])
        lines.append(
            f"{row['name']:<12}{row['encoder'] / 1e9:>9.3f}{row['decoder'] / 1e9:>9.3f}{whole:>7.3f}"
            f"{row['seconds']:>9.3f}{row['fastest']:>9.3f}{row['seconds'] / first['seconds']:>7.3f}"
            + (f"{row['work']:>8.3f}{row['work'] / first['work']:>7.3f}" if on_cpu else "")
            + f"{row['memory'] / 1e6:>9.0f}{row['memory'] / max(first['memory'], 1):>7.3f}")
    note = "encoder, decoder: multiply-adds (1e9) forward per crop, decoder with projections; seconds: median"
    return "\n".join([*lines, "", note + ("; CPU s: processor time, whatever else ran" if on_cpu else "")])


def add_arguments(pretrain: argparse.ArgumentParser) -> None:
    pretrain.add_argument("--variant", choices=HI_END_MAE_VARIANTS, default="vit_tiny_12p",
                          help="whose step is measured (default vit_tiny_12p)")
    pretrain.add_argument("--batch", type=int, default=4, help="crops per step (default 4)")
    pretrain.add_argument("--precision", choices=PRECISIONS, default="fp32", help="fp32, or autocast to bf16")
    pretrain.add_argument("--rounds", type=int, default=9, help="steps of each network (default 9)")
    pretrain.add_argument("--count-only", action="store_true", help="print the multiply-adds and measure nothing")
    pretrain.add_argument("--memory-of", type=int, choices=STAGES.values(), help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> str:
    """What the command prints."""
    if options.batch < 1:
        raise OptionError(f"A batch of {options.batch} crops has nothing to learn from; ask for at least one.")
    if options.memory_of is not None:
        return str(peak_memory(options.memory_of, options))
    parts = [counts_table(counts())]
    if not options.count_only:
        parts.append(steps_table(steps_benchmark(options), options))
    return "\n\n".join(parts)
