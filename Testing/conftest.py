"""Desktop tests change PySide6 for good and need a process of their own: `test_desktop.py` starts it.

Tests of the page keep an event loop running in theirs: `test_web.py`."""

collect_ignore = ["desktop", "web"]
