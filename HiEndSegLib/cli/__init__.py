"""The command line `hiendseg`. Importing it imports neither torch nor a file reader.

Reading order: `command` (arguments, exit codes), `batch` (which case becomes which file, what is finished already),
`segment` (the loop over cases), `adapt_labels` (what label values mean) and `adapt`, then the small ones: `models`,
`info`, `doctor`, `demo`.
"""

from __future__ import annotations

from .command import main

__all__ = ["main"]
