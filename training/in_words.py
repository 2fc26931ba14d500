"""How a command that measures run by run ends: 0, or a sentence and a number for whoever started it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps

from HiEndSegLib.errors import HiEndSegError


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
