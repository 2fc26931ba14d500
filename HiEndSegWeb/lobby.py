"""What listens: lets in whoever has the token, and gives every tab a session of its own.

A session is a process (session.py) with its own port, key, scene and folder: tabs cannot see each other's data, and one
that dies takes nobody along. The first one is made ready at once, before a browser asks for it. Knows neither trame nor
Slicer, so it is up in a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from HiEndSegLib.engine.folder import PrivateFolder, sweep
from HiEndSegLib.errors import HiEndSegError

from .guard import allowed_host, cookie_name, elsewhere, headers_for, knows, refuse

KEY_VARIABLE = "HIENDSEG_SESSION_KEY"
#: Sessions at a time; each takes about 0.6 GB, more while it computes.
MOST_SESSIONS = 4
#: Seconds a session may take to listen, and to end when asked.
START, STOP = 60.0, 3.0
#: Seconds a browser waits for its session before it is shown that one is being made, and asks again.
PATIENCE = 2.0
#: Goes on by itself and not by a redirect: a browser that followed a link from elsewhere sends no cookie on those.
WAITING = """<!doctype html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">
<meta http-equiv="refresh" content="{seconds};url=/"><title>HiEndSeg</title></head>
<body style="background: #212121; color: #eee; font: 16px sans-serif; padding: 3em">
<p>HiEndSeg is starting&hellip;</p></body></html>"""
#: Characters of a session's stderr that are kept for a sentence.
TAIL = 4000


@dataclass
class Tab:
    """A session's process. key: opens it, once. arguments: what it was started with."""

    process: asyncio.subprocess.Process
    folder: PrivateFolder
    key: str
    port: int
    arguments: tuple[str, ...] = ()


class Lobby:
    """host, port: where to listen (port 0: any free one). opened: arguments for the first session, such as a file."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, opened: tuple[str, ...] = (),
                 most: int = MOST_SESSIONS, temporary: str | os.PathLike | None = None,
                 command: tuple[str, ...] = (sys.executable, "-m", "HiEndSegWeb.session")):
        self.host, self.port, self.most = host, port, most
        self.token = secrets.token_urlsafe(18)
        self._entered = secrets.token_urlsafe(24)           # what the cookie of somebody who came in holds
        self._opened, self._command = tuple(opened), tuple(command)
        self._temporary = temporary
        self._tabs: list[Tab] = []
        self._ready: asyncio.Task | None = None
        self._tasks: set[asyncio.Task] = set()
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        """Where a browser on this computer comes in, token included."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/?token={self.token}"

    @property
    def tabs(self) -> list[Tab]:
        """Sessions that are in use."""
        self._tabs = [tab for tab in self._tabs if tab.process.returncode is None]
        return list(self._tabs)

    async def start(self) -> None:
        """Listen, and make the first session ready in the background."""
        sweep(self._temporary)                              # what a killed one left behind
        app = web.Application()
        app.router.add_get("/", self._enter)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._prepare()

    async def close(self) -> None:
        """End all sessions and stop listening."""
        if self._ready is not None:
            self._ready.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                self._tabs.append(await self._ready)
        for task in list(self._tasks):
            if task.get_name() != "watch":
                task.cancel()
        await asyncio.gather(*(self._end(tab) for tab in self._tabs))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP)
        if self._runner is not None:
            await self._runner.cleanup()

    # ------------------------------------------------------------------------------------------ coming in

    async def _enter(self, request: web.Request) -> web.StreamResponse:
        if not allowed_host(request, self.host):
            return refuse(request, "This address is not served here.")
        cookie = cookie_name(request)
        if knows(request.query.get("token"), self.token):
            self.token = secrets.token_urlsafe(18)          # it is good for one browser
            answer = self._wait(request, 0)
            answer.set_cookie(cookie, self._entered, httponly=True, samesite="Strict", path="/")
            return answer
        if not knows(request.cookies.get(cookie), self._entered):
            return refuse(request, "Open HiEndSeg by the address that it printed in the terminal; it works for one "
                                   "browser, once. To open it in another one, start HiEndSeg again.")
        if len(self.tabs) >= self.most:
            return refuse(request, f"{self.most} pages are open already, and each takes memory of its own; close one, "
                                   "wait half a minute, and reload this one.", 503)
        ready = self._prepare()
        await asyncio.wait([ready], timeout=PATIENCE)
        if not ready.done():
            return self._wait(request, 0.2)
        try:
            tab = ready.result()
        except (OSError, RuntimeError, HiEndSegError, asyncio.TimeoutError) as error:
            self._ready = None
            return refuse(request, f"The page could not be started ({error}).", 500)
        self._ready = None
        if tab.process.returncode is not None:              # it died while it waited
            self._opened = tab.arguments
            return self._wait(request, 0.2)
        self._tabs.append(tab)
        host = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        return elsewhere(request, f"http://{host}:{tab.port}/?key={tab.key}")

    @staticmethod
    def _wait(request: web.Request, seconds: float) -> web.Response:
        """A page that says so and asks again."""
        return web.Response(text=WAITING.replace("{seconds}", str(seconds)), content_type="text/html",
                            headers=headers_for(request))

    def _prepare(self) -> asyncio.Task:
        """The task that makes the next session; started if it is not."""
        if self._ready is None:
            arguments, self._opened = self._opened, ()
            self._ready = asyncio.get_running_loop().create_task(self._spawn(arguments))
        return self._ready

    async def _spawn(self, arguments: tuple[str, ...]) -> Tab:
        folder = PrivateFolder(self._temporary)
        key = secrets.token_urlsafe(24)
        process = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, "--host", self.host, "--folder", str(folder.path), "--home", str(self.port), *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={**os.environ, KEY_VARIABLE: key})
            watching = self._watch(process, folder)
            line = await asyncio.wait_for(process.stdout.readline(), START)
            try:
                port = int(json.loads(line)["port"])
            except (ValueError, KeyError, TypeError):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                lines = [line for line in (await watching).splitlines() if line.strip()]
                words = lines[-1][:300] if lines else f"exit code {process.returncode}"
                raise RuntimeError(f"its process ended: {words}") from None
            self._keep(self._drain(process.stdout), "drain")
            return Tab(process, folder, key, port, arguments)
        except BaseException:
            if process is not None and process.returncode is None:
                process.kill()
            folder.remove()
            raise

    # ------------------------------------------------------------------------------------------ going away

    def _watch(self, process: Any, folder: PrivateFolder) -> asyncio.Task:
        """Ends with the process, and then holds the last it wrote to stderr."""
        async def watch() -> str:
            tail = ""
            while chunk := await process.stderr.read(4096):
                tail = (tail + chunk.decode("utf-8", "replace"))[-TAIL:]
            await process.wait()
            folder.remove()                                 # uploads of a session that did not end by itself
            return tail

        return self._keep(watch(), "watch")

    @staticmethod
    async def _drain(stream: Any) -> None:
        while await stream.read(4096):
            pass

    def _keep(self, work: Any, name: str) -> asyncio.Task:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    async def _end(tab: Tab) -> None:
        if tab.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                tab.process.terminate()
            try:
                await asyncio.wait_for(tab.process.wait(), STOP)
            except asyncio.TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    tab.process.kill()
                await tab.process.wait()
        tab.folder.remove()
