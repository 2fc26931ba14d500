"""What the terminal shows: lines, tables, a progress bar with the time left."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Sequence, TextIO

_BAR = 20


def plain(text: object) -> str:
    """Foreign text (file names, cards) without control characters, so that it cannot steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def say(text: object = "", stream: TextIO | None = None) -> None:
    """One line, or several, on stdout."""
    print("\n".join(plain(line) for line in str(text).split("\n")), file=stream or sys.stdout, flush=True)


def complain(sentence: object) -> None:
    """One sentence on stderr."""
    say(f"hiendseg: {sentence}", sys.stderr)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Columns padded with spaces; those numbered in `right` are flush right."""
    cells = [[plain(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(header))]
    lines = ["  ".join(cell.rjust(width) if n in right else cell.ljust(width)
                       for n, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def statistics_table(statistics: Sequence[dict]) -> str:
    """Structure, volume in ml, mean HU of what was found."""
    return table(("Structure", "Volume (ml)", "Mean HU"),
                 [(row["name"], f"{row['volume_ml']:.1f}", "" if row["mean_hu"] is None else f"{row['mean_hu']:.0f}")
                  for row in statistics if row["voxels"]], right=(1, 2))


def duration(seconds: float) -> str:
    """"42 s", "3:05 min" or "1:02 h"."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"


class ProgressLine:
    """A bar over all cases with the time left on a terminal; a line per quarter of a case elsewhere.

    Call `begin` for each case, then the object itself as a Progress, then `end`. A message that is a whole sentence
    (the memory plan, a step-down) gets a line of its own, which stays.
    """

    def __init__(self, total: int, stream: TextIO | None = None, clock=time.monotonic):
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._started = clock()
        self._total, self._done, self._name, self._quarter = max(1, total), 0, "", 0
        self._sentence = ""
        self._shown = False

    def begin(self, name: str) -> None:
        """The next case starts."""
        self._name, self._quarter, self._sentence = plain(name), 0, ""
        if not self._live:
            say(f"[{self._done + 1}/{self._total}] {self._name}", self._stream)

    def __call__(self, fraction: float, message: str) -> None:
        if message.endswith("."):
            if message != self._sentence:
                self._sentence = message
                self.clear()
                say(f"  {plain(message)}", self._stream)
        elif self._live:
            self._draw(fraction, plain(message))
        elif int(fraction * 4) > self._quarter:
            self._quarter = int(fraction * 4)
            if self._quarter < 4:
                say(f"  {fraction:4.0%}  {plain(message)}", self._stream)

    def end(self) -> None:
        """The case is over, one way or the other."""
        self.clear()
        self._done += 1

    def clear(self) -> None:
        """Take the bar away, so that a line can be printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._shown = False

    def _draw(self, fraction: float, message: str) -> None:
        whole = (self._done + fraction) / self._total
        spent = self._clock() - self._started
        left = f"{duration(spent * (1 - whole) / whole)} left" if whole > 0.02 and spent > 1 else ""
        filled = int(round(fraction * _BAR))
        count = f"[{self._done + 1}/{self._total}] " if self._total > 1 else ""
        line = f"{count}{self._name}  {'#' * filled}{'.' * (_BAR - filled)} {fraction:4.0%}  {left:>12}  {message}"
        width = shutil.get_terminal_size().columns - 1
        print("\r" + line[:width] + "\x1b[K", end="", file=self._stream, flush=True)
        self._shown = True
