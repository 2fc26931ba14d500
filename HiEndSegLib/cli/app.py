"""`hiendseg app`: the browser face on this computer."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import InputError
from .console import say
from .interrupt import Interrupt


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Serve until Ctrl-C; the exit code. Raises HiEndSegError."""
    from HiEndSegWeb.serve import serve

    opened: tuple[str, ...] = ()
    if options.file:
        path = Path(options.file)
        if not path.exists():
            raise InputError(f"{path} does not exist; check the name.")
        opened = ("--file", str(path.resolve()))
    return serve(host=options.host, port=options.port, browser=not options.no_browser, opened=opened, say=say)
