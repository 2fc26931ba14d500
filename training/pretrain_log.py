"""What a pre-training run tells: RUN/log.csv, RUN/validation.csv, TensorBoard, pictures, and lines with the time left.

A log that cannot be written (disk full) is said once and never stops the training.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
import threading
from pathlib import Path

import numpy as np

from HiEndSegLib.geometry.files import atomic_target

from .pretrain_data import duration

TRAINING = ("step", "loss", "lr", "seconds")
VALIDATION = ("step", "loss")
#: The class of TensorBoard's thread.
_WRITER_THREAD = "_AsyncWriterThread"


def tell(line: str) -> None:
    """A line for the person; one who no longer listens (`… | head`) must not end hours of training."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


class Table:
    """A CSV file that grows by rows. On resumption what lies beyond the checkpoint's step is cut off."""

    def __init__(self, path: Path, header: tuple[str, ...], *, keep: int):
        self.path, self.waiting, self.failed = path, [], False
        rows = [row for row in read_table(path) if int(row["step"]) <= keep]
        with atomic_target(path) as temporary:
            temporary.write_text(_lines([header, *([row[name] for name in header] for row in rows)]), encoding="utf-8")

    def add(self, *values) -> None:
        self.waiting.append([repr(v) if isinstance(v, float) else v for v in values])

    def flush(self) -> None:
        """Rows that cannot be written now wait for the next time."""
        size = None
        try:
            size = self.path.stat().st_size
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(_lines(self.waiting))
            self.waiting = []
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)        # no half row in the middle
            if not self.failed:
                warn(f"{self.path} cannot be written at present ({error.strerror or error}); training goes on, and the "
                     "rows are kept until it can.")
            self.failed = True


def _lines(rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a log by column name; half a row at the end (a killed process) is left out."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
    except OSError:
        return []
    return [row for row in rows if None not in row and None not in row.values() and row.get("step", "").isdigit()]


class Board:
    """TensorBoard's files in RUN/tensorboard, where the package is installed and the disk has room."""

    def __init__(self, folder: Path, step: int):
        self.writer = None
        _silence_writer_threads()
        try:
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(folder), purge_step=step + 1)
        except ImportError:
            warn("tensorboard is not installed, so there is no RUN/tensorboard (log.csv and pictures are written); "
                 "pip install tensorboard.")
        except OSError as error:
            self._stop(error)

    def scalar(self, name: str, value: float, step: int) -> None:
        self._do(lambda writer: writer.add_scalar(name, value, step))

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """pixels: (rows, columns) uint8."""
        self._do(lambda writer: writer.add_image(name, pixels, step, dataformats="HW"))

    def flush(self) -> None:
        self._do(lambda writer: writer.flush())

    def close(self) -> None:
        self._do(lambda writer: writer.close())

    def _do(self, action) -> None:
        if self.writer is not None:
            try:
                action(self.writer)
            except (OSError, RuntimeError, ValueError) as error:
                self._stop(error)

    def _stop(self, error: Exception) -> None:
        self.writer = None
        warn(f"TensorBoard's files cannot be written ({error}); training goes on without them.")


def _silence_writer_threads() -> None:
    """What ends TensorBoard's writing thread (disk full) reaches `Board._do` at the next call; the thread's own
    traceback would be all that a person sees of it."""
    others = threading.excepthook
    if getattr(others, "for_boards", False):
        return

    def hook(failure) -> None:
        if type(failure.thread).__name__ != _WRITER_THREAD:
            others(failure)

    hook.for_boards = True
    threading.excepthook = hook


def picture(crop: np.ndarray, visible: np.ndarray, rebuilt: np.ndarray) -> np.ndarray:
    """Original, what the encoder saw, and the reconstruction: rows axial, coronal, sagittal; (3 S, 3 S) uint8.

    All three are (S, S, S) in [0, 1], RAS+ axes; shown with the patient's right on the left and the front or head up.
    """
    rows = []
    for axis in (2, 1, 0):
        planes = [np.take(v, v.shape[axis] // 2, axis).T[::-1, ::-1 if axis != 0 else 1]
                  for v in (crop, visible, rebuilt)]
        rows.append(np.concatenate(planes, axis=1))
    return np.rint(np.clip(np.concatenate(rows, axis=0), 0, 1) * 255).astype(np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """pixels: (rows, columns) uint8; whole or not at all."""
    from PIL import Image

    with atomic_target(path) as temporary:
        Image.fromarray(pixels).save(temporary)


class Progress:
    """Lines for a person: where the run is, how fast, and when it will be done."""

    def __init__(self, first: int, steps: int, batch: int):
        self.step, self.steps, self.batch = first, steps, batch
        self.pace: float | None = None

    def line(self, step: int, loss: float, lr: float, seconds: float) -> str:
        """seconds: since the last line. The pace is smoothed, so that a validation in between tells little."""
        pace = seconds / max(1, step - self.step)
        self.pace = pace if self.pace is None else 0.7 * self.pace + 0.3 * pace
        self.step = step
        return (f"step {step} of {self.steps}  loss {loss:.4f}  lr {lr:.2e}  {pace:.2f} s/step  "
                f"{self.batch / max(pace, 1e-9):.1f} crops/s  {duration((self.steps - step) * self.pace)} left")


def warn(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
