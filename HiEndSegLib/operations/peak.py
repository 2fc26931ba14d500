"""The largest memory a process took while something ran."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Iterator

import psutil


class Peak:
    """bytes: the largest resident memory seen so far."""

    bytes = 0


@contextmanager
def peak_memory(every: float = 0.05) -> Iterator[Peak]:
    """The process's largest resident memory while the block ran, looked at 20 times a second."""
    process, peak, stop = psutil.Process(), Peak(), threading.Event()

    def look() -> None:
        peak.bytes = max(peak.bytes, process.memory_info().rss)

    def watch() -> None:
        while not stop.wait(every):
            look()

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        look()
