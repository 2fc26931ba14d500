"""Small CT-like volumes, a tiny network, and pre-training runs in processes of their own (forked, so that they start in
no time)."""

from __future__ import annotations

import csv
import os
import signal
import socket
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.distributed.fsdp  # noqa: F401  imported once, before any process is forked

from HiEndSegLib.networks import hi_end_mae
from training import pretrain, pretrain_export

#: 4 x 4 x 4 patches of 6 in a crop of 24; deep enough for the taps 3, 6, 9.
VARIANT = "tiny_for_tests"
SIZES = {"encoder": {"patch_size": 6, "embed_dim": 24, "depth": 10, "num_heads": 2, "mlp_ratio": 2.0},
         "decoder_embed_dim": 12, "decoder_num_heads": 2}


def torso(shape=(40, 34, 30), seed=0) -> np.ndarray:
    """int16 HU: air, fat, organs and bone, with noise."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(grid[0] ** 2 + grid[1] ** 2)
    hu = np.where(radius < 0.8, -100.0, -1000.0)
    hu = np.where(radius < 0.7, 40.0 + 60 * np.sin(5 * grid[2] + seed) * grid[0], hu)
    hu = np.where(np.sqrt((grid[0] - 0.3) ** 2 + (grid[1] + 0.2) ** 2) < 0.15, 400.0, hu)
    return np.clip(hu + rng.normal(0, 12, shape), -1024, 3000).astype(np.int16)


def write_ct(path: Path, shape=(40, 34, 30), seed=0, spacing=3.0) -> Path:
    nib.save(nib.Nifti1Image(torso(shape, seed), np.diag([spacing, spacing, spacing, 1.0])), path)
    return path


def write_mr(path: Path, seed=0) -> Path:
    body = np.clip(torso(seed=seed).astype(np.float32) + 300, 0, None)
    nib.save(nib.Nifti1Image(body + np.random.default_rng(seed).gamma(2.0, 10, body.shape).astype(np.float32),
                             np.diag([3.0, 3.0, 3.0, 1.0])), path)
    return path


def write_data(folder: Path, count=3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_ct(folder / f"case-{number}.nii.gz", (40 - 3 * number, 34, 20 + 8 * number), number)
    return folder


def add_variant(monkeypatch) -> None:
    """The tiny network under a name of its own, wherever variants are looked up."""
    for module in (hi_end_mae, pretrain, pretrain_export):
        monkeypatch.setitem(module.HI_END_MAE_VARIANTS, VARIANT, SIZES)


def arguments(data: Path, run: Path, **changes) -> list[str]:
    """A command line of a short run; `changes` replace options, None leaves one out."""
    options = {"variant": VARIANT, "crop": 24, "spacing": 3, "batch": 4, "micro_batch": 2, "steps": 9, "lr": 1e-3,
               "warmup": 2, "save_every": 4, "log_every": 1, "validate_every": 5, "validation_crops": 3,
               "hold_out": "case-2", "threads": 1, "device": "cpu", "cache": data.parent / "cache", **changes}
    words = [str(data), "--run", str(run)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value == "" else [str(value)])]
    return words


def table(path: Path, *columns: str) -> list[tuple[str, ...]]:
    with open(path, newline="") as file:
        return [tuple(row[name] for name in columns) for row in csv.DictReader(file)]


def curve(run: Path) -> list[tuple[str, ...]]:
    """Everything of the logs that must not depend on interruptions, as written (so to the last bit)."""
    return table(run / "log.csv", "step", "loss", "lr") + table(run / "validation.csv", "step", "loss")


def losses(run: Path) -> np.ndarray:
    return np.array([float(loss) for _, loss, *_ in curve(run)])


class Child:
    """`training.pretrain` in a forked process, as one rank of several where `processes` says so; its output is read
    line by line."""

    def __init__(self, argv: list[str], *, rank=0, processes=1, port=0, before=lambda: None):
        self.lines: list[str] = []
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.close(reader)
                os.dup2(writer, 1)
                os.dup2(writer, 2)
                sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
                if processes > 1:       # what torchrun sets
                    os.environ.update(
                        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), GROUP_RANK="0",
                        LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                        TORCHELASTIC_RUN_ID="test")
                torch.set_num_threads(1)
                before()
                code = pretrain.main(argv)
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(writer)
        self.output = os.fdopen(reader)

    def read_until(self, words: str) -> str:
        """Read on to a line with these words in it; fails with all that was said if it never comes."""
        for line in self.output:
            self.lines.append(line)
            if words in line:
                return line
        raise AssertionError(f"{words!r} was never said:\n{self.text}")

    def kill(self, number=signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Exit code; -9 for a killed process."""
        self.lines += self.output.readlines()
        self.output.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def text(self) -> str:
        return "".join(self.lines)


def ranks(argv: list[str], processes: int) -> list[Child]:
    """All ranks of one run, started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [Child(argv, rank=rank, processes=processes, port=port) for rank in range(processes)]
