"""Log lines without what could point to a patient: paths and the names of volumes."""

from __future__ import annotations

import re
from typing import Iterable

#: A POSIX path of two or more parts, a Windows path, a UNC path. In quotes a path may hold spaces.
_QUOTED = re.compile(r"""(["'])(?:[A-Za-z]:[\\/]|\\\\|/)[^"'\n]*\1""")
_BARE = re.compile(r"""(?:(?<![\w.:/<-])/[^\s/'":,;)\]]+/|\b[A-Za-z]:[\\/]|\\\\)[^\s'":,;)\]]*""")
_CODE = re.compile(r"([\w.+-]+\.py)\W*$")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with every path as `<path>` (Python files keep their name) and every secret as `<name>`."""
    for secret in sorted((s for s in secrets if len(s) > 1), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "<name>", text)
    return _BARE.sub(_shorten, _QUOTED.sub(_shorten, text))


def _shorten(match: re.Match) -> str:
    code = _CODE.search(match.group())
    return f"<path>/{code.group(1)}" if code else "<path>"
