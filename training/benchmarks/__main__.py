"""``python -m training.benchmarks tile|attention|pretrain|convolution``; see the modules of those names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from HiEndSegLib.errors import HiEndSegError, OptionError
from training.benchmarks import attention, convolution, pretrain, tile

COMMANDS = {"tile": (tile, "one tile through this network and three others"),
            "attention": (attention, "a look into a model: the map of a point, and dragging it"),
            "convolution": (convolution, "small maps convolved whole and as two halves"),
            "pretrain": (pretrain, "a step of Hi-End-MAE beside one of the plain masked auto-encoder")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.benchmarks", description="Measure the networks.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        command.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
        command.add_argument("--device", default="cpu", help="cpu or cuda:0 (default cpu)")
        module.add_arguments(command)
    options = parser.parse_args(arguments)
    try:
        if options.rounds < 1:
            raise OptionError(f"{options.rounds} rounds measure nothing; ask for at least one.")
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise OptionError("There is no CUDA device here; use --device cpu.")
        if options.threads:
            torch.set_num_threads(options.threads)
        print(COMMANDS[options.command][0].run(options))
    except HiEndSegError as error:
        print(error.sentence, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
