"""What a command of this folder says for itself: how it ends, and a folder that cannot be made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from HiEndSegLib.errors import HiEndSegError, OutputError


def in_words(main: Callable[..., int]) -> Callable[..., int]:
    """For a `main` whose finished runs are kept. 1: an expected error, as its sentence. 130: Ctrl-C."""
    @wraps(main)
    def said(*arguments, **keywords) -> int:
        try:
            return main(*arguments, **keywords)
        except HiEndSegError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nStopped. What is finished is kept; the same command goes on from there.", file=sys.stderr)
            return 130
    return said


def make_folder(folder: Path) -> None:
    """Create a folder; OutputError in words where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made ({error.strerror or error}); choose another one.") \
            from None
