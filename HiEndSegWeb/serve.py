"""`hiendseg app`: serve the page, print its address, open a browser when there is one, end with Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import webbrowser

from HiEndSegLib.errors import EngineError, OptionError

from .guard import LOOPBACK

_MISSING = ("The page needs packages that are not installed ({name}); run 'pip install -e \".[web]\"' in HiEndSeg's "
            "folder.")


def serve(*, host: str, port: int, browser: bool, opened: tuple[str, ...] = (), say=print) -> int:
    """Serve until Ctrl-C; the exit code. Raises OptionError where packages are missing, EngineError where the port is
    taken."""
    try:
        from .lobby import Lobby
    except ModuleNotFoundError as error:
        raise OptionError(_MISSING.format(name=error.name)) from None
    import importlib.util

    for name in ("trame_slicer", "trame", "slicer"):
        if importlib.util.find_spec(name) is None:
            raise OptionError(_MISSING.format(name=name))
    if host not in LOOPBACK:
        say(f"Warning: the page is offered to every computer that can reach {host}, without encryption. Whoever has "
            "the address below can use it and see its images; do this only in a network that you trust. From another "
            "computer, put this one's name in the place of 127.0.0.1.")
    try:
        return asyncio.run(_serve(Lobby(host=host, port=port, opened=opened), browser, say))
    except OSError as error:
        raise EngineError(f"The page cannot be served on {host} port {port} ({error.strerror or error}); choose "
                          "another port with --port.") from None


async def _serve(lobby, browser: bool, say) -> int:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in ("SIGINT", "SIGTERM"):
        try:
            loop.add_signal_handler(getattr(signal, name), ended.set)
        except (NotImplementedError, AttributeError, ValueError):      # Windows: Ctrl-C arrives as KeyboardInterrupt
            pass
    await lobby.start()
    try:
        say(f"HiEndSeg is at {lobby.address}")
        say("The address works for one browser; Ctrl-C ends it. For research use; not a medical device.")
        if browser and _has_browser():
            webbrowser.open(lobby.address)
        await ended.wait()
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    finally:
        await lobby.close()
    return 0


def _has_browser() -> bool:
    """Whether there is a screen to open one on; a text browser in the terminal is not wanted."""
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True
