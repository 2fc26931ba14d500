"""Runs `Testing/desktop`, the tests of the Slicer module on a stand-in, in a process of their own (about a minute)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_module_on_the_stand_in():
    for name, package in (("PySide6", "PySide6-Essentials"), ("slicer", "slicer-core")):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{package} is not installed: no desktop to stand in")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "Testing/desktop"],
                          cwd=ROOT, env={**os.environ, "QT_QPA_PLATFORM": "offscreen"}, encoding="utf-8",
                          errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    print(done.stdout[-3000:])
    assert done.returncode == 0, f"Testing/desktop ended with {done.returncode}:\n{done.stdout[-20000:]}"
