"""`hiendseg app` with probed sessions: prints the address, ends with SIGTERM. Arguments go to the first session."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from HiEndSegWeb.lobby import Lobby


async def main() -> None:
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    lobby = Lobby(opened=tuple(sys.argv[1:]), temporary=os.environ.get("HIENDSEG_TEST_FOLDER"),
                  command=(sys.executable, str(Path(__file__).with_name("probed_session.py")), "--alone", "3"))
    await lobby.start()
    print(lobby.address, flush=True)
    await ended.wait()
    await lobby.close()


if __name__ == "__main__":
    asyncio.run(main())
