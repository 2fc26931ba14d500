"""Desktop tests change PySide6 for good and need a process of their own: `test_desktop.py` starts it."""

collect_ignore = ["desktop"]
