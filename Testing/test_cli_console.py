"""What the terminal shows, and what Ctrl-C does while a library reads."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_helpers import write_ct
from tiny_models import write_bytes_model

from HiEndSegLib.cli import command, console
from HiEndSegLib.cli.interrupt import Interrupt
from HiEndSegLib.errors import Cancelled


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_bar_shows_case_fraction_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock()
    line = console.ProgressLine(2, stream, clock)
    line.begin("first")
    clock.now = 30.0
    line(0.5, "Tile 4 of 8")
    assert "[1/2] first  ##########..........  50%" in stream.getvalue()
    assert "1:30 min left  Tile 4 of 8" in stream.getvalue()  # a quarter of all took 30 s
    line.end()
    assert stream.getvalue().endswith("\r\x1b[K")
    line.begin("second")
    clock.now = 60.0
    line(0.0, "Reading")
    assert "[2/2] second" in stream.getvalue() and "1:00 min left  Reading" in stream.getvalue()


def test_a_narrow_terminal_gets_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    line = console.ProgressLine(1, stream)
    line.begin("a very long name of a case that does not fit")
    line(0.1, "Working")
    assert max(len(part) for part in stream.getvalue().replace("\x1b[K", "").split("\r")) < 40


def test_elsewhere_there_are_plain_lines_and_few():
    stream = io.StringIO()
    line = console.ProgressLine(1, stream)
    line.begin("ct")
    for step in range(101):
        line(step / 100, f"Tile {step}")
    line.end()
    assert stream.getvalue().splitlines() == ["[1/1] ct", "   25%  Tile 25", "   50%  Tile 50", "   75%  Tile 75"]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_whole_sentences_stay(kind):
    stream = kind()
    line = console.ProgressLine(1, stream)
    line.begin("ct")
    for _ in range(3):
        line(0.0, "About 2 GB of main memory.")
    line(0.1, "Tile 1")
    line.end()
    assert stream.getvalue().count("About 2 GB of main memory.\n") == 1


def test_foreign_text_cannot_steer_the_terminal(capsys):
    console.say("na\x1b[2Jme\r\x07 肝 é")
    assert capsys.readouterr().out == "na?[2Jme?? 肝 é\n"


def test_tables_line_up():
    text = console.statistics_table([
        {"name": "Liver", "voxels": 3, "volume_ml": 1500.04, "mean_hu": 101.6},
        {"name": "Spleen", "voxels": 0, "volume_ml": 0.0, "mean_hu": None},
        {"name": "Mask", "voxels": 3, "volume_ml": 7.0, "mean_hu": None}])
    assert text.splitlines()[2:] == ["Liver           1500.0      102", "Mask               7.0"]


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"),
                                           (3720, "1:02 h")])
def test_durations(seconds, text):
    assert console.duration(seconds) == text


def test_a_region_may_begin_with_a_minus():
    options = command.parser().parse_args(command._join_roi(
        ["segment", "a", "-o", "b", "--roi", "-1,2,-3,4,-5,6", "--device", "cpu"]))
    assert options.roi == "-1,2,-3,4,-5,6" and options.device == "cpu"


# ------------------------------------------------------------------------------------------------ Ctrl-C


def test_waiting_gives_up_at_once_and_remembers_what_still_runs():
    interrupt, release = Interrupt(), threading.Event()
    threading.Timer(0.05, interrupt.token.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        interrupt.wait_for(release.wait)
    assert time.monotonic() - began < 5 and interrupt.left_behind
    release.set()
    interrupt._threads[0].join(5)
    assert not interrupt.left_behind


def test_waiting_hands_on_results_and_errors():
    interrupt = Interrupt()
    assert interrupt.wait_for(int, "7", base=8) == 7 and not interrupt.left_behind
    with pytest.raises(ValueError):
        interrupt.wait_for(int, "x")
    interrupt.token.cancel()
    with pytest.raises(Cancelled):
        interrupt.wait_for(int, "7")


def test_the_first_signal_cancels_and_the_second_raises():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.token.cancelled
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_does_not_wait_for_a_library_that_reads(tmp_path):
    write_bytes_model(tmp_path / "models" / "tiny")
    write_ct(tmp_path / "ct.nii.gz")
    code = ("import sys, time\nfrom HiEndSegLib.cli import main\nfrom HiEndSegLib.geometry import reading\n"
            "def slow(path, series=None):\n    print('reading', flush=True)\n    time.sleep(600)\n"
            "reading.read_volume = slow\n"
            "sys.exit(main(['segment', 'ct.nii.gz', '-o', 'out', '--model', 'tiny']))")
    environment = {**os.environ, "HIENDSEG_MODELS": str(tmp_path / "models"),
                   "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped" in said
    assert list((tmp_path / "out").iterdir()) == []
