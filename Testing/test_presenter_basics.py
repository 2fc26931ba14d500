"""The presenter's small parts: signals, words, and what importing it costs."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from HiEndSegLib.presenter import wording
from HiEndSegLib.presenter.signals import Signal


class Listener:
    def __init__(self, heard):
        self.heard = heard

    def hear(self, *words):
        self.heard.append(words)


def test_listeners_are_called_in_order_and_once():
    heard, signal = [], Signal()
    first, second = Listener(heard), lambda *words: heard.append(("second", *words))
    for listener in (first.hear, second, first.hear):
        signal.connect(listener)
    signal.emit(1, "a")
    assert heard == [(1, "a"), ("second", 1, "a")] and len(signal) == 2
    signal.disconnect(first.hear)
    signal.disconnect(print)
    signal.emit()
    assert heard[2:] == [("second",)]
    signal.disconnect_all()
    signal.emit()
    assert len(heard) == 3


def test_a_methods_object_may_die():
    heard, signal = [], Signal()
    listener = Listener(heard)
    signal.connect(listener.hear)
    del listener
    gc.collect()
    signal.emit(1)
    assert heard == [] and len(signal) == 0


def test_a_failing_listener_is_logged_and_stops_nobody(caplog):
    heard, signal = [], Signal()
    signal.connect(lambda: 1 / 0)
    signal.connect(lambda: heard.append(1))
    signal.emit()
    assert heard == [1] and "ZeroDivisionError" in caplog.text


def test_who_leaves_while_it_is_told_is_not_called():
    heard, signal = [], Signal()

    def second():
        heard.append("second")

    def first():
        heard.append("first")
        signal.disconnect(second)

    signal.connect(first)
    signal.connect(second)
    signal.emit()
    signal.emit()
    assert heard == ["first", "first"]


@pytest.mark.parametrize("count, words", [
    (0.2, "1 s"), (8.4, "8 s"), (12, "10 s"), (43, "45 s"), (57.4, "55 s"), (58, "1 min"), (200, "3 min"),
    (3600, "1 h 0 min"), (3900, "1 h 5 min")])
def test_seconds(count, words):
    assert wording.seconds(count) == words


@pytest.mark.parametrize("count, words", [(0.2, "0 s"), (12.4, "12 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"),
                                          (3720, "1 h 2 min")])
def test_durations(count, words):
    assert wording.duration(count) == words


def test_sizes_and_lists():
    assert wording.megabytes(11_615_378) == "11.6 MB"
    assert wording.megabytes(120e6) == "120 MB" and wording.megabytes(1.44e9) == "1.4 GB"
    assert wording.listing([]) == "" and wording.listing(["a"]) == "a"
    assert wording.listing("abc") == "a, b and c" and wording.listing("abcdefgh") == "a, b, c, d, e and 3 more"


def test_texts_are_translated_when_they_are_needed():
    asked = []

    def backward(context, text):
        asked.append(context)
        return text[::-1]

    _ = wording.translator("HiEndSegLib.presenter.segment")
    assert _("abc") == "abc"
    wording.set_translation(backward)
    try:
        assert _("abc") == "cba" and asked == ["presenter.segment"]
    finally:
        wording.set_translation(None)
    assert _("abc") == "abc"


def test_importing_the_presenter_imports_nothing_heavy():
    heavy = ("torch", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom", "slicer", "vtk", "vtkmodules", "jsonschema",
             "PySide6", "qt", "trame", "psutil")
    code = ("import sys\n"
            "import HiEndSegLib.presenter, HiEndSegLib.presenter.segment, HiEndSegLib.presenter.models\n"
            "import HiEndSegLib.presenter.setup, HiEndSegLib.presenter.adapt, HiEndSegLib.presenter.adapt_state\n"
            f"print([name for name in {heavy} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
