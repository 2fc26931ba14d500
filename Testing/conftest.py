"""Desktop tests change PySide6 for good and need a process of their own: `test_desktop.py` starts it.

Tests of the page keep an event loop running in theirs: `test_web.py`."""

import os

collect_ignore = ["desktop", "web"]

#: Files that take minutes each. They begin first, so that none of them is left over when all others are done.
LONG = ("test_web.py", "test_desktop.py")

if os.environ.get("PYTEST_XDIST_WORKER"):
    # Before anything imports torch: files run side by side and would otherwise take all cores each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)
