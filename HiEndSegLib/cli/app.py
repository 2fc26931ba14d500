"""`hiendseg app`: the browser face on this computer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError, OptionError
from .console import say
from .interrupt import Interrupt


def run(options: argparse.Namespace, interrupt: Interrupt) -> int:
    """Serve until Ctrl-C; the exit code. Raises HiEndSegError."""
    serve = page_server()
    opened: tuple[str, ...] = ()
    if options.file:
        path = Path(options.file)
        if not path.exists():
            raise InputError(f"{path} does not exist; check the name.")
        opened = ("--file", str(path.resolve()))
    return serve(host=options.host, port=options.port, browser=not options.no_browser, opened=opened, say=say)


def page_server() -> Callable[..., int]:
    """`HiEndSegWeb.serve.serve`. Raises OptionError where that part of HiEndSeg is not installed."""
    try:
        from HiEndSegWeb.serve import serve
    except ModuleNotFoundError as error:
        raise OptionError(f"The page is not installed here ({error.name} is missing); run "
                          "'pip install -e \".[web]\"' in HiEndSeg's folder.") from None
    return serve
