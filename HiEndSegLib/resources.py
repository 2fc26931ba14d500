"""Where the files that ship beside the code are, in each of the three ways HiEndSeg is installed.

- Source tree and desktop Slicer: `Resources/` is a sibling of `HiEndSegLib/`.
- Wheel: the same folder travels inside the package as `HiEndSegLib/_resources/` (see `setup.py`).
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(relative: str) -> Path:
    """Path of a shipped file or folder, e.g. `resource("Models")`.

    When it is in neither place the path in the source layout is returned, so that a message can name it.
    """
    candidates = (_PACKAGE.parent / "Resources" / relative, _PACKAGE / "_resources" / relative)
    return next((path for path in candidates if path.exists()), candidates[0])
