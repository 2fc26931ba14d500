"""Runs `Testing/web`, the tests of the page in headless Chromium, in a process of their own (about two minutes)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_in_a_browser():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "Testing/web"],
                          cwd=ROOT, env=dict(os.environ), encoding="utf-8", errors="replace", stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=1800)
    print(done.stdout[-3000:])
    assert done.returncode == 0, f"Testing/web ended with {done.returncode}:\n{done.stdout[-20000:]}"
